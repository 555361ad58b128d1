"""`sync`: send what the stages of an experiment's runs left to W&B, from a machine that reaches it."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import TryAgainError, UserError

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.saved import Saved

HELP = "send a run to W&B from a login node: every stage, every step once, however often it is repeated"
EVERY_S = 60.0


def options(parser: argparse.ArgumentParser) -> None:
    """Which runs, once or again and again, and the dashboard."""
    parser.add_argument(
        "--runs", nargs="*", default=[], metavar="RUN", help="names of runs or patterns; else those of +experiment=NAME"
    )
    parser.add_argument("--watch", action="store_true", help=f"again every {EVERY_S:.0f} s until every stage is sent")
    parser.add_argument("--workspace", action="store_true", help="make the project's dashboard in W&B as well")
    parser.add_argument(
        "--offline", type=Path, metavar="FOLDER", help="write W&B's offline runs below FOLDER instead of sending them"
    )


def main(arguments: argparse.Namespace) -> int:
    """Send, and print a line for each stage that had something to send; 75 where W&B could not be reached."""
    from cathpc import saved
    from cathpc.tracking import mode

    if arguments.watch and arguments.offline is not None:
        raise UserError("--watch goes on until W&B has every stage, and --offline sends nothing: leave one out")
    names = [word for word in arguments.runs if "=" not in word]
    overrides = arguments.overrides + [word for word in arguments.runs if "=" in word]
    runs, _ = saved.chosen(names, overrides)
    if arguments.offline is None and mode.has_key() is False:
        raise UserError(
            f"there is no key for {mode.server()}: `wandb login` keeps one in ~/.netrc, or set WANDB_API_KEY. "
            "Without one, --offline FOLDER writes runs that `wandb sync FOLDER/wandb/offline-run-*` sends elsewhere"
        )
    while True:
        lines = _send(runs, arguments.offline)
        failures = [line for line in lines if "failure" in line]
        if not arguments.watch or (not failures and all(_whole(run) for run in runs)):
            break
        time.sleep(EVERY_S)
    if failures:
        stages = ", ".join(line["stage"] for line in failures)
        raise TryAgainError(
            f"W&B did not take {stages} ({failures[0]['failure']}). Nothing is lost; the same command goes on"
        )
    if arguments.workspace:
        from cathpc.tracking import workspace

        print(workspace.save(_config(runs[0]).tracker))
    return 0


def _send(runs: list[Saved], below: Path | None) -> list[dict[str, Any]]:
    """Send the stages of `runs`, each folder once; what the sender said of each."""
    from cathpc.tracking import beside, sweep

    seen: set[Path] = set()
    lines = []
    for run in runs:
        config = _config(run)
        stages = {name: folder for name, folder in run.stages().items() if folder.is_dir() and folder not in seen}
        seen |= set(stages.values())
        where = below / run.name if below and len(runs) > 1 else below
        if stages:
            lines += _told(beside.spec(config, stages, offline_below=where))
    if len(runs) > 1:
        lines += _told(sweep.spec(_config(runs[0]), runs, offline_below=below / "sweep" if below else None))
    return lines


def _told(spec: Any) -> list[dict[str, Any]]:
    """Run the sender and print what it says."""
    from cathpc.tracking import beside

    sender = beside.start(spec, stdout=subprocess.PIPE)
    said = []
    assert sender.stdout is not None
    try:
        for text in sender.stdout:
            said.append(json.loads(text))
            print(_line(said[-1]), flush=True)
        sender.wait()
    except BaseException:
        beside.end(sender)
        raise
    finally:
        sender.stdout.close()
        if sender.stdin:
            sender.stdin.close()
    if len(said) < len(spec.stages):
        raise TryAgainError(f"the process that talks to W&B ended early, with code {sender.returncode}. Try again")
    return said


def _line(told: dict[str, Any]) -> str:
    if "failure" in told:
        what = f"not sent: {told['failure']}"
    elif told.get("followed"):
        what = "is sent while it runs"
    elif told.get("up_to_date"):
        what = f"up to date  {told['url']}"
    else:
        what = (f"{told['steps']:,} steps  " if told["steps"] else "") + (told["url"] or "written")
    return f"  {told['stage']:<10} {what}"


def _config(run: Saved) -> Config:
    from omegaconf.errors import OmegaConfBaseException

    from cathpc.config import from_plain

    try:
        return from_plain(run.config)
    except (OmegaConfBaseException, AssertionError) as error:
        raise UserError(f"{run.folder / 'config.json'} cannot be read: {str(error).splitlines()[0]}") from None


def _whole(run: Saved) -> bool:
    """Whether every stage is finished, and noted as sent."""
    from cathpc.tracking.described import describe, sections
    from cathpc.tracking.send import read_note

    config = _config(run)
    stages = [describe(config.name, name, path, sections(config, name)) for name, path in run.stages().items()]
    return all(read_note(stage, config.tracker).get("complete") for stage in stages)
