"""Charts of the way of the records and of time: `Facts` in, charts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cathpc.progress import duration, time_unit
from cathpc.report import charts
from cathpc.report.charts import Chart, Key
from cathpc.report.figures_flow import TAKERS, waterfalls
from cathpc.report.gather import Facts
from cathpc.report.plots import Bar
from cathpc.report.style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION

ROW = 26
"""Pixels of a bar with its gap."""
TAKER_COLOURS = (VERMILION, ORANGE, PINK, GREEN, SKY, "#F0E442")
HATCHES = ("/", "\\", "x", ".", "-", "o")


def flow(facts: Facts) -> dict[str, Chart]:
    """Waterfalls: of all rows, and each source's shares."""
    every, by_source = waterfalls(facts)
    found = {"flow": _waterfall(every)}
    if len(by_source) > 1:
        found["flow-sources"] = _sources(by_source)
    return found


def _waterfall(bars: Sequence[Bar]) -> Chart:
    names = [bar.name for bar in bars]
    entered, left, starts, ends = max(bars[0].count, 1), bars[0].count, [], []
    for bar in bars:
        left -= bar.count if bar.taken else 0
        starts.append(left if bar.taken else 0)
        ends.append(starts[-1] + bar.count)
    plot = charts.canvas(60 + ROW * len(bars), names=names, x="records", x_range=charts.span((0, entered * 1.42)))
    texts = [f"−{b.count:,}" if b.taken else f"{b.count:,} ({100 * b.count / entered:.0f}%)" for b in bars]
    texts[0] = f"{bars[0].count:,}"
    drawn = []
    for taken in (False, True):
        rows = [i for i, bar in enumerate(bars) if bar.taken is taken]
        data = charts.source(
            name=[names[i] for i in rows], low=[starts[i] for i in rows], high=[ends[i] for i in rows],
            count=[bars[i].count for i in rows], text=[texts[i] for i in rows],
            share=[f"{100 * bars[i].count / entered:.1f}%" for i in rows],
        )  # fmt: skip
        look = (
            {"fill_color": VERMILION, "fill_alpha": 0.25, "line_color": VERMILION, "hatch_pattern": "/",
             "hatch_color": VERMILION, "hatch_alpha": 0.8}
            if taken else {"fill_color": BLUE, "line_color": BLUE}
        )  # fmt: skip
        drawn.append(plot.hbar(y="name", left="low", right="high", height=0.72, source=data, **look))
        plot.text(
            x="high", y="name", text="text", source=data, x_offset=5, text_baseline="middle", text_font_size="12px",
            text_color=charts.INK, tags=["ink"],
        )  # fmt: skip
    charts.hover(plot, [("", "@name"), ("records", "@count{0,0}"), ("of the rows read", "@share")], drawn)
    charts.numbers(plot.xaxis, count=4)
    return Chart([("", plot)])


def _sources(by_source: dict[str, list[Bar]]) -> Chart:
    """One bar a source, divided into what is kept and what the reasons took, in percent of its rows."""
    taken: Counter[str] = Counter()
    for bars in by_source.values():
        taken.update({bar.name: bar.count for bar in bars if bar.taken and bar.count})
    wanted = [name for name, _ in taken.most_common(TAKERS)]
    parts = ["kept", *wanted, *(["other reasons"] if len(taken) > TAKERS else [])]
    names = list(by_source)
    shown = [_short(name) for name in names]
    if len(set(shown)) < len(shown):  # an axis takes no name twice
        shown = names
    plot = charts.canvas(
        70 + ROW * len(names), names=shown, x="percent of the source's rows",
        x_range=charts.span((0, 100)),
    )  # fmt: skip
    before = dict.fromkeys(names, 0)
    keys, drawn = [], []
    for number, part in enumerate(parts):
        counts = []
        for name, bars in by_source.items():
            found = {bar.name: bar.count for bar in bars}
            if part == "other reasons":
                counts.append(bars[0].count - before[name])
            else:
                counts.append(found.get(part, 0))
        rows = [max(bars[0].count, 1) for bars in by_source.values()]
        lows = [100 * before[name] / total for name, total in zip(names, rows, strict=True)]
        for name, count in zip(names, counts, strict=True):
            before[name] += count
        data = charts.source(
            name=shown, source=names, part=[part] * len(names), count=counts, low=lows,
            high=[100 * before[name] / total for name, total in zip(names, rows, strict=True)],
            share=[f"{100 * count / total:.1f}%" for count, total in zip(counts, rows, strict=True)],
        )  # fmt: skip
        colour = BLUE if not number else GREY if part == "other reasons" else TAKER_COLOURS[(number - 1) % TAKERS]
        hatch = {"hatch_pattern": HATCHES[(number - 1) % TAKERS], "hatch_alpha": 0.35} if number else {}
        drawn.append(
            plot.hbar(
                y="name",
                left="low",
                right="high",
                height=0.72,
                source=data,
                fill_color=colour,
                line_color=None,
                fill_alpha=1.0 if not number else 0.75,
                **hatch,
            )
        )
        keys.append(Key(part, colour, "bar"))
    charts.hover(
        plot, [("source", "@source"), ("", "@part"), ("records", "@count{0,0}"), ("of its rows", "@share")], drawn
    )
    charts.numbers(plot.xaxis, count=5)
    return Chart(
        [("", plot)],
        keys,
        "The rows of each source: what is kept, and what each reason takes away, in percent. "
        f"The {len(wanted)} reasons that take most are told apart.",
    )


def time(facts: Facts) -> dict[str, Chart]:
    """Wall-clock time of each stage."""
    names = list(facts.manifests)
    seconds = [float(manifest["seconds"]) for manifest in facts.manifests.values()]
    longest = max(seconds, default=1.0)
    unit, word = time_unit(longest)
    plot = charts.canvas(
        60 + ROW * len(names), names=names, x=f"time in {word}", x_range=charts.span((0, longest / unit * 1.4 or 1))
    )
    data = charts.source(name=names, value=[s / unit for s in seconds], text=[duration(s) for s in seconds])
    bars = plot.hbar(y="name", right="value", height=0.72, source=data, fill_color=BLUE, line_color=None)
    plot.text(
        x="value", y="name", text="text", source=data, x_offset=5, text_baseline="middle", text_font_size="12px",
        text_color=charts.INK, tags=["ink"],
    )  # fmt: skip
    charts.hover(plot, [("", "@name"), ("time", "@text")], [bars])
    return {"time": Chart([("", plot)])}


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
