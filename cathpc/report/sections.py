"""The page as plain data: `Facts` and pictures in, what `report.html.j2` shows out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cathpc import __version__
from cathpc.progress import duration
from cathpc.report import data_part, model_part, records_part
from cathpc.report.charts import Chart
from cathpc.report.figures_training import milestones
from cathpc.report.gather import Facts
from cathpc.report.html import number, percent
from cathpc.report.measures import column, fidelity_rows
from cathpc.report.picture import Picture


def page(
    facts: Facts, pictures: Mapping[str, Picture], charts: Mapping[str, Chart], *, name: str, title: str
) -> dict[str, Any]:
    """Everything that `report.html.j2` shows."""
    fingerprint = facts.manifests["train"]["fingerprint"]
    return {
        "title": title,
        "subtitle": f"Experiment {name}, cathpc {__version__}; training fingerprint {fingerprint}",
        "sections": [
            ("glance", "At a glance"),
            ("flow", "Flow of records"),
            ("population", "Population"),
            ("lengths", "Answer lengths"),
            ("models", "Scoring models"),
            ("explain", "Records explained"),
            ("cards", "System cards"),
            ("training", "Training"),
            ("fidelity", "Fidelity"),
            ("showcase", "Showcase"),
            ("time", "Time"),
            ("config", "Configuration"),
            ("cite", "How to cite"),
        ],
        "name": name,
        "figures": pictures,
        "charts": charts,
        "absent": absent(facts),
        "lead": lead(facts),
        "tiles": tiles(facts),
        "flow": data_part.flow(facts),
        "population": data_part.population(facts),
        "lengths": data_part.lengths(facts, pictures),
        "models": data_part.models(facts, pictures),
        "explain": records_part.explain(facts),
        "cards": data_part.cards(facts),
        "training": model_part.training(facts, pictures),
        "fidelity": model_part.fidelity(facts),
        "showcase": records_part.showcase(facts),
        "time": {"text": _time_text(facts)},
        "config": model_part.config(facts),
        "cite": model_part.cite(facts, name),
        "version": __version__,
    }


def absent(facts: Facts) -> list[str]:
    """What a page could show and this run did not write."""
    found = []
    if not facts.words:
        found.append("the text of the records (pull wrote none), so that points have no words")
    if not facts.showcase:
        found.append("a showcase (evaluate wrote no showcase.jsonl)")
    if not milestones(facts):
        found.append("the fidelity of checkpoints on the way (evaluate measured none)")
    if not facts.answers_heldout.num_rows:
        found.append("scored answers to held-out prompts, so that no score is held against the generators")
    if not any(attempt["held"] for attempt in facts.attempts):
        found.append("times in metrics.jsonl, so that there is no figure of goodput")
    return found


def lead(facts: Facts) -> str:
    """The run in a few sentences."""
    pulled, kept = facts.summary("pull")["records"], data_part.kept_rows(facts).num_rows
    text = (
        f"Of {pulled:,} records that were pulled, {kept:,} ({percent(kept / max(pulled, 1))}) passed every filter; "
        f"{facts.card_counts['verified']:,} of them carry a verified system card. "
    )
    losses = _losses(facts)
    if losses["held out"]:
        first, last = losses["held out"]
        steps = facts.steps[-1]["global_step"]
        text += f"Over {steps:,} training steps the held-out loss went from {first:.3f} to {last:.3f} nats a token. "
    overall = _overall(facts)
    if {"base", "tuned"} <= overall.keys():
        text += (
            f"The tuned model obeys its system prompt in {percent(overall['tuned'][0])} of the probes, "
            f"its base in {percent(overall['base'][0])}."
        )
    return text


def tiles(facts: Facts) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    kept = data_part.kept_rows(facts).num_rows
    cards_made = facts.card_counts.total()
    found = [
        _tile("Records kept", number(kept), f"of {number(facts.summary('pull')['records'])} pulled"),
        _tile(
            "Verified cards",
            percent(facts.card_counts["verified"] / max(cards_made, 1)),
            f"{number(facts.card_counts['verified'])} of {number(cards_made)}",
        ),
    ]
    for name, pair in _losses(facts).items():
        if pair:
            found.append(_tile(f"Loss, {name}", f"{pair[1]:.3f}", f"from {pair[0]:.3f} nats a token"))
    for model, (share, low, high) in _overall(facts).items():
        found.append(_tile(f"Fidelity, {model}", percent(share), f"95% interval {percent(low)} to {percent(high)}"))
    seconds = sum(float(m["seconds"]) for m in facts.manifests.values())
    found.append(_tile("Time", duration(seconds), f"{len(facts.manifests)} stages, one after another"))
    return found


def headline(facts: Facts) -> dict[str, float]:
    """The figures at the top of the page as plain numbers, for trackers."""
    found: dict[str, float] = {
        "records/pulled": facts.summary("pull")["records"],
        "records/kept": data_part.kept_rows(facts).num_rows,
        "cards/verified_share": facts.card_counts["verified"] / max(facts.card_counts.total(), 1),
        "seconds": sum(float(manifest["seconds"]) for manifest in facts.manifests.values()),
    }
    found |= {f"fidelity/{model}": share for model, (share, _, _) in _overall(facts).items()}
    return found | {f"loss/{name.replace(' ', '_')}": pair[1] for name, pair in _losses(facts).items() if pair}


def _losses(facts: Facts) -> dict[str, tuple[float, float] | None]:
    """First and last training loss and held-out loss."""
    result: dict[str, tuple[float, float] | None] = {}
    for name, key in (("training", "loss"), ("held out", "eval_loss")):
        _, values = column(facts.steps, key)
        result[name] = (values[0], values[-1]) if values else None
    return result


def _overall(facts: Facts) -> dict[str, tuple[float, float, float]]:
    return fidelity_rows(facts.fidelity)[0][1] if facts.fidelity else {}


def _time_text(facts: Facts) -> str:
    longest = max(facts.manifests, key=lambda name: float(facts.manifests[name]["seconds"]))
    return f"A stage that is up to date is not run again; its time is that of the run that made it. Longest: {longest}."


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}
