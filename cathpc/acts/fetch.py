"""`fetch`: do what needs a network (data and models) in the foreground, ahead of a run."""

from __future__ import annotations

import argparse

from cathpc.acts import run
from cathpc.config import compose
from cathpc.pipeline import STAGES, Place

HELP = "pull the data and the base model now, in the foreground"


def options(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(arguments: argparse.Namespace) -> int:
    """Walk the stages that need a network, and no others."""
    config = compose(arguments.overrides)
    run.foreground(config, arguments.overrides, targets={s.name for s in STAGES if s.place is Place.network})
    return 0
