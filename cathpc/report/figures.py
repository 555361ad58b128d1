"""The report's figures as files: `Facts` in, PNG and SVG out, both for people and for trackers.

The modules `plots*` draw; here stands which figures there are. What they show, their captions and their alternative
texts, stands in the modules `figures_*`. A figure without data is left out.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context

from cathpc.report import figures_flow, figures_scorers, figures_scores, figures_training
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
            **figures_training.fidelity(facts, folder),
            **figures_training.time(facts, folder),
        }
