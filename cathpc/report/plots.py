"""Figures of counts, curves, shares and times: axes in, axes out, nothing is written here.

Each function draws plain numbers (lists, NumPy arrays) on the axes that it is given and returns them, so that a
notebook can place any of them in a figure of its own. Time and memory grow with the points that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from cathpc.models.calibration import tenths
from cathpc.progress import duration, time_unit
from cathpc.report.reliability import corp, wilson
from cathpc.report.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bar:
    """One bar of a waterfall: records that are there at that point, or that a reason takes away."""

    name: str
    count: int
    taken: bool = True


def waterfall(axes: Axes, bars: Sequence[Bar], *, share: bool = False) -> Axes:
    """Records that come in (the first bar), what each reason takes away, and what is left: horizontal, top to bottom.

    A total stands on the left; what a reason takes hangs, hatched, where the bars before it ended, so that the reader
    sees what was still there. Each total must be what the bars before it left. `share` draws in percent of the first
    bar, and no numbers beside the bars: for small panels.
    """
    entered = max(bars[0].count, 1)
    scale, left = entered / 100 if share else 1.0, bars[0].count
    for row, bar in enumerate(bars):
        assert bar.taken or bar.count == left, f"{bar.name} is {bar.count:,}, the bars above it leave {left:,}"
        left -= bar.count if bar.taken else 0
        start, width = (left / scale if bar.taken else 0.0), bar.count / scale
        if width:
            axes.barh(row, width, left=start, height=0.7, **(_TAKEN if bar.taken else {"color": BLUE}))
        if row + 1 < len(bars):  # a thin connector to where the next bar begins
            axes.plot([left / scale] * 2, [row - 0.35, row + 1.35], color=GREY, linewidth=0.7, zorder=0)
        if not share:
            outside = not bar.taken or start < 0.25 * entered  # else there is no room on the left
            text = f"−{bar.count:,}" if bar.taken else f"{bar.count:,}"
            axes.annotate(
                text if bar.taken or not row else f"{text} ({100 * bar.count / entered:.0f}%)",
                (start + width if outside else start, row), (4 if outside else -4, 0), textcoords="offset points",
                ha="left" if outside else "right", va="center", fontsize=9,
            )  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 100 if share else entered * 1.2)
    axes.xaxis.set_major_locator(FixedLocator([0, 50, 100]) if share else MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


_TAKEN: Any = {"facecolor": PALE, "edgecolor": VERMILION, "hatch": "////", "linewidth": 0.6}


def reliability(axes: Axes, counts: Axes, *, label: ArrayLike, probability: ArrayLike, cutoff: float | None) -> Axes:
    """How often answers are refusals (y) among those with a predicted probability (x), with what is sure of it.

    The curve and its band are those of `cathpc.report.reliability.corp`; the dots are the ten bins of equal mass over
    which the expected calibration error is taken, with 95% intervals. `counts`, which shares x, gets the histogram of
    the predictions, logarithmic. `label` is in 0..1, `cutoff` a vertical line.
    """
    truth, guess = np.asarray(label, dtype=float), np.asarray(probability, dtype=float)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.0, label="calibrated")
    at, curve, low, high = corp(truth, guess)
    if at.size:
        axes.fill_between(at, low, high, color=SKY, alpha=0.35, linewidth=0, label="95% of calibrated ones")
        axes.plot(at, curve, color=BLUE, label="observed")
    predicted, observed, count = tenths(truth, guess)
    axes.errorbar(
        predicted, observed, yerr=wilson(observed, count), fmt="o", color=INK, markersize=4, linewidth=0.9, capsize=2,
        label="ten equal bins",
    )  # fmt: skip
    edges = np.linspace(0, 1, 21).tolist()
    counts.hist(guess[truth <= 0], bins=edges, color=PALE, edgecolor=VERMILION, linewidth=0.8, label="others")
    counts.hist(
        guess[truth > 0], bins=edges, histtype="step", color=BLUE, hatch="\\\\\\", linewidth=1.4, label="refusals"
    )
    if cutoff is not None:
        for each in (axes, counts):
            each.axvline(cutoff, color=VERMILION, linestyle=":", linewidth=1.4, label=f"cut at {cutoff:g}")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("observed share of refusals")
    axes.tick_params(labelbottom=False)
    axes.grid()
    counts.set_yscale("log", nonpositive="clip")
    counts.set_ylim(bottom=0.7)
    counts.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    counts.set_ylabel("answers")
    counts.set_xlabel("predicted probability of a refusal")
    counts.grid(axis="y")
    return axes


def training_curve(
    axes: Axes,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str,
    resumed: Sequence[int] = (),
) -> Axes:
    """Curves over the global step: name -> (steps, values). The second and later are drawn with markers.

    `resumed` holds the steps from which training went on after a stop; each is a dotted vertical line.
    """
    for number, (name, (steps, values)) in enumerate(series.items()):
        steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        marker = "o" if number or steps.size < 30 else None
        axes.plot(
            steps, values, color=(BLUE, VERMILION, GREEN)[number % 3], marker=marker, markersize=5 if number else 3,
            linestyle="--" if number else "-", label=name,
        )  # fmt: skip
    for step in resumed:
        axes.axvline(step, color=GREY, linestyle=":", linewidth=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("global step")
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(series), borderaxespad=0.2)
    axes.grid()
    return axes


def fidelity(axes: Axes, rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]]) -> Axes:
    """Share of probes passed, by family: a dot with its interval for each model.

    `rows` is [(family, {model: (share, low, high)})], shares in 0..1, the models in the order of the first row.
    """
    models = list(rows[0][1]) if rows else []
    looks = [(GREY, "s"), (BLUE, "o"), (GREEN, "^"), (ORANGE, "D")]
    for number, model in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * 0.26
        colour, marker = looks[number % len(looks)]
        place = [row + shift for row, (_, shares) in enumerate(rows) if model in shares]
        values = np.array([shares[model] for _, shares in rows if model in shares], dtype=float).reshape(-1, 3)
        mean, low, high = values.T
        # A percentile interval of a bootstrap need not hold the mean; a negative bar length is an error.
        reach = np.maximum([mean - low, high - mean], 0)
        axes.errorbar(
            mean, place, xerr=reach, fmt=marker, color=colour, markersize=6, capsize=3, linewidth=1.4, linestyle="none",
            label=model,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [family.replace("_", " ") for family, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("probes passed")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(len(models), 1))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


def auroc(axes: Axes, rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Axes:
    """How well scores tell answers apart, by the generator that is told apart: a mark for each score, 0.5 is chance.

    `rows` is [(generator, {score: AUROC in 0..1 or None})], the scores in the order of the first row.
    """
    scores = list(rows[0][1]) if rows else []
    looks = [(BLUE, "o", BLUE), (BLUE, "o", "white"), (ORANGE, "s", ORANGE), (GREY, "^", GREY), (GREEN, "D", GREEN)]
    for number, score in enumerate(scores):
        colour, marker, face = looks[number % len(looks)]
        found = [(value, row) for row, (_, values) in enumerate(rows) if (value := values.get(score)) is not None]
        axes.plot(
            [v for v, _ in found], [r for _, r in found], linestyle="none", marker=marker, color=colour,
            markerfacecolor=face, markeredgewidth=1.4, markersize=7, alpha=0.9, label=score,
        )  # fmt: skip
    axes.axvline(0.5, color=INK, linestyle=":", linewidth=1.2)
    axes.annotate(
        "chance", (0.5, 0), (3, 3), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8.5
    )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.2, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("AUROC")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2, handletextpad=0.3)
    axes.grid()
    axes.tick_params(axis="y", length=0)
    return axes


def stage_times(axes: Axes, times: Sequence[tuple[str, float]]) -> Axes:
    """Wall-clock time of each stage (seconds), in the order of the pipeline: horizontal bars with their times."""
    rows = np.arange(len(times))
    seconds = np.array([value for _, value in times], dtype=float)
    axes.barh(rows, seconds, color=BLUE, height=0.7)
    for row, value in zip(rows, seconds, strict=True):
        axes.annotate(duration(value), (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(rows, [name for name, _ in times])
    axes.invert_yaxis()
    longest = float(seconds.max()) if seconds.size else 1.0
    axes.set_xlim(0, max(longest, 1e-9) * 1.2)
    unit, word = time_unit(longest)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, longest / unit)
    axes.xaxis.set_major_locator(FixedLocator([tick * unit for tick in ticks]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    axes.set_xlabel(f"time in {word}")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


TIME_PARTS: dict[str, tuple[str, str, str]] = {
    "progress": ("steps that count", BLUE, ""),
    "again": ("steps lost or dropped", VERMILION, "/"),
    "eval": ("evaluation", GREEN, "."),
    "save": ("checkpoints", ORANGE, "x"),
    "rest": ("start and all else", GREY, "-"),
}
"""What an attempt does with its time: words, colour, hatch."""


def time_held(axes: Axes, rows: Sequence[tuple[str, Mapping[str, float]]]) -> Axes:
    """What attempts did with the time that they held: [(attempt, {part of `TIME_PARTS`: seconds})], a bar each."""
    longest = max((sum(parts.values()) for _, parts in rows), default=1.0)
    unit, word = time_unit(longest)
    left = np.zeros(len(rows))
    for part, (label, colour, hatch) in TIME_PARTS.items():
        width = np.array([parts[part] / unit for _, parts in rows])
        axes.barh(
            range(len(rows)), width, left=left, height=0.7, color=colour, hatch=2 * hatch, edgecolor="white",
            linewidth=0, label=label,
        )  # fmt: skip
        left = left + width
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"time held in {word}")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes
