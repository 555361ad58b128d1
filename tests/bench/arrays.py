"""Arrays of very many tasks on the one-machine Slurm, beside a plain submitit array: `python -m tests.bench.arrays`.

Needs root, as `slurm/devcluster up` does. Prints a table; all is made in folders of its own, which are removed.
1. One machine makes the rows that the others are compared with.
2. The graph of 1,500 one-record shards: `score` on 16 tasks, `cards` (no torch) on 1,500.
3. The same with 5% of the tasks killed in a write, and the command run once more.
4. What one would write instead: submitit's `map_array` of a function that does nothing, 1,500 times.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from tests.slurm.hooks import plant
from tests.slurm.many import CLUSTER, KILL_SOME, MANY, on_one_machine, prepare
from tests.slurm.rerun import attempts, shell
from tests.slurm.site import Cluster, Site, copy_store

PLAIN = """
import sys, time, submitit

def nothing(number):
    return number

folder, tasks, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
for first in range(0, tasks, most):
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(partition="cpu", time=60, mem="2GB", cpus_per_task=1, array_parallelism=256)
    executor.map_array(nothing, range(first, min(first + most, tasks)))
print(time.perf_counter() - began)
"""
HOURS = 2


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1500, help="shards, and tasks of the wide array (default: 1500)")
    parser.add_argument("--kill-share", type=float, default=0.05, help="share of shards whose task is killed")
    arguments = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="cathpc-bench-"))
    top.chmod(0o755)
    cluster = Cluster(top / "slurm")
    try:
        cluster.must("up")
        homes = [Site(cluster, top / name) for name in ("alone", "calm", "killed", "plain")]
        for home in homes:
            home.folder.mkdir()
            home.own()
        measure(homes, arguments.tasks, arguments.kill_share)
    finally:
        cluster.act("down")
        shutil.rmtree(top, ignore_errors=True)


def measure(homes: list[Site], tasks: int, kill_share: float) -> None:
    """All four parts; a line each as soon as it is known."""
    alone, calm, killed, plain = homes
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}; {tasks:,} shards of one record")
    print(f"{'':<34}{'submit s':>9}{'wall s':>9}{'s a task':>9}{'files':>8}")
    for home in (alone, calm, killed):
        prepare(home, tasks)
    on_one_machine(alone)
    graph = (*MANY, *CLUSTER, "cluster.arrays.score=16", f"cluster.arrays.cards={tasks}")
    before = ("pull", "reference", "pool", "refusal")
    for home, title, hooks in (
        (calm, "", {}),
        (killed, f", {kill_share:.0%} killed", {**plant(killed, KILL_SOME), "KILL_SHARE": str(kill_share)}),
    ):
        copy_store(alone.store, home, *before)
        began = time.monotonic()
        home.must(*graph, **hooks)
        submit = time.monotonic() - began
        home.settled(HOURS * 3600)
        if hooks:
            home.must(*graph)
            home.settled(HOURS * 3600)
        for stage, width in (("score", 16), ("cards", tasks)):
            wall = span(home, [job["id"] for job in home.record(stage)["jobs"]])
            line(f"{stage}, {width:,} tasks{title}", submit, wall, width, files(home, stage))
            same(alone, home, stage)
            if hooks:
                died = [a for a in attempts(home, stage) if a["again"]]
                print(f"  {len(died)} attempts were killed; the rows are the same")
    script = plain.folder / "plain.py"
    script.write_text(PLAIN)
    plain.own()
    submit = float(shell(plain, sys.executable, str(script), str(plain.folder / "jobs"), str(tasks), "1000"))
    plain.settled(HOURS * 3600)
    made = list((plain.folder / "jobs").iterdir())
    ids = sorted({p.name.partition("_")[0] for p in made if "result" in p.name})
    line(f"submitit, {tasks:,} times nothing", submit, span(plain, ids), tasks, len(made))


def line(title: str, submit: float, wall: float, tasks: int, count: int) -> None:
    """A line of the table."""
    print(f"{title:<34}{submit:>9.1f}{wall:>9.0f}{wall / tasks:>9.2f}{count:>8,}", flush=True)


def span(home: Site, ids: list[str]) -> float:
    """Seconds from the first start to the last end of these jobs, in accounting."""
    text = home.cluster.slurm("sacct", "-X", "-n", "-P", "--duplicates", "-j", ",".join(ids), "--format=Start,End")
    rows = [line.split("|") for line in text.splitlines()]
    times = [[datetime.fromisoformat(t) for t in row] for row in rows if all(t[:1].isdigit() for t in row)]
    return (max(end for _, end in times) - min(start for start, _ in times)).total_seconds()


def files(home: Site, stage: str) -> int:
    """Files that the stage left: results, marks, specs, logs."""
    logs = home.folder.glob(f"runs/*/logs/{stage}/*")
    return sum(p.is_file() for p in home.stage(stage).rglob("*")) + len(list(logs))


def same(one: Site, other: Site, stage: str) -> None:
    """Fail where the rows differ."""
    for path in sorted(one.stage(stage).rglob("*.parquet")):
        theirs = other.stage(stage) / path.relative_to(one.stage(stage))
        assert pq.read_table(path) == pq.read_table(theirs), theirs
    assert one.manifest(stage)["digest"] == other.manifest(stage)["digest"]


if __name__ == "__main__":
    main()
