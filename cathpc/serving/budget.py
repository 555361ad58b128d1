"""Money that may be spent at an endpoint, by all processes and attempts together.

In: prices, a cap, a folder that the processes share. Out: whether one more request may be sent. Each process appends
what its requests cost to a file of its own and reads those of the others every few seconds, so the sum survives any
kill; a request is reserved at the most that it can cost before it is sent, so one process never exceeds the cap, and n
of them by what n x concurrency requests cost at most.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

REFRESH_S = 5.0


class Budget:
    """A cap of `usd`; 0 sets none, and then nothing is written."""

    def __init__(self, folder: Path, usd: float, per_million_input: float, per_million_output: float) -> None:
        self.usd = usd
        self._prices = per_million_input / 1e6, per_million_output / 1e6
        self._folder = folder
        self._own = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.txt"
        self._mine = self._reserved = self._others = 0.0
        self._read = -REFRESH_S

    def price(self, read: int, written: int) -> float:
        """USD for tokens that are read and written."""
        return read * self._prices[0] + written * self._prices[1]

    @property
    def spent(self) -> float:
        """USD that all processes have spent, as far as is known here."""
        if self.usd and time.monotonic() - self._read > REFRESH_S:
            self._read = time.monotonic()
            files = [f for f in self._folder.glob("*.txt") if f != self._own] if self._folder.is_dir() else []
            self._others = sum(_total(f) for f in files)
        return self._mine + self._others

    def reserve(self, most: float) -> bool:
        """Set `most` USD aside for a request; False where the cap leaves no room for it."""
        if self.usd and self.spent + self._reserved + most > self.usd:
            return False
        self._reserved += most
        return True

    def settle(self, most: float, cost: float) -> None:
        """A request for which `most` was reserved has cost `cost`."""
        self._reserved -= most
        if not self.usd or not cost:
            return
        self._mine += cost
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._own, "a", encoding="ascii") as file:
            file.write(f"{cost:.9f}\n")


def _total(file: Path) -> float:
    total = 0.0
    for line in file.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            total += float(line)
        except ValueError:  # torn by a kill
            continue
    return total
