"""The data card: what a run's records are, where they came from and what was done to them, as Markdown.

In: the finished folders of the stages (those that are not given or not finished are left out, and the card says so).
Out: text. Time is that of one pass over two columns of the verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cathpc.report.html import number, percent, words
from cathpc.store import MANIFEST, read_json

NAME = "data_card.md"
LIMITS = (
    "Licences are those that the sources' owners state; nobody checked single records against them.",
    "Scores are estimates of models: the refusal classifier errs on both sides (its held-out figures are above), and "
    "the contrast measures likeness to the reference generators' answers, not truth.",
    "Near-duplicates and texts of evaluation sets are found by shared words; a paraphrase is not found.",
    "Answers were written by people and by models, whose errors and manners they carry; nothing was checked for fact.",
    "Records of component health are no medical advice.",
)


def manifests(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Stage -> manifest, of the finished ones among `folders`."""
    found = {name: read_json(folder / MANIFEST) for name, folder in folders.items()}
    return {name: manifest for name, manifest in found.items() if manifest}


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; what cells hold is on one line and cannot end a cell."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(" ".join(number(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def data_card(name: str, folders: Mapping[str, Path]) -> str:
    """The card of the data of run `name`."""
    known = manifests(folders)
    parts = [f"# Data of {name}\n\n{_lead(known)}", _sources(folders, known), _filters(folders, known), _scorers(known)]
    parts += [_cards(known), _form(), hashes(known, ("pull", "score", "select", "cards", "pack"))]
    parts.append("## Known limits\n\n" + "\n".join(f"- {text}" for text in LIMITS))
    return "\n\n".join(part for part in parts if part) + "\n"


def _lead(known: Mapping[str, Any]) -> str:
    text = "Conversations for fine-tuning a chat model that obeys its system prompt, made by cathpc. "
    lines = [f"{stage}: {known[stage]['summary']['line']}." for stage in ("pull", "select", "cards") if stage in known]
    missing = [stage for stage in ("pull", "select", "cards") if stage not in known]
    return text + " ".join(lines) + (f" Not known here: {', '.join(missing)}." if missing else "")


def source_rows(folders: Mapping[str, Path]) -> list[list[Any]]:
    """[source, component, licence, origin, rows read, set aside, records, kept] of each source; [] where pull is not
    known, and None for what is kept where select is not."""
    sources = read_json(folders["pull"] / "sources.json") if "pull" in folders else None
    kept = _kept(folders)
    return [
        [
            key, seen["component"], seen["license"] or "not stated", origin(seen["origin"]), seen["rows"],
            sum(seen["rejected"].values()), seen["kept"],
            None if kept is None or seen["component"] == "refusal" else kept.get(key, 0),
        ]
        for key, seen in (sources or {}).items()
    ]  # fmt: skip


def _kept(folders: Mapping[str, Path]) -> dict[str, int] | None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = folders["select"] / "verdicts.parquet" if "select" in folders else Path()
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=["source", "kept"])
    counts = pc.value_counts(table.filter(table["kept"])["source"])
    return {row["values"]: row["counts"] for row in counts.to_pylist()}


def origin(value: Any) -> str:
    """Where a source came from, in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {part}" for key, part in value.items())
    return str(value)


def _sources(folders: Mapping[str, Path], known: Mapping[str, Any]) -> str:
    rows = source_rows(folders)
    if not rows:
        return ""
    head = ["source", "component", "licence", "origin", "rows", "set aside", "records", "in the mix"]
    text = "## Sources and licences\n\n" + markdown(head, rows)
    reasons = known.get("pull", {}).get("summary", {}).get("reasons", {})
    if reasons:
        told = ", ".join(f"{words(reason)} {count:,}" for reason, count in reasons.items())
        text += (
            f"\n\nRows set aside while reading: {told}. Each is in `rejects.jsonl` of the stage pull with its reason."
        )
    dataset = known.get("pull", {}).get("config", {}).get("dataset", {})
    if sets := dataset.get("decontaminate"):
        listed = ", ".join(sorted(sets)) if isinstance(sets, (Mapping, list)) else str(sets)
        text += f"\n\nText of these evaluation sets was kept out: {listed}."
    return text


def _filters(folders: Mapping[str, Path], known: Mapping[str, Any]) -> str:
    if "select" not in known:
        return ""
    from cathpc.data import filters
    from cathpc.data.config import SelectConfig

    settings, dropped = known["select"]["config"]["select"], known["select"]["summary"].get("dropped", {})
    config = SelectConfig(**settings)
    cuts = (read_json(folders["select"] / "flow.json") or {}).get("cuts", {})
    rows = []
    for rule in filters.NAMES:
        keys = filters.keys(config, rule)
        told = ", ".join(f"{key}: {_value(getattr(config, key))}" for key in keys)
        border = ", ".join(
            f"{name} {number(held[rule])}"
            for name, held in sorted(cuts.items())
            if rule in held and rule != filters.QUOTA
        )
        if told or dropped.get(rule):
            rows.append([words(rule), told or "–", border or "–", dropped.get(rule, 0)])
    text = markdown(["rule", "setting", "threshold by component", "dropped"], rows)
    return (
        "## Filters\n\nIn the order in which they are applied; a record counts to the first rule that drops it.\n\n"
        f"{text}\n\nEvery verdict, with the figure and the threshold, is in `verdicts.parquet` of the stage select."
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {number(most)}" for name, most in sorted(value.items())) or "none"
    return "off" if value is None else number(value)


def _scorers(known: Mapping[str, Any]) -> str:
    rows = []
    for stage in ("reference", "pool", "refusal"):
        if stage in known:
            section = known[stage]["config"].get("refusal" if stage == "refusal" else "gpt", {})
            rows.append([stage, section.get("base", ""), known[stage]["summary"]["line"], known[stage]["fingerprint"]])
    if not rows:
        return ""
    return "## Scoring models\n\n" + markdown(["model", "from", "measured on held-out prompts", "fingerprint"], rows)


def _cards(known: Mapping[str, Any]) -> str:
    if "cards" not in known:
        return ""
    summary = known["cards"]["summary"]
    text = f"## System cards\n\n{summary['line']}."
    if refused := {check: count for check, count in (summary.get("refused_by_check") or {}).items() if count}:
        text += " Written cards refused, by check: " + ", ".join(f"{words(c)} {n:,}" for c, n in refused.items()) + "."
    return text


def _form() -> str:
    from cathpc.record import RECORD_SCHEMA

    fields = ", ".join(f"`{field.name}`" for field in RECORD_SCHEMA)
    return (
        f"## Form\n\nParquet, a row a record: {fields}. `messages` is a list of {{role, content}} with the roles "
        "system, user and assistant; `id` is made of source and messages, and the same on every machine."
    )


def hashes(known: Mapping[str, Any], stages: Sequence[str]) -> str:
    """Fingerprints (of config, inputs and code) and digests (of what came out) of these stages."""
    rows = [[s, f"`{known[s]['fingerprint']}`", f"`{known[s].get('digest', '–')}`"] for s in stages if s in known]
    return "## Hashes\n\n" + markdown(["stage", "fingerprint", "content"], rows) if rows else ""


def share(value: Mapping[str, float]) -> str:
    """A share with its interval: '42% (30% to 51%)'."""
    return f"{percent(value['share'])} ({percent(value['low'])} to {percent(value['high'])})"
