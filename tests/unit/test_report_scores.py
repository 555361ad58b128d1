"""The plane of refusal and quality, lengths, and what is computed for them: densities, bins, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cathpc.data import density as planes
from cathpc.models import calibration
from cathpc.report import density, plots_lengths, plots_population, reliability
from cathpc.report.style import STYLE

RNG = np.random.default_rng(0)


def dashed(axes: Axes) -> list[float]:
    """Places of the vertical dashed lines."""
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    return [line.get_xdata()[0] for line in lines if len(set(line.get_xdata())) == 1]


def plane(quality: list[float], **changed: Any) -> tuple[Axes, Axes, Axes]:
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        grid = figure.add_gridspec(2, 2)
        main = figure.add_subplot(grid[1, 0])
        top, right = figure.add_subplot(grid[0, 0], sharex=main), figure.add_subplot(grid[1, 1], sharey=main)
        options = {
            "refusal": [0.01, 0.5, 0.9, 0.0], "component": ["general", "general", "health", "health"],
            "kept": [True, False, False, True], "refusal_max": 0.2, "quality_cuts": {"general": 0.1, "health": 0.2},
            "quality_name": "contrast",
        }  # fmt: skip
        plots_population.population_plane(main, top, right, quality=quality, **(options | changed))
        figure.draw_without_rendering()
    return main, top, right


def drawn_points(axes: Axes) -> np.ndarray:
    scatters = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    return np.concatenate([np.asarray(c.get_offsets()) for c in scatters])


def test_plane_draws_every_record_once_and_the_cuts() -> None:
    main, _, right = plane([0.3, 0.2, -0.1, 0.4])
    points = drawn_points(main)
    assert len(points) == 4
    assert points[:, 0].min() == pytest.approx(0.001)  # a score of 0 has no logit: it is drawn on the rim
    assert dashed(main) == [0.2]
    level = [line for line in main.lines if len(set(line.get_ydata())) == 1]
    assert sorted(line.get_ydata()[0] for line in level) == [0.1, 0.2]
    assert all(line.get_xdata()[1] == 0.2 for line in level), "a cut for quality ends where refusals are dropped anyway"
    assert sorted(line.get_ydata()[0] for line in right.lines) == [0.1, 0.2]


def test_points_are_an_image_within_a_vector_file() -> None:
    main, _, _ = plane([0.3, 0.2, -0.1, 0.4])
    assert all(c.get_rasterized() for c in main.collections if type(c).__name__ == "PathCollection")


def test_kept_marks_are_filled_and_dropped_ones_hollow() -> None:
    main, _, _ = plane([0.3, 0.2, -0.1, 0.4])
    looks = {bool(len(c.get_facecolor())): len(c.get_offsets()) for c in main.collections if len(c.get_offsets())}
    assert looks == {True: 1, False: 1}  # of each component one of either


def test_plane_of_one_record_of_none_and_of_equal_ones_is_drawn() -> None:
    main, _, _ = plane([0.3], refusal=[0.1], component=["other"], kept=[True], refusal_max=None, quality_cuts={})
    assert len(drawn_points(main)) == 1 and not dashed(main)
    main, _, _ = plane([], refusal=[], component=[], kept=[], quality_cuts={})
    assert not [c for c in main.collections if type(c).__name__ == "PathCollection"]
    main, _, _ = plane([0.3] * 4, quality_cuts={})
    assert len(drawn_points(main)) == 4


def test_of_a_perplexity_the_lower_is_drawn_higher() -> None:
    main, _, _ = plane([5.0, 8.0, 300.0, 4.0], lower_is_better=True, quality_cuts={"general": 9.0})
    bottom, top = main.get_ylim()
    assert bottom > top > 0 and main.get_yscale() == "log"


def test_refusal_ticks_of_a_narrow_panel_keep_their_distance() -> None:
    with rc_context(STYLE):
        axes = Figure().add_subplot()
        plots_population.population_panel(
            axes, refusal=[0.01], quality=[0.1], kept=[True], refusal_range=(0.001, 0.999), quality_range=(0.0, 1.0),
            refusal_max=0.2, quality_cut=0.05, colour="black",
        )  # fmt: skip
    ticks = plots_population.logit(np.array(axes.get_xticks()))
    ends = plots_population.logit(np.array(axes.get_xlim()))
    assert 3 <= len(ticks) <= 5 and np.diff(ticks).min() > np.ptp(ends) / 5


def test_contours_hold_their_share_of_the_points() -> None:
    x = np.concatenate([RNG.normal(-5, 1, 4000), RNG.normal(4, 1, 400)])
    y = RNG.normal(0, 0.1, 4400)
    found = planes.plane(x, y)
    assert found.mass.sum() == pytest.approx(1)
    for share in (0.5, 0.8, 0.95):
        assert np.mean(found.at(x, y) >= found.level(share)) == pytest.approx(share, abs=0.01)


def test_points_that_are_all_alike_lie_in_one_cell() -> None:
    found = planes.plane([2.0] * 5, [0.0, 0.0, 0.0, 0.0, 1.0])
    assert found.at([2.0], [0.0])[0] > found.at([2.0], [1.0])[0] > 0
    assert found.mass.sum() == pytest.approx(1)


@pytest.mark.parametrize("x", [[1.0] * 100, [], range(5)])
def test_few_or_equal_points_have_no_density(x: Any) -> None:
    assert density.line(x) is None


def test_the_peak_of_lengths_is_that_of_their_density_and_its_interval_narrows_with_records() -> None:
    spans = []
    for rows in (200, 20_000):
        found = density.line(np.log(RNG.lognormal(np.log(150), 0.4, rows)))
        assert found is not None
        low, high = np.exp(found.interval)
        assert low <= np.exp(found.peak) <= high and low * 0.97 <= 150 <= high * 1.03
        assert np.trapezoid(found.height, found.at) == pytest.approx(1, abs=0.01)
        spans.append(high - low)
    assert spans[1] < spans[0] / 2


@pytest.mark.parametrize(
    ("kept", "dropped", "threshold"),
    [([60, 70, 500], [5, 40, 50], 50), ([], [1, 2, 3], 50), ([51, 400], [], None), (range(1, 900), range(1, 101), 100)],
)
def test_length_histogram_counts_every_record_and_no_bar_straddles_the_threshold(
    kept: Any, dropped: Any, threshold: int | None
) -> None:
    with rc_context(STYLE):
        axes = Figure().add_subplot()
        plots_lengths.answer_lengths(axes, kept=list(kept), dropped=list(dropped), threshold=threshold)
    assert sum(bar.get_height() for bar in axes.patches) == len(kept) + len(dropped)
    if threshold:
        assert dashed(axes) == [threshold + 0.5]
        edges = {bar.get_x() for bar in axes.patches} | {bar.get_x() + bar.get_width() for bar in axes.patches}
        assert min(abs(edge - threshold - 0.5) for edge in edges) < 1e-6
    assert all(bar.get_width() > 0.99 for bar in axes.patches if bar.get_x() >= 1), (
        "a bin narrower than a token is empty"
    )


def test_the_peak_is_named_in_the_legend_and_stands_on_the_bars() -> None:
    tokens = np.exp(RNG.normal(5, 0.3, 20_000)).round()
    curve = density.line(np.log(tokens))
    with rc_context(STYLE):
        axes = Figure().add_subplot()
        plots_lengths.answer_lengths(axes, kept=tokens, dropped=[], threshold=100, curve=curve)
    (mark,) = [line for line in axes.lines if str(line.get_label()).startswith("peak at")]
    assert int(str(mark.get_label()).split()[-1]) == pytest.approx(148, rel=0.1)
    assert mark.get_ydata()[0] == pytest.approx(max(bar.get_height() for bar in axes.patches), rel=0.1)


def test_bins_of_a_score_by_length_hold_equally_many_records_and_their_quartiles() -> None:
    tokens = RNG.permutation(np.arange(1, 1001))
    found = plots_lengths.binned(tokens, 2.0 * tokens)
    assert found is not None
    at, quartiles = found
    assert at == pytest.approx(np.arange(50.5, 1000, 100))
    assert quartiles[0] == pytest.approx([51.5, 101, 150.5])
    assert plots_lengths.binned([5.0] * 10, [1.0] * 10) is None
    at, _ = plots_lengths.binned([5.0] * 100, [1.0] * 100) or ([], [])
    assert list(at) == [5.0], "equal lengths stay in one bin"


def test_scores_beyond_the_range_are_drawn_on_the_rim() -> None:
    with rc_context(STYLE):
        axes = Figure().add_subplot()
        plots_lengths.score_by_length(
            axes,
            tokens=[10, 100, 1000],
            score=[-9.0, 0.5, 9.0],
            tokens_range=(10, 1000),
            score_range=(0.0, 1.0),
            band=None,
        )
    points = drawn_points(axes)
    assert len(points) == 3
    low, high = axes.get_ylim()
    assert low < points[0, 1] < 0 and 1 < points[2, 1] < high


def test_bins_of_equal_mass_hold_means_and_counts() -> None:
    label, guess = np.array([0.0, 1, 1, 1]), np.array([0.05, 0.08, 0.95, 1.0])
    predicted, observed, count = calibration.tenths(label, guess, bins=2)
    assert predicted == pytest.approx([0.065, 0.975])
    assert observed == pytest.approx([0.5, 1.0])
    assert count.tolist() == [2, 2]


def test_wilsons_interval_is_that_of_the_literature() -> None:
    """10 of 100: 5.52% to 17.44% (Newcombe 1998, Statistics in Medicine 17)."""
    low, high = reliability.wilson(np.array([0.1]), np.array([100]))
    assert 0.1 - low[0] == pytest.approx(0.0552, abs=1e-4)
    assert 0.1 + high[0] == pytest.approx(0.1744, abs=1e-4)


def test_a_calibrated_classifier_stays_in_its_band_and_an_overconfident_one_leaves_it() -> None:
    inside = {}
    for power in (1.0, 3.0):
        shares = []
        for _ in range(4):
            guess = RNG.random(1000)
            odds = (guess / (1 - guess)) ** (1 / power)
            label = (RNG.random(1000) < odds / (1 + odds)).astype(float)
            at, curve, low, high = reliability.corp(label, guess)
            assert np.all(np.diff(curve) >= 0) and np.all(low <= high)
            assert np.mean((low <= at) & (at <= high)) > 0.9, "the band goes along the diagonal"
            shares.append(np.mean((low <= curve) & (curve <= high)))
        inside[power] = np.mean(shares)
    assert inside[1.0] > 0.85 and inside[3.0] < 0.5


def test_a_classifier_without_rows_has_an_empty_curve() -> None:
    assert all(part.size == 0 for part in reliability.corp(np.zeros(0), np.zeros(0)))
