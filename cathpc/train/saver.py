"""Commits checkpoints, while the training goes on where it can.

A save is one function, `_saving`, that reads from top to bottom: all ranks write, all agree that all is well, rank 0
renames the folder and writes the manifest last, all ranks read back what is on the disk (each what another one wrote),
and only then older ones are removed. Where it yields a piece of work, each rank does that in a thread of its own; the
save goes on at a later step, when all ranks are through. So the loop never waits for the reading back, nor, with
`scratch`, for the shared file system: ranks write to their node first and copy from there.

    saver.start(step, notes)                            after a step; waits for the save before
    if all(<saver.ready() of every rank>): saver.advance()        after every step
    saver.finish()                                      at the end

Costs: one write of the checkpoint, hashed on the way; one read of it in the background; disk for one checkpoint more
than are kept, and with `scratch` one on the node. Nothing grows with the number of checkpoints.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cathpc.errors import DiskError
from cathpc.lease import fence, slurm_job
from cathpc.train import history, ranks, writing
from cathpc.train.writing import Work


class Saver:
    """The checkpoints of one training, of which one at a time is in the making. All ranks call the same methods in the
    same order.

    `identity` is what a resumed run must share; `keep` newest ones remain, and the milestones; `scratch` is a folder
    of this node to write to first, None for none.
    """

    def __init__(
        self, folder: Path, engine: Any, identity: dict[str, Any], *, keep: int, scratch: Path | None = None
    ) -> None:
        self.folder, self.engine, self.identity, self.keep, self.scratch = folder, engine, identity, keep, scratch
        self.seconds: dict[str, float] = {}
        """What the newest save took so far: write, copy, commit, verify, remove."""
        self.newest: Path | None = None
        """The newest checkpoint that this saver committed."""
        self._save: Generator[Work, OSError | None, None] | None = None
        self._verified = False
        """Whether all ranks have agreed that it reads back: what ranks go by, for one reads faster than another."""
        self._thread: _Thread | None = None
        self._dropped = threading.Event()
        """Set where nobody waits for the reading back any more."""

    def start(self, step: int, notes: dict[str, Any], *, milestone: bool = False, at_once: bool = False) -> None:
        """Save the engine after `step` steps; `notes` go into the manifest. First waits for the save before.

        When it returns, training may go on; without `scratch`, and with `at_once`, the checkpoint is committed by
        then. A `milestone` is kept for good. Raises DiskError on all ranks where one could not write, and FencedError
        on rank 0 where another attempt owns the training by now; what was there before stays as it was.
        """
        self.finish(verify=not at_once)
        self.seconds, self._verified = {}, False
        self._save = self._saving(step, notes, milestone, None if at_once else self.scratch)
        self._go_on(None)

    def ready(self) -> bool:
        """Whether this rank has done its part of a save that can go on."""
        return self._thread is not None and not self._thread.is_alive()

    def advance(self) -> None:
        """Go on with the save; called by all ranks once all are `ready` (else it waits). Raises what `start` does."""
        assert self._thread is not None
        self._thread.join()
        error, self._thread = self._thread.error, None
        if error is not None and not isinstance(error, OSError):
            self._save = None
            raise error
        self._go_on(error)

    def finish(self, *, verify: bool = True) -> None:
        """Wait until the save is through: committed, and with `verify` also read back, and older ones removed.

        A stop that is short of time leaves these two to the next attempt, which does both when it loads; a removal that
        has begun is waited for.
        """
        while self._save is not None and (verify or "commit" not in self.seconds or self._verified):
            self.advance()
        if self._save is not None:
            self._dropped.set()
            self._dropped = threading.Event()
        self._save = self._thread = None

    def _go_on(self, error: OSError | None) -> None:
        assert self._save is not None
        try:
            work = self._save.send(error)
        except BaseException as ended:
            self._save = None
            if not isinstance(ended, StopIteration):
                raise
        else:
            self._thread = _Thread(work)
            self._thread.start()

    def _saving(
        self, step: int, notes: dict[str, Any], milestone: bool, scratch: Path | None
    ) -> Generator[Work, OSError | None, None]:
        """One save. A `yield` has this rank do something in the background; what it gives is how that failed."""
        seconds = self.seconds  # of this save: a thread that was dropped may end in the midst of the next one
        final = self.folder / history.folder_name(step)
        temporary = self.folder / ".".join([f".tmp-{final.name}", *map(str, slurm_job())])  # an attempt's own
        local = (
            scratch / f"cathpc-{zlib.crc32(bytes(self.folder.absolute())):08x}-{temporary.name}" if scratch else None
        )
        writing.clear(self.folder, final, local)
        ranks.barrier()

        with _clock(seconds, "write"):
            written = None
            if local and writing.ours(local) and writing.room(self.engine, local):
                written = writing.write(self.engine, local, durable=False)
                if not ranks.agree(written.error is None):
                    writing.say(f"{local}: {written.error or 'another rank could not write there'}; saving without it")
                    shutil.rmtree(local, ignore_errors=True)
                    written = None
            if written is None:
                local, written = None, writing.write(self.engine, temporary, durable=True)
        error = written.error
        if local:
            error = yield partial(_timed, seconds, "copy", partial(writing.copy, written.files, local, temporary))

        with _clock(seconds, "commit"):
            error = error or writing.attempt(partial(writing.record, temporary, written.files))
            self._agree(error, final, temporary, local)
            data = {"step": step, "world_size": ranks.world_size(), "identity": self.identity, **notes}
            error = None
            if ranks.rank() == 0:
                fence(self.folder)
                error = writing.attempt(partial(writing.publish, temporary, final, data | {"milestone": milestone}))
            self._agree(error, final, temporary, local)
        self.newest = final

        error = yield partial(_timed, seconds, "verify", partial(writing.read_back, final, self._dropped))
        if not ranks.agree(error is None):
            if ranks.rank() == 0:
                history.set_aside(final)
            raise DiskError(
                f"{final}: what was read back is not what was written ({error or 'by another rank'}). It is set aside "
                f"and earlier ones are untouched, but this disk alters data: have it looked at before you run the "
                f"same command again."
            ) from error
        self._verified = True
        if ranks.rank() == 0:
            fence(self.folder)
        error = yield partial(_timed, seconds, "remove", partial(writing.prune, self.folder, self.keep))
        if error is not None:
            writing.say(f"older ones could not be removed ({error}); the next save tries again")

    def _agree(self, error: OSError | None, final: Path, temporary: Path, local: Path | None) -> None:
        """Raise DiskError on all ranks where one has an `error`; nothing is left of the checkpoint then."""
        if ranks.agree(error is None):
            return
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (final / history.MANIFEST).exists():
                shutil.rmtree(final, ignore_errors=True)
        if local:
            shutil.rmtree(local, ignore_errors=True)
        raise DiskError(
            f"{final}: the checkpoint could not be written"
            + (f" ({error})" if error else " by another rank")
            + "; earlier ones are untouched. Make room there, or have the disk looked at, then run the command again"
        ) from error


def scratch_folder() -> Path:
    """Where this node's temporary files lie (TMPDIR, which `cluster.scratch` sets)."""
    return Path(tempfile.gettempdir())


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 4)


def _timed(seconds: dict[str, float], name: str, work: Work) -> None:
    with _clock(seconds, name):
        work()


class _Thread(threading.Thread):
    """Does one thing and keeps how it failed. A process that ends does not wait for it."""

    def __init__(self, work: Work) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        """What the thread does."""
        try:
            self.work()
        except BaseException as error:
            self.error = error
