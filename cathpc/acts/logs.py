"""`logs`: the end of the log of a stage, of one of its ranks, or of the task that has a shard."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cathpc.config import compose
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME

HELP = "the log of a stage, of a rank, of the task that has a shard"

BLOCK = 1 << 16


def options(parser: argparse.ArgumentParser) -> None:
    """Which log, and how much of it."""
    parser.add_argument("--stage", required=True, help="name of the stage", choices=list(BY_NAME))
    parser.add_argument("--shard", type=int, help="the log of the task that has this shard")
    parser.add_argument("--rank", type=int, default=0, help="rank of a training (default: 0)")
    parser.add_argument("--lines", type=int, default=60, help="lines from the end (default: 60); 0 prints all")
    parser.add_argument("--path", action="store_true", help="print the file's name alone")


def main(arguments: argparse.Namespace) -> int:
    """Print the end of the newest log that fits."""
    from cathpc import shards, store
    from cathpc.dispatch import jobs
    from cathpc.runs import run_folder

    config = compose(arguments.overrides)
    place = store.places(config)[arguments.stage]
    record = jobs.read(place.folder)
    own = run_folder(config, arguments.overrides) / "logs" / arguments.stage
    folder = Path(record.logs) if record and record.logs else own
    pattern = f"*_{arguments.rank}_log.out"
    if arguments.shard is not None:
        found = shards.running(place.folder) | shards.failed(place.folder) | shards.done(place.folder)
        facts = found.get(arguments.shard)
        if facts is None:
            raise UserError(
                f"{arguments.stage} has no trace of shard {arguments.shard} yet. Begun so far: {_some(sorted(found))}"
            )
        if "message" in facts:
            print(f"shard {arguments.shard} failed: {facts['message']}\n{facts.get('log', '')}")
        task = f"{facts['job']}_{facts['task']}" if facts.get("task") not in (None, "") else str(facts.get("job", "*"))
        pattern = f"{task}_{arguments.rank}_log.out"
    files = sorted(folder.glob(pattern), key=lambda p: p.stat().st_mtime)
    if not files:  # a shard may have been done for another run
        everywhere = Path(config.paths.runs).absolute().glob(f"*/logs/{arguments.stage}/{pattern}")
        files = sorted(everywhere, key=lambda p: p.stat().st_mtime)
    if not files:
        raise UserError(f"there is no log {folder / pattern} yet: `status` says what {place.stage.name} waits for")
    if arguments.path:
        print(files[-1])
        return 0
    print(f"--- {files[-1]} ---")
    print(tail(files[-1], arguments.lines))
    return 0


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "") or "none"


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines of a file (all for 0), read from its end."""
    with open(path, "rb") as file:
        if not lines:
            return file.read().decode(errors="replace")
        at = os.fstat(file.fileno()).st_size
        data = b""
        while at and data.count(b"\n") <= lines:
            step = min(BLOCK, at)
            at -= step
            file.seek(at)
            data = file.read(step) + data
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])
