"""Stragglers: ranks that compute slowly and hold up all others.

The ranks of a step wait for each other in every layer, so that their step times say nothing. Every `EVERY` steps each
rank times the same small matrix product by itself, and rank 0 compares.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from cathpc.train import ranks

EVERY = 50
FACTOR = 1.5
"""Times the median at which a rank is slow."""


def probe(step: int) -> float:
    """Seconds of a matrix product of this rank (best of three), 0 in the steps between."""
    if step % EVERY:
        return 0.0
    device = ranks.device()
    size = 4096 if device.type == "cuda" else 256
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(3):
        _wait(device)
        began = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(seconds: np.ndarray) -> dict[str, Any]:
    """{"slow_ranks": [...]} where some ranks took `FACTOR` times as long as the median, from what `probe` gave each."""
    slow = np.flatnonzero(seconds > FACTOR * np.median(seconds)).tolist()
    return {"slow_ranks": slow} if slow and seconds.all() else {}
