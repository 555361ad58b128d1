"""Charts of what the scores say of the records, and of their lengths: `Facts` in, charts out.

All draw the same sampled records from one data source: a record chosen in one chart stands out in all of them. What is
said of all records (shares, densities, medians) is reckoned from all.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bokeh.models import CDSView, ColumnDataSource, GroupFilter

from cathpc.data.filters import HIGHER_IS_BETTER
from cathpc.report import charts, density, plots_lengths
from cathpc.report.charts import Chart, Key
from cathpc.report.figures_scores import SCORE_AXES, limited_lengths
from cathpc.report.gather import Facts
from cathpc.report.html import number
from cathpc.report.measures import floats, heldout_contrast, with_length
from cathpc.report.plots_population import clip, extent, logit
from cathpc.report.sampling import sample
from cathpc.report.style import BLUE, COMPONENT_COLOURS, GREY, VERMILION, in_order

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


def lengths(facts: Facts) -> dict[str, Chart]:
    """Answer lengths of the components that have a length of their own to exceed."""
    found = {}
    for component, counted, alive, threshold in limited_lengths(facts):
        tokens = np.maximum(counted, 1)
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
            keys.append(Key(f"{name} ({int(counts.sum()):,})", str(look["fill_color"]), mark, f"{key}:{name}"))
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
        rows = with_length(facts, score)
        if rows.num_rows:
            found[f"score-length-{score}"] = _by_length(rows, "component", score, source)
    held = heldout_contrast(facts)
    if held.num_rows:
        shown = sample(held, max(facts.sampled.num_rows, 1))
        ids = shown["id"].to_pylist()
        made = ColumnDataSource(
            tags=[charts.SOURCE],
            data={
                "id": ids, "words": [facts.words.get(id, "") for id in ids],
                "generator": shown["generator"].to_pylist(),
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
            charts.numbers(plot.yaxis, "")
        else:
            charts.decades(plot.yaxis, y_range.start, y_range.end, most=6)
        tie = plots_lengths.rank_correlation(mine["answer_tokens"], mine[score])
        told_tie = "" if tie is None else f", ρ = {tie:.2f}".replace("-", "−")
        panels.append((f"{name}: {number(mine.num_rows)} record{'s' if mine.num_rows > 1 else ''}{told_tie}", plot))
    return Chart(panels)
