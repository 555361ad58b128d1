"""The watchdog of a rank: when the training stands still, the attempt ends, so that it can be requeued.

A rank that hangs (a stopped process, a dead disk, a lost message) takes all others with it, as they wait for it in a
collective; without a watchdog they would wait until the job's time limit. Each rank's thread looks at its own
heartbeats: those who wait for the hung one end themselves with the code for `try again`, and the launcher ends it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from cathpc.errors import EXIT_AGAIN

STARTING = 4.0
"""How many times as long the start may take."""


class Watchdog:
    """`with Watchdog(seconds) as watchdog: ... watchdog.beat(doing)`; 0 seconds watch nothing.

    Until the first step, while libraries and weights are read, it waits four times as long.

    Without a beat for `seconds` the stacks of all threads go to stderr and the process ends with EXIT_AGAIN at once,
    without any cleaning up that could wait for the others.
    """

    def __init__(self, seconds: float, *, rank: int) -> None:
        self.seconds, self.rank = seconds, rank
        self._doing, self._patience = "the start", STARTING
        self._beat = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def beat(self, doing: str, *, starting: bool = False) -> None:
        """Say that the rank moves, and what it does from here on."""
        self._doing, self._beat, self._patience = doing, time.monotonic(), STARTING if starting else 1.0

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self.seconds / 10)):
            still = time.monotonic() - self._beat
            if still > self.seconds * self._patience:
                print(
                    f"cathpc: rank {self.rank} has not moved for {still:.0f} s (train.watchdog_s={self.seconds:g}) "
                    f"in {self._doing}. The attempt ends and comes back from its last checkpoint. Its stacks:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_AGAIN)
