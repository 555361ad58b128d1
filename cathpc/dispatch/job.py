"""A process of a Slurm job: `python -m cathpc.dispatch.job SPEC`, started by srun, one a rank.

In: the JSON file that the dispatcher wrote. Out: what the stage writes. Ranks and nodes come from srun's environment,
the port of the rendezvous from the id of the job and its attempt, so that no two trainings meet.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from cathpc.lease import slurm_job

PORTS = range(12_000, 32_000)
"""Below the range from which Linux hands out ports by itself."""


def port(job: str, restart: int) -> int:
    """Where the ranks of this attempt meet."""
    number = int(job.partition("_")[0] or 0)
    return PORTS[(number * 17 + restart) % len(PORTS)]


def main(argv: list[str]) -> int:
    """Do what the spec says; returns the exit code."""
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")
    folder = Path(spec["folder"])
    job, restart = slurm_job()
    index = spec["first"] + int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    if spec["requeue"] == "chain" and (code := ended(folder, index)) is not None:
        return code
    if scratch := os.environ.get("TMPDIR"):
        os.makedirs(scratch, mode=0o700, exist_ok=True)  # on every node; the shell made it on the first one
    from cathpc.dispatch.work import Part, run_stage

    part = None
    if spec["kind"] == "work":
        part = Part(index, spec["width"], spec["shards"])
    run_stage(
        spec["stage"],
        spec["config"],
        folder=spec["folder"],
        threads=spec["threads"],
        master_port=port(job, restart),
        part=part,
        last=spec["kind"] == "finish",
        prefetch=bool(spec.get("prefetch")),
    )
    if int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # all is committed; gloo's threads may abort a process that leaves in an orderly way
    return 0


def ended(folder: Path, index: int) -> int | None:
    """Of a chain of segments: the code with which this task failed already for good, or None where it goes on.

    Whether the stage is finished is looked at where the work begins: a manifest may stand on inputs of yesterday.
    """
    from cathpc.dispatch import jobs

    record = jobs.read(folder)
    ids = record.ids if record else []
    rows = [r for r in jobs.attempts(folder) if r["job"].partition("_")[0] in ids and r.get("index") == index]
    finals = [row for row in rows if not row["again"]]
    return int(finals[-1]["code"]) if finals else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
