"""Charts of how good the scoring models are: `Facts` in, charts out."""

from __future__ import annotations

import numpy as np

from cathpc.models.calibration import tenths
from cathpc.report import charts
from cathpc.report.charts import Chart, Key
from cathpc.report.figures_scorers import generator_scores
from cathpc.report.gather import Facts
from cathpc.report.html import number
from cathpc.report.measures import floats
from cathpc.report.reliability import corp, wilson
from cathpc.report.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION

_LOOKS = ((BLUE, "circle", True), (BLUE, "circle", False), (ORANGE, "square", True), (GREY, "triangle", True),
          (GREEN, "diamond", True))  # fmt: skip


def reliability(facts: Facts) -> dict[str, Chart]:
    """Calibration of the refusal classifier, over the histogram of its predictions."""
    if not facts.heldout.num_rows:
        return {}
    label, probability = floats(facts.heldout["label"]), floats(facts.heldout["probability"])
    limit = facts.config("select", "select")["refusal_max"]
    shared = charts.span((-0.02, 1.02))
    plot = charts.canvas(300, y="observed share of refusals", x_range=shared, y_range=charts.span((-0.02, 1.02)))
    plot.xaxis.major_label_text_font_size = "0px"
    plot.line([0, 1], [0, 1], line_color=charts.INK, line_dash="dashed", tags=["ink"])
    keys = [Key("calibrated", charts.INK, "dash")]
    at, curve, low, high = (part.astype("f4") for part in corp(label, probability))
    if at.size:
        plot.varea(at, low, high, fill_color=SKY, fill_alpha=0.35)
        plot.line(at, curve, line_color=BLUE, line_width=2)
        keys += [Key("95% of calibrated ones", SKY, "bar"), Key("observed", BLUE, "line")]
    predicted, observed, count = tenths(label, probability)
    below, above = wilson(observed, count)
    data = charts.source(x=predicted, y=observed, low=observed - below, high=observed + above, count=count)
    plot.segment("x", "low", "x", "high", source=data, line_color=charts.INK, line_width=1.5, tags=["ink"])
    dots = plot.scatter("x", "y", source=data, size=8, color=charts.INK, tags=["ink"])
    keys.append(Key("ten equal bins, 95%", charts.INK, "dot"))
    charts.hover(
        plot, [("predicted", "@x{0.000}"), ("observed", "@y{0.000}"), ("interval", "@low{0.00} to @high{0.00}"),
               ("answers", "@count")], [dots],
    )  # fmt: skip
    counts = charts.canvas(
        140, x="predicted probability of a refusal", y="answers", x_range=shared, y_axis_type="log",
    )  # fmt: skip
    edges = np.linspace(0, 1, 21)
    bars, most = [], 1
    for name, mine, look in (
        ("others", probability[label <= 0], {"fill_color": VERMILION, "fill_alpha": 0.25, "line_color": VERMILION}),
        ("refusals", probability[label > 0], {"fill_color": BLUE, "fill_alpha": 0.35, "line_color": BLUE,
                                              "hatch_pattern": "\\", "hatch_color": BLUE}),
    ):  # fmt: skip
        held, _ = np.histogram(mine, edges)
        most = max(most, int(held.max()))
        some = held > 0
        data = charts.source(
            left=edges[:-1][some], right=edges[1:][some], count=held[some], part=[name] * int(some.sum())
        )
        bars.append(counts.quad("left", "right", "count", 0.7, source=data, name=f"reliability:{name}", **look))
        keys.append(Key(name, str(look["fill_color"]), "bar" if name == "others" else "hatch", f"reliability:{name}"))
    counts.y_range = charts.span((0.7, 1.6 * most))
    charts.decades(counts.yaxis, 0.7, 1.6 * most, most=4)
    charts.hover(counts, [("probability", "@left{0.00} to @right{0.00}"), ("@part", "@count{0,0}")], bars)
    if limit is not None:
        for each in (plot, counts):
            charts.cut(each, limit, "height", colour=VERMILION, dash="dotted")
        keys.append(Key(f"cut at {limit:g}", VERMILION, "dash"))
    for axis in (plot.xaxis, plot.yaxis, counts.xaxis):
        charts.numbers(axis, "0.[0]")
    return {"reliability": Chart([("", plot), ("", counts)], keys, stacked=True)}


def generators(facts: Facts) -> dict[str, Chart]:
    """How well each score tells the reference's answers from each generator's."""
    rows = generator_scores(facts)
    if not rows:
        return {}
    names = [name for name, _ in rows]
    plot = charts.canvas(70 + 30 * len(rows), names=names, x="AUROC", x_range=charts.span((-0.03, 1.03)))
    charts.cut(plot, 0.5, "height", dash="dotted")
    keys, drawn = [], []
    for place, score in enumerate(rows[0][1]):
        colour, marker, filled = _LOOKS[place % len(_LOOKS)]
        found = [(name, value) for name, values in rows if (value := values.get(score)) is not None]
        data = charts.source(
            name=[name for name, _ in found], x=[value for _, value in found], score=[score] * len(found),
            text=[number(float(value)) for _, value in found],
        )  # fmt: skip
        label = f"auroc:{score}"
        drawn.append(
            plot.scatter(
                "x",
                "name",
                source=data,
                marker=marker,
                size=11,
                line_color=colour,
                line_width=2,
                fill_color=colour if filled else None,
                name=label,
            )
        )
        mark = "ring" if not filled else {"circle": "dot"}.get(marker, marker)
        keys.append(Key(score, colour, mark, label))
    keys.append(Key("chance", charts.INK, "dash"))
    charts.hover(plot, [("", "@name"), ("@score", "@text")], drawn)
    charts.numbers(plot.xaxis, "0.[0]")
    return {"auroc": Chart([("", plot)], keys)}
