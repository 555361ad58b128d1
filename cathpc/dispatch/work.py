"""What a job runs: one stage, or its share of a sharded stage, from plain data.

Nothing of it is pickled but, on one machine, the function's name and its arguments. Rank 0 holds the lease of the
stage's folder while it works; the tasks of an array share a stage and hold none: what keeps them apart is that each
shard is theirs alone and is marked once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cathpc import lease, shards, store
from cathpc.config import Config, from_plain, only
from cathpc.dispatch import jobs, slurm
from cathpc.errors import (
    DISK_ERRORS,
    EXIT_AGAIN,
    EXIT_DISK,
    EXIT_FENCED,
    EXIT_OURS,
    EXIT_USER,
    CathpcError,
    ChangedError,
    TryAgainError,
)
from cathpc.models import fetch
from cathpc.pipeline import BY_NAME
from cathpc.tracking.beside import tracked

_REFUSED = {errno.EACCES, errno.EPERM}
FOLLOW_S = 300.0
HOLD_S = 60.0


@dataclass(frozen=True)
class Part:
    """A task's share of a sharded stage; of all shards where `shards` is None."""

    index: int
    width: int
    shards: list[int] | None = None

    def numbers(self, count: int) -> list[int]:
        """The shards of this task: every `width`-th, from `index` on."""
        return (self.shards if self.shards is not None else list(range(count)))[self.index :: self.width]


def run_stage(
    name: str,
    config: dict[str, Any],
    *,
    folder: str,
    threads: int,
    master_port: int = 0,
    part: Part | None = None,
    last: bool = False,
    prefetch: bool = False,
) -> None:
    """Run the stage `name` under the plain `config` on this rank and, on rank 0, commit its manifest to `folder`.

    With `part`, do these shards of it and commit nothing; with `last`, put the shards together and commit; with
    `prefetch`, fetch the models that later stages take from the Hub first. Ends the process with the exit code of
    `cathpc.errors` when it fails; the message lies in `error.<job>.<rank>.json` of the folder, for the dispatcher.
    """
    job, rank, ranks, local_rank, master = _ranks()
    os.umask(0o077)
    leaver = _Leaver(Path(folder), job, rank)
    for received in (signal.SIGTERM, signal.SIGUSR2):  # of a training: until its own loop listens
        signal.signal(received, leaver.told_to_stop)
    _environment(BY_NAME[name].place.name, threads, rank, ranks, local_rank, master, master_port)
    try:
        composed = from_plain(config)
        place = store.places(composed)[name]
        if place.folder != Path(folder):
            raise ChangedError("data, a model or the code changed while the run went on. Run the same command again")
        if prefetch:
            fetch.fetch(composed)
        if part is not None:
            _run_part(name, composed, place, part)
        else:
            _run(name, composed, place, job, rank, last=last)
    except (CathpcError, OSError) as error:
        code, message = explain(error, Path(folder))
        leaver.leave(code, message, "" if code != EXIT_OURS else traceback.format_exc())
    except Exception as error:
        leaver.leave(EXIT_OURS, f"{type(error).__name__}: {error}", traceback.format_exc())


def _run(name: str, config: Config, place: store.Place, job: str, rank: int, *, last: bool) -> None:
    stage = BY_NAME[name]
    visible = only(config, stage.config)
    if rank != 0:
        _follow(place, job)
        stage.function()(visible, place.inputs, place.folder)
        return
    with lease.held(place.folder, job, job_state=_job_state(place.folder)) as mine:
        if place.fresh():  # another owner finished it between the submission and now
            return
        if mine is None:
            _held_by_another(place)
        used = store.begin(place)  # the other ranks wait for it
        function = stage.finish() if last else stage.function()  # imported where there is work: torch takes seconds
        started, clock = time.time(), time.perf_counter()
        with tracked(config, place):
            summary = function(visible, place.inputs, place.folder)
            store.commit(place, config, summary, used, started=started, seconds=time.perf_counter() - clock)


def _job_state(folder: Path) -> lease.JobState:
    """Whether a job lives, as far as a node can tell: those that the dispatcher saw gone, or that came before in a
    chain of segments, do not, whether or not the queue can be asked here."""
    record = jobs.read(folder)
    mine = lease.slurm_job()[0].partition("_")[0]
    gone = set(record.gone) if record else set()
    if record and mine in record.ids:
        gone |= set(record.ids[: record.ids.index(mine)])
    return lambda job: False if job.partition("_")[0] in gone else slurm.job_state(job)


def _held_by_another(place: store.Place) -> None:
    if not lease.slurm_job()[0]:
        raise SystemExit(EXIT_FENCED)  # the walk on this machine waits by itself
    held = lease.holder(place.folder)
    who = f"job {held['job']} on {held['host']}" if held else "another job until a moment ago"
    raise TryAgainError(f"{place.folder} is held by {who}; waiting for it")


