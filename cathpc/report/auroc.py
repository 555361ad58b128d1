"""Do the quality scores tell the reference generators' answers from others', on prompts that no GPT was trained on?

In: held-out answers with their scores. Out: one row a generator: the AUROC of the reference's answers, within the
components in which that generator answers too, against its own, by each score and by length alone.

At equal length the AUROC is taken over matched pairs: of all pairs of a reference answer and another's, those whose
lengths in tokens differ by at most `TOLERANCE` of the longer; the share of them in which the reference's scores higher,
ties counting half. That is the Mann-Whitney statistic restricted to pairs that length cannot tell apart (conditional
AUC; cf. Janes and Pepe 2008, covariate-adjusted ROC), so an advantage that is length in disguise ends at 0.5. Time and
memory grow with the product of the two numbers of answers, of which there are at most `gpt.heldout_tokens` / 8 each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TOLERANCE = 0.1
LEAST = 8
"""Answers that a generator must have for a row of its own."""


@dataclass(frozen=True)
class Answers:
    """Scored held-out answers, one entry each."""

    generator: NDArray[np.object_]
    component: NDArray[np.object_]
    reference: NDArray[np.bool_]
    """Whether the generator is one that the reference GPT learns from."""
    contrast: Floats
    perplexity: Floats
    tokens: Floats
    """Of the answer."""


@dataclass(frozen=True)
class Row:
    """One generator against the reference's answers; None where there is nothing to compare."""

    generator: str
    answers: int
    contrast: float | None
    equal_length: float | None
    """The contrast over pairs of equal length."""
    pairs: int
    """Of equal length."""
    perplexity: float | None
    """Lower is better."""
    length: float | None
    """Longer is better."""


def table(answers: Answers) -> list[Row]:
    """A row for each generator outside the reference with `LEAST` answers, and their means, unweighted, as 'mean'."""
    others = answers.generator[~answers.reference]
    names = [str(name) for name in sorted(set(others)) if (others == name).sum() >= LEAST]
    if not names or answers.reference.sum() < LEAST:
        return []
    rows = [_row(name, answers, ~answers.reference & (answers.generator == name)) for name in names]

    def mean(key: str) -> float | None:
        values = [v for v in (getattr(row, key) for row in rows) if v is not None]
        return float(np.mean(values)) if values else None

    figures = {key: mean(key) for key in ("contrast", "equal_length", "perplexity", "length")}
    return [*rows, Row("mean", sum(r.answers for r in rows), pairs=sum(r.pairs for r in rows), **figures)]


def _row(name: str, answers: Answers, other: NDArray[np.bool_]) -> Row:
    ours = answers.reference & np.isin(answers.component.astype(str), answers.component[other].astype(str))
    long, short = answers.tokens[ours], answers.tokens[other]
    matched = equal_lengths(long, short)
    contrast = answers.contrast[ours], answers.contrast[other]
    return Row(
        name,
        int(other.sum()),
        contrast=auroc(*contrast),
        equal_length=auroc(*contrast, matched),
        pairs=int(matched.sum()),
        perplexity=auroc(-answers.perplexity[ours], -answers.perplexity[other]),
        length=auroc(long, short),
    )


def equal_lengths(one: Floats, other: Floats) -> NDArray[np.bool_]:
    """Which pairs [len(one), len(other)] differ by at most `TOLERANCE` of the longer."""
    longer = np.maximum(one[:, None], other[None])
    return np.abs(one[:, None] - other[None]) <= TOLERANCE * longer


def auroc(better: Floats, worse: Floats, pairs: NDArray[np.bool_] | None = None) -> float | None:
    """Share of `pairs` (all, where None; bool [better, worse]) in which the better is higher, ties counting half."""
    difference = better[:, None] - worse[None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    if pairs is not None:
        wins = wins[pairs]
    return float(wins.mean()) if wins.size else None
