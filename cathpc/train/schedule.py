"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cathpc.train.config import Schedule

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig

WSD_DECAY_SHARE = 0.2  # share of the steps over which 'wsd' decays (Hägele et al. 2024, arXiv:2405.18392)


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """What `train.lr` is multiplied by in step `step` (0 .. total - 1).

    Linear warm-up that reaches 1 in the last step of the first `warmup_share`, then cosine to `min_lr_ratio`, or
    constant and a linear decay to it over the last fifth ('wsd'), or constant.
    """
    warmup = math.ceil(config.warmup_share * total)
    if step < warmup:
        return (step + 1) / warmup
    floor = config.min_lr_ratio
    if config.schedule is Schedule.constant:
        return 1.0
    if config.schedule is Schedule.wsd:
        decay = max(1, round(WSD_DECAY_SHARE * total))
        left = min(1.0, max(0.0, (total - 1 - step) / decay))
        return floor + (1 - floor) * left
    part = min(1.0, (step - warmup) / max(1, total - warmup - 1))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part))
