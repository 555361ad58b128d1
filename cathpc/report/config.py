"""Config of the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ReportConfig:
    """Group `report`."""

    title: str = ""
    """Heading of the page; '' is the experiment's name."""
    max_points: int = 6_000
    """Points drawn in a figure of single records; of more, a sample by a hash of their ids."""
    explained: int = 24
    """Records shown whole, with every rule, besides those that came nearest to passing."""
    examples: int = 12
    """Cards shown with their verdicts; answers of the base and the tuned model side by side are half as many."""
