"""Charts of what the scores say of the records, and of their lengths: `Facts` in, charts out.

All draw the same sampled records from one data source: a record chosen in one chart stands out in all of them. What is
said of all records (shares, densities, medians) is reckoned from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, GroupFilter, IntersectionFilter

from cathpc.data.density import Density
from cathpc.data.filters import HIGHER_IS_BETTER
from cathpc.report import charts, density, plots_lengths
from cathpc.report.charts import Chart, Key
from cathpc.report.figures_scores import LENGTH_RULES, SCORE_AXES, of_plane, regions
from cathpc.report.gather import Facts
from cathpc.report.html import number
from cathpc.report.measures import flags, floats, of_component, ok, populations, quality_cuts
from cathpc.report.plots_population import REGIONS, TICKS, clip, extent, logit
from cathpc.report.sampling import sample
from cathpc.report.style import BLUE, COMPONENT_COLOURS, GREY, VERMILION, in_order

MARKERS = {
    "general": "circle", "reasoning": "triangle", "health": "square", "science": "inverted_triangle",
    "roleplay": "diamond", "refusal": "x",
}  # fmt: skip
_MARKS = {"circle": "dot", "x": "cross"}
CELLS = 72
"""Cells along each axis of the ground that counts all records."""
TOLD = [
    ("", "@words"), ("record", "@id"), ("source", "@source (@component)"), ("verdict", "@rule"),
    ("refusal", "@refusal{0.0000}"), ("contrast", "@contrast{0.000}"), ("perplexity", "@perplexity{0.00}"),
    ("answer", "@tokens{0,0} tokens"), ("thought steps", "@steps"),
]  # fmt: skip


def records(facts: Facts) -> ColumnDataSource:
    """The sampled records as the charts' common source, which the page's script reads too."""
    rows = facts.sampled
    quality = facts.config("select", "select")["quality"]
    refusal = floats(rows["refusal"])
    rule = [rule.replace("_", " ") if rule else "kept" for rule in rows["rule"].to_pylist()]
    return ColumnDataSource(
        name=charts.SOURCE,
        tags=[charts.SOURCE],
        data={
            "id": rows["id"].to_pylist(),
            "words": [facts.words.get(id, "") for id in rows["id"].to_pylist()],
            "source": rows["source"].to_pylist(),
            "component": rows["component"].to_pylist(),
            "rule": rule,
            "x": logit(clip(refusal)).astype("f4"),
            "y": floats(rows[quality]).astype("f4"),
            **{name: floats(rows[name]).astype("f4") for name in ("refusal", "contrast", "perplexity", "diagnosis")},
            "tokens": floats(rows["answer_tokens"]).astype("f4"),
            **{name: floats(rows[name]).astype("f4") for name in ("steps", "correlatives", "value", "threshold")},
        },
    )


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
    _contours(plot, of_plane(points, quality), quality)
    if limit is not None:
        charts.cut(plot, float(logit(clip([limit]))[0]), "height")
    for name, value in cuts.items():
        charts.cut(plot, value, "width", colour=COMPONENT_COLOURS.get(name, GREY))
    charts.hover(plot, TOLD, found)
    every = "all" if drawn == points.num_rows else f"{drawn:,} of"
    result = {
        "population": Chart(
            [("", plot)],
            keys,
            f"Drawn are {every} {points.num_rows:,} scored records"
            + ("" if every == "all" else ", as many of each component, chosen by a hash of their ids; the shaded ground "
               "counts all of them")
            + f". The contours hold {regions()} of all; the dashed vertical line is the refusal cut, the horizontal ones "
            "are the components' cuts for quality. Point at a record to see it, choose it to have it explained; the "
            "names switch their records off and on.",
            wide=True,
        )
    }  # fmt: skip
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
    small = height < 300
    plot = charts.canvas(
        height, x="refusal score (logit scale)", y=SCORE_AXES[quality], zoom="both", tap=True,
        y_axis_type="linear" if higher else "log", **options,
    )  # fmt: skip
    wanted = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999) if not small else (0.001, 0.01, 0.1, 0.5, 0.9, 0.99)
    charts.ticks(plot.xaxis, {float(logit(np.array(t))): f"{t:g}" for t in TICKS if t in wanted})
    if higher:
        charts.numbers(plot.yaxis, "0.[00]")
    else:
        charts.decades(plot.yaxis, *sorted((plot.y_range.start, plot.y_range.end)))
    return plot


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
                    "x", "y", source=source, view=view, marker=marker, size=size, name=label,
                    nonselection_alpha=0.12, **look,
                )  # fmt: skip
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
    view = pixels.view(np.uint8).reshape(CELLS, CELLS, 4)
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
    paths = [path for level in levels for path in maker.lines(level)]
    tags = ["ink"] if colour == charts.INK else []
    plot.multi_line(
        [path[:, 0].astype("f4") for path in paths], [path[:, 1].astype("f4") for path in paths], line_color=colour,
        line_width=width, tags=tags,
    )  # fmt: skip


def lengths(facts: Facts) -> dict[str, Chart]:
    """Answer lengths of the components that have a length of their own to exceed."""
    found = {}
    for component, rule in LENGTH_RULES.items():
        every = of_component(facts.scored, component)
        rows = every.filter(pc.is_valid(every["answer_tokens"]))
        if not rows.num_rows:
            continue
        threshold = facts.config("select", "select")[rule]
        tokens, alive = np.maximum(floats(rows["answer_tokens"]), 1), flags(rows["kept"])
        edges, step = plots_lengths.edges_of(tokens, threshold)
        kept, _ = np.histogram(tokens[alive], edges)
        dropped, _ = np.histogram(tokens[~alive], edges)
        plot = charts.canvas(
            260, x="answer length in tokens", y="records", x_axis_type="log",
            x_range=charts.span((float(edges[0]), float(edges[-1]))), zoom="width",
        )  # fmt: skip
        key = f"length-{component}"
        keys, drawn = [], []
        base = np.zeros_like(kept)
        for name, counts, look in (
            ("kept", kept, {"fill_color": BLUE, "line_color": None}),
            ("dropped", dropped, {"fill_color": VERMILION, "fill_alpha": 0.3, "line_color": VERMILION,
                                  "hatch_pattern": "/", "hatch_color": VERMILION, "hatch_alpha": 0.7}),
        ):  # fmt: skip
            some = counts > 0
            data = charts.source(
                left=edges[:-1][some], right=edges[1:][some], bottom=base[some], top=(base + counts)[some],
                count=counts[some], first=np.ceil(edges[:-1][some]), last=np.floor(edges[1:][some]),
                part=[name] * int(some.sum()),
            )  # fmt: skip
            drawn.append(plot.quad("left", "right", "top", "bottom", source=data, name=f"{key}:{name}", **look))
            mark = "bar" if name == "kept" else "hatch"
            keys.append(Key(f"{name} ({int(counts.sum()):,})", look["fill_color"], mark, f"{key}:{name}"))
            base = base + counts
        charts.hover(plot, [("tokens", "@first{0,0} to @last{0,0}"), ("@part", "@count{0,0}")], drawn)
        if threshold:
            charts.cut(plot, threshold + 0.5, "height")
            keys.append(Key(f"must exceed {threshold:,}", charts.INK, "dash"))
        curve = density.line(np.log(tokens))
        if curve is not None:
            height = curve.height * tokens.size * np.log(step)
            at = np.exp(curve.at)
            plot.line(at.astype("f4"), height.astype("f4"), line_color=charts.INK, line_width=2, tags=["ink"])
            plot.scatter([float(np.exp(curve.peak))], [float(height.max())], marker="inverted_triangle", size=11,
                         color=charts.INK, tags=["ink"])  # fmt: skip
            keys.append(Key(f"density, peak at {np.exp(curve.peak):,.0f}", charts.INK, "line"))
        plot.y_range.start = 0
        charts.decades(plot.xaxis, float(edges[0]), float(edges[-1]), most=6)
        charts.numbers(plot.yaxis)
        found[key] = Chart([("", plot)], keys)
    return found


def scores_by_length(facts: Facts, source: ColumnDataSource) -> dict[str, Chart]:
    """Contrast and perplexity against the answer's length by component, the contrast of held-out ones by generator."""
    found = {}
    for score in SCORE_AXES:
        good = pc.and_kleene(pc.is_finite(facts.scored[score]), pc.greater(facts.scored["answer_tokens"], 0))
        rows = facts.scored.filter(good)
        if rows.num_rows:
            found[f"score-length-{score}"] = _by_length(rows, "component", score, source)
    held = facts.answers_heldout.filter(pc.is_finite(facts.answers_heldout["contrast"]))
    if held.num_rows:
        shown = sample(held, max(facts.sampled.num_rows, 1))
        ids = shown["id"].to_pylist()
        made = ColumnDataSource(
            tags=[charts.SOURCE],
            data={
                "id": ids, "words": [facts.words.get(id, "") for id in ids], "generator": shown["generator"].to_pylist(),
                "component": shown["component"].to_pylist(), "contrast": floats(shown["contrast"]).astype("f4"),
                "perplexity": floats(shown["perplexity"]).astype("f4"),
                "tokens": floats(shown["answer_tokens"]).astype("f4"),
            },
        )  # fmt: skip
        found["score-length-contrast-generator"] = _by_length(held, "generator", "contrast", made)
    return found


