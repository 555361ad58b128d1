"""The guard: a step whose loss or gradient is not finite, or whose gradient is a spike, does not reach the weights.

It is asked in the middle of the optimizer's step, when the norm of the whole gradient is known and before anything is
updated, so that the decision is the same on all ranks and needs no copy of the weights. Its memory, the last gradient
norms, is part of the checkpoint: a resumed run decides the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig

FLOOR = 0.1
"""Least standard deviation of the logarithm of the norms that is believed: a tenth of the norm."""


class Guard:
    """Watches the gradient norms of one training.

    `loss` is set before each step, `norm` and `fault` ('' for a good step) are what the last one came to, `bad` counts
    the bad steps in a row.
    """

    def __init__(self, config: TrainConfig, norms: Sequence[float] = (), bad: int = 0) -> None:
        self.config = config
        self.norms: deque[float] = deque(norms, maxlen=config.spike_window)
        self.bad = bad
        self.loss = self.norm = math.nan
        self.fault = ""

    def refuses(self, norm: float) -> bool:
        """Whether a step of this gradient norm (before clipping) must not be taken."""
        self.norm = norm
        self.fault = self._fault(norm)
        self.bad = self.bad + 1 if self.fault else 0
        if not self.fault:
            self.norms.append(norm)
        return bool(self.fault)

    def _fault(self, norm: float) -> str:
        if not math.isfinite(self.loss):
            return "the loss is not finite"
        if not math.isfinite(norm) or norm < 0:
            return "the gradient is not finite"
        sigmas = self.config.spike_sigmas
        known = [math.log(n) for n in self.norms if n > 0]
        if not sigmas or norm <= self.config.clip or len(known) < self.config.spike_window // 4:
            return ""
        limit = fmean(known) + sigmas * max(FLOOR, pstdev(known))
        if math.log(norm) > limit:
            return f"the gradient norm {norm:.3g} is a spike: over {math.exp(limit):.3g}"
        return ""
