"""Walks the graph in the foreground on this machine, through submitit's local executor, with live progress.

A stage starts when its inputs are finished and enough cores are free; each runs in processes of its own, so a crash of
one is no crash of the walk. The walk itself holds no state: a killed one is resumed by the same command, and a stage
that an orphan of the killed walk still works on is waited for, not started twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc import lease, progress, store
from cathpc.config import Config, as_plain, cores
from cathpc.dispatch import slurm
from cathpc.dispatch.show import Show
from cathpc.dispatch.work import run_stage
from cathpc.errors import EXIT_AGAIN, EXIT_OURS, EXIT_REQUEUE, EXIT_USER, CathpcError
from cathpc.runs import Run

POLL_S = 0.1
PEER_GRACE_S = 60.0
MAX_ATTEMPTS = 6
STOP_S = 120.0


class StageFailed(CathpcError):
    """A stage ended with an error; `exit_code` tells whose it is."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Job:
    place: store.Place
    job: Any
    started: float
    logs: Path
    failed_at: float | None = None


def walk(config: Config, run: Run, show: Show, *, targets: set[str] | None = None) -> None:
    """Bring every stage of `targets` (all by default) up to date.

    Raises `StageFailed` with the stage's own message when one fails; others that already run are left to end
    first, so that nothing that is paid for is lost.
    """
    places = store.places(config)
    wanted = [p for n, p in places.items() if targets is None or n in targets]
    total = cores(config.cluster)
    pending = {p.stage.name: p for p in wanted}
    running: dict[str, _Job] = {}
    waited: set[str] = set()
    attempts: dict[str, int] = {}
    not_before: dict[str, float] = {}
    failure: StageFailed | None = None
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while pending or running:
            for name in [n for n, j in running.items() if _ended(j)]:
                job = running.pop(name)
                try:
                    again = _judge(job, show)
                    attempts[name] = attempts.get(name, 0) + 1
                    if again is not None and attempts[name] >= MAX_ATTEMPTS:
                        raise StageFailed(
                            f"{name} stopped {MAX_ATTEMPTS} times, the last time because: {again}", EXIT_OURS
                        )
                except StageFailed as error:
                    run.log(stage=name, event="failed", fingerprint=job.place.fingerprint, message=str(error))
                    failure = failure or error
                    show.failed(name)
                    continue
                if again is not None:
                    pending[name] = job.place
                    if again:
                        wait_s = min(60.0, 2.0 ** attempts[name])
                        not_before[name] = time.monotonic() + wait_s
                        show.note(f"{name}: {again}. Trying again in {wait_s:.0f} s")
                else:
                    run.log(stage=name, event="done", fingerprint=job.place.fingerprint)
            if failure and not running:
                raise failure
            for name, place in list(pending.items()):
                if failure or any(i in pending or i in running for i in place.stage.inputs):
                    continue
                if time.monotonic() < not_before.get(name, 0.0):
                    continue
                if place.fresh():
                    pending.pop(name)
                    run.link(place)
                    show.up_to_date(name, place.manifest() or {})
                    continue
                holder = lease.holder(place.folder, job_state=slurm.job_state) if place.folder.is_dir() else None
                if holder is not None:
                    if name not in waited:
                        waited.add(name)
                        show.note(_holder_note(name, holder, place.folder))
                    continue
                taken = sum(j.place.stage.share for j in running.values())
                if running and taken + place.stage.share > 1.0:
                    continue
                pending.pop(name)
                running[name] = _start(place, config, run, total)
                show.started(name)
            for name, job in running.items():
                show.progress(name, progress.read(job.place.folder))
            for name in waited & set(pending):
                show.progress(name, progress.read(pending[name].folder))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        if running:
            show.note(f"stopping {', '.join(running)}; a training saves first")
        for job in running.values():
            _stop(job)
        raise StageFailed("stopped. The same command goes on from here", 130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
        show.close()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _start(place: store.Place, config: Config, run: Run, total_cores: int) -> _Job:
    import submitit

    store.prepare_folder(place)
    for old in place.folder.glob("error.*.json"):
        old.unlink(missing_ok=True)
    logs = run.logs(place.stage.name)
    ranks = config.train.ranks_per_node if place.stage.place.name == "ranks" else 1
    gpus = config.cluster.gpus_per_node if place.stage.place.name in ("ranks", "accelerator") else 0
    threads = max(1, int(total_cores * place.stage.share) // ranks)
    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(
        tasks_per_node=ranks,
        gpus_per_node=gpus if place.stage.place.name == "ranks" else min(gpus, 1),
        timeout_min=config.cluster.timeout_min,
        stderr_to_stdout=True,
    )
    # Ctrl-C goes to the whole terminal; the jobs must not die of it, for `_stop` asks them to save first.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = executor.submit(
            run_stage,
            place.stage.name,
            as_plain(config),
            folder=str(place.folder),
            threads=threads,
            master_port=_free_port(),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    run.log(stage=place.stage.name, event="submitted", fingerprint=place.fingerprint, job=job.job_id)
    run.link(place)
    return _Job(place=place, job=job, started=time.time(), logs=logs)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ended(job: _Job) -> bool:
    """Whether all processes of the job are gone; peers of a dead rank that hang are ended after a grace."""
    if job.job.done():
        return True
    if job.failed_at is None and list(job.place.folder.glob("error.*.json")):
        job.failed_at = time.monotonic()
    if job.failed_at is not None and time.monotonic() - job.failed_at > PEER_GRACE_S:
        _stop(job)
        job.failed_at = time.monotonic()
    return False


def _stop(job: _Job) -> None:
    """End the job's processes: TERM, at which a training saves, and KILL for those that are there after a while."""
    import psutil

    try:
        controller = psutil.Process(int(job.job.job_id))
        family = controller.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _judge(job: _Job, show: Show) -> str | None:
    """What an ended job means: None it is done; a text it must run again, and why ('' where another has it).

    Raises `StageFailed` where it failed for good.
    """
    name = job.place.stage.name
    if job.place.fresh():
        show.done(name, job.place.manifest() or {})
        return None
    errors = [e for e in map(store.read_json, sorted(job.place.folder.glob("error.*.json"))) if e]
    again = [e["message"] for e in errors if e["code"] in (EXIT_AGAIN, EXIT_REQUEUE)]
    if again:
        return str(again[0])
    if lease.holder(job.place.folder, job_state=slurm.job_state) is not None:
        return ""
    log = _newest_log(job.logs)
    explained = [e for e in errors if e["code"] != EXIT_OURS]
    if explained:
        raise StageFailed(f"{name}: {explained[0]['message']}", EXIT_USER)
    if errors:
        first = min(errors, key=lambda e: e["time"])
        raise StageFailed(f"{name} failed on rank {first['rank']}: {first['message']}\n  the log: {log}", EXIT_OURS)
    if _disk_full(job.place.folder):
        raise StageFailed(
            f"{name}: the disk of {job.place.folder} is full. Free some space or choose another folder with "
            "paths.store=FOLDER, then run the same command",
            EXIT_USER,
        )
    raise StageFailed(
        f"{name} was killed before it ended (signal, or out of memory); what it had saved is kept.\n"
        f"  The same command goes on from there. The log: {log}",
        EXIT_OURS,
    )


def _disk_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        free = os.statvfs(folder)
        return free.f_bavail * free.f_frsize < 64 * 1024
    return False


def _newest_log(logs: Path) -> Path:
    """The log of rank 0 of the last attempt."""
    found = sorted(logs.glob("*_0_log.out"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else logs


def _holder_note(name: str, holder: dict[str, Any], folder: Path) -> str:
    if holder.get("host") == socket.gethostname():
        return (
            f"{name}: process {holder['pid']} works on it already (an earlier or simultaneous command); waiting for it"
        )
    who = f"job {holder['job']}" if holder.get("slurm") else f"process {holder['pid']}"
    return (
        f"{name}: {who} on {holder['host']} holds it; waiting. If that machine is gone for good, delete the "
        f"claim-*.json in {folder}"
    )
