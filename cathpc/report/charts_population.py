"""Charts of the (refusal, quality) plane: `Facts` and the sampled records in, charts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, GroupFilter, IntersectionFilter

from cathpc.data.density import Density
from cathpc.data.filters import HIGHER_IS_BETTER
from cathpc.report import charts
from cathpc.report.charts import Chart, Key
from cathpc.report.charts_scores import TOLD
from cathpc.report.figures_scores import SCORE_AXES, of_plane, regions
from cathpc.report.gather import Facts
from cathpc.report.measures import flags, floats, of_component, ok, populations, quality_cuts
from cathpc.report.plots_population import REGIONS, TICKS, clip, extent, logit
from cathpc.report.style import BLUE, COMPONENT_COLOURS, GREY, in_order

MARKERS = {
    "general": "circle", "reasoning": "triangle", "health": "square", "science": "inverted_triangle",
    "roleplay": "diamond", "refusal": "x",
}  # fmt: skip
_MARKS = {"circle": "dot", "x": "cross"}
FINE = (0.2, 0.8, 0.02, 0.98, 0.05, 0.95, 0.3, 0.7, 0.4, 0.6, 0.002, 0.998, 0.005, 0.995)
"""Ticks of the refusal score where the common ones are few."""
CELLS = 72
"""Cells along each axis of the ground that counts all records."""


def population(facts: Facts, source: ColumnDataSource) -> dict[str, Chart]:
    """The plane of refusal and quality: all components in one, and a panel for each."""
    points = ok(facts.scored, facts)
    if not points.num_rows:
        return {}
    settings, cuts = facts.config("select", "select"), quality_cuts(facts)
    quality, limit = settings["quality"], settings["refusal_max"]
    components = in_order(points["component"].unique().to_pylist())
    shown = flags(pc.is_in(facts.sampled["id"], value_set=points["id"].combine_chunks()))
    drawn = int(shown.sum())
    good = BooleanFilter(booleans=shown.tolist())
    plot = _plane(facts, points, 460, quality, limit)
    _ground(plot, points, quality, drawn)
    found, keys = _marks(plot, source, components, good, "population", settings)
    plane = of_plane(points, quality)
    _contours(plot, plane, quality)
    if limit is not None:
        charts.cut(plot, float(logit(clip([limit]))[0]), "height")
    for name, value in cuts.items():
        charts.cut(plot, value, "width", colour=COMPONENT_COLOURS.get(name, GREY))
    charts.hover(plot, TOLD, found)
    told = f"Drawn are all {drawn:,} scored records. "
    if drawn < points.num_rows:
        told = (
            f"Drawn are {drawn:,} of {points.num_rows:,} scored records, as many of each component, chosen by a hash "
            "of their ids; the shaded ground counts all of them. "
        )
    told += f"The contours hold {regions()} of all. " if plane is not None else ""
    told += "The dashed vertical line is the refusal cut. " if limit is not None else ""
    told += "The dashed horizontal lines are the components' cuts for quality. " if cuts else ""
    told += "Point at a record to see it, choose it to have it explained; the names switch their records off and on."
    result = {"population": Chart([("", plot)], keys, told, wide=True)}
    if len(components) > 1 or populations(facts):
        result["population-components"] = _panels(facts, points, source, components, good)
    return result


def _panels(
    facts: Facts, points: pa.Table, source: ColumnDataSource, components: Sequence[str], good: BooleanFilter
) -> Chart:
    settings, cuts, borders = facts.config("select", "select"), quality_cuts(facts), populations(facts)
    quality, limit = settings["quality"], settings["refusal_max"]
    panels: list[tuple[str, Any]] = []
    for name in components:
        mine = of_component(points, name)
        first = panels[0][1] if panels else None
        plot = _plane(facts, points, 250, quality, limit, like=first)
        found, _ = _marks(plot, source, [name], good, f"component:{name}", settings)
        _contours(plot, of_plane(mine, quality), quality)
        if name in borders:
            plane, level = borders[name]
            if plane.mass.min() < level < plane.mass.max():
                _lines(plot, plane, [level], quality, COMPONENT_COLOURS.get(name, BLUE), 3)
        if limit is not None:
            charts.cut(plot, float(logit(clip([limit]))[0]), "height")
        if name in cuts:
            charts.cut(plot, cuts[name], "width", colour=COMPONENT_COLOURS.get(name, GREY))
        charts.hover(plot, TOLD, found)
        kept = int(pc.sum(mine["kept"]).as_py() or 0)
        panels.append((f"{name}: {kept:,} of {mine.num_rows:,} kept", plot))
    caption = (
        f"The same plane for each component, with its own contours ({regions()} of its records) and cuts: filled marks "
        "were kept, hollow ones dropped. The panels move together."
    )
    if borders:
        caption += (
            " The heavy line borders the main population: the smallest region that holds "
            f"{100 * settings['population']:.0f}% of what the rules before left."
        )
    return Chart(panels, caption=caption)


def _plane(facts: Facts, points: pa.Table, height: int, quality: str, limit: float | None, like: Any = None) -> Any:
    """An empty plane, its ranges those of all records or of the panel `like`."""
    higher = HIGHER_IS_BETTER[quality]
    cuts = quality_cuts(facts)
    options: dict[str, Any] = {}
    if like is not None:
        options = {"x_range": like.x_range, "y_range": like.y_range}
    else:
        seen = logit(clip([*extent(floats(points["refusal"])), *([limit] if limit is not None else [])]))
        low, high = extent(floats(points[quality]), 0.002, list(cuts.values()))
        pad = 0.06 * (high - low) or 1.0
        y_range = (low - pad, high + pad) if higher else (high * 1.1, low / 1.1)  # better is always up
        options = {
            "x_range": charts.span((float(seen.min()) - 0.4, max(float(seen.max()) + 0.4, float(seen.min()) + 2))),
            "y_range": charts.span(y_range),
        }
    plot = charts.canvas(
        height, x="refusal score (logit scale)", y=SCORE_AXES[quality], zoom="both", tap=True,
        y_axis_type="linear" if higher else "log", **options,
    )  # fmt: skip
    charts.ticks(plot.xaxis, _places(plot.x_range.start, plot.x_range.end, 6 if height < 300 else 10))
    if higher:
        charts.numbers(plot.yaxis, "")
    else:
        charts.decades(plot.yaxis, *sorted((plot.y_range.start, plot.y_range.end)))
    return plot


def _places(low: float, high: float, most: int) -> dict[float, str]:
    """Ticks of the logit scale between `low` and `high`, at most about `most`: round shares, coarse ones first."""
    chosen: dict[float, str] = {}
    for share in (*TICKS, *FINE):
        place = float(logit(np.array(share)))
        if low <= place <= high and all(abs(place - other) > (high - low) / most for other in chosen):
            chosen[place] = f"{share:g}"
    return dict(sorted(chosen.items()))


def _marks(
    plot: Any,
    source: ColumnDataSource,
    components: Sequence[str],
    good: BooleanFilter,
    key: str,
    settings: dict[str, Any],
) -> tuple[list[Any], list[Key]]:
    """The points of these components: hollow ones below, filled ones above."""
    found, keys = [], []
    size = 7 if len(source.data["id"]) < 1000 else 5
    kept = GroupFilter(column_name="rule", group="kept")
    for alive in (False, True):
        for name in components:
            colour = COMPONENT_COLOURS.get(name, GREY)
            marker = MARKERS.get(name, "plus")
            label = f"{key}:{name}"
            view = CDSView(
                filter=IntersectionFilter(
                    operands=[good, GroupFilter(column_name="component", group=name), kept if alive else ~kept]
                )
            )
            look: dict[str, Any] = (
                {"fill_color": colour, "fill_alpha": 0.75, "line_color": None}
                if alive
                else {"fill_color": None, "line_color": colour, "line_alpha": 0.5}
            )
            found.append(
                plot.scatter(
                    "x",
                    "y",
                    source=source,
                    view=view,
                    marker=marker,
                    size=size,
                    name=label,
                    nonselection_alpha=0.12,
                    **look,
                )
            )
            if alive:
                keys.append(Key(name, colour, _MARKS.get(marker, marker), label))
    keys.append(Key("hollow: dropped", GREY, "ring"))
    return found, keys


def _ground(plot: Any, points: pa.Table, quality: str, drawn: int) -> None:
    """All records as counts in cells, where not all of them are drawn as points."""
    if drawn >= points.num_rows:
        return
    higher = HIGHER_IS_BETTER[quality]
    x, y = logit(clip(floats(points["refusal"]))), floats(points[quality])
    left, right = plot.x_range.start, plot.x_range.end
    low, high = sorted((plot.y_range.start, plot.y_range.end))
    if not higher:
        y, low, high = np.log(y), np.log(low), np.log(high)
    counts = np.histogram2d(np.clip(y, low, high), x, bins=CELLS, range=((low, high), (left, right)))[0]
    shade = np.log1p(counts) / np.log1p(counts.max())
    red, green, blue = (int(GREY[i : i + 2], 16) for i in (1, 3, 5))
    pixels = np.zeros((CELLS, CELLS), np.uint32)
    view: Any = pixels.view(np.uint8).reshape(CELLS, CELLS, 4)
    view[..., 0], view[..., 1], view[..., 2] = red, green, blue
    view[..., 3] = np.round(150 * shade)
    bottom, top = (low, high) if higher else (float(np.exp(low)), float(np.exp(high)))
    plot.image_rgba(image=[pixels], x=left, y=bottom, dw=right - left, dh=top - bottom, level="image")


def _contours(plot: Any, plane: Density | None, quality: str) -> None:
    if plane is not None:
        _lines(plot, plane, sorted({plane.level(share) for share in REGIONS}), quality, charts.INK, 1.3)


def _lines(plot: Any, plane: Density, levels: Sequence[float], quality: str, colour: str, width: float) -> None:
    from contourpy import contour_generator

    y = plane.y if HIGHER_IS_BETTER[quality] else np.exp(plane.y)
    maker = contour_generator(plane.x, y, plane.mass)
    paths: list[Any] = [path for level in levels for path in maker.lines(level)]
    tags = ["ink"] if colour == charts.INK else []
    plot.multi_line(
        [path[:, 0].astype("f4") for path in paths], [path[:, 1].astype("f4") for path in paths], line_color=colour,
        line_width=width, tags=tags,
    )  # fmt: skip
