"""The report's figures as files: `Facts` in, PNG (for W&B and slides) and SVG (for the page) out.

Drawn with `cathpc.report.plots`; here stand which figures there are, and their captions and alternative texts. A figure
without data is left out. The population plane goes into the page as a PNG, since an SVG grows with its points.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import rc_context
from matplotlib.figure import Figure

from cathpc.data import filters
from cathpc.progress import duration
from cathpc.report import plots
from cathpc.report.gather import Facts, sample
from cathpc.report.html import data_uri, number, percent, words

LENGTH_RULES = {"reasoning": "reasoning_min_tokens", "health": "health_min_tokens"}
"""Component -> key of `select` that its answers must exceed."""
QUALITY_AXES = {"contrast": "contrast (nats a token)", "perplexity": "perplexity (lower is better)"}


@dataclass(frozen=True)
class Picture:
    """A figure on disk, with its words; `uri` is what the page embeds."""

    png: Path
    uri: str
    alt: str
    caption: str
    width: int
    height: int


def draw(facts: Facts, folder: Path, *, max_points: int) -> dict[str, Picture]:
    """Draw every figure for which there is data into `folder`; name -> picture."""
    folder.mkdir(exist_ok=True)
    pictures: dict[str, Picture] = {}
    with rc_context(plots.STYLE):
        pictures["flow"] = _flow(facts, folder)
        points = ok(facts.scored, facts)
        if points.num_rows:
            pictures["population"] = _population(facts, points, folder, max_points)
        for component in LENGTH_RULES:
            rows = facts.scored.filter(pc.equal(facts.scored["component"], component))
            if rows.num_rows:
                pictures[f"length-{component}"] = _lengths(facts, rows, component, folder)
        if facts.heldout.num_rows:
            pictures["reliability"] = _reliability(facts, folder)
        pictures.update(_training(facts, folder))
        if facts.fidelity:
            pictures["fidelity"] = _fidelity(facts, folder)
        pictures["time"] = _time(facts, folder)
    return pictures


def rule_counts(facts: Facts) -> list[tuple[str, int]]:
    """Records dropped by each rule that dropped any, in the order in which the rules are applied."""
    counted = {
        row["values"]: row["counts"] for row in pc.value_counts(facts.scored["rule"]).to_pylist() if row["values"]
    }
    order = [*filters.NAMES, *sorted(counted.keys() - set(filters.NAMES))]
    return [(rule, counted[rule]) for rule in order if rule in counted]


def quality_cuts(facts: Facts) -> dict[str, float]:
    """Threshold of the quality rule by component, as the verdicts hold it."""
    table = facts.scored.filter(pc.equal(facts.scored["rule"], filters.QUALITY))
    return dict(zip(table["component"].to_pylist(), table["threshold"].to_pylist(), strict=True))


def ok(table: pa.Table, facts: Facts) -> pa.Table:
    """The rows that have a refusal score and a finite quality."""
    quality = facts.config("select", "select")["quality"]
    return table.filter(pc.and_kleene(pc.is_valid(table["refusal"]), pc.is_finite(table[quality])))


def _save(figure: Figure, folder: Path, key: str, alt: str, caption: str, *, vector: bool = True) -> Picture:
    kinds = ("png", "svg") if vector else ("png",)
    for kind in kinds:
        temporary = folder / f".{key}.{kind}"
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(temporary, format=kind, dpi=144, metadata=metadata)
        os.replace(temporary, folder / f"{key}.{kind}")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(folder / f"{key}.png", data_uri(folder / f"{key}.{kinds[-1]}"), alt, caption, width, height)


def _flow(facts: Facts, folder: Path) -> Picture:
    drops = rule_counts(facts)
    entered, kept = facts.scored.num_rows, _count(facts.scored["kept"])
    figure = Figure(figsize=(6.2, 1.3 + 0.34 * len(drops)), layout="constrained")
    plots.flow_waterfall(figure.add_subplot(), entered=entered, drops=[(words(r), n) for r, n in drops], kept=kept)
    listed = ", ".join(f"{words(rule)} {count:,}" for rule, count in drops)
    alt = f"Waterfall: {entered:,} records enter selection, {kept:,} are kept. Dropped by rule: {listed or 'none'}."
    caption = "Each record is dropped by the first rule that it breaks; the rules are applied from top to bottom."
    return _save(figure, folder, "flow", alt, caption)


def _population(facts: Facts, table: pa.Table, folder: Path, max_points: int) -> Picture:
    settings = facts.config("select", "select")
    shown, cuts = sample(table, max_points), quality_cuts(facts)
    figure = Figure(figsize=(6.2, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), wspace=0.02, hspace=0.02)
    axes = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=axes)
    right = figure.add_subplot(grid[1, 1], sharey=axes)
    plots.population_plane(
        axes, top, right, refusal=floats(shown["refusal"]), quality=floats(shown[settings["quality"]]),
        component=shown["component"].to_pylist(), kept=np.array(shown["kept"].to_pylist(), dtype=bool),
        refusal_max=settings["refusal_max"], quality_cuts=cuts, quality_name=QUALITY_AXES[settings["quality"]],
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(max(len(labels), 1), 6), markerscale=1.6)
    refused = (
        _share(pc.greater(table["refusal"], settings["refusal_max"])) if settings["refusal_max"] is not None else 0.0
    )
    drawn = (
        f"{shown.num_rows:,} of {table.num_rows:,} records, chosen by a hash of their ids"
        if shown is not table
        else (f"all {table.num_rows:,} scored records")
    )
    alt = (
        f"Scatter plot of {drawn}: refusal score against {settings['quality']}, coloured by component. "
        f"{percent(refused)} lie right of the refusal cut {number(settings['refusal_max'])}. Quality cuts: "
        + (", ".join(f"{name} {number(cut)}" for name, cut in sorted(cuts.items())) or "none") + "."
    )  # fmt: skip
    caption = (
        f"Shown are {drawn}. Filled marks were kept, hollow ones dropped by any rule. Dashed lines are the cuts: the "
        "refusal score's, and each component's own for quality. The curves at the rim are the marginal distributions."
    )
    return _save(figure, folder, "population", alt, caption, vector=False)


def _lengths(facts: Facts, rows: pa.Table, component: str, folder: Path) -> Picture:
    threshold = facts.config("select", "select")[LENGTH_RULES[component]]
    rows = rows.filter(pc.is_valid(rows["answer_tokens"]))
    kept, dropped = (floats(rows.filter(mask)["answer_tokens"]) for mask in (rows["kept"], pc.invert(rows["kept"])))
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.add_subplot(title=f"{component} ({rows.num_rows:,} records)")
    plots.answer_lengths(axes, kept=kept, dropped=dropped, threshold=threshold)
    middle = f"median {np.median(kept):,.0f} tokens" if kept.size else "none"
    alt = (
        f"Histogram of answer lengths in {component}: {kept.size:,} kept ({middle}), {dropped.size:,} dropped; "
        f"the threshold is {threshold} tokens."
    )
    what = "Single-turn answers" if component == "reasoning" else "Answers"
    caption = f"{what} of component {component} must be longer than {threshold:,} tokens of the scoring tokenizer."
    return _save(figure, folder, f"length-{component}", alt, caption)


def _reliability(facts: Facts, folder: Path) -> Picture:
    label, probability = floats(facts.heldout["label"]), floats(facts.heldout["probability"])
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    plots.reliability(figure.add_subplot(title="refusal classifier"), label=label, probability=probability)
    predicted, observed, count = plots.reliability_bins(label, probability)
    points = ", ".join(f"{p:.2f} → {o:.2f} (n={n})" for p, o, n in zip(predicted, observed, count, strict=True))
    alt = f"Reliability curve on {label.size:,} held-out answers; predicted → observed share of refusals: {points}."
    summary = facts.summary("refusal")
    low, high = summary["bands"]["ece"]
    caption = (
        f"{label.size:,} held-out answers in ten bins of equal width; the figures are the records of each bin. "
        "On the diagonal, a score of 0.3 means that three in ten such answers are refusals. The expected calibration "
        f"error, over ten bins of equal mass, is {number(summary['ece'])} (95%: {number(low)} to {number(high)})."
    )
    return _save(figure, folder, "reliability", alt, caption)


def _training(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Loss (with the held-out loss), learning rate, gradient norm and throughput over the global step."""
    wanted = (
        (
            "train-loss",
            "loss in nats a token",
            {"training": "loss", "held out": "eval_loss"},
            "Cross entropy of the answer tokens",
        ),
        ("train-lr", "learning rate", {"learning rate": "lr"}, "Learning rate"),
        ("train-norm", "gradient norm", {"gradient norm": "grad_norm"}, "Norm of the gradient before clipping"),
        ("train-speed", "tokens per second", {"tokens per second": "tokens_per_s"}, "Throughput over all ranks"),
    )
    pictures = {}
    for key, ylabel, columns, what in wanted:
        series = {name: column(facts.steps, source) for name, source in columns.items()}
        series = {name: pair for name, pair in series.items() if pair[0]}
        if not series:
            continue
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        axes = plots.training_curve(figure.add_subplot(), series, ylabel=ylabel, resumed=facts.resumed)
        if key == "train-speed":
            axes.set_ylim(bottom=0)
        said = "; ".join(
            f"{name} from {number(float(values[0]))} at step {at[0]} to {number(float(values[-1]))} at step {at[-1]}"
            for name, (at, values) in series.items()
        )
        stops = " Dotted lines: training was stopped and went on." if facts.resumed else ""
        pictures[key] = _save(figure, folder, key, f"{what}: {said}.", f"{what} over the global step.{stops}")
    return pictures


