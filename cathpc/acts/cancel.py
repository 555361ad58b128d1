"""`cancel`: end the jobs of a run; what is finished, marked or saved is kept, and `run` goes on from there."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.config import compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME

if TYPE_CHECKING:
    from cathpc.dispatch.slurm import QueueJob

HELP = "end the jobs of a run; the same `run` goes on from what is saved"


def options(parser: argparse.ArgumentParser) -> None:
    """--stage for one stage; --shared for jobs that other runs use too."""
    parser.add_argument("--stage", action="append", choices=list(BY_NAME), help="this stage alone (may be repeated)")
    parser.add_argument("--shared", action="store_true", help="also jobs that other runs submitted or wait for")


def main(arguments: argparse.Namespace) -> int:
    """Cancel what waits or runs; say what was left alone."""
    from cathpc import store
    from cathpc.config import run_name
    from cathpc.dispatch import jobs, slurm

    config = compose(arguments.overrides)
    if config.cluster.kind is not ClusterKind.slurm:
        raise UserError("cluster=local runs in the foreground: stop it with Ctrl-C there. With a cluster: cluster=NAME")
    queue = slurm.queue(config.cluster)
    mine = run_name(config, arguments.overrides)
    waiting = {} if arguments.shared else _waiting(Path(config.paths.store).absolute(), queue, mine)
    ids: list[str] = []
    told: list[str] = []
    for name, place in reversed(store.places(config).items()):  # what a shared job waits for is shared as well
        record = jobs.read(place.folder)
        here = sorted(slurm.live(q for q in queue if record and record.has(id=q.base, name=q.name)), key=int)
        if not record or not here:
            continue
        other = next((waiting[i] for i in here if i in waiting), "")
        if other:
            waiting |= dict.fromkeys(record.after.values(), other)
        if arguments.stage and name not in arguments.stage:
            continue
        why = f"{record.run} submitted it" if record.run != mine else f"{other} waits for it" if other else ""
        if why and not arguments.shared:
            told.append(f"{name}: left alone, {why} (job {', '.join(here)}); --shared cancels it too")
            continue
        ids += here
        told.append(f"{name}: cancelled {', '.join(here)}")
    slurm.cancel(config.cluster, ids)
    print("\n".join(reversed(told)), end="\n" * bool(told))
    if not ids:
        print(f"{mine}: no job of it is in the queue")
    return 0


def _waiting(root: Path, queue: Iterable[QueueJob], mine: str) -> dict[str, str]:
    """Job -> another run that waits for it: Slurm would end that run's jobs with it."""
    from cathpc.dispatch import jobs

    found: dict[str, str] = {}
    for job in queue:
        words = job.name.split(".")  # cathpc.<stage>.<fingerprint>...
        record = jobs.read(root / words[1] / words[2]) if len(words) > 4 and words[1] in BY_NAME else None
        if record and record.run != mine and record.has(id=job.base, name=job.name):
            found |= dict.fromkeys(record.after.values(), record.run)
    return found
