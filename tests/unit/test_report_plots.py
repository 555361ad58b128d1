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


@pytest.fixture
def axes() -> Iterator[Axes]:
    with rc_context(plots.STYLE):
        figure = Figure(layout="constrained")
        yield figure.add_subplot()
        figure.draw_without_rendering()


def vertical_lines(axes: Axes) -> list[float]:
    return [
        line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1 and line.get_linestyle() == "--"
    ]


def test_waterfall_hangs_each_drop_where_the_one_before_ended(axes: Axes) -> None:
    plots.flow_waterfall(axes, entered=100, drops=[("language", 10), ("refusal", 30), ("quality", 20)], kept=40)
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 100), (90, 10), (60, 30), (40, 20), (0, 40)]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["pulled", "language", "refusal", "quality", "kept"]


def test_waterfall_without_drops_has_two_bars(axes: Axes) -> None:
    plots.flow_waterfall(axes, entered=7, drops=[], kept=7)
    assert [bar.get_width() for bar in axes.patches] == [7, 7]


def plane(quality: list[float], **changed: object) -> tuple[Axes, Axes, Axes]:
    figure = Figure(layout="constrained")
    grid = figure.add_gridspec(2, 2)
    main = figure.add_subplot(grid[1, 0])
    top, right = figure.add_subplot(grid[0, 0], sharex=main), figure.add_subplot(grid[1, 1], sharey=main)
    options = {
        "refusal": [0.01, 0.5, 0.9, 0.0], "component": ["general", "general", "health", "health"],
        "kept": [True, False, False, True], "refusal_max": 0.2, "quality_cuts": {"general": 0.1, "health": 0.2},
        "quality_name": "contrast",
    }  # fmt: skip
    plots.population_plane(main, top, right, quality=quality, **(options | changed))  # type: ignore[arg-type]
    figure.draw_without_rendering()
    return main, top, right


def test_plane_draws_every_record_once_and_the_cuts() -> None:
    main, _, _ = plane([0.3, 0.2, -0.1, 0.4])
    points = np.concatenate([np.asarray(c.get_offsets()) for c in main.collections])
    assert len(points) == 4
    assert points[:, 0].min() == pytest.approx(0.001)  # a score of 0 has no logit: it is drawn on the rim
    assert vertical_lines(main) == [0.2]
    assert sorted(line.get_ydata()[0] for line in main.lines if line.get_xdata()[0] == 0) == [0.1, 0.2]


def test_plane_of_one_record_and_of_none_is_drawn() -> None:
    main, _, _ = plane([0.3], refusal=[0.1], component=["other"], kept=[True], refusal_max=None, quality_cuts={})
    assert len(main.collections[0].get_offsets()) == 1 and not vertical_lines(main)
    main, _, _ = plane([], refusal=[], component=[], kept=[], quality_cuts={})
    assert not main.collections


def test_length_histogram_counts_every_record_and_marks_the_threshold(axes: Axes) -> None:
    plots.answer_lengths(axes, kept=[60, 70, 500], dropped=[5, 40], threshold=50)
    assert sum(bar.get_height() for bar in axes.patches) == 5
    assert vertical_lines(axes) == [50]


def test_reliability_bins_hold_means_and_counts() -> None:
    predicted, observed, count = plots.reliability_bins([0, 1, 1, 1], [0.05, 0.08, 0.95, 1.0], bins=10)
    assert predicted == pytest.approx([0.065, 0.975])
    assert observed == pytest.approx([0.5, 1.0])
    assert count.tolist() == [2, 2]


def test_reliability_curve_goes_through_its_bins(axes: Axes) -> None:
    plots.reliability(axes, label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], bins=2)
    curve = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.asarray(curve.get_xydata()) == pytest.approx(np.array([[0.15, 0.0], [0.85, 1.0]]))


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
