"""`report`: make the page, its figures and the cards of model and data, from stages that are finished."""

from __future__ import annotations

import argparse

from cathpc.acts import run
from cathpc.config import compose

HELP = "make the report, in the foreground, of stages that are finished"


def options(parser: argparse.ArgumentParser) -> None:
    """No options of its own: what it shows are overrides ('report.examples=50')."""


def main(arguments: argparse.Namespace) -> int:
    """Bring the stage `report` up to date, here and now; what it needs has to be finished."""
    config = compose(arguments.overrides)
    folder = run.alone("report", config, arguments.overrides)
    print(f"report  {folder / 'report.html'}")
    return 0
