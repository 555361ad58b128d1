"""Where the time of a step goes, without making the host wait for the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by name since the last `read`; on a GPU they are the GPU's own, between events in its queue."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def time(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Add the time of a block to `name`; `host` for what the CPU does while the GPU may be busy."""
        if self._gpu and not host:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch leaves it untyped
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """The seconds by name, and start afresh. Call it after something that waited for the GPU anyway."""
        for name, first, last in self._events:
            last.synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + first.elapsed_time(last) / 1000
        seconds, self._seconds, self._events = self._seconds, {}, []
        return {name: round(value, 4) for name, value in seconds.items()}
