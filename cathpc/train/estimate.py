"""Time, disk and checkpoints of a training, reckoned before anything is queued.

In: the config, the model's dimensions, what is packed and what was measured already. Out: figures with the formula or
the assumption that each stands on; None where nothing is known. Operations are those of `cathpc.train.flops` (PaLM,
arXiv:2204.02311, appendix B); with activation checkpointing the hardware does 4/3 of them (Korthikanti et al. 2022,
arXiv:2205.05198, section 5: a second forward pass). Offloading adds what its bytes take over the link and through the
node's memory (Ren et al. 2021, arXiv:2101.06840, section 4), here without any overlap, so it is an upper bound.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.models.shape import parameters
from cathpc.train import memory, metrics
from cathpc.train.config import Offload
from cathpc.train.flops import Work

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.models.shape import ShapeConfig
    from cathpc.train.config import TrainConfig

MFU = 0.40
"""Assumed share of the cards' peak, with activation checkpointing; measured ones stand in `metrics.jsonl`."""
LINK_GBS = 20.0
"""Assumed between a GPU and the host's page-locked memory, in 10^9 bytes/s a GPU (PCIe 4.0 x16: 31.5 at most)."""
HOST_GBS = 150.0
"""Assumed of a node's memory, in 10^9 bytes/s (two sockets of eight DDR4-3200 channels: 410 at most)."""
ADAM_BYTES = 28
"""Bytes that AdamW on CPUs moves a parameter: reads weight, gradient and two moments, writes weight and moments."""
PACKED = 0.99
"""Assumed share of packed rows that is no padding."""
TOKENS_A_RECORD = 600
"""Assumed, where records are known and tokens are not."""
BYTES_A_TOKEN = 12
"""Of packed data: token, label, segment and the record's share of the table."""


@dataclass(frozen=True)
class Cost:
    """Seconds of an optimizer step."""

    name: str
    seconds: float
    how: str


def work(shape: ShapeConfig) -> Work:
    """What a token costs in a model of this shape; as `flops.work` counts it on the model itself."""
    body = shape.layers * sum(inputs * outputs for inputs, outputs in shape.matrices.values())
    return Work(body, shape.embedding, shape.layers * shape.query)


def step_flops(train: TrainConfig, seq_len: int, shape: ShapeConfig, supervised: float = 1.0) -> float:
    """Operations of an optimizer step over full rows of one conversation each, the most that packing can give;
    `supervised` is the share of tokens with a label."""
    tokens = train.global_batch * seq_len
    pairs = train.global_batch * seq_len * (seq_len + 1) // 2
    return float(work(shape).flops(tokens, int(tokens * supervised), pairs)) * (2 / 3 if train.lora.rank else 1)


def hardware_factor(train: TrainConfig) -> float:
    """What the hardware does over what counts as progress: a second forward pass is 1/3 more, of adapters 1/2."""
    if not train.activation_checkpointing:
        return 1.0
    return 3 / 2 if train.lora.rank else 4 / 3


def step_costs(train: TrainConfig, seq_len: int, shape: ShapeConfig, *, tflops: float, mfu: float = MFU) -> list[Cost]:
    """Seconds of a step on GPUs of `tflops` x 10^12 operations a second; the first row is the computing itself."""
    size = memory.sizes(train, seq_len, shape)
    hardware = step_flops(train, seq_len, shape) * hardware_factor(train)
    seconds = hardware / (size.ranks * tflops * 1e12 * mfu * 4 / 3)
    costs = [Cost("compute", seconds, f"operations / (R x {tflops:g}e12 x {mfu:.0%})")]
    micro_batches = train.global_batch // (train.micro_batch * size.ranks)
    link, host = LINK_GBS * 1e9, HOST_GBS * 1e9
    if train.offload is not Offload.none:
        moved = (2 * micro_batches + 1) * 4 * size.shard + size.bytes * size.shard
        costs.append(Cost("gradients over the link", moved / link, f"(8 A + 4 + w) n / R at {LINK_GBS:g} GB/s"))
        adam = ADAM_BYTES * size.shard * train.ranks_per_node / host
        costs.append(Cost("AdamW on the CPUs", adam, f"{ADAM_BYTES} n / nodes at {HOST_GBS:g} GB/s"))
    if train.offload is Offload.parameters:
        passes = 3 if train.activation_checkpointing else 2
        moved = passes * micro_batches * size.bytes * size.parameters / size.ranks
        costs.append(Cost("weights over the link", moved / link, f"{passes} A w N / R at {LINK_GBS:g} GB/s"))
    if train.offload_activations and train.activation_checkpointing:
        moved = 2 * micro_batches * shape.layers * size.bytes * size.tokens * shape.width
        costs.append(Cost("activations over the link", moved / link, f"2 A L w T h at {LINK_GBS:g} GB/s"))
    return costs


