"""Figures of how good the scoring models are: `Facts` in, pictures out."""

from __future__ import annotations

from pathlib import Path

from cathpc.models.calibration import tenths
from cathpc.report import plots
from cathpc.report.gather import Facts
from cathpc.report.html import number
from cathpc.report.measures import floats, generator_rows
from cathpc.report.picture import Picture, canvas, save


def reliability(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Calibration of the refusal classifier on held-out answers."""
    if not facts.heldout.num_rows:
        return {}
    label, probability = floats(facts.heldout["label"]), floats(facts.heldout["probability"])
    summary, limit = facts.summary("refusal"), facts.config("select", "select")["refusal_max"]
    figure = canvas("Calibration of the refusal classifier", 4.6)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1), hspace=0.03)
    axes = figure.add_subplot(grid[0])
    plots.reliability(
        axes, figure.add_subplot(grid[1], sharex=axes), label=label, probability=probability, cutoff=limit
    )
    handles, labels = axes.get_legend_handles_labels()
    more, names = figure.axes[1].get_legend_handles_labels()
    once = {name: handle for handle, name in zip([*handles, *more], [*labels, *names], strict=True)}
    figure.legend(list(once.values()), list(once), loc="outside lower left", ncols=3, columnspacing=1.2)
    points = ", ".join(f"{p:.2f} → {o:.2f} (n={n})" for p, o, n in zip(*tenths(label, probability), strict=True))
    alt = f"Reliability curve on {label.size:,} held-out answers; predicted → observed share of refusals: {points}."
    low, high = summary["bands"]["ece"]
    caption = (
        f"{label.size:,} held-out answers. On the diagonal, a score of 0.3 means that three in ten such answers are "
        "refusals. The line is the isotonic fit; that of a calibrated classifier would lie within the band in 95% of "
        "samples of this size. The dots are ten bins of equally many answers "
        f"with Wilson's intervals, over which the expected calibration error is {number(summary['ece'])} "
        f"(95% interval {number(low)} to {number(high)})."
    )
    return {"reliability": save(figure, folder, "reliability", alt, caption)}


def generator_scores(facts: Facts) -> list[tuple[str, dict[str, float | None]]]:
    """[(generator, {score: AUROC})] of those for which there is one."""
    rows: list[tuple[str, dict[str, float | None]]] = [
        (r.generator, {"contrast": r.contrast, "contrast, equal length": r.equal_length, "perplexity": r.perplexity,
                       "length": r.length})
        for r in generator_rows(facts)
    ]  # fmt: skip
    return [(name, values) for name, values in rows if any(value is not None for value in values.values())]


def generators(facts: Facts, folder: Path) -> dict[str, Picture]:
    """How well each score tells the reference's answers from each generator's."""
    rows = generator_scores(facts)
    if not rows:
        return {}
    figure = canvas("Telling the reference's answers apart", 1.6 + 0.3 * len(rows))
    plots.auroc(figure.add_subplot(), rows)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{score} {number(value)}" for score, value in values.items()) for name, values in rows
    )
    caption = (
        "Chance that an answer of the reference scores better than one of the generator named, to prompts that no "
        "scoring model has seen. At 0.5 a score tells nothing."
    )
    return {"auroc": save(figure, folder, "auroc", f"AUROC by generator. {said}.", caption)}
