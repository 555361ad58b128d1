"""How densely records lie in a plane: the main population that selection keeps, and its contours in the report.

Arrays in, a grid out. One pass over the points into a histogram, then work on its cells alone: 10 million points take
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

    def at(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """The mass of the cells in which the points (x, y) lie; points beyond the grid count to its last cell."""
        column, row = (
            np.clip(np.round((np.asarray(v, float) - c[0]) / (c[1] - c[0])), 0, CELLS - 1).astype(int)
            for v, c in ((x, self.x), (y, self.y))
        )
        return np.asarray(self.mass[row, column])


def plane(x: ArrayLike, y: ArrayLike) -> Density:
    """The density of the points (x, y), at least one, all finite.

    A histogram smoothed by a Gaussian of half of Scott's bandwidth (1992, Multivariate Density Estimation, section 6.3:
    it is that of one normal population, and too wide for several). What lies beyond the 0.1% at either end of an axis
    counts to the end.
    """
    points, edges, kernels = [], [], []
    for given in (x, y):
        values = np.asarray(given, dtype=float)
        low, high = np.quantile(values, [0.001, 0.999])
        points.append(np.clip(values, low, high))
        width = float(points[-1].std()) * values.size ** (-1 / 6) / 2
        reach = 3 * width if high > low else 0.5  # equal values: a grid one unit wide
        edges.append(np.linspace(low - reach, high + reach, CELLS + 1))
        kernels.append(smoothing(edges[-1], width))
    held = np.histogram2d(points[1], points[0], bins=(edges[1], edges[0]))[0] / points[0].size
    return Density(centres(edges[0]), centres(edges[1]), kernels[1] @ held @ kernels[0].T, held)


def smoothing(edges: Floats, width: float) -> Floats:
    """Weights [to, from] of a Gaussian that spread each cell's points over the cells; each column sums to 1.

    A width of less than a tenth of a cell leaves the points where they are.
    """
    middle = centres(edges)
    weights = np.exp(-((middle[:, None] - middle[None]) ** 2) / (2 * max(width, (middle[1] - middle[0]) / 10) ** 2))
    return np.asarray(weights / weights.sum(axis=0))


def centres(edges: Floats) -> Floats:
    """The middles of the cells between `edges`."""
    return np.asarray((edges[1:] + edges[:-1]) / 2)