def step_seconds(train: TrainConfig, seq_len: int, shape: ShapeConfig, *, tflops: float, mfu: float = MFU) -> float:
    """Sum of `step_costs`."""
    return sum(cost.seconds for cost in step_costs(train, seq_len, shape, tflops=tflops, mfu=mfu))


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """What an epoch sees."""

    tokens: int
    steps: int
    how: str
    exact: bool = False


def tokens(config: Config, packed: Path | None) -> Tokens | None:
    """Tokens of an epoch: counted where `pack` is done (`packed` is its folder), else the most that the limits in the
    config allow, else None."""
    train, row = config.train, config.pack.seq_len
    counts = _packed(packed)
    if counts:
        return Tokens(counts["tokens"], -(-counts["bins"] // train.global_batch), "packed", exact=True)
    limits = [source.limit for source in config.dataset.sources.values() if source.component.name != "refusal"]
    records = [r for r in (config.select.max_records, sum(r or 0 for r in limits) if all(limits) else None) if r]
    bounds = [(r * TOKENS_A_RECORD, f"at most {r:,} records of {TOKENS_A_RECORD} tokens, assumed") for r in records]
    if config.pack.max_tokens:
        bounds.append((config.pack.max_tokens, "at most, pack.max_tokens"))
    if not bounds:
        return None
    most, how = min(bounds)
    return Tokens(most, math.ceil(most / (PACKED * row * train.global_batch)), how)


def _packed(folder: Path | None) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / "pack.json").read_text(encoding="utf-8"))["train"] if folder else None
        return data if data and data["bins"] and data["tokens"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stated(config: Config, count: float) -> Tokens:
    """An epoch of `count` tokens, as the user says."""
    steps = math.ceil(count / (PACKED * config.pack.seq_len * config.train.global_batch))
    return Tokens(round(count), steps, "as you say")


def steps(train: TrainConfig, epoch: Tokens) -> int:
    """Steps of the whole training."""
    return min(epoch.steps * train.epochs, train.max_steps or epoch.steps * train.epochs)


# --- checkpoints, disk ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The longest save, the median and the longest step of this very training so far, in seconds; 0 where there was
    none. A save by way of scratch is as long as the training stood still for it."""

    save: float = 0.0
    step: float = 0.0
    longest_step: float = 0.0


def measured(folder: Path | None) -> Measured:
    """What the training's own `metrics.jsonl` says."""
    rows = metrics.by_step(folder / metrics.METRICS) if folder else []
    saves = [float(row["seconds"].get("save", 0.0)) for row in rows]
    took = sorted(float(row.get("step_s", 0.0)) for row in rows if "loss" in row)
    return Measured(max(saves, default=0.0), took[len(took) // 2] if took else 0.0, took[-1] if took else 0.0)


def save_seconds(config: Config, shape: ShapeConfig) -> float:
    """One checkpoint at `cluster.disk_gbs`."""
    return memory.checkpoint(config.train, shape) / (config.cluster.disk_gbs * 1e9)


def lead_seconds(save: float, step: float) -> int:
    """Warning that a training needs before its limit: two saves and two steps, for one of each may be under way, and
    30 s to start with."""
    return math.ceil(2 * save + 2 * step + 30)


@dataclass(frozen=True)
class Disk:
    """Something that stays on the disk."""

    name: str
    bytes: float
    how: str


def disk(config: Config, shape: ShapeConfig, epoch: Tokens | None) -> list[Disk]:
    """What base, pack, train and export leave on the disk at most."""
    train = config.train
    one, keep = memory.checkpoint(train, shape), train.keep_checkpoints
    rows = [
        Disk("base", 2.0 * parameters(shape), " (2 N)"),
        # A stop cuts the reading back short, and with it the removal of what the newest one replaces.
        Disk("checkpoints", (keep + 2) * one, f" ({keep}, one not yet read back, one being written)"),
    ]
    if train.save_milestones:
        rows.append(Disk("milestones", train.epochs * one, f" ({train.epochs} epochs)"))
    if epoch:
        rows.append(Disk("packed data", float(BYTES_A_TOKEN * epoch.tokens), ""))
    if train.lora.rank:
        rows.append(Disk("exported adapter", 4.0 * memory.sizes(train, 1, shape).trained, " (4 n)"))
    return [*rows, Disk("exported model", 2.0 * parameters(shape), " (2 N)")]