def _fidelity(facts: Facts, folder: Path) -> Picture:
    rows = fidelity_rows(facts.fidelity)
    figure = Figure(figsize=(6.2, 1.4 + 0.46 * len(rows)), layout="constrained")
    plots.fidelity(figure.add_subplot(), [(words(family), shares) for family, shares in rows])
    said = "; ".join(
        f"{words(family)}: " + ", ".join(f"{model} {percent(share[0])}" for model, share in shares.items())
        for family, shares in rows
    )
    caption = "Share of probes passed, by family of instruction, with 95% bootstrap intervals."
    return _save(figure, folder, "fidelity", f"Share of probes passed: {said}.", caption)


def _time(facts: Facts, folder: Path) -> Picture:
    times = [(name, float(manifest["seconds"])) for name, manifest in facts.manifests.items()]
    figure = Figure(figsize=(6.2, 1.0 + 0.3 * len(times)), layout="constrained")
    plots.stage_times(figure.add_subplot(), times)
    said = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times)
    total = duration(sum(seconds for _, seconds in times))
    return _save(figure, folder, "time", f"Time by stage: {said}.", f"Wall-clock time of each stage; {total} in all.")


def fidelity_rows(fidelity: dict[str, Any]) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
    """[(family, {model: (share, low, high)})], all families together first."""
    models: dict[str, Any] = fidelity["models"]
    families = sorted({family for model in models.values() for family in model["families"]})
    rows = [("all", {name: _interval(model["all"]) for name, model in models.items()})]
    for family in families:
        found = {name: m["families"][family] for name, m in models.items() if family in m["families"]}
        rows.append((family, {name: _interval(value) for name, value in found.items()}))
    return rows


def _interval(value: dict[str, float]) -> tuple[float, float, float]:
    return value["share"], value["low"], value["high"]


def column(steps: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the rows that hold `key`."""
    rows = [row for row in steps if row.get(key) is not None]
    return [row["global_step"] for row in rows], [float(row[key]) for row in rows]


def floats(values: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column as float64; null becomes NaN."""
    return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=float)


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _share(mask: pa.ChunkedArray) -> float:
    return float(pc.mean(mask.cast(pa.float64())).as_py() or 0.0)
