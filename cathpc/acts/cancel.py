"""`cancel`: end the jobs of a run; what is finished, marked or saved is kept, and `run` goes on from there."""

from __future__ import annotations

import argparse

from cathpc.config import compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME

HELP = "end the jobs of a run; the same `run` goes on from what is saved"


def options(parser: argparse.ArgumentParser) -> None:
    """--stage for one stage; --shared for jobs that another run submitted too."""
    parser.add_argument("--stage", action="append", choices=list(BY_NAME), help="this stage alone (may be repeated)")
    parser.add_argument("--shared", action="store_true", help="also jobs that another run submitted and this one uses")


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
    ids: list[str] = []
    for name, place in store.places(config).items():
        record = jobs.read(place.folder)
        here = sorted(slurm.live(q for q in queue if record and record.has(id=q.base, name=q.name)), key=int)
        if not record or not here or (arguments.stage and name not in arguments.stage):
            continue
        if record.run != mine and not arguments.shared:
            print(f"{name}: left alone, {record.run} submitted it (job {', '.join(here)}); --shared cancels it too")
            continue
        ids += here
        print(f"{name}: cancelled {', '.join(here)}")
    slurm.cancel(config.cluster, ids)
    if not ids:
        print(f"{mine}: no job of it is in the queue")
    return 0
