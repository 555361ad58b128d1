"""Figures of what the scores say of the records, and of their lengths: `Facts` in, pictures out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.lines import Line2D

from cathpc.data import filters
from cathpc.data.density import Density, plane
from cathpc.data.filters import HIGHER_IS_BETTER
from cathpc.report import density, plots_lengths, plots_population
from cathpc.report.gather import Facts
from cathpc.report.html import number, percent
from cathpc.report.measures import (
    count,
    flags,
    floats,
    heldout_contrast,
    of_component,
    ok,
    populations,
    quality_cuts,
    with_length,
)
from cathpc.report.picture import Picture, canvas, panels, save
from cathpc.report.sampling import sample
from cathpc.report.style import BLUE, COMPONENT_COLOURS, COMPONENT_MARKERS, GREY, in_order, point_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH_RULES = {"reasoning": "reasoning_min_tokens", "health": "health_min_tokens"}
"""Component -> key of `select` that its answers must exceed."""
LENGTH_TITLES = {"reasoning": "Length of chains of thought", "health": "Length of health answers"}
FLAT = 0.05
"""Spread of refusal scores, in log-odds, below which they are all the same."""
SCORE_AXES = {"contrast": "contrast in nats a token", "perplexity": "perplexity (lower is better)"}


def population(facts: Facts, folder: Path, max_points: int) -> dict[str, Picture]:
    """The plane of refusal and quality: all records, and where there are several components a panel for each."""
    points = ok(facts.scored, facts)
    if not points.num_rows:
        return {}
    settings, cuts = facts.config("select", "select"), quality_cuts(facts)
    quality, limit = settings["quality"], settings["refusal_max"]
    axes_of: dict[str, Any] = {"refusal_max": limit, "lower_is_better": not HIGHER_IS_BETTER[quality]}
    figure = canvas("Population", 5.2)
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), wspace=0.02, hspace=0.02)
    axes = figure.add_subplot(grid[1, 0])
    top, right = figure.add_subplot(grid[0, 0], sharex=axes), figure.add_subplot(grid[1, 1], sharey=axes)
    shown = sample(points, max_points)
    components = in_order(points["component"].unique().to_pylist())
    plots_population.population_plane(
        axes, top, right, refusal=floats(shown["refusal"]), quality=floats(shown[quality]),
        component=shown["component"].to_pylist(), kept=flags(shown["kept"]), quality_cuts=cuts,
        quality_name=SCORE_AXES[quality], density=of_plane(points, quality), **axes_of,
    )  # fmt: skip
    look: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    keys = [
        Line2D([], [], marker=COMPONENT_MARKERS.get(name, "P"), color=COMPONENT_COLOURS.get(name, GREY), **look)
        for name in components
    ]
    keys.append(Line2D([], [], marker="o", markerfacecolor="none", color=GREY, **look))
    labels = [f"{name}, cut {number(cuts[name])}".replace("-", "−") if name in cuts else name for name in components]
    figure.legend(keys, [*labels, "dropped"], loc="outside lower left", ncols=2, handletextpad=0.2)
    refused = percent(float(np.mean(floats(points["refusal"]) > limit))) if limit is not None else ""
    cut = f"{refused} lie right of the refusal cut {number(limit)}. " if refused else "No refusal cut. "
    listed = ", ".join(f"{name} {number(value)}" for name, value in sorted(cuts.items())) or "none"
    some = shown.num_rows < points.num_rows
    drawn = f"{shown.num_rows:,} of {points.num_rows:,} records" if some else f"all {points.num_rows:,} scored records"
    alt = (
        f"Scatter plot of {drawn}: refusal score against {quality}, by component. {count(points['kept']):,} were kept. "
        f"{cut}Quality cuts: {listed}."
    )
    caption = (
        f"Shown are {drawn}{', chosen by a hash of their ids' if some else ''}. Filled marks were kept, hollow ones "
        f"dropped by any rule. The contours hold {regions()} of all scored records; the dashed vertical line is the "
        "refusal cut, the horizontal ones are each component's cut for quality. At the rim: each component's marginals."
    )
    pictures = {"population": save(figure, folder, "population", alt, caption, points=True)}
    if len(components) > 1 or populations(facts):
        key = "population-components"
        pictures[key] = _population_panels(facts, points, components, cuts, axes_of, folder, max_points)
    return pictures


def _population_panels(
    facts: Facts,
    points: pa.Table,
    components: Sequence[str],
    cuts: dict[str, float],
    axes_of: dict[str, Any],
    folder: Path,
    max_points: int,
) -> Picture:
    figure = canvas("Population by component", 0.9 + 1.85 * (-(-len(components) // 2)))
    most = max(max_points // len(components), 1)
    settings, borders = facts.config("select", "select"), populations(facts)
    quality = settings["quality"]
    refusal_range = plots_population.extent(floats(points["refusal"]))
    quality_range = plots_population.extent(floats(points[quality]), 0.002, list(cuts.values()))
    said = []
    for axes, name in zip(panels(figure, len(components), 2), components, strict=True):
        mine = of_component(points, name)
        shown = sample(mine, most)
        plots_population.population_panel(
            axes, refusal=floats(shown["refusal"]), quality=floats(shown[quality]), kept=flags(shown["kept"]),
            refusal_range=refusal_range, quality_range=quality_range, quality_cut=cuts.get(name),
            colour=COMPONENT_COLOURS.get(name, BLUE), marker=COMPONENT_MARKERS.get(name, "P"),
            size=point_size(3 * min(most, points.num_rows)), density=of_plane(mine, quality),
            border=borders.get(name), **axes_of,
        )  # fmt: skip
        text = f"{count(mine['kept']):,} of {mine.num_rows:,} kept"
        axes.set_title(f"{name}\n{text}", fontsize=9)
        outside = count(pc.equal(mine["rule"], filters.POPULATION))
        said.append(
            f"{name}: {text}"
            + (f", {outside:,} outside its main population" if name in borders else "")
            + (f", quality cut {number(cuts[name])}" if name in cuts else "")
        )
    figure.supxlabel("refusal score (logit scale)", fontsize=10)
    figure.supylabel(SCORE_AXES[quality], fontsize=10)
    caption = (
        f"The same plane for each component, with its own contours ({regions()} of its records). Shaded: the far "
        f"sides of the cuts. At most {most:,} records of a component are drawn."
    )
    if borders:
        caption += (
            " The heavy line borders its main population: the smallest region that holds "
            f"{percent(settings['population'])} of what the rules before left."
        )
    alt = f"The plane of refusal score and {quality} by component. {'; '.join(said)}."
    return save(figure, folder, "population-components", alt, caption, points=True)


def limited_lengths(facts: Facts) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.bool_], int]]:
    """(component, tokens of its answers, which of them are kept, the length to exceed), where it has answers."""
    for component, rule in LENGTH_RULES.items():
        every = of_component(facts.scored, component)
        rows = every.filter(pc.is_valid(every["answer_tokens"]))
        if rows.num_rows:
            yield component, floats(rows["answer_tokens"]), flags(rows["kept"]), facts.config("select", "select")[rule]


def lengths(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Answer lengths of the components that have a length of their own to exceed."""
    pictures = {}
    for component, tokens, alive, threshold in limited_lengths(facts):
        kept, dropped = tokens[alive], tokens[~alive]
        curve = density.line(np.log(np.maximum(tokens, 1)))
        figure = canvas(LENGTH_TITLES[component], 3.2)
        plots_lengths.answer_lengths(figure.add_subplot(), kept=kept, dropped=dropped, threshold=threshold, curve=curve)
        alt = f"Histogram of answer lengths in {component}: {kept.size:,} kept"
        alt += f" (median {np.median(kept):,.0f} tokens)" if kept.size else ""
        alt += f", {dropped.size:,} dropped."
        caption = ""
        if threshold:
            short = percent(float(np.mean(tokens <= threshold)))
            alt += f" The threshold is {threshold:,} tokens."
            what = "Single-turn answers" if component == "reasoning" else "Answers"
            caption += (
                f"{what} of component {component} must be longer than {threshold:,} tokens of the scoring tokenizer; "
                f"{short} of its answers are not. "
            )
        if curve is not None:
            peak, low, high = (f"{np.exp(value):,.0f}" for value in (curve.peak, *curve.interval))
            alt += f" Their peak is at {peak} tokens."
            caption += (
                "The line is the density of all over the logarithm of the length; "
                f"its peak is at {peak} tokens (95% interval {low} to {high}). "
            )
        if missing := of_component(facts.scored, component).num_rows - tokens.size:
            caption += f"{missing:,} further records have no length, as they could not be scored."
        pictures[f"length-{component}"] = save(figure, folder, f"length-{component}", alt, caption.strip())
    return pictures


