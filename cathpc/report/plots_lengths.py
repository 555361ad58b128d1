"""Figures of answer lengths, and of scores against them: axes in, axes out, nothing is written here.

Each function draws plain numbers (lists, NumPy arrays) on the axes that it is given and returns them. Single points are
an image within a vector file; the caller samples them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from cathpc.report.density import LEAST, Curve
from cathpc.report.style import BLUE, GREY, INK, PALE, VERMILION, plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Floats = NDArray[np.float64]
    Range = tuple[float, float]

STEP, COARSE, FEW = 1.1, 1.25, 300
"""Each bin of a histogram of lengths is longer by this factor than the one before; of fewer records, by the second."""


def answer_lengths(
    axes: Axes,
    *,
    kept: ArrayLike,
    dropped: ArrayLike,
    threshold: int | None,
    curve: Curve | None = None,
) -> Axes:
    """Histogram of answer lengths (tokens, logarithmic) of kept and dropped records, with the rule's threshold.

    `curve` is the density of all of them over the logarithm of the length (`cathpc.report.density.line`); its peak is
    marked. Bins end at the threshold, so that none stands on both sides of it. The legend
    stands above the axes.
    """
    alive, gone = (np.maximum(np.asarray(part, dtype=float), 1) for part in (kept, dropped))
    edges, step = edges_of(np.concatenate([alive, gone]), threshold)
    axes.set_xscale("log")
    axes.hist(
        [alive, gone], bins=edges.tolist(), stacked=True, color=[BLUE, PALE], edgecolor=["white", VERMILION],
        hatch=["", "////"], linewidth=0.4, label=[f"kept ({alive.size:,})", f"dropped ({gone.size:,})"],
    )  # fmt: skip
    axes.set_xlim(edges[0], edges[-1])
    _token_axis(axes, most=6)
    if threshold:
        axes.axvline(threshold + 0.5, color=INK, linestyle="--", linewidth=1.4, label=f"must exceed {threshold:,}")
    if curve is not None:
        height = curve.height * (alive.size + gone.size) * np.log(step)
        axes.plot(np.exp(curve.at), height, color=INK, linewidth=1.1)
        axes.plot(
            [np.exp(curve.peak)], [height.max()], linestyle="none", marker="v", markersize=8, color=INK,
            markeredgecolor="white", label=f"peak at {np.exp(curve.peak):,.0f}",
        )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("records")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, columnspacing=1.4)
    axes.grid(axis="y")
    return axes


def edges_of(tokens: Floats, threshold: int | None) -> tuple[Floats, float]:
    """Edges of the bins of a histogram of these lengths, one of them at the threshold, and the factor between two."""
    both = np.append(tokens, float(threshold or 10))
    step = STEP if both.size > FEW else COARSE
    return _edges(float(both.min()), float(both.max()), (threshold or 10) + 0.5, step), step


def _edges(low: float, high: float, fixed: float, step: float) -> Floats:
    """Edges that rise by the factor `step` from one to the next, one of them at `fixed`, around `low` and `high`.

    Lengths are whole numbers: edges lie halfway between two, and no bin is narrower than one.
    """
    first, last = (np.log(end / fixed) / np.log(step) for end in (low, high))
    edges = np.unique(np.floor(fixed * step ** np.arange(np.floor(first) - 1, np.ceil(last) + 1)) + 0.5)
    return edges if edges[0] < low else np.concatenate([[low - 0.5], edges])


def score_by_length(
    axes: Axes,
    *,
    tokens: ArrayLike,
    score: ArrayLike,
    tokens_range: Range,
    score_range: Range,
    band: tuple[Floats, Floats] | None,
    overall: tuple[Floats, Floats] | None = None,
    logarithmic: bool = False,
    colour: str = BLUE,
    size: float = 8.0,
) -> Axes:
    """A score (y) against the answer's length in tokens (x, logarithmic): points, medians and quartiles by length.

    `band` and `overall` are what `binned` found of all records of the group, and of all groups for comparison (its
    median is a dashed line). The ranges are those that the axes show, of all groups where panels share them; points
    beyond `score_range` are drawn on the rim. `size` is a mark's area in square points.
    """
    low, high = score_range
    if logarithmic:
        pad = (high / low) ** 0.05 if high > low else 1.5
        axes.set_yscale("log")
        axes.set_ylim(low / pad, high * pad)
        y = np.clip(np.asarray(score, dtype=float), low / pad**0.7, high * pad**0.7)
        plain_log(axes.yaxis)
    else:
        pad = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)
        y = np.clip(np.asarray(score, dtype=float), low - 0.7 * pad, high + 0.7 * pad)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xscale("log")
    axes.set_xlim(max(tokens_range[0], 1) / 1.2, max(tokens_range[1], 10) * 1.2)
    look = (colour, 0.8) if band is None else (GREY, 0.3)  # few points are their own summary
    axes.scatter(tokens, y, s=size, color=look[0], alpha=look[1], linewidths=0, rasterized=True, zorder=1)
    if overall is not None:
        axes.plot(overall[0], overall[1][:, 1], color=INK, linestyle="--", linewidth=1.1, zorder=3)
    if band is not None:
        at, (first, middle, third) = band[0], band[1].T
        axes.fill_between(at, first, third, color=colour, alpha=0.3, linewidth=0, zorder=2)
        for edge in (first, third):  # that a print in black and white shows where the band ends
            axes.plot(at, edge, color=colour, linewidth=0.7, zorder=3)
        axes.plot(at, middle, color=colour, marker="o", markersize=3.5, linewidth=1.8, zorder=4)
    _token_axis(axes, most=4)
    axes.grid()
    return axes


def binned(tokens: ArrayLike, score: ArrayLike, most: int = 10) -> tuple[Floats, Floats] | None:
    """(median length, the score's quartiles [bins, 3]) of up to `most` bins of equally many records, by length.

    A bin has at least `LEAST` records; None for fewer. Equal lengths stay in one bin. Takes a sort of the records.
    """
    x, y = np.asarray(tokens, dtype=float), np.asarray(score, dtype=float)
    if x.size < LEAST:
        return None
    count = min(most, x.size // LEAST)
    borders = np.unique(np.quantile(x, np.linspace(0, 1, count + 1)[1:-1]))
    which = np.searchsorted(borders, x, side="left")
    parts = [which == i for i in range(len(borders) + 1)]
    parts = [part for part in parts if part.any()]
    at = np.array([np.median(x[part]) for part in parts])
    return at, np.array([np.quantile(y[part], [0.25, 0.5, 0.75]) for part in parts])


def _token_axis(axes: Axes, *, most: int) -> None:
    """Plain numbers at powers of ten, and between them as far as there are at most about `most`."""
    decades = float(np.diff(np.log10(axes.get_xlim()))[0])
    subs = next((s for s in ((1.0, 2.0, 5.0), (1.0, 3.0)) if decades * len(s) <= most), (1.0,))
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("answer length in tokens")


def rank_correlation(one: pa.ChunkedArray, other: pa.ChunkedArray) -> float | None:
    """Spearman's, of columns without nulls; None for few rows or where all values are equal."""
    if len(one) < LEAST or pc.count_distinct(one).as_py() < 2 or pc.count_distinct(other).as_py() < 2:
        return None
    ranks = [
        sum(pc.rank(values, tiebreaker=tie).to_numpy().astype(float) for tie in ("min", "max"))
        for values in (one, other)
    ]
    return float(np.corrcoef(ranks)[0, 1])
