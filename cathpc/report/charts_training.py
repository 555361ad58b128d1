"""Charts of the training, of the time held and of fidelity: `Facts` in, charts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cathpc.progress import duration, time_unit
from cathpc.report import charts
from cathpc.report.charts import Chart, Key
from cathpc.report.figures_training import CURVES, milestones, times
from cathpc.report.gather import Facts
from cathpc.report.html import percent, words
from cathpc.report.measures import column, fidelity_rows
from cathpc.report.plots import TIME_PARTS
from cathpc.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION

COLOURS = (BLUE, VERMILION, GREEN)
MODEL_LOOKS = ((GREY, "square"), (BLUE, "circle"), (GREEN, "triangle"), (ORANGE, "diamond"))
_MARKS = {"square": "square", "circle": "dot", "triangle": "triangle", "diamond": "diamond"}


def training(facts: Facts) -> dict[str, Chart]:
    """The curves of `CURVES` over the global step, with what a resume superseded and where training went on."""
    found: dict[str, Chart] = {}
    shared: Any = None
    rows = {row["global_step"]: row for row in facts.steps}
    for key, ylabel, columns, _, _ in CURVES:
        series = {name: column(facts.steps, source) for name, source in columns.items()}
        if not any(at for at, _ in series.values()):
            continue
        last = max(at[-1] for at, _ in series.values() if at)
        shared = shared or charts.span((-0.02 * last, 1.02 * last + 1))
        plot = charts.canvas(250, x="global step", y=ylabel, zoom="width", x_range=shared)
        keys, drawn = [], []
        for number, (name, (at, values)) in enumerate(series.items()):
            if not at:
                continue
            colour = COLOURS[number % 3]
            data = charts.source(
                x=at, y=values, name=[name] * len(at), attempt=[rows[step]["attempt"] for step in at],
                epoch=[rows[step].get("epoch", "–") for step in at],
            )  # fmt: skip
            label = f"{key}:{name}"
            plot.line("x", "y", source=data, line_color=colour, line_width=2, name=label,
                      line_dash="dashed" if number else "solid")  # fmt: skip
            dots = plot.scatter(
                "x", "y", source=data, size=6 if number or len(at) < 60 else 3, color=colour, name=label
            )
            drawn.append(dots)
            keys.append(Key(name, colour, "dash" if number else "line", label))
        lost = _superseded(facts.superseded, list(columns.values()))
        if lost["x"]:
            label = f"{key}:taken again"
            faint = plot.scatter("x", "y", source=charts.source(**lost), size=5, fill_color=None, line_color=GREY,
                                 line_alpha=0.9, name=label)  # fmt: skip
            drawn.append(faint)
            keys.append(Key("lost by a stop, taken again", GREY, "ring", label))
        for step in facts.resumed:
            charts.cut(plot, step, "height", dash="dotted")
        if facts.resumed:
            keys.append(Key("stopped and went on", charts.INK, "dash"))
        charts.hover(
            plot, [("step", "@x"), ("@name", f"@y{{{_form(key)}}}"), ("epoch", "@epoch"), ("attempt", "@attempt")],
            drawn, mode="mouse",
        )  # fmt: skip
        charts.numbers(plot.xaxis)
        if key == "train-lr":
            charts.exponents(plot.yaxis)
        else:
            charts.numbers(plot.yaxis, "0,0" if key == "train-speed" else "")
        if key == "train-speed":
            plot.y_range.start = 0
        found[key] = Chart([("", plot)], keys)
    return found


def _form(key: str) -> str:
    return {"train-lr": "0.00e+0", "train-speed": "0,0"}.get(key, "0.0000")


def _superseded(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"x": [], "y": [], "name": [], "attempt": [], "epoch": []}
    for row in rows:
        for name in columns:
            if row.get(name) is not None:
                for key, value in (("x", row["global_step"]), ("y", row[name]), ("name", "taken again"),
                                   ("attempt", row["attempt"]), ("epoch", row.get("epoch", "–"))):  # fmt: skip
                    found[key].append(value)
    return found


def goodput(facts: Facts) -> dict[str, Chart]:
    """What each attempt at the training did with the time that it held."""
    rows = times(facts)
    if not rows:
        return {}
    names = [name for name, _ in rows]
    longest = max(sum(parts.values()) for _, parts in rows)
    unit, word = time_unit(longest)
    plot = charts.canvas(
        70 + 30 * len(names), names=names, x=f"time held in {word}", x_range=charts.span((0, longest / unit * 1.04))
    )
    low = [0.0] * len(names)
    keys, drawn = [], []
    for part, (label, colour, hatch) in TIME_PARTS.items():
        values = [parts[part] / unit for _, parts in rows]
        high = [a + b for a, b in zip(low, values, strict=True)]
        data = charts.source(
            name=names, low=low, high=high, part=[label] * len(names), text=[duration(v * unit) for v in values],
            share=[percent(v * unit / max(sum(p.values()), 1e-9), 1) for v, (_, p) in zip(values, rows, strict=True)],
        )  # fmt: skip
        look = {"hatch_pattern": hatch, "hatch_alpha": 0.4} if hatch else {}
        drawn.append(
            plot.hbar(
                y="name", left="low", right="high", height=0.7, source=data, fill_color=colour, line_color=None, **look
            )
        )
        keys.append(Key(label, colour, "bar"))
        low = high
    charts.hover(plot, [("", "@name"), ("@part", "@text (@share)")], drawn)
    return {"goodput": Chart([("", plot)], keys)}


def fidelity(facts: Facts) -> dict[str, Chart]:
    """Probes passed by each model and family, and what milestones of the training pass."""
    if not facts.fidelity:
        return {}
    rows = fidelity_rows(facts.fidelity)
    names = [words(family) for family, _ in rows]
    plot = charts.canvas(70 + 38 * len(names), names=names, x="probes passed", x_range=charts.span((-0.03, 1.03)))
    models = list(rows[0][1])
    keys, drawn = [], []
    for number, model in enumerate(models):
        colour, marker = MODEL_LOOKS[number % len(MODEL_LOOKS)]
        mine = [(name, shares[model]) for name, (_, shares) in zip(names, rows, strict=True) if model in shares]
        shift = ((len(models) - 1) / 2 - number) * 0.28
        data = charts.source(
            at=[(name, shift) for name, _ in mine], name=[name for name, _ in mine], model=[model] * len(mine),
            share=[s[0] for _, s in mine], low=[s[1] for _, s in mine], high=[s[2] for _, s in mine],
            text=[f"{percent(s[0])} ({percent(s[1])} to {percent(s[2])})" for _, s in mine],
        )  # fmt: skip
        label = f"fidelity:{model}"
        plot.segment("low", "at", "high", "at", source=data, line_color=colour, line_width=2, name=label)
        drawn.append(plot.scatter("share", "at", source=data, marker=marker, size=10, color=colour, name=label))
        keys.append(Key(model, colour, _MARKS[marker], label))
    charts.hover(plot, [("", "@name"), ("@model", "@text")], drawn)
    charts.numbers(plot.xaxis, "0%")
    found = {"fidelity": Chart([("", plot)], keys)}
    if curve := milestones(facts):
        found["milestones"] = _milestones(curve)
    return found


def _milestones(curve: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> Chart:
    plot = charts.canvas(260, x="global step", y="share followed", y_range=charts.span((-0.03, 1.03)))
    keys, drawn = [], []
    for number, (name, points) in enumerate(curve.items()):
        colour = COLOURS[number % 3]
        at, share, low, high = (list(values) for values in zip(*points, strict=True))
        data = charts.source(
            x=at, y=share, low=low, high=high, name=[name] * len(at),
            text=[f"{percent(s)} ({percent(a)} to {percent(b)})" for s, a, b in zip(share, low, high, strict=True)],
        )  # fmt: skip
        label = f"milestones:{name}"
        plot.segment("x", "low", "x", "high", source=data, line_color=colour, line_width=2, name=label)
        plot.line("x", "y", source=data, line_color=colour, line_width=2, name=label)
        drawn.append(plot.scatter("x", "y", source=data, size=8, color=colour, name=label))
        keys.append(Key(name, colour, "line", label))
    charts.hover(plot, [("step", "@x"), ("@name", "@text")], drawn)
    charts.numbers(plot.xaxis)
    charts.numbers(plot.yaxis, "0%")
    return Chart([("", plot)], keys)