def scores_by_length(facts: Facts, folder: Path, max_points: int) -> dict[str, Picture]:
    """Contrast and perplexity against the answer's length by component, the contrast of held-out ones by generator."""
    pictures = {}
    for score in SCORE_AXES:
        rows = with_length(facts, score)
        if rows.num_rows:
            pictures[f"score-length-{score}"] = by_length(rows, "component", score, folder, max_points)
    held = heldout_contrast(facts)
    if held.num_rows:
        pictures["score-length-contrast-generator"] = by_length(held, "generator", "contrast", folder, max_points)
    return pictures


def by_length(rows: pa.Table, group: str, score: str, folder: Path, max_points: int) -> Picture:
    """`score` against `answer_tokens`, a panel for each value of the column `group`."""
    names = in_order(rows[group].unique().to_pylist())
    most = max(max_points // len(names), 1)
    rows_of_panels = -(-len(names) // 2) if len(names) > 1 else 1.5
    figure = canvas(f"{score.capitalize()} by length and {group}", 0.9 + 1.7 * rows_of_panels)
    all_tokens, all_scores = floats(rows["answer_tokens"]), floats(rows[score])
    overall = plots_lengths.binned(all_tokens, all_scores) if len(names) > 1 else None
    tokens_range = plots_population.extent(all_tokens)
    score_range = plots_population.extent(all_scores, 0.01)
    said = []
    for axes, name in zip(panels(figure, len(names), 2), names, strict=True):
        mine = rows.filter(pc.equal(rows[group], name))
        shown = sample(mine, most)
        plots_lengths.score_by_length(
            axes, tokens=floats(shown["answer_tokens"]), score=floats(shown[score]), tokens_range=tokens_range,
            score_range=score_range, band=plots_lengths.binned(floats(mine["answer_tokens"]), floats(mine[score])),
            overall=overall, logarithmic=not HIGHER_IS_BETTER[score], colour=COMPONENT_COLOURS.get(name, BLUE),
            size=point_size(3 * min(most, rows.num_rows)),
        )  # fmt: skip
        axes.set_xlabel("")
        tie = plots_lengths.rank_correlation(mine["answer_tokens"], mine[score])
        told = "" if tie is None else f", ρ = {tie:.2f}".replace("-", "−")
        text = f"{mine.num_rows:,} record{'s' if mine.num_rows > 1 else ''}{told}"
        axes.set_title(f"{name}\n{text}", fontsize=9)
        said.append(f"{name}: {text}")
    figure.supxlabel("answer length in tokens", fontsize=10)
    figure.supylabel(SCORE_AXES[score], fontsize=10)
    dashed = " (dashed: the median of all)" if overall else ""
    caption = (
        f"Medians and quartiles in bins of equally many records by length{dashed}; dots are records, at most {most:,} "
        "in a panel, the outer 1% on the rim. ρ is Spearman's rank correlation with the length: near 0, the score is "
        "no length in disguise."
    )
    alt = f"{score.capitalize()} against answer length, with Spearman's ρ. {'; '.join(said)}."
    key = f"score-length-{score}" + ("" if group == "component" else f"-{group}")
    return save(figure, folder, key, alt, caption, points=True)


def of_plane(rows: pa.Table, quality: str) -> Density | None:
    """The density of the plane; None for few records, or where nearly all scores are alike, which leaves no plane."""
    x, y = filters.plane_axes(quality, floats(rows["refusal"]), floats(rows[quality]))
    if x.std() < FLAT or not (density.spread(x) and density.spread(y)):
        return None
    return plane(x, y)


def regions() -> str:
    """The shares that contours hold, in words."""
    shares = [percent(share) for share in plots_population.REGIONS]
    return ", ".join(shares[:-1]) + f" and {shares[-1]}"
