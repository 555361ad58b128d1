"""Where most records lie on a line: a smoothed density and its peak. (In a plane: `cathpc.data.density`.)

Values in, a curve out. One pass over them into a histogram, then work on its cells alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cathpc.data.density import centres, smoothing

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

CELLS = 384
RESAMPLES = 500
LEAST = 30
"""Points that a density asks for; fewer are their own best picture."""


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
    edges = np.linspace(low - 3 * width, high + 3 * width, CELLS + 1)
    kernel, share = smoothing(edges, width), np.histogram(clipped, edges)[0] / array.size
    smooth, at = kernel @ share, centres(edges)
    drawn = np.random.default_rng(0).multinomial(array.size, share, size=RESAMPLES)
    low, high = np.quantile(at[(drawn @ kernel.T).argmax(axis=1)], [0.025, 0.975])
    return Curve(at, smooth / (edges[1] - edges[0]), float(at[smooth.argmax()]), (float(low), float(high)))


def spread(values: Floats) -> bool:
    """Whether there are enough values, and not nearly all of them alike, for a density."""
    if values.size < LEAST:
        return False
    low, high = np.quantile(values, [0.001, 0.999])
    return bool(high > low)
