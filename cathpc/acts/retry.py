"""`retry`: once more what failed for good: shards that were set aside, stages that used up their crashes, held jobs."""

from __future__ import annotations

import argparse

from cathpc.acts import run
from cathpc.config import compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import CathpcError, UserError
from cathpc.pipeline import BY_NAME

HELP = "once more what failed: shards set aside, stages out of attempts, held jobs"


def options(parser: argparse.ArgumentParser) -> None:
    """--stage and --shard narrow it."""
    parser.add_argument("--stage", choices=list(BY_NAME), help="this stage alone")
    parser.add_argument("--shard", type=int, action="append", help="these shards alone (may be repeated)")


def main(arguments: argparse.Namespace) -> int:
    """Forget the failures, release what is held, and run."""
    from cathpc import shards, store
    from cathpc.dispatch import jobs, slurm
    from cathpc.dispatch.status import HELD

    if arguments.shard is not None and arguments.stage is None:
        raise UserError("--shard needs --stage: score and cards both have shards")
    config = compose(arguments.overrides)
    clustered = config.cluster.kind is ClusterKind.slurm
    queue = slurm.queue(config.cluster) if clustered else []
    for name, place in store.places(config).items():
        if arguments.stage not in (None, name) or not place.folder.is_dir():
            continue
        record = jobs.read(place.folder)
        mine = [q for q in queue if record and record.has(id=q.base, name=q.name)]
        failed = shards.failed(place.folder)
        if failed and slurm.live(mine):
            print(f"{name}: left alone, its jobs are not through yet; retry it then, or cancel them first")
            continue
        wanted = [n for n in failed if arguments.shard is None or n in arguments.shard]
        if wanted:
            shards.clear_failed(place.folder, wanted)
            print(f"{name}: {len(wanted)} shard{'s' * (len(wanted) != 1)} will be tried again")
        held = {q.base for q in mine if any(w in q.reason for w in HELD)}
        for job in sorted(held):
            try:
                slurm.ask(config.cluster, "scontrol", "release", job)
                print(f"{name}: released job {job}")
            except CathpcError as error:
                print(f"{name}: job {job} stays held ({error}). Ask your administrator for: scontrol release {job}")
    run.refuse_unpinned(config, arguments.overrides)
    run.one(config, arguments.overrides)
    return 0
