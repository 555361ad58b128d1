"""Config of the fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cathpc.models.config import Dtype
from cathpc.schema import speed


class Attention(Enum):
    """Attention implementation; `flash` refuses to run where flash-attn is missing."""

    sdpa = "sdpa"
    flash = "flash"


class Schedule(Enum):
    """Learning-rate schedule."""

    cosine = "cosine"
    wsd = "wsd"
    constant = "constant"


@dataclass
class TrainConfig:
    """Group `train`."""

    nodes: int = speed(1)
    ranks_per_node: int = speed(2)
    """One process a GPU, or a CPU process where there is none."""
    epochs: int = 4
    lr: float = 2e-5
    min_lr_ratio: float = 0.1
    warmup_share: float = 0.03
    schedule: Schedule = Schedule.cosine
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    micro_batch: int = 1
    """Packed sequences a rank takes at once."""
    global_batch: int = 16
    """Packed sequences a step over all ranks: micro_batch x ranks x accumulation."""
    zero_stage: int = 3
    dtype: Dtype = Dtype.bfloat16
    attention: Attention = Attention.sdpa
    activation_checkpointing: bool = True
    loss_chunk: int = 1024
    """Tokens whose logits exist at the same time."""
    seed: int = 0
    save_every_steps: int = speed(200)
    keep_checkpoints: int = speed(2)
    eval_every_steps: int = 200
    log_every_steps: int = speed(1)
    threads_per_rank: int = 0
    """CPU threads a rank; 0 divides the cores."""
