"""`select`: choose again, by other thresholds, from records that are scored already; nothing is scored anew."""

from __future__ import annotations

import argparse

from cathpc.acts import program, run
from cathpc.config import compose, run_name

HELP = "select again with other thresholds, in the foreground, on the scores that there are"


def options(parser: argparse.ArgumentParser) -> None:
    """No options of its own: thresholds are overrides ('select.refusal_max=0.1')."""


def main(arguments: argparse.Namespace) -> int:
    """Bring the stage `select` up to date, here and now; what it needs has to be finished."""
    config = compose(arguments.overrides)
    run.alone("select", config, arguments.overrides)
    print(f"what moved: {program()} diff OTHER_RUN {run_name(config, arguments.overrides)}")
    return 0
