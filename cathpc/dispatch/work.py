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
from cathpc.config import from_plain, only
from cathpc.errors import EXIT_DISK, EXIT_FENCED, EXIT_OURS, EXIT_USER, CathpcError
from cathpc.pipeline import BY_NAME

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM}


def run_stage(name: str, config: dict[str, Any], *, threads: int, master_port: int = 0) -> None:
    """Run the stage `name` under the plain `config` on this rank and, on rank 0, commit its manifest.

    Ends the process with the exit code of `cathpc.errors` when the stage fails; the message lies in
    `error.<rank>.json` of the stage's folder, for the dispatcher to show.
    """
    rank, ranks, local_rank = _ranks()
    for received in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(received, signal.SIG_DFL)  # submitit's handlers ignore the one and pickle at the other
    os.umask(0o077)
    _environment(BY_NAME[name].place.name, threads, rank, ranks, local_rank, master_port)
    composed = from_plain(config)
    place = store.places(composed)[name]
    folder = place.folder
    try:
        if rank == 0:
            store.prepare_folder(place)
        _run(name, composed, place, rank)
    except (CathpcError, OSError) as error:
        code, message = explain(error, folder)
        _leave(folder, rank, code, message, "" if code != EXIT_OURS else traceback.format_exc())
    except Exception as error:
        _leave(folder, rank, EXIT_OURS, f"{type(error).__name__}: {error}", traceback.format_exc())


def _run(name: str, config: Any, place: store.Place, rank: int) -> None:
    function = BY_NAME[name].function()
    visible = only(config, place.stage.config)
    if rank != 0:
        _wait_for_folder(place.folder)
        function(visible, place.inputs, place.folder)
        return
    with store.claim(place.folder) as got:
        if not got:
            raise SystemExit(EXIT_FENCED)
        for old in place.folder.glob("error.*.json"):
            old.unlink(missing_ok=True)
        if place.fresh():  # another owner finished it between the submission and now
            return
        started, clock = time.time(), time.perf_counter()
        summary = function(visible, place.inputs, place.folder)
        store.commit(place, config, summary, started=started, seconds=time.perf_counter() - clock)


def _wait_for_folder(folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not folder.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)


def _ranks() -> tuple[int, int, int]:
    """Rank, number of ranks and local rank of this process, as the launcher gave them."""
    import submitit

    try:
        env = submitit.JobEnvironment()
        return env.global_rank, env.num_tasks, env.local_rank
    except RuntimeError:  # not inside a job: a direct call
        return 0, 1, 0


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