def _run_part(name: str, config: Config, place: store.Place, part: Part) -> None:
    """Do one task's shards. Who comes first makes the folder ready; a part never empties what a sibling works on."""
    stage = BY_NAME[name]
    visible = only(config, stage.config)
    deadline = time.monotonic() + HOLD_S
    while not store.begun(place):
        if place.fresh():
            return
        with lease.held(place.folder, job_state=_job_state(place.folder)) as mine:
            if mine is not None:
                store.begin(place)
                break
        if time.monotonic() > deadline:
            _held_by_another(place)
        time.sleep(0.2)
    stage.work()(visible, place.inputs, place.folder, part.numbers(stage.count()(visible, place.inputs)))


def _follow(place: store.Place, job: str) -> None:
    """Wait until rank 0 of this job has begun; leave where it will not, since another job has the stage."""
    mine = lease.owner(job)
    deadline = time.monotonic() + FOLLOW_S
    while time.monotonic() < deadline:
        held = lease.holder(place.folder)
        if held and (held["job"], held["restart"]) == (mine["job"], mine["restart"]):
            if store.begun(place):
                return
        elif place.fresh():
            raise SystemExit(0)
        elif held and held["job"] != mine["job"] and not mine["slurm"]:
            raise SystemExit(EXIT_FENCED)
        time.sleep(0.05)
    if mine["slurm"]:
        raise TryAgainError(f"rank 0 did not begin within {FOLLOW_S:.0f} s")
    raise SystemExit(EXIT_FENCED)


def _ranks() -> tuple[str, int, int, int, str]:
    """Job id, rank, number of ranks, local rank and first node of this process, as the launcher gave them."""
    import submitit

    try:
        env = submitit.JobEnvironment()
        return str(env.job_id), env.global_rank, env.num_tasks, env.local_rank, env.hostnames[0]
    except RuntimeError:  # not inside a job: a direct call
        return str(os.getpid()), 0, 1, 0, "127.0.0.1"


def _environment(place: str, threads: int, rank: int, ranks: int, local_rank: int, master: str, port: int) -> None:
    """Set what torch, DeepSpeed and the Hub libraries read when they are imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(max(1, threads))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["WANDB_SILENT"] = "true"
    if place != "network":
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    if place == "ranks":
        local = not lease.slurm_job()[0]
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(local_rank),
            MASTER_ADDR=os.environ.get("MASTER_ADDR", "127.0.0.1" if local else master),
            MASTER_PORT=str(port),
        )
        if not os.path.exists("/dev/nvidiactl"):
            os.environ["DS_ACCELERATOR"] = "cpu"


def explain(error: BaseException, folder: Path) -> tuple[int, str]:
    """Exit code and one message for an expected failure; `EXIT_OURS` for what is a bug."""
    if isinstance(error, CathpcError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = error.filename or folder
        return EXIT_DISK, (
            f"the disk refuses to write {place}: {error.strerror}. Free some space or choose another folder "
            "(paths.store=, paths.cache=), then run the same command; what is finished is kept"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED:
        if error.filename and os.sep not in str(error.filename):  # a program, looked for along PATH
            return EXIT_USER, (
                f"{error.filename} cannot be looked for along PATH: {error.strerror}. Take out of PATH the folders "
                f"that are closed to you: {', '.join(filter(_closed, os.get_exec_path()))}"
            )
        return EXIT_USER, (
            f"no permission for {error.filename or folder}: {error.strerror}. Choose a folder that you may write "
            "(paths.store=, paths.runs=, paths.cache=), or mend its rights"
        )
    return EXIT_OURS, f"{type(error).__name__}: {error}"


def _closed(folder: str) -> bool:
    try:
        os.stat(os.path.join(folder, "."))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


class _Leaver:
    """Ends this process with a code and leaves its message in the stage's folder."""

    def __init__(self, folder: Path, job: str, rank: int) -> None:
        self._folder, self._job, self._rank = folder, job, rank

    def told_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal where there is nothing to save: what is marked or committed is kept, the rest is redone."""
        shards.release(self._folder)  # it was no fault of the shard
        self.leave(EXIT_AGAIN, f"stopped by {signal.Signals(number).name}", "")

    def leave(self, code: int, message: str, trace: str) -> None:
        """Write the message and end."""
        print(f"rank {self._rank}: {message}\n{trace}", file=sys.stderr, flush=True)
        record = {
            "rank": self._rank,
            "job": self._job,
            "restart": lease.slurm_job()[1],
            "code": code,
            "message": message,
            "host": socket.gethostname(),
            "time": time.time(),
        }
        try:
            (self._folder / f"error.{self._job}.{self._rank}.json").write_text(json.dumps(record))
        except OSError as error:
            print(f"could not leave the message in {self._folder}: {error}", file=sys.stderr, flush=True)
        lease.release_all()
        sys.stdout.flush()
        os._exit(code)  # a plain exit would wait for peers in the process group's destructors
