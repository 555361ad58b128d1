"""The learning rate as a pure function of the tokens seen, so that nothing about it is ever saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cathpc.train.config import Schedule

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig

WSD_DECAY_SHARE = 0.2  # share of the tokens over which 'wsd' decays (Hägele et al. 2024, arXiv:2405.18392)


def lr_factor(config: TrainConfig, seen: int, total: int) -> float:
    """What `train.lr` is multiplied by in the step after which `seen` of `total` tokens are seen (0 < seen <= total).

    Linear warm-up over the first `warmup_share` of the tokens, then cosine down to `min_lr_ratio` (Loshchilov and
    Hutter 2017, arXiv:1608.03983, eq. 5), or constant and linearly down to it over the last fifth ('wsd'), or constant.
    """
    warmup = config.warmup_share * total
    if seen < warmup:
        return seen / warmup
    floor = config.min_lr_ratio
    if config.schedule is Schedule.constant:
        return 1.0
    if config.schedule is Schedule.wsd:
        return floor + (1 - floor) * min(1.0, (total - seen) / (WSD_DECAY_SHARE * total))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (seen - warmup) / (total - warmup)))
