"""Figures of the way of the records: `Facts` in, pictures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cathpc.report import plots
from cathpc.report.gather import Facts
from cathpc.report.html import percent, words
from cathpc.report.measures import rule_counts, source_counts
from cathpc.report.picture import Picture, canvas, panels, save
from cathpc.report.plots import Bar

REASONS = 4
"""Reasons of rows set aside that get a bar of their own."""
TAKERS = 6
"""Reasons that are told apart in the panels of sources."""
PANELS = 12
"""Panels of sources at most."""


def waterfalls(facts: Facts) -> tuple[list[Bar], dict[str, list[Bar]]]:
    """The bars from the rows that were read to the records that are kept: of all, and by source."""
    sources = {name: seen for name, seen in facts.sources.items() if seen["component"] != "refusal"}
    aside: Counter[str] = Counter()
    for seen in sources.values():
        aside.update(seen["rejected"])
    reasons = [reason for reason, _ in aside.most_common(REASONS)]
    rules = [rule for rule, _ in rule_counts(facts)]
    counted = source_counts(facts)

    def bars(names: Sequence[str]) -> list[Bar]:
        rejected: Counter[str] = Counter()
        for name in names:
            rejected.update(sources[name]["rejected"])
        rest = rejected.total() - sum(rejected[reason] for reason in reasons)
        steps = [Bar(words(reason), rejected[reason]) for reason in reasons]
        steps += [Bar("other faults", rest)] if len(aside) > REASONS else []
        scored = sum(n for (source, _), n in counted.items() if source in names)
        drops = [Bar(words(rule), sum(counted[name, rule] for name in names)) for rule in rules]
        kept = sum(counted[name, ""] for name in names)
        first = Bar("rows read", scored + rejected.total(), taken=False)
        return [first, *steps, Bar("scored", scored, taken=False), *drops, Bar("kept", kept, taken=False)]

    return bars(list(sources)), {name: bars([name]) for name in sources}


def flow(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Waterfalls from the rows that were read to the records that are kept: over all, and by source."""
    every, by_source = waterfalls(facts)
    figure = canvas("From rows to the mix", 1.1 + 0.26 * len(every))
    plots.waterfall(figure.add_subplot(), every).set_xlabel("records")
    listed = ", ".join(f"{bar.name} {bar.count:,}" for bar in every if bar.taken)
    alt = f"Waterfall: {every[0].count:,} rows read, {every[-1].count:,} records kept. Taken away: {listed or 'none'}."
    caption = (
        "Hatched: what each reason takes away, first while reading, then by the rules of selection in their order. A "
        "record counts to the first rule that it breaks. Labelled refusals are not shown."
    )
    pictures = {"flow": save(figure, folder, "flow", alt, caption)}
    if len(by_source) > 1:
        pictures["flow-sources"] = _flow_sources(by_source, folder)
    return pictures


def _flow_sources(by_source: dict[str, list[Bar]], folder: Path) -> Picture:
    """A small waterfall for each source, of the reasons that take most; of very many the smaller ones share a panel."""
    names = sorted(by_source, key=lambda name: -by_source[name][0].count)
    shown = {name: by_source[name] for name in names[: PANELS if len(names) == PANELS else PANELS - 1]}
    if rest := names[len(shown) :]:
        each = zip(*(by_source[name] for name in rest), strict=True)
        shown[f"{len(rest)} others"] = [replace(same[0], count=sum(bar.count for bar in same)) for same in each]
    taken: Counter[str] = Counter()
    for bars in shown.values():
        taken.update({bar.name: bar.count for bar in bars if bar.taken})
    wanted = {name for name, _ in taken.most_common(TAKERS)}
    rows = -(-len(shown) // 3)
    figure = canvas("From rows to the mix, by source", 0.75 + rows * (0.5 + 0.16 * (len(wanted) + 3)))
    said = []
    for axes, (name, bars) in zip(panels(figure, len(shown), 3), shown.items(), strict=True):
        first, last = bars[0], bars[-1]
        steps = [bar for bar in bars if bar.taken and bar.name in wanted]
        if len(taken) > TAKERS:
            steps.append(Bar("others", first.count - last.count - sum(bar.count for bar in steps)))
        plots.waterfall(axes, [first, *steps, last], share=True)
        axes.tick_params(labelsize=8)
        share = percent(last.count / max(first.count, 1))
        axes.set_title(f"{_short(name)}\n{share} of {first.count:,}", fontsize=8.5)
        worst = max((bar for bar in bars if bar.taken), key=lambda bar: bar.count, default=last)
        said.append(f"{name}: {share} of {first.count:,} rows kept" + (f", most lost to {worst.name}" if steps else ""))
    figure.supxlabel("percent of the source's rows", fontsize=9)
    caption = (
        f"The same for each source, in percent of its rows, with the {len(wanted)} reasons that take most; above each "
        "panel the share that is kept."
    )
    return save(figure, folder, "flow-sources", f"Waterfalls by source. {'; '.join(said)}.", caption)


def _short(name: str, most: int = 17) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
