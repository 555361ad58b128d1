"""Which figures there are: as files (PNG and SVG, for print, slides and trackers) and as the page's charts.

The modules `plots*` and `charts*` draw. What figures show, their captions and their alternative texts, stands in the
modules `figures_*`. A figure without data is left out.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context

from cathpc.report import (
    charts_flow,
    charts_population,
    charts_scorers,
    charts_scores,
    charts_training,
    figures_flow,
    figures_scorers,
    figures_scores,
    figures_training,
)
from cathpc.report.charts import Chart
from cathpc.report.gather import Facts
from cathpc.report.picture import Picture
from cathpc.report.style import STYLE


def draw(facts: Facts, folder: Path, *, max_points: int) -> dict[str, Picture]:
    """Draw every figure for which there is data into `folder`; name -> picture.

    Time and memory grow with the scored records: some seconds and 100 bytes each for ten million. Files do not.
    """
    folder.mkdir(exist_ok=True)
    with rc_context(STYLE):
        return {
            **figures_flow.flow(facts, folder),
            **figures_scores.population(facts, folder, max_points),
            **figures_scores.lengths(facts, folder),
            **figures_scores.scores_by_length(facts, folder, max_points),
            **figures_scorers.generators(facts, folder),
            **figures_scorers.reliability(facts, folder),
            **figures_training.training(facts, folder),
            **figures_training.goodput(facts, folder),
            **figures_training.fidelity(facts, folder),
            **figures_training.milestone_curve(facts, folder),
            **figures_training.time(facts, folder),
        }


def chart(facts: Facts) -> dict[str, Chart]:
    """The page's charts, by the keys of the pictures in `draw`; what is said there of time and memory holds here."""
    source = charts_scores.records(facts)
    return {
        **charts_flow.flow(facts),
        **charts_population.population(facts, source),
        **charts_scores.lengths(facts),
        **charts_scores.scores_by_length(facts, source),
        **charts_scorers.generators(facts),
        **charts_scorers.reliability(facts),
        **charts_training.training(facts),
        **charts_training.goodput(facts),
        **charts_training.fidelity(facts),
        **charts_flow.time(facts),
    }
