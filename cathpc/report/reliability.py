"""A classifier's calibration: labels and predicted probabilities in, curves and intervals out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 200
GRID = 201


def corp(label: Floats, probability: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(probability, observed share, and the 95% band of a calibrated classifier) along the range of the predictions.

    The curve is the isotonic regression of the label on the prediction, which chooses its own bins, the band its
    consistency band: where the curve would lie, were each label drawn with the probability predicted for it (CORP;
    Dimitriadis, Gneiting and Jordan 2021, Stable reliability diagrams for probabilistic classifiers, PNAS 118). The
    seed is fixed; time grows with rows times `RESAMPLES`. Empty without rows.
    """
    if not label.size:
        return (np.zeros(0),) * 4
    grid = np.linspace(probability.min(), probability.max(), GRID)
    rng = np.random.default_rng(0)
    draws = ((rng.random(label.size) < probability).astype(float) for _ in range(RESAMPLES))
    low, high = np.quantile([_isotonic(drawn, probability, grid) for drawn in draws], [0.025, 0.975], axis=0)
    return grid, _isotonic(label, probability, grid), low, high


def _isotonic(label: Floats, probability: Floats, grid: Floats) -> Floats:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability, label)
    return np.asarray(fitted.predict(grid), dtype=float)


def wilson(share: Floats, count: NDArray[np.int64]) -> Floats:
    """Wilson's (1927) 95% interval of each observed share of `count` rows, as distances from it: [2, shares]."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.maximum([share - (middle - reach), middle + reach - share], 0)
