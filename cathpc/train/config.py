"""Config of the fine-tune."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cathpc.models.config import Dtype
from cathpc.schema import speed


class Attention(Enum):
    """Attention implementation; `flash` refuses to run where flash-attn is missing."""

    sdpa = "sdpa"
    """torch's own; on CPUs and GPUs."""
    flash = "flash"
    """flash-attn's, by segment; refused where the package is missing."""


class Optimizer(Enum):
    """AdamW's states: fp32 (12 bytes a parameter with the fp32 weights), or bitsandbytes' block-wise 8-bit (6 bytes;
    Dettmers et al. 2022, arXiv:2110.02861; GPUs only)."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Offload(Enum):
    """What lies in the memory of the node instead of the GPU's (Ren et al. 2021, ZeRO-Offload, arXiv:2101.06840)."""

    none = "none"
    """All on the GPU."""
    optimizer = "optimizer"
    """fp32 weights and optimizer states; the step runs on the CPUs."""
    parameters = "parameters"
    """The same, and the bfloat16 weights."""


class OnSpike(Enum):
    """What follows a step whose loss or gradient is not finite, or spikes."""

    skip = "skip"
    """The step's gradients are dropped; the data goes on."""
    rollback = "rollback"
    """Back to the newest checkpoint; the batches from there to the bad one are passed over."""
    fail = "fail"
    """The training ends."""


class Schedule(Enum):
    """Learning-rate schedule, after the warm-up."""

    cosine = "cosine"
    """Down to `min_lr_ratio` along half a cosine, by tokens (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    wsd = "wsd"
    """Constant, then linearly down over the last fifth of the tokens (Hägele et al. 2024, arXiv:2405.18392)."""
    constant = "constant"


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) in place of a full fine-tune; `rank` 0 is a full one."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's input that is dropped in training."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that get an adapter."""


@dataclass
class TrainConfig:
    """Group `train`."""

    nodes: int = speed(1)
    """Nodes of the training. The number of ranks is part of the result, how they lie on nodes is not."""
    ranks_per_node: int = speed(2)
    """One process a GPU, or a CPU process where there is none."""
    epochs: int = 4
    """Passes over the packed records."""
    max_steps: int | None = None
    """End after this many steps whatever the epochs; for trials."""
    lr: float = 2e-5
    """Peak of the learning rate."""
    min_lr_ratio: float = 0.1
    """What the schedule ends at, as a share of the peak."""
    warmup_share: float = 0.03
    """Share of all tokens over which the learning rate rises to its peak."""
    schedule: Schedule = Schedule.cosine
    """How the rate falls after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: float = 0.95
    """AdamW's decay of the mean of their squares."""
    clip: float = 1.0
    """Largest norm of a step's gradient; a longer one is scaled down to it."""
    micro_batch: int = 1
    """Packed sequences a rank takes at once."""
    global_batch: int = 16
    """Packed sequences a step over all ranks: micro_batch x ranks x accumulation."""
    zero_stage: int = 3
    """2 partitions gradients and optimizer states, 3 the weights too."""
    dtype: Dtype = Dtype.bfloat16
    """Of weights and activations; the optimizer's weights and states are float32."""
    optimizer: Optimizer = Optimizer.adamw
    offload: Offload = Offload.none
    """Part of the result: on the CPUs the gradient's norm is summed up in another order."""
    attention: Attention = Attention.sdpa
    """Which kernels."""
    activation_checkpointing: bool = True
    """Keep each layer's input alone and compute the rest again in the backward pass: a third more operations, and far
    less memory."""
    offload_activations: bool = speed(False)
    """Keep the checkpointed activations in the memory of the node."""
    fused_kernels: bool = False
    """Liger's RMSNorm, rotary embedding and SwiGLU (GPUs only; the extra `liger`)."""
    loss_chunk: int = 1024
    """Tokens whose logits exist at the same time."""
    resume_from: str = ""
    """A folder of stage `train` whose newest checkpoint this training goes on from, though it was saved by another
    number of ranks: its states are partitioned anew."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    deterministic: bool = False
    """Deterministic kernels on GPUs, so that a resumed run is the same to the bit; slower. CPUs always are."""
    seed: int = 0
    """Of the order of samples, and of the adapters' first weights and dropout."""
    on_spike: OnSpike = OnSpike.skip
    """What follows a step whose loss or gradient is not finite, or spikes."""
    spike_sigmas: float = 8.0
    """A gradient norm this many standard deviations over the mean of the last `spike_window` (of logarithms) is a
    spike; 0 looks only for what is not finite."""
    spike_window: int = 64
    """Steps whose gradient norms are remembered; the watch starts when a quarter of them are there."""
    max_skips: int = 8
    """Bad steps in a row, or rollbacks in all, after which the training gives up."""
    watchdog_s: float = speed(1800.0)
    """A rank that does not move for so long ends the attempt, which is then requeued (four times as long at the start);
    0 is off. At least twice the longest step or save."""
    save_every_steps: int = speed(200)
    """Steps between two checkpoints: what a crash without warning loses at most."""
    save_milestones: bool = speed(True)
    """Keep the checkpoint at each epoch's end for good: `evaluate` can read them, and they cost disk."""
    save_through_scratch: bool = speed(False)
    """Write to `cluster.scratch` of each node first and copy from there while the training goes on."""
    keep_checkpoints: int = speed(2)
    """Newest verified checkpoints that are kept, milestones aside."""
    eval_every_steps: int = 200
    """Steps between two measures of the held-out loss."""
    log_every_steps: int = speed(1)
    """Steps between two lines of the log; `metrics.jsonl` has every step."""
    threads_per_rank: int = 0
    """CPU threads a rank; 0 divides the cores."""
