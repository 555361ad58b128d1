"""The end of a job's attempt: `python -m cathpc.dispatch.attempt SPEC CODE SECONDS`, from the EXIT trap of its shell.

In: the exit code of the attempt and what its ranks left behind. Out: the job is done, has failed for good, or comes
back under its own id, so that what depends on it keeps waiting (a job that merely fails takes its dependents with it).
What counts against `cluster.max_crashes` is only an attempt that crashed, or ran into its time limit, and left no new
checkpoint or shard since the one before; a stop by preemption or a limit that saved something never does.

Standard library only, so that it starts in a tenth of a second and on any node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cathpc import lease
from cathpc.dispatch import jobs
from cathpc.errors import EXIT_AGAIN, EXIT_DONE, EXIT_FENCED, EXIT_OURS, EXIT_REQUEUE
from cathpc.lease import slurm_job

FINAL = frozenset({0, 1, 2, 3, 65, 74, 78})
"""Codes after which another attempt would end the same way."""
WORDLESS = frozenset({1, 2, 3})
"""Final where a rank explained it; srun that could not start, and a Python that could not import, say the same."""
NEAR_LIMIT = 0.9
LAST_WORDS_S = 90.0
WAIT_S = 600.0


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job."""

    code: int
    again: bool
    counts: bool
    """Whether the attempt used up one of `max_crashes`, unless it made progress."""
    why: str


def judge(code: int, errors: list[dict[str, Any]], *, near_limit: bool) -> Verdict:
    """What an exit code of srun and the messages of the ranks mean, before crashes are counted.

    When a rank ends, srun kills the others, so the code alone may be that of a killed one: what a rank explained weighs
    more, and of these what is final.
    """
    final = [e for e in errors if e["code"] in FINAL and e["code"] != EXIT_DONE]
    if final:
        first = min(final, key=lambda e: (e["code"] == EXIT_OURS, e["time"]))
        return Verdict(int(first["code"]), False, False, str(first["message"]))
    why = f"was killed by {_signal_name(code - 128)}" if code > 128 else f"ended with code {code}"
    again = [str(e["message"]) for e in errors if e["code"] == EXIT_AGAIN]
    if code > 128 and again and all("SIGTERM" in message for message in again):
        # A rank crashed; srun told the others to stop, and they say so. Slurm's own warning is USR2.
        return Verdict(EXIT_AGAIN, True, True, f"{why} ({again[0]})")
    if again:
        return Verdict(EXIT_AGAIN, True, near_limit, again[0])
    if code in FINAL - WORDLESS:
        return Verdict(code, False, False, "" if code == EXIT_DONE else f"{why}; the log says more")
    lost = [str(e["message"]) for e in errors if e["code"] == EXIT_REQUEUE]
    if lost:
        return Verdict(EXIT_REQUEUE, True, True, f"{why} ({lost[0]})")
    if code in (EXIT_AGAIN, EXIT_REQUEUE):
        return Verdict(code, True, True, f"asked for another attempt (code {code})")
    return Verdict(code, True, True, why)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def crashes(rows: list[dict[str, Any]], index: int, mark: int) -> int:
    """How many attempts of this task in a row counted and left the stage at `mark`."""
    count = 0
    for row in reversed([r for r in rows if r.get("index") == index]):
        if row.get("mark") != mark:
            break
        count += bool(row.get("counts"))
    return count


def main(argv: list[str]) -> int:
    """End an attempt; returns the exit code of the job's shell.

    A disk that refuses the bookkeeping hinders no requeue: what a job has saved is worth more than a line about it.
    """
    code, seconds = int(argv[1]), float(argv[2])
    if code == EXIT_DONE:
        return code
    job, restart = slurm_job()
    try:
        spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        verdict = _account(spec, code, seconds, job, restart)
    except (OSError, ValueError) as error:
        print(f"cathpc: job {job}: could not write down its attempt: {error}", file=sys.stderr, flush=True)
        return requeue(job, [], wait_s=WAIT_S) if judge(code, [], near_limit=False).again else code
    if not verdict.again or spec["requeue"] == "chain":
        return verdict.code  # the next segment of a chain goes on
    return requeue(job, _bad_nodes(Path(spec["folder"]), job, restart), wait_s=float(spec["requeue_wait_s"]))


def _account(spec: dict[str, Any], code: int, seconds: float, job: str, restart: int) -> Verdict:
    """Judge the attempt, count it and write it down."""
    stage_folder = Path(spec["folder"])
    if spec["kind"] != "work" and _committed(stage_folder, job, restart):
        return Verdict(EXIT_DONE, False, False, "")  # whatever happened after the last line of the work
    if _outlived(stage_folder, job, restart):
        return Verdict(EXIT_FENCED, False, False, "")
    near_limit = seconds >= NEAR_LIMIT * (spec["timeout_min"] * 60 - spec["lead_s"])
    verdict = judge(code, jobs.errors(stage_folder, job, restart), near_limit=near_limit)
    index = spec["first"] + (int(job.rpartition("_")[2]) if "_" in job else 0)
    numbers = spec["shards"][index :: spec["width"]] if spec.get("shards") is not None else None
    mark = jobs.mark(stage_folder, numbers, index=index, width=max(1, spec["width"]))
    seen = _seen(job) if verdict.again and spec["requeue"] != "chain" else OURS
    if seen == CANCELLED:
        verdict = Verdict(EXIT_OURS, False, False, "was cancelled; what it had saved or marked is kept")
    elif seen == BACK:  # preempted, or its node was lost: Slurm has put it back
        verdict = replace(verdict, counts=False)
    record = jobs.read(stage_folder)
    ids = {*(record.ids if record else ()), job.partition("_")[0]}
    rows = [r for r in jobs.attempts(stage_folder) if r["job"].partition("_")[0] in ids]
    spent = crashes(rows, index, mark) + 1 if verdict.counts else 0
    if verdict.again and spent >= spec["max_crashes"]:
        verdict = Verdict(
            EXIT_OURS,
            False,
            True,
            f"{spent} attempts in a row brought no new checkpoint or shard; the last one {verdict.why}. The log: "
            f"{spec['logs']}. `python -m cathpc retry` starts it once more",
        )
    row = {"job": job, "index": index, "restart": restart, "code": code, "mark": mark, "time": round(time.time(), 3)}
    told = {"counts": verdict.counts, "again": verdict.again, "why": verdict.why}
    jobs.add_attempt(stage_folder, {**row, **told, "node": _nodes()})
    print(f"cathpc: attempt {restart + 1} of job {job}: {verdict.why}", file=sys.stderr, flush=True)
    return verdict


