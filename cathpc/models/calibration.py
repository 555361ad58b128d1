"""How good a classifier's probabilities are, and the scaling that makes them honest.

Arrays in, figures out: labels (bool) and log-odds or probabilities (float64), each [rows]. Time and memory grow with
the rows times the bootstrap's resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

TEMPERATURES = (0.25, 10.0)
"""Range of the fitted temperature: few, separable rows would ask for no bound."""
RESAMPLES = 1000
CUTOFFS = np.linspace(0.01, 0.99, 99)


def scaling(logits: Floats, truth: Flags) -> tuple[float, float]:
    """(T, b) for which sigmoid(logit / T + b) is calibrated: Platt (1999), his smoothed targets, by Newton's method.

    Rows without a finite logit are left out. (1, 0) where there are fewer than eight rows or one class only.
    """
    kept = np.isfinite(logits)
    x, y = logits[kept], truth[kept]
    positive, negative = int(y.sum()), int((~y).sum())
    if positive + negative < 8 or not positive or not negative:
        return 1.0, 0.0
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))
    spread = float(max(x.std(), 1e-12))
    design = np.stack([x / spread, np.ones_like(x)], axis=1)

    def loss(weights: Floats) -> float:
        z = design @ weights
        return float((np.logaddexp(0, z) - target * z).mean())

    weights = np.zeros(2)
    for _ in range(100):
        guess = sigmoid(design @ weights)
        gradient = design.T @ (guess - target) / len(x)
        curvature = (design * (guess * (1 - guess))[:, None]).T @ design / len(x) + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    weights[0] /= spread
    slope = float(np.clip(weights[0], 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]))
    return 1 / slope, float(weights[1])


def measure(truth: Flags, probabilities: Floats, cutoff: float) -> dict[str, float]:
    """Precision, recall and F1 of 'probability above `cutoff`', AUROC, and ECE over ten bins of equal mass."""
    return {
        **at_cutoff(truth, probabilities, cutoff),
        "auroc": auroc(truth, probabilities),
        "ece": calibration_error(truth, probabilities),
    }


def at_cutoff(truth: Flags, probabilities: Floats, cutoff: float) -> dict[str, float]:
    """Precision, recall and F1 of 'probability above `cutoff`'; 0 where they are not defined."""
    flagged = probabilities > cutoff
    hits, said, there = int((flagged & truth).sum()), int(flagged.sum()), int(truth.sum())
    return {"precision": hits / max(1, said), "recall": hits / max(1, there), "f1": 2 * hits / max(1, said + there)}


def best_cutoff(truth: Flags, probabilities: Floats) -> float:
    """The cutoff of `CUTOFFS` with the highest F1; of equals the middle one."""
    scores = np.array([at_cutoff(truth, probabilities, c)["f1"] for c in CUTOFFS])
    return float(np.median(CUTOFFS[scores >= scores.max() - 1e-12]))


def bands(truth: Flags, probabilities: Floats, keys: Sequence[str], cutoff: float) -> dict[str, tuple[float, float]]:
    """95% intervals of precision, recall, F1, ECE and of the best cutoff, by a bootstrap over prompts.

    `keys` names each row's prompt: answers to one prompt are drawn together, since they are not independent. The
    interval of `best_cutoff` tells how stable the cut is: a `cutoff` within it could not be bettered on these rows.
    """

    def figures(rows: NDArray[np.int64]) -> list[float]:
        y, p = truth[rows], probabilities[rows]
        found = at_cutoff(y, p, cutoff)
        return [found["precision"], found["recall"], found["f1"], calibration_error(y, p), best_cutoff(y, p)]

    drawn = bootstrap(figures, keys)
    names = ("precision", "recall", "f1", "ece", "best_cutoff")
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def bootstrap(
    figures: Callable[[NDArray[np.int64]], Sequence[float]], keys: Sequence[str], resamples: int = RESAMPLES
) -> Floats:
    """`figures` of the rows of resampled groups of equal `keys` (Field, Welsh 2007): float64 [resamples, figures]."""
    _, group = np.unique(np.asarray(keys), return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(members), size=len(members)) for _ in range(resamples))
    return np.array([figures(np.concatenate([members[g] for g in draw])) for draw in draws])


def auroc(truth: Flags, values: Floats) -> float:
    """Probability that a positive ranks above a negative, ties counting half (Mann and Whitney 1947)."""
    ordered, inverse = np.unique(values, return_inverse=True)
    positive = np.bincount(inverse[truth], minlength=len(ordered))
    negative = np.bincount(inverse[~truth], minlength=len(ordered))
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def calibration_error(truth: Flags, probabilities: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean |observed share - mean probability| over `bins` bins of equal mass."""
    predicted, observed, rows = tenths(truth, probabilities, bins)
    return float((rows * np.abs(observed - predicted)).sum() / rows.sum())


def tenths(truth: Flags | Floats, probabilities: Floats, bins: int = 10) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """(mean probability, observed share, rows) of each of `bins` bins of equal mass, in the order of the
    probabilities."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    predicted = np.array([probabilities[part].mean() for part in parts])
    observed = np.array([truth[part].mean() for part in parts])
    return predicted, observed, np.array([part.size for part in parts], dtype=np.int64)


def sigmoid(x: Floats) -> Floats:
    """Logistic function, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -x)))