def _by_length(rows: pa.Table, group: str, score: str, source: ColumnDataSource) -> Chart:
    names = in_order(rows[group].unique().to_pylist())
    tokens, values = floats(rows["answer_tokens"]), floats(rows[score])
    overall = plots_lengths.binned(tokens, values) if len(names) > 1 else None
    low, high = extent(values, 0.01)
    higher = HIGHER_IS_BETTER[score]
    pad = 0.05 * (high - low) or 1.0
    y_range = charts.span((low - pad, high + pad) if higher else (low / 1.15, high * 1.15))
    first, last = extent(tokens)
    x_range = charts.span((max(first, 1) / 1.2, max(last, 10) * 1.2))
    panels = []
    for name in names:
        mine = rows.filter(pc.equal(rows[group], name))
        colour = COMPONENT_COLOURS.get(name, BLUE)
        plot = charts.canvas(
            230, x="answer length in tokens", y=SCORE_AXES[score], zoom="both", tap=True, x_axis_type="log",
            y_axis_type="linear" if higher else "log", x_range=x_range, y_range=y_range,
        )  # fmt: skip
        band = plots_lengths.binned(floats(mine["answer_tokens"]), floats(mine[score]))
        view = CDSView(filter=GroupFilter(column_name=group, group=name))
        points = plot.scatter(
            "tokens", score, source=source, view=view, size=5, fill_color=GREY if band else colour, line_color=None,
            fill_alpha=0.4, nonselection_alpha=0.08, selection_fill_alpha=1.0, selection_fill_color=VERMILION,
        )  # fmt: skip
        if overall is not None:
            plot.line(overall[0], overall[1][:, 1], line_color=charts.INK, line_dash="dashed", tags=["ink"])
        if band is not None:
            at, (lower, middle, upper) = band[0], band[1].T
            plot.varea(at, lower, upper, fill_color=colour, fill_alpha=0.3)
            plot.line(at, middle, line_color=colour, line_width=2.5)
            plot.scatter(at, middle, size=5, color=colour)
        told = TOLD if group == "component" else [row for row in TOLD if row[0] not in ("source", "verdict", "refusal",
                                                                                         "thought steps")]  # fmt: skip
        charts.hover(plot, told, [points])
        charts.decades(plot.xaxis, x_range.start, x_range.end, most=5)
        if higher:
            charts.numbers(plot.yaxis, "0.[00]")
        else:
            charts.decades(plot.yaxis, y_range.start, y_range.end, most=6)
        tie = plots_lengths.rank_correlation(mine["answer_tokens"], mine[score])
        told_tie = "" if tie is None else f", ρ = {tie:.2f}".replace("-", "−")
        panels.append((f"{name}: {number(mine.num_rows)} record{'s' if mine.num_rows > 1 else ''}{told_tie}", plot))
    return Chart(panels)