def _committed(stage_folder: Path, job: str, restart: int) -> bool:
    """Whether this attempt wrote the stage's manifest."""
    try:
        manifest = json.loads((stage_folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest.get("attempt") == [job, restart])


def _outlived(stage_folder: Path, job: str, restart: int) -> bool:
    """Whether a later attempt of the job has the stage by now: how this one ends is no news of it."""
    held = lease.holder(stage_folder) or {}
    return held.get("job") == job and held["restart"] > restart


def requeue(job: str, bad_nodes: list[str], *, wait_s: float) -> int:
    """Put the job back into the queue under its own id, without `bad_nodes`; ends with this process killed by Slurm.

    A controller that does not answer is asked for `wait_s` seconds; then 85 leaves it to the site's RequeueExit.
    """
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the requeue ends this job: it must not end us before the next call
    deadline = time.monotonic() + wait_s
    pause = 1.0
    while True:
        seen = _seen(job)
        if seen == CANCELLED:
            print(f"cathpc: job {job} was cancelled; it does not come back", file=sys.stderr, flush=True)
            return EXIT_OURS
        said = None if seen == BACK else _scontrol("requeue", job)
        if said is None or "pending" in said.lower():
            break
        if time.monotonic() > deadline:
            print(f"cathpc: could not requeue job {job}: {said}", file=sys.stderr, flush=True)
            return EXIT_REQUEUE
        time.sleep(pause)
        pause = min(30.0, pause * 2)
    if bad_nodes and not _spare(job, bad_nodes):
        print(f"cathpc: {','.join(bad_nodes)} failed, but no other node is left", file=sys.stderr, flush=True)
    elif bad_nodes:
        print(f"cathpc: job {job} will not start on {','.join(bad_nodes)}", file=sys.stderr, flush=True)
        for _ in range(5):
            if _scontrol("update", f"JobId={job}", f"ExcNodeList={_excluded(job, bad_nodes)}") is None:
                break
            time.sleep(0.5)
    time.sleep(LAST_WORDS_S)
    return EXIT_REQUEUE


CANCELLED, BACK, OURS = "cancelled", "back in the queue", "ours to requeue"


def _fields(job: str) -> dict[str, str]:
    """What scontrol shows of the job; {} where it cannot be asked."""
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    words = (word.partition("=") for word in done.stdout.split())
    return {key: value for key, _, value in words} if done.returncode == 0 else {}


def _seen(job: str) -> str:
    """Whose wish it was that the attempt ends, as far as Slurm tells: while the job runs, or at its limit, ours."""
    fields = _fields(job)
    if not fields:
        return OURS
    if int(fields.get("Restarts", 0)) > slurm_job()[1] or fields.get("JobState") in ("PENDING", "REQUEUED"):
        return BACK
    ending = fields.get("JobState") in ("COMPLETING", "CANCELLED")
    return CANCELLED if ending and fields.get("Reason") not in ("TimeLimit", "NodeDown") else OURS


def _excluded(job: str, bad_nodes: list[str]) -> str:
    """The job's list of excluded nodes with `bad_nodes` in it: an update replaces the whole list."""
    before = _fields(job).get("ExcNodeList", "(null)")
    return ",".join([*([] if before in ("(null)", "") else [before]), *bad_nodes])


def _spare(job: str, bad_nodes: list[str]) -> bool:
    """Whether the partition has nodes enough without the bad ones; True where that cannot be asked."""
    fields = _fields(job)
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "partition", fields["Partition"]],
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = dict(word.partition("=")[::2] for word in done.stdout.split())
        return int(found["TotalNodes"]) - len(bad_nodes) >= int(fields["NumNodes"].partition("-")[0])
    except (OSError, KeyError, ValueError, subprocess.TimeoutExpired):
        return True


def _scontrol(*words: str) -> str | None:
    """None where scontrol did it, else what it said."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip() or f"code {done.returncode}")


def _bad_nodes(stage_folder: Path, job: str, restart: int) -> list[str]:
    """Nodes that failed the health check of this attempt."""
    try:
        found = json.loads((jobs.folder(stage_folder) / f"health-{job}-{restart}.json").read_text(encoding="utf-8"))
        return [str(name) for name in found["bad"]]
    except (OSError, ValueError, KeyError):
        return []


def _nodes() -> str:
    return os.environ.get("SLURM_JOB_NODELIST", "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
