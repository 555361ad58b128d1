"""Figures of the (refusal, quality) plane: axes in, axes out, nothing is written here.

Each function draws plain numbers (lists, NumPy arrays) on the axes that it is given and returns them. Points are drawn
one by one, as an image within a vector file: the caller samples them and gives the density of all
(`cathpc.data.density`), so that ten million records make a file no larger than ten thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from cathpc.data.density import Density
from cathpc.data.filters import RIM
from cathpc.report.style import (
    COMPONENT_COLOURS,
    COMPONENT_LINES,
    COMPONENT_MARKERS,
    GREY,
    INK,
    SHADE,
    in_order,
    plain_log,
    point_size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Floats = NDArray[np.float64]
    Range = tuple[float, float]

REGIONS = (0.5, 0.8, 0.95)
"""Shares of the records that the contours hold."""
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


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
    _refusal_axis(axes, extent(x), refusal_max, most=7)
    y = _quality_axis(axes, y, extent(y, 0.002, list(quality_cuts.values())), lower_is_better)
    size = point_size(x.size)
    ends = logit(np.array(axes.get_xlim()))
    edges_x = expit(np.linspace(ends[0], ends[1], 33)).tolist()
    low, high = sorted(axes.get_ylim())
    edges_y = (np.geomspace(low, high, 33) if lower_is_better else np.linspace(low, high, 33)).tolist()
    for name in in_order(groups):
        mine = groups == name
        colour, marker = COMPONENT_COLOURS.get(name, GREY), COMPONENT_MARKERS.get(name, "P")
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2, "linestyle": COMPONENT_LINES.get(name, "-")}
        _points(axes, x[mine & ~alive], y[mine & ~alive], size, marker, None)
        _points(axes, x[mine & alive], y[mine & alive], size, marker, colour, label=name)
        share = np.full(int(mine.sum()), 1 / max(int(mine.sum()), 1))
        top.hist(x[mine], bins=edges_x, weights=share, histtype="step", **look)
        right.hist(y[mine], bins=edges_y, weights=share, histtype="step", orientation="horizontal", **look)
        if name in quality_cuts:
            left = [axes.get_xlim()[0], axes.get_xlim()[1] if refusal_max is None else refusal_max]
            axes.plot(left, [quality_cuts[name]] * 2, label="_cut", zorder=4, **look)
            right.axhline(quality_cuts[name], **look)
    _contours(axes, density, lower_is_better)
    if refusal_max is not None:
        top.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1)
        top.annotate(
            f"cut at {refusal_max:g}", (refusal_max, 0.97), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("refusal score (logit scale)")
    axes.set_ylabel(quality_name)
    for marginal in (top, right):
        marginal.tick_params(which="both", labelbottom=False, labelleft=False, length=0)
        for spine in marginal.spines.values():
            spine.set_visible(False)
    top.set_yticks([])
    right.set_xticks([])
    return axes, top, right


def population_panel(
    axes: Axes,
    *,
    refusal: ArrayLike,
    quality: ArrayLike,
    kept: ArrayLike,
    refusal_range: Range,
    quality_range: Range,
    refusal_max: float | None,
    quality_cut: float | None,
    colour: str,
    marker: str = "o",
    size: float = 8.0,
    lower_is_better: bool = False,
    density: Density | None = None,
    border: tuple[Density, float] | None = None,
) -> Axes:
    """One component in the plane of `population_plane`: filled marks were kept, hollow ones dropped.

    `border`, a density and one of its values, adds a heavy line around what lies above it. The ground on the far side
    of the cuts is shaded. The ranges are those that the axes show, of all components where panels share them; `size` is
    a mark's area in square points.
    """
    x, alive = clip(refusal), np.asarray(kept, dtype=bool)
    _refusal_axis(axes, refusal_range, refusal_max, most=4)
    y = _quality_axis(axes, np.asarray(quality, dtype=float), quality_range, lower_is_better)
    if quality_cut is not None:
        ends = [axes.get_xlim()[0], axes.get_xlim()[1] if refusal_max is None else refusal_max]
        axes.fill_between(ends, quality_cut, axes.get_ylim()[0], color=SHADE, linewidth=0, zorder=0)
        axes.plot(ends, [quality_cut] * 2, color=INK, linestyle="--", linewidth=1.1, label="_cut", zorder=4)
    _points(axes, x[~alive], y[~alive], size, marker, None)
    _points(axes, x[alive], y[alive], size, marker, colour)
    _contours(axes, density, lower_is_better)
    if border is not None and border[0].mass.min() < border[1] < border[0].mass.max():
        _level(axes, border[0], [border[1]], lower_is_better, colors=colour, linewidths=2.4, zorder=6)
    return axes


def extent(values: Floats, beyond: float = 0.0, also: Sequence[float] = ()) -> Range:
    """The range of all `values` but the share `beyond` at either end, and of `also`; (1, 1) where there is none.

    Where that share is less than one value, none is left out.
    """
    beyond = beyond if values.size * beyond >= 1 else 0.0
    held = [*(np.quantile(values, [beyond, 1 - beyond]) if values.size else ()), *also] or [1.0]
    return float(min(held)), float(max(held))


def clip(refusal: ArrayLike) -> Floats:
    """Refusal scores within `RIM` and one minus it."""
    return np.asarray(np.clip(np.asarray(refusal, dtype=float), RIM, 1 - RIM))


def logit(p: Floats) -> Floats:
    """Log-odds of probabilities."""
    return np.asarray(np.log(p) - np.log1p(-p))


def expit(z: Floats) -> Floats:
    """Probabilities of log-odds."""
    return np.asarray(1 / (1 + np.exp(-z)))


def _refusal_axis(axes: Axes, held: Range, refusal_max: float | None, *, most: int) -> None:
    """A logit scale over the scores and the cut, with at most about `most` ticks; the far side of the cut is shaded."""
    seen = logit(clip([*held, *([refusal_max] if refusal_max is not None else [])]))
    low, high = seen.min() - 0.35, max(seen.max() + 0.35, seen.min() + 2)
    axes.set_xscale("logit", nonpositive="clip")
    axes.set_xlim(*expit(np.array([low, high])))
    ticks: list[float] = []
    for tick, place in zip(TICKS, logit(np.array(TICKS)), strict=True):
        if low <= place <= high and (not ticks or place - logit(np.array(ticks[-1])) > (high - low) / (most + 1)):
            ticks.append(tick)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid()
    if refusal_max is not None:
        axes.axvspan(refusal_max, axes.get_xlim()[1], color=SHADE, linewidth=0, zorder=0)
        axes.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1, label="_cut", zorder=4)


def _quality_axis(axes: Axes, y: Floats, held: Range, lower_is_better: bool) -> Floats:
    """Limits around `held`, better always up; the values to draw, those beyond moved to the rim."""
    low, high = held
    if lower_is_better:
        pad = (high / low) ** 0.06 if high > low else 1.5
        axes.set_yscale("log")
        axes.set_ylim(high * pad, low / pad)
        plain_log(axes.yaxis)
        return np.clip(y, low / pad**0.7, high * pad**0.7)
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return np.clip(y, low - 0.7 * pad, high + 0.7 * pad)


def _contours(axes: Axes, density: Density | None, logarithmic: bool) -> None:
    if density is None:
        return
    levels = sorted({density.level(share) for share in REGIONS})
    widths = np.linspace(0.8, 1.5, len(levels)).tolist()
    _level(axes, density, levels, logarithmic, colors=INK, linewidths=widths, zorder=5)


def _level(axes: Axes, density: Density, levels: Sequence[float], logarithmic: bool, **look: Any) -> None:
    y = np.exp(density.y) if logarithmic else density.y
    axes.contour(expit(density.x), y, density.mass, levels=levels, **look)


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
