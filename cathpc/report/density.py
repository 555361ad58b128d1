"""Where most records lie: smoothed densities of a plane and of a line, and their regions of highest density.

Arrays in, grids out. One pass over the points into a histogram, then work on its cells alone: 10 million points take
about a second and no memory beside themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

CELLS = 96
"""Cells of the grid along each axis."""
RESAMPLES = 500
LEAST = 30
"""Points that a density asks for; fewer are their own best picture."""


@dataclass(frozen=True)
class Density:
    """A density on a grid: `mass[i, j]`, smoothed, and `held[i, j]`, as it was, are the shares of the points around
    (x[j], y[i]); each sums to 1."""

    x: Floats
    y: Floats
    mass: Floats
    held: Floats

    def level(self, share: float) -> float:
        """The mass of a cell on the border of the smallest region that holds `share` of the points themselves.

        The highest-density region of Hyndman (1996), Computing and Graphing Highest Density Regions, section 3.1: its
        border is a quantile of the density over the points.
        """
        order = np.argsort(self.mass, axis=None)[::-1]
        reached = int(np.searchsorted(np.cumsum(self.held.ravel()[order]), share))
        return float(self.mass.ravel()[order[min(reached, order.size - 1)]])


def plane(x: ArrayLike, y: ArrayLike) -> Density | None:
    """The density of the points (x, y), both finite; None for fewer than `LEAST` points or without spread.

    A histogram smoothed by a Gaussian with Scott's bandwidth (1992, Multivariate Density Estimation, section 6.3). What
    lies beyond the 0.1% at either end of an axis counts to the end.
    """
    points, grids, widths = [], [], []
    for given in (x, y):
        values = np.asarray(given, dtype=float)
        if not spread(values):
            return None
        low, high = np.quantile(values, [0.001, 0.999])
        points.append(np.clip(values, low, high))
        widths.append(float(points[-1].std()) * values.size ** (-1 / 6))
        grids.append(np.linspace(low - 3 * widths[-1], high + 3 * widths[-1], CELLS + 1))
    held = np.histogram2d(points[1], points[0], bins=(grids[1], grids[0]))[0] / points[0].size
    mass = _kernel(grids[1], widths[1]) @ held @ _kernel(grids[0], widths[0]).T
    return Density(_centres(grids[0]), _centres(grids[1]), mass, held)


@dataclass(frozen=True)
class Curve:
    """A density over a line: its height at each place, where it is highest, and the 95% interval of that."""

    at: Floats
    height: Floats
    peak: float
    interval: tuple[float, float]


def line(values: ArrayLike) -> Curve | None:
    """The density of `values`; None for fewer than `LEAST` or without spread.

    The bandwidth is the normal-scale rule for the density's slope, since it is the slope that finds a peak (Chacón,
    Duong and Wand 2011, Asymptotics for general multivariate kernel density derivative estimators, section 4), with the
    smaller of standard deviation and interquartile range / 1.349. The interval is that of a bootstrap, its seed fixed.
    """
    array = np.asarray(values, dtype=float)
    if not spread(array):
        return None
    low, high = np.quantile(array, [0.001, 0.999])
    clipped = np.clip(array, low, high)
    quartiles = np.quantile(clipped, [0.25, 0.75])
    deviations = [d for d in (float(clipped.std()), float(np.diff(quartiles)[0]) / 1.349) if d > 0]
    width = (4 / 5) ** (1 / 7) * min(deviations) * array.size ** (-1 / 7)
    edges = np.linspace(low - 3 * width, high + 3 * width, 4 * CELLS + 1)
    kernel, share = _kernel(edges, width), np.histogram(clipped, edges)[0] / array.size
    smooth, at = kernel @ share, _centres(edges)
    drawn = np.random.default_rng(0).multinomial(array.size, share, size=RESAMPLES)
    low, high = np.quantile(at[(drawn @ kernel.T).argmax(axis=1)], [0.025, 0.975])
    return Curve(at, smooth / (edges[1] - edges[0]), float(at[smooth.argmax()]), (float(low), float(high)))


def spread(values: Floats) -> bool:
    """Whether there are enough values, and not nearly all of them alike, for a density."""
    if values.size < LEAST:
        return False
    low, high = np.quantile(values, [0.001, 0.999])
    return bool(high > low)


def _kernel(edges: Floats, width: float) -> Floats:
    """Weights [to, from] that spread each cell's points over the cells; each column sums to 1."""
    centres = _centres(edges)
    weights = np.exp(-((centres[:, None] - centres[None]) ** 2) / (2 * width**2))
    return np.asarray(weights / weights.sum(axis=0))


def _centres(edges: Floats) -> Floats:
    return np.asarray((edges[1:] + edges[:-1]) / 2)
