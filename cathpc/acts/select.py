"""`select`: choose again, by other thresholds, from records that are scored already; nothing is scored anew."""

from __future__ import annotations

import argparse
import shlex

from cathpc.config import compose, run_name
from cathpc.errors import UserError

HELP = "select again with other thresholds, in the foreground, on the scores that there are"


def options(parser: argparse.ArgumentParser) -> None:
    """No options of its own: thresholds are overrides ('select.refusal_max=0.1')."""


def main(arguments: argparse.Namespace) -> int:
    """Bring the stage `select` up to date, here and now; what it needs has to be finished."""
    from cathpc import store
    from cathpc.acts import program, run

    config = compose(arguments.overrides)
    places = store.places(config)
    words = shlex.join(arguments.overrides)
    for name in places["select"].stage.inputs:
        if not places[name].fresh():
            raise UserError(f"the stage {name} is not finished for these overrides. Run it first: {program()} {words}")
    run.foreground(config, arguments.overrides, targets={"select"})
    print(f"what moved: {program()} diff OTHER_RUN {run_name(config, arguments.overrides)}")
    return 0
