"""`run`: bring every stage of an experiment up to date."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from cathpc import terminal
from cathpc.acts import program
from cathpc.acts.pin import unpinned
from cathpc.config import Config, compose, expand
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import UserError
from cathpc.models.fetch import fetch

HELP = "run an experiment: finish what is missing, redo what has changed, nothing else"


def options(parser: argparse.ArgumentParser) -> None:
    """-m makes a grid of runs out of swept values."""
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of swept values (a=1,2)")


def main(arguments: argparse.Namespace) -> int:
    """Compose, check and run; a multirun does so for each combination, sharing all stages that are equal."""
    grid = expand(arguments.overrides) if arguments.multirun else [arguments.overrides]
    configs = [compose(overrides) for overrides in grid]  # all are checked before the first one starts
    for number, (config, overrides) in enumerate(zip(configs, grid, strict=True), start=1):
        if len(grid) > 1:
            print(f"[{number}/{len(grid)}] {' '.join(overrides)}", flush=True)
        one(config, overrides)
    if len(grid) > 1:
        print(f"compare them: {program()} compare +experiment={configs[0].name}")
    return 0


def one(config: Config, overrides: list[str]) -> None:
    """Run one experiment: in the foreground, or as jobs of a Slurm cluster."""
    if config.dry_run:
        dry_run(config)
    elif config.cluster.kind is ClusterKind.slurm:
        submit(config, overrides)
    else:
        foreground(config, overrides)


def foreground(config: Config, overrides: list[str], *, targets: set[str] | None = None) -> None:
    """Walk the stages on this machine and say where the results lie; with `targets` those stages only."""
    from cathpc.dispatch import local
    from cathpc.dispatch.show import Show
    from cathpc.progress import duration
    from cathpc.runs import open_run

    refuse_unpinned(config, overrides)
    if targets is None or "train" in targets:
        refuse_unfit(config)
        refuse_lost_steps(config)
    run = open_run(config, overrides)
    began = time.monotonic()
    show = Show()
    fetch(config, show.note)
    local.walk(config, run, show, targets=targets)
    if targets is not None:
        return
    stages = run.folder / "stages"
    took = f"in {duration(time.monotonic() - began)}" if show.worked else "everything is up to date"
    command = f"{program()} chat {shlex.join(overrides)} --prompt 'Hello!'"
    show.console.print(
        f"\n{run.name}: done, {took}\n"
        f"  model    {(stages / 'export').resolve() / 'model'}\n"
        f"  report   {(stages / 'report').resolve() / 'report.html'}\n"
        f"  figures  {(stages / 'report').resolve() / 'figures'}\n"
        f"  chat     {command}" + _tracked(config, stages.resolve(), overrides),
        markup=False,
    )


def _tracked(config: Config, stages: Path, overrides: list[str]) -> str:
    """Where W&B shows the run, or how it comes there."""
    from cathpc.store import read_json
    from cathpc.tracking import mode
    from cathpc.tracking.described import FOLDER, NOTE

    how, why = mode.mode(config.tracker)
    if how == "disabled":
        return ""
    report = (stages / "report").resolve()
    note = read_json(report / FOLDER / NOTE) or {}
    sync = f"{program()} sync {shlex.join(overrides)}"
    if how == "offline":
        return f"\n  W&B      offline ({why}), in {report / 'wandb'}; with a key: {sync}"
    if note.get("complete"):
        return f"\n  W&B      {note['url']}"
    return f"\n  W&B      not reached ({note.get('failure', 'no answer')}); later: {sync}"


def alone(name: str, config: Config, overrides: list[str]) -> Path:
    """Bring one stage up to date, here and now, and return its folder; raises `UserError` where an input of it is not
    finished."""
    from cathpc import store

    places = store.places(config)
    for needed in places[name].stage.inputs:
        if not places[needed].fresh():
            words = shlex.join(overrides)
            raise UserError(
                f"the stage {needed} is not finished for these overrides. Run it first: {program()} {words}"
            )
    foreground(config, overrides, targets={name})
    return places[name].folder


def submit(config: Config, overrides: list[str]) -> None:
    """Submit what the experiment lacks, print the table of its jobs and return: nothing stays behind."""
    from cathpc.dispatch import graph
    from cathpc.dispatch.show import job_table
    from cathpc.models.contract import check_models
    from cathpc.runs import open_run

    refuse_unpinned(config, overrides)
    refuse_unfit(config)
    refuse_lost_steps(config)
    check_models(config)
    run = open_run(config, overrides)
    console = terminal.console()
    rows = graph.submit(config, run, note=lambda text: console.print(f"  {text}", markup=False))
    console.print(job_table(run.name, rows))
    sent = sum(row.state == "submitted" for row in rows)
    waiting = sum(row.state == "in the queue" for row in rows)
    words = shlex.join(overrides)
    if not sent and not waiting:
        console.print(f"\n{run.name}: everything is up to date", markup=False)
        return
    console.print(
        f"\n{run.name}: {sent} stage{'s' * (sent != 1)} submitted, {waiting} in the queue already. You may log out; "
        f"the same command goes on from wherever it is.\n"
        f"  follow   {program()} status {words} --watch\n"
        f"  logs     {program()} logs {words} --stage train\n"
        f"  cancel   {program()} cancel {words}",
        markup=False,
    )


def dry_run(config: Config) -> None:
    """Print every script that would be submitted if nothing were finished."""
    from cathpc import store
    from cathpc.dispatch import graph
    from cathpc.train import fit

    if config.cluster.kind is not ClusterKind.slurm:
        raise UserError(
            "dry_run prints jobs of a Slurm cluster; cluster=local submits none. `plan` shows what would run"
        )
    missing = unpinned(config)
    places = store.unnamed_places(config) if missing else store.places(config)
    for name, text in graph.scripts(config, places, Path(config.paths.runs).absolute() / config.name / "logs"):
        print(f"# --- {name} ---\n{text}")
    if missing:
        print(f"# {len(missing)} repositories of the Hub are not pinned yet: fingerprints are not known")
    for fault in fit.faults(config, folder=None if missing else places["train"].folder):
        print("# it would be refused: " + fault.replace("\n", "\n# "))


def refuse_unfit(config: Config) -> None:
    """Raise `UserError` for a training that is still to do and needs more than the cluster has, as far as is known."""
    from cathpc import store
    from cathpc.train import fit

    place = store.places(config)["train"]
    if not place.fresh() and (faults := fit.faults(config, folder=place.folder)):
        raise UserError("the training cannot run on this cluster:\n  " + "\n  ".join(faults))


def refuse_lost_steps(config: Config) -> None:
    """Raise `UserError` for a training that would begin anew beside one that another number of ranks left unfinished;
    one that somebody works on, or that is queued, is another run's."""
    from cathpc import lease, store
    from cathpc.dispatch import jobs, slurm
    from cathpc.train import worlds

    def busy(folder: Path) -> bool:
        record = jobs.read(folder)
        if record and slurm.live_jobs(config.cluster, lambda job: record.has(id=job.base, name=job.name)):
            return True
        return lease.holder(folder, job_state=slurm.job_state) is not None

    worlds.refuse(store.places(config)["train"], config.train, busy=busy)


def refuse_unpinned(config: Config, overrides: list[str]) -> None:
    """Raise `UserError` when a Hub id that the experiment uses has no commit in the lock file."""
    missing = unpinned(config)
    if missing:
        raise UserError(
            "these are not pinned to a commit: "
            + ", ".join(f"{kind} {name}" for kind, name in missing)
            + f"\n  Resolve them where the Hub is in reach: {program()} pin {shlex.join(overrides)}"
        )
