"""What a job runs: one stage, from plain data. Nothing of this is pickled but the function's name and its arguments."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cathpc import store
from cathpc.config import Config, from_plain, only
from cathpc.errors import EXIT_DISK, EXIT_FENCED, EXIT_OURS, EXIT_USER, CathpcError, ChangedError
from cathpc.pipeline import BY_NAME

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM}
FOLLOW_S = 120.0


def run_stage(name: str, config: dict[str, Any], *, folder: str, threads: int, master_port: int = 0) -> None:
    """Run the stage `name` under the plain `config` on this rank and, on rank 0, commit its manifest to `folder`.

    Ends the process with the exit code of `cathpc.errors` when the stage fails; the message lies in
    `error.<rank>.json` of the folder, for the dispatcher to show.
    """
    job, rank, ranks, local_rank = _ranks()
    for received in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(received, signal.SIG_DFL)  # submitit's handlers ignore the one and pickle at the other
    os.umask(0o077)
    _environment(BY_NAME[name].place.name, threads, rank, ranks, local_rank, master_port)
    try:
        composed = from_plain(config)
        place = store.places(composed)[name]
        if place.folder != Path(folder):
            raise ChangedError("data, a model or the code changed while the run went on. Run the same command again")
        _run(name, composed, place, job, rank)
    except (CathpcError, OSError) as error:
        code, message = explain(error, Path(folder))
        _leave(Path(folder), rank, code, message, "" if code != EXIT_OURS else traceback.format_exc())
    except Exception as error:
        _leave(Path(folder), rank, EXIT_OURS, f"{type(error).__name__}: {error}", traceback.format_exc())


def _run(name: str, config: Config, place: store.Place, job: str, rank: int) -> None:
    function = BY_NAME[name].function()
    visible = only(config, place.stage.config)
    if rank != 0:
        _follow(place, job)
        function(visible, place.inputs, place.folder)
        return
    with store.claim(place.folder, job) as got:
        if not got or place.fresh():  # another owner works on it, or finished it between the submission and now
            raise SystemExit(EXIT_FENCED)
        used = store.begin(place)
        started, clock = time.time(), time.perf_counter()
        summary = function(visible, place.inputs, place.folder)
        store.commit(place, config, summary, used, started=started, seconds=time.perf_counter() - clock)


def _follow(place: store.Place, job: str) -> None:
    """Wait until rank 0 of this job has begun; leave where it will not, since another job has the stage."""
    deadline = time.monotonic() + FOLLOW_S
    while time.monotonic() < deadline:
        held = store.read_json(place.folder / store.CLAIM)
        if held and held.get("job") == job:
            if (place.folder / store.INPUTS).exists() and not (place.folder / store.MANIFEST).exists():
                return
        elif (held and store.alive(held)) or place.fresh():
            raise SystemExit(EXIT_FENCED)
        time.sleep(0.05)
    raise SystemExit(EXIT_FENCED)


def _ranks() -> tuple[str, int, int, int]:
    """Job id, rank, number of ranks and local rank of this process, as the launcher gave them."""
    import submitit

    try:
        env = submitit.JobEnvironment()
        return str(env.job_id), env.global_rank, env.num_tasks, env.local_rank
    except RuntimeError:  # not inside a job: a direct call
        return str(os.getpid()), 0, 1, 0


def _environment(place: str, threads: int, rank: int, ranks: int, local_rank: int, port: int) -> None:
    """Set what torch, DeepSpeed and the Hub libraries read when they are imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(max(1, threads))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["WANDB_SILENT"] = "true"
    if place != "network":
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    if place == "ranks":
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(local_rank),
            MASTER_ADDR=os.environ.get("MASTER_ADDR", "127.0.0.1"),
            MASTER_PORT=str(port),
        )
        if not os.path.exists("/dev/nvidiactl"):
            os.environ["DS_ACCELERATOR"] = "cpu"


def explain(error: BaseException, folder: Path) -> tuple[int, str]:
    """Exit code and one message for an expected failure; `EXIT_OURS` for what is a bug."""
    if isinstance(error, CathpcError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        place = error.filename or folder
        return EXIT_DISK, (
            f"the disk refuses to write {place}: {error.strerror}. Free some space or choose another folder "
            "(paths.store=, paths.cache=), then run the same command; what is finished is kept"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return EXIT_USER, (
            f"no permission for {error.filename or folder}: {error.strerror}. Choose a folder that you may write "
            "(paths.store=, paths.runs=, paths.cache=), or mend its rights"
        )
    return EXIT_OURS, f"{type(error).__name__}: {error}"


def _leave(folder: Path, rank: int, code: int, message: str, trace: str) -> None:
    print(f"rank {rank}: {message}\n{trace}", file=sys.stderr, flush=True)
    record = {"rank": rank, "code": code, "message": message, "host": socket.gethostname(), "time": time.time()}
    try:
        (folder / f"error.{rank}.json").write_text(json.dumps(record))
    except OSError as error:
        print(f"rank {rank}: could not leave the message in {folder}: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # a plain exit would wait for peers in the process group's destructors
