"""`export`: a Hugging Face folder from a checkpoint of one's choice: a milestone, or of a training that still goes on.

The pipeline's own stage exports the last one. This reads the whole checkpoint (12 bytes a parameter), in the
foreground, with little memory: for a large model, in an interactive job.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cathpc.config import compose, only
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME

HELP = "a Hugging Face folder from a checkpoint of one's choice (a milestone, or of a training that goes on)"


def options(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, and where to."""
    parser.add_argument("--step", type=int, help="the checkpoint after so many steps (default: the newest)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder (runs/RUN/export-step-000012)")


def main(arguments: argparse.Namespace) -> int:
    """Export into a folder that is not there yet."""
    from cathpc import store
    from cathpc.runs import run_folder
    from cathpc.train import history
    from cathpc.train.export import checkpoint_of, run

    config = compose(arguments.overrides)
    place = store.places(config)["export"]
    for name in ("base", "pack"):
        if not (place.inputs[name] / store.MANIFEST).exists():
            raise UserError(
                f"{place.inputs[name]} is not finished: the stage {name} of this experiment has to run first"
            )
    checkpoint = checkpoint_of(place.inputs["train"], arguments.step)
    run_name = run_folder(config, arguments.overrides)
    out = arguments.to or run_name / f"export-{checkpoint.name}"
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or name another folder with --to FOLDER")
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
    step = history.step_of(checkpoint)
    summary = run(only(config, BY_NAME["export"].config), place.inputs, temporary, step=step)
    (temporary / "progress.json").unlink(missing_ok=True)
    temporary.rename(out)
    print(f"{summary['line']}: {out / 'model'}")
    return 0
