"""A request to stop, from Slurm or a user, honoured where all ranks can: after a step or an evaluation batch.

The handlers of USR2 and TERM do nothing but note the signal. The loop asks `requested` where a collective is safe, so
that all ranks agree, save together and end with `TryAgainError`.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_seen: list[int] = []


def install() -> None:
    """Note USR2 and TERM from now on instead of dying of them."""
    _seen.clear()
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _seen.append(number)


def requested() -> bool:
    """Whether this rank was told to stop."""
    return bool(_seen)


def reason() -> str:
    """Name of the signal that this rank got first; '' where another rank got one."""
    return signal.Signals(_seen[0]).name if _seen else ""
