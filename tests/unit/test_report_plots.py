"""The figures hold what they were given: bars, points, lines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cathpc.progress import duration
from cathpc.report import plots
from cathpc.report.plots import Bar
from cathpc.report.style import STYLE


@pytest.fixture
def axes() -> Iterator[Axes]:
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        yield figure.add_subplot()
        figure.draw_without_rendering()


def rows_and_mix(*taken: tuple[str, int], entered: int = 100) -> list[Bar]:
    kept = entered - sum(count for _, count in taken)
    return [Bar("read", entered, taken=False), *(Bar(*drop) for drop in taken), Bar("kept", kept, taken=False)]


def test_waterfall_hangs_each_drop_where_the_one_before_ended(axes: Axes) -> None:
    plots.waterfall(axes, rows_and_mix(("language", 10), ("refusal", 30), ("quality", 20)))
    bars = [(bar.get_x(), bar.get_width(), bool(bar.get_hatch())) for bar in axes.patches]
    assert bars == [(0, 100, False), (90, 10, True), (60, 30, True), (40, 20, True), (0, 40, False)]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["read", "language", "refusal", "quality", "kept"]
    assert [t.get_text() for t in axes.texts] == ["100", "−10", "−30", "−20", "40 (40%)"]


def test_waterfall_without_drops_has_two_bars_and_one_that_keeps_nothing_has_none_at_its_end(axes: Axes) -> None:
    plots.waterfall(axes, rows_and_mix(entered=7))
    assert [bar.get_width() for bar in axes.patches] == [7, 7]
    plots.waterfall(other := Figure().add_subplot(), rows_and_mix(("quota", 100)))
    assert [bar.get_width() for bar in other.patches] == [100, 100]


def test_waterfall_of_shares_is_in_percent_of_the_first_bar(axes: Axes) -> None:
    plots.waterfall(axes, rows_and_mix(("duplicate", 50), ("nothing", 0), entered=200), share=True)
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 100), (75, 25), (0, 75)]
    assert not axes.texts and len(axes.get_yticklabels()) == 4


def test_waterfall_whose_totals_do_not_add_up_is_a_bug(axes: Axes) -> None:
    with pytest.raises(AssertionError, match="kept is 60, the bars above it leave 70"):
        plots.waterfall(axes, [Bar("read", 100, taken=False), Bar("refusal", 30), Bar("kept", 60, taken=False)])


def test_reliability_shows_the_bins_of_equal_mass_and_the_cut() -> None:
    main, counts = Figure().subplots(2, sharex=True)
    label, probability = [0, 0, 1, 1] * 5, [0.1, 0.2, 0.8, 0.9] * 5
    plots.reliability(main, counts, label=label, probability=probability, cutoff=0.2)
    dots = main.containers[0].lines[0]
    assert np.asarray(dots.get_xdata()) == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.2, 0.8, 0.8, 0.85, 0.9, 0.9])
    assert list(dots.get_ydata()) == [0] * 5 + [1] * 5
    assert [line.get_xdata()[0] for line in main.lines if line.get_linestyle() == ":"] == [0.2]
    assert counts.get_yscale() == "log"


def test_auroc_draws_each_score_that_a_generator_has(axes: Axes) -> None:
    plots.auroc(axes, [("vicuna", {"contrast": 0.88, "length": 0.6}), ("alpaca", {"contrast": None, "length": 0.9})])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None"}
    assert drawn == {"contrast": [[0.88, 0]], "length": [[0.6, 0], [0.9, 1]]}


def test_training_curve_marks_resumes_with_dotted_lines(axes: Axes) -> None:
    plots.training_curve(
        axes, {"training": ([1, 2, 3], [3.0, 2.0, 1.0]), "held out": ([3], [1.5])}, ylabel="loss", resumed=[2]
    )
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [2]
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.0, 1.0]


def test_fidelity_draws_each_model_of_each_family_and_survives_a_mean_outside_its_interval(axes: Axes) -> None:
    rows = [
        ("all", {"base": (0.4, 0.3, 0.5), "tuned": (0.8, 0.7, 0.9)}),
        ("ending", {"base": (1.0, 0.9, 0.99)}),
    ]
    plots.fidelity(axes, rows)
    drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in axes.containers}
    assert drawn == {"base": [0.4, 1.0], "tuned": [0.8]}


@pytest.mark.parametrize(("longest", "unit"), [(50.0, "seconds"), (600.0, "minutes"), (50_000.0, "hours")])
def test_stage_times_take_a_fitting_unit(axes: Axes, longest: float, unit: str) -> None:
    plots.stage_times(axes, [("pull", 3.0), ("train", longest)])
    assert axes.get_xlabel() == f"time in {unit}"
    assert [bar.get_width() for bar in axes.patches] == [3.0, longest]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.44, "8.4 s"), (59.96, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (1_209_600, "14 d 0 h")],
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
