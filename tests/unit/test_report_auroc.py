"""The table that says how well a score tells the reference's answers from others'."""

from __future__ import annotations

import numpy as np
import pytest

from cathpc.report.auroc import Answers, auroc, equal_lengths, table


def answers(
    count: int, *, gain: float = 0.0, by_length: float = 0.0, components: tuple[str, str] = ("a", "a")
) -> Answers:
    """As many of the reference as of 'other': the reference's are longer; contrast = gain + by_length x log tokens."""
    rng = np.random.default_rng(0)
    reference = np.repeat([True, False], count)
    tokens = np.exp(rng.normal(5, 0.5, 2 * count) + 0.7 * reference)
    contrast = gain * reference + by_length * np.log(tokens) + 0.1 * rng.normal(size=2 * count)
    names = np.where(reference, "gpt-4", "other").astype(object)
    component = np.where(reference, *components).astype(object)
    return Answers(names, component, reference, contrast, np.exp(-contrast), tokens)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    better, worse = np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0])
    assert auroc(better, worse) == (2 + 1.5 + 2) / 6
    assert auroc(better, worse, np.array([[True, False], [True, False], [False, False]])) == 1.5 / 2
    assert auroc(better, worse, np.zeros((3, 2), bool)) is None
    assert auroc(np.array([]), worse) is None


def test_pairs_of_equal_length_differ_by_a_tenth_of_the_longer() -> None:
    found = equal_lengths(np.array([100.0, 50.0]), np.array([90.0, 89.0, 111.0, 112.0, 50.0]))
    assert found.tolist() == [[True, False, True, False, False], [False, False, False, False, True]]


def test_an_advantage_that_is_length_in_disguise_is_gone_at_equal_length() -> None:
    row, mean = table(answers(300, by_length=1.0))
    assert row.contrast is not None and row.length is not None and row.equal_length is not None
    assert row.contrast > 0.75 and row.length > 0.75
    assert row.equal_length == pytest.approx(0.5, abs=0.05)
    assert row.pairs > 3000 and mean.generator == "mean" and mean.contrast == row.contrast


def test_an_advantage_beyond_length_stays() -> None:
    row, _ = table(answers(200, gain=0.3))
    assert row.equal_length is not None and row.contrast is not None and row.perplexity == row.contrast
    assert row.equal_length > 0.95 and abs(row.equal_length - row.contrast) < 0.03


def test_answers_are_compared_within_their_components() -> None:
    row, mean = table(answers(20, components=("roleplay", "general")))
    assert row.contrast is None and row.pairs == 0 and mean.contrast is None


def test_a_generator_with_too_few_answers_has_no_row() -> None:
    assert table(answers(7)) == []
    assert [row.generator for row in table(answers(8))] == ["other", "mean"]
