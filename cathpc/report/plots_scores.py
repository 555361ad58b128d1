"""Figures of scores and lengths: axes in, axes out, nothing is written here.

Each function draws plain numbers (lists, NumPy arrays) on the axes that it is given and returns them, so that a notebook
can place any of them in a figure of its own. Points are drawn one by one, as an image within a vector file: the caller
samples them and gives the density of all (`cathpc.report.density`), so that ten million records make a file no larger
than ten thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from cathpc.report.density import LEAST, Density
from cathpc.report.style import (
    BLUE,
    COMPONENT_COLOURS,
    COMPONENT_LINES,
    COMPONENT_MARKERS,
    GREY,
    INK,
    PALE,
    SHADE,
    VERMILION,
    in_order,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Floats = NDArray[np.float64]

RIM = 0.001
"""Refusal scores below it, and above one minus it, are drawn there: the logit of 0 is infinite."""
REGIONS = (0.5, 0.8, 0.95)
"""Shares of the records that the contours hold."""


def population_plane(
    axes: Axes,
    top: Axes,
    right: Axes,
    *,
    refusal: ArrayLike,
    quality: ArrayLike,
    component: Sequence[str],
    kept: ArrayLike,
    refusal_max: float | None,
    quality_cuts: Mapping[str, float],
    quality_name: str,
    lower_is_better: bool = False,
    density: Density | None = None,
) -> tuple[Axes, Axes, Axes]:
    """Records by their refusal score (x, 0..1, logit scale) and their quality (y), with the marginals and the cuts.

    Filled marks, in the component's colour, were kept, hollow grey ones dropped. `density` (of `logit(refusal)` and of
    the quality, its logarithm where `lower_is_better`) adds the contours that hold `REGIONS` of it. The ground beyond
    `refusal_max` is shaded; `quality_cuts` holds each component's threshold, drawn in its colour up to there and across
    its marginal. `top` and `right` share x and y with `axes`; a curve there is a component's share in each bin.
    A quality of which `lower_is_better` (a perplexity) has a logarithmic axis that falls, so that better is always up.
    """
    x, y = clip(refusal), np.asarray(quality, dtype=float)
    groups, alive = np.asarray(component, dtype=object), np.asarray(kept, dtype=bool)
    _refusal_axis(axes, x, refusal_max)
    y = _quality_axis(axes, y, list(quality_cuts.values()), lower_is_better)
    size = _size(x.size)
    low, high = logit(np.array(axes.get_xlim()))
    edges_x = expit(np.linspace(low, high, 33)).tolist()
    bottom, up = sorted(axes.get_ylim())
    edges_y = (np.geomspace(bottom, up, 33) if lower_is_better else np.linspace(bottom, up, 33)).tolist()
    for name in in_order(groups):
        mine = groups == name
        colour, marker = COMPONENT_COLOURS.get(name, GREY), COMPONENT_MARKERS.get(name, "P")
        line = COMPONENT_LINES.get(name, "-")
        _points(axes, x[mine & ~alive], y[mine & ~alive], size, marker, None)
        _points(axes, x[mine & alive], y[mine & alive], size, marker, colour, label=name)
        share = np.full(int(mine.sum()), 1 / max(int(mine.sum()), 1))
        look: dict[str, Any] = {"histtype": "step", "color": colour, "linewidth": 1.2, "linestyle": line}
        top.hist(x[mine], bins=edges_x, weights=share, **look)
        right.hist(y[mine], bins=edges_y, weights=share, orientation="horizontal", **look)
        if name in quality_cuts:
            edge = clip(refusal_max)[()] if refusal_max is not None else 1 - RIM
            axes.plot(
                [axes.get_xlim()[0], edge], [quality_cuts[name]] * 2, color=colour, linestyle=line, linewidth=1.3,
                label="_cut", zorder=4,
            )  # fmt: skip
            right.axhline(quality_cuts[name], color=colour, linestyle=line, linewidth=1.0)
    _contours(axes, density, lower_is_better)
    if refusal_max is not None:
        top.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1)
        top.annotate(
            f"≤ {refusal_max:g}", (refusal_max, 0.97), (-3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("refusal score (logit scale)")
    axes.set_ylabel(quality_name)
    for marginal in (top, right):
        marginal.tick_params(labelbottom=False, labelleft=False, length=0)
        marginal.tick_params(which="minor", length=0)
        for spine in marginal.spines.values():
            spine.set_visible(False)
        marginal.set_yticks([]) if marginal is top else marginal.set_xticks([])
    return axes, top, right


def population_panel(
    axes: Axes,
    *,
    refusal: ArrayLike,
    quality: ArrayLike,
    kept: ArrayLike,
    colour: str,
    marker: str,
    refusal_max: float | None,
    quality_cut: float | None,
    quality_range: ArrayLike,
    lower_is_better: bool = False,
    density: Density | None = None,
) -> Axes:
    """One component in the plane of `population_plane`: filled marks were kept, hollow ones dropped.

    The ground on the far side of the cuts is shaded. `quality_range` are values that the y axis must hold, those of all
    components where panels share their axes.
    """
    x, alive = clip(refusal), np.asarray(kept, dtype=bool)
    _refusal_axis(axes, x, refusal_max)
    cuts = [] if quality_cut is None else [quality_cut]
    _quality_axis(axes, np.asarray(quality_range, dtype=float), cuts, lower_is_better)
    low, high = sorted(axes.get_ylim())
    y = np.clip(np.asarray(quality, dtype=float), low, high)
    if quality_cut is not None:
        edge = clip(refusal_max)[()] if refusal_max is not None else axes.get_xlim()[1]
        worst = high if lower_is_better else low
        axes.fill_between([axes.get_xlim()[0], edge], quality_cut, worst, color=SHADE, linewidth=0, zorder=0)
        axes.plot([axes.get_xlim()[0], edge], [quality_cut] * 2, color=INK, linestyle="--", linewidth=1.1, zorder=4)
    size = _size(4 * x.size)
    _points(axes, x[~alive], y[~alive], size, marker, None)
    _points(axes, x[alive], y[alive], size, marker, colour)
    _contours(axes, density, lower_is_better)
    return axes


def answer_lengths(
    axes: Axes, *, kept: ArrayLike, dropped: ArrayLike, threshold: int | None, peak: float | None = None
) -> Axes:
    """Histogram of answer lengths (tokens, logarithmic) of kept and dropped records, with the rule's threshold.

    `peak`, in tokens, is marked: the place where most of them lie. The legend stands above the axes.
    """
    alive, gone = (np.maximum(np.asarray(part, dtype=float), 1) for part in (kept, dropped))
    both = np.concatenate([alive, gone, [float(threshold or 10)]])
    low, high = max(both.min() / 1.15, 0.6), max(both.max() * 1.15, 10.0)
    # Lengths are whole numbers: narrower bins than one would stand empty between them.
    edges = np.unique(np.round(np.geomspace(low, high, 41)) + 0.5)
    edges = np.concatenate([[edges[0] - max(1.0, edges[0] - low)], edges]) if edges[0] > both.min() else edges
    axes.set_xscale("log")
    _, _, bars = axes.hist(
        [alive, gone], bins=edges.tolist(), stacked=True, color=[BLUE, PALE], edgecolor="white", linewidth=0.4,
        label=[f"kept ({alive.size:,})", f"dropped ({gone.size:,})"],
    )  # fmt: skip
    for bar in bars[1]:
        bar.set(hatch="////", edgecolor=VERMILION, linewidth=0.4)
    axes.set_xlim(edges[0], edges[-1])
    _token_axis(axes)
    if threshold:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.4, label=f"must exceed {threshold:,}")
    if peak is not None:
        axes.axvline(peak, color=INK, linestyle=":", linewidth=1.4, label=f"peak at {peak:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("records")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, columnspacing=1.4)
    axes.grid(axis="y")
    return axes


def score_by_length(
    axes: Axes,
    *,
    tokens: ArrayLike,
    score: ArrayLike,
    band: tuple[Floats, Floats] | None,
    score_range: ArrayLike,
    overall: tuple[Floats, Floats] | None = None,
    logarithmic: bool = False,
    colour: str = BLUE,
) -> Axes:
    """A score (y) against the answer's length in tokens (x, logarithmic): points, medians and quartiles by length.

    `band` and `overall` are what `binned` found of all records of the group, and of all groups for comparison (its
    median is a dashed line). `score_range` are values whose middle 98% the y axis shows; points beyond are on the rim.
    """
    x, y = np.maximum(np.asarray(tokens, dtype=float), 1), np.asarray(score, dtype=float)
    reach = np.asarray(score_range, dtype=float)
    low, high = np.quantile(reach, [0.01, 0.99]) if reach.size else (0.5, 1.0)
    axes.set_xscale("log")
    axes.set_yscale("log" if logarithmic else "linear")
    if logarithmic:
        pad = (high / low) ** 0.06 if high > low else 1.5
        axes.set_ylim(low / pad, high * pad)
        _plain_log(axes.yaxis)
    else:
        pad = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.scatter(
        x,
        np.clip(y, *axes.get_ylim()),
        s=_size(2 * x.size),
        c=GREY,
        alpha=0.35,
        linewidths=0,
        rasterized=True,
        zorder=1,
    )
    if overall is not None:
        axes.plot(overall[0], overall[1][:, 1], color=INK, linestyle="--", linewidth=1.1, label="all", zorder=3)
    if band is not None:
        at, quartiles = band
        axes.fill_between(at, quartiles[:, 0], quartiles[:, 2], color=colour, alpha=0.3, linewidth=0, zorder=2)
        for edge in (0, 2):  # a print in black and white shows the band's border
            axes.plot(at, quartiles[:, edge], color=colour, linewidth=0.7, zorder=3)
        axes.plot(
            at, quartiles[:, 1], color=colour, marker="o", markersize=3.5, linewidth=1.8, label="median", zorder=4
        )
    _token_axis(axes)
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


def clip(refusal: ArrayLike) -> Floats:
    """Refusal scores within `RIM` and one minus it."""
    return np.asarray(np.clip(np.asarray(refusal, dtype=float), RIM, 1 - RIM))


def logit(p: Floats) -> Floats:
    """Log-odds of probabilities."""
    return np.asarray(np.log(p) - np.log1p(-p))


def expit(z: Floats) -> Floats:
    """Probabilities of log-odds."""
    return np.asarray(1 / (1 + np.exp(-z)))


def _refusal_axis(axes: Axes, x: Floats, refusal_max: float | None) -> None:
    """A logit scale over the scores and the cut, ticks where they are read easily, the far side of the cut shaded."""
    seen = logit(np.append(x, [clip(refusal_max)[()]] if refusal_max is not None else [0.1, 0.5]))
    low, high = seen.min() - 0.35, seen.max() + 0.35
    axes.set_xscale("logit", nonpositive="clip")
    axes.set_xlim(*expit(np.array([low, max(high, low + 2)])))
    axes.xaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid()
    if refusal_max is not None:
        axes.axvspan(refusal_max, axes.get_xlim()[1], color=SHADE, linewidth=0, zorder=0)
        axes.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1, label="_cut", zorder=4)


def _quality_axis(axes: Axes, y: Floats, cuts: Sequence[float], lower_is_better: bool) -> Floats:
    """Limits that hold the cuts and all but the 0.2% at either end, which are moved to the rim: the values to draw."""
    held = np.concatenate([np.quantile(y, [0.002, 0.998]) if y.size else np.array([1.0]), cuts])
    low, high = float(held.min()), float(held.max())
    if lower_is_better:
        axes.set_yscale("log")
        pad = (high / low) ** 0.06 if high > low else 1.5
        axes.set_ylim(high * pad, low / pad)
        _plain_log(axes.yaxis)
        return np.clip(y, low / pad**0.8, high * pad**0.8)
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)
    return np.clip(y, low - 0.8 * pad, high + 0.8 * pad)


def _contours(axes: Axes, density: Density | None, logarithmic: bool) -> None:
    if density is None:
        return
    levels = sorted({density.level(share) for share in REGIONS})
    widths = np.linspace(0.9, 1.6, len(levels)).tolist()
    y = np.exp(density.y) if logarithmic else density.y
    axes.contour(expit(density.x), y, density.mass, levels=levels, colors=INK, linewidths=widths, zorder=5)


def _points(
    axes: Axes, x: Floats, y: Floats, size: float, marker: str, colour: str | None, label: str | None = None
) -> None:
    """Filled marks, or hollow grey ones; an image within a vector file."""
    look: dict[str, Any] = (
        {"c": colour, "alpha": 0.8, "linewidths": 0, "zorder": 3}
        if colour
        else {"facecolors": "none", "edgecolors": GREY, "alpha": 0.55, "linewidths": 0.6, "zorder": 2}
    )
    axes.scatter(x, y, s=size, marker=marker, rasterized=True, label=label, **look)


def _size(count: int) -> float:
    """Square points of a mark among `count`."""
    return float(np.clip(20000 / max(count, 1), 5, 22))


def _token_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("answer length in tokens")


def _plain_log(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
