"""Does a training fit the cluster at hand, and what does where it does not.

In: the composed config. Out: sentences for people, which `plan` prints and `run` refuses with. Alternatives are sought
among offloading, 8-bit AdamW, adapters, smaller micro-batches and loss chunks, and more nodes; of those that fit the
ones that change least are kept, the fastest first. No heavy import.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.dispatch.config import ClusterKind
from cathpc.models import shape as shapes
from cathpc.train import estimate, memory
from cathpc.train.config import Offload, Optimizer

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.models.shape import Known
    from cathpc.train.config import TrainConfig

RANK = 64
"""Rank of the adapters that are proposed."""
SHOWN = 8
USABLE = 0.98
"""Share of a card's memory that its driver leaves: an A100 of 80 GiB gives 79."""
TIGHT = 0.95
"""Over this share of what a GPU gives, a training may fail by chance: by its fragments, or a library's version."""
TFLOPS = 312.0
"""What alternatives are ranked with where the cards' peak is not known: an A100's."""
SOFT = 1.25
"""CPU ranks are refused when they need this much more than `cluster.mem_gb`: their reckoning knows no other process."""


def on_gpus(config: Config) -> bool:
    """Whether the training computes on GPUs."""
    return config.cluster.gpus_per_node > 0 and not config.cluster.pretended_gpus


@dataclass(frozen=True)
class Candidate:
    """Overrides of a config, and what it needs with them."""

    overrides: tuple[str, ...]
    gpu_bytes: float
    host_bytes: float
    seconds: float
    """Of a step; 0 where the cards' peak is not known."""
    why: str
    """What makes it slower, and what else it changes."""
    tight: bool
    """Whether it fits with nearly nothing to spare."""
    order: tuple[bool, bool]
    """Whether it takes more nodes, and whether it trains adapters instead of the model."""


@dataclass(frozen=True)
class Fit:
    """What one rank and one node need and have; limits are 0 where they are not known."""

    gpu: memory.Memory
    gpu_limit: float
    host: list[memory.HostRow]
    host_limit: float
    on_gpus: bool

    @property
    def gpu_fits(self) -> bool:
        """Whether a rank fits its GPU, as far as is known."""
        return not self.on_gpus or not self.gpu_limit or self.gpu.total <= self.gpu_limit

    @property
    def tight(self) -> bool:
        """Whether a rank fits its GPU, but with nearly nothing to spare."""
        return self.gpu_fits and 0 < TIGHT * self.gpu_limit < self.gpu.total

    @property
    def host_fits(self) -> bool:
        """Whether a node's ranks fit what is asked of Slurm, as far as is known."""
        limit = self.host_limit * (1 if self.on_gpus else SOFT)
        return not limit or memory.host_total(self.host) <= limit


def fit(config: Config, known: Known) -> Fit:
    """The training of `config` on its cluster."""
    train, seq_len, gpu, cluster = config.train, config.pack.seq_len, on_gpus(config), config.cluster
    own = cluster.stages.get("train")
    asked = (own.mem_gb if own else 0.0) or cluster.mem_gb
    return Fit(
        memory.rank(train, seq_len, known.shape, gpu=gpu),
        USABLE * cluster.gpu_memory_gb * 1e9 if gpu else 0.0,
        memory.host(train, seq_len, known.shape, gpu=gpu),
        asked * memory.GIB if cluster.kind is ClusterKind.slurm else 0.0,  # Slurm's G is 2^30
        gpu,
    )


def faults(config: Config, *, folder: Path | None = None, mfu: float = estimate.MFU) -> list[str]:
    """Why the training cannot run on its cluster, each with the next command; [] where it can or nothing is known.

    `folder` is that of stage `train`, where an earlier attempt may have measured its saves.
    """
    known = shapes.find(config)
    if known is None:
        return []
    found, cluster = fit(config, known), config.cluster
    texts = []
    if not found.gpu_fits:
        texts.append(
            f"{config.model.base} needs {found.gpu.total / memory.GIB:.1f} GiB a GPU in this training, and a GPU gives "
            f"{found.gpu_limit / memory.GIB:.1f} ({USABLE:.0%} of cluster.gpu_memory_gb={cluster.gpu_memory_gb:g}).\n"
            + "\n".join(proposals(config, known, mfu=mfu))
        )
    if not found.host_fits:
        need = memory.host_total(found.host) / memory.GIB
        texts.append(
            f"a node of the training needs {need:,.0f} GiB of host memory, and cluster.mem_gb asks for "
            f"{found.host_limit / memory.GIB:,.0f}: set cluster.mem_gb={need * 1.02:.0f}, or 0 for all of a node, if "
            f"nodes have that much; or offload less"
        )
    if cluster.kind is ClusterKind.slurm and found.on_gpus:
        lead, how = needed_lead(config, known, folder, mfu=mfu)
        if lead > cluster.lead_s:
            texts.append(
                f"cluster.lead_s={cluster.lead_s} is too short: a save and a step on either side of the warning take "
                f"{lead:,} s ({how}). Set cluster.lead_s={lead}, or cluster.disk_gbs to what the disk really writes"
            )
        if 0 < config.train.watchdog_s < lead:
            texts.append(
                f"train.watchdog_s={config.train.watchdog_s:g} takes a rank that saves for one that hangs: two saves "
                f"and two steps take {lead:,} s ({how}). Set train.watchdog_s={lead}, or cluster.disk_gbs to what the "
                f"disk really writes"
            )
        if 2 * max(lead, cluster.lead_s) > cluster.timeout_min * 60:
            texts.append(
                f"cluster.timeout_min={cluster.timeout_min} leaves no time to train: the warning before its end is "
                f"{max(lead, cluster.lead_s):,} s. Raise cluster.timeout_min, or save less with adapters "
                f"(train.lora.rank={RANK})"
            )
    return texts


def needed_lead(config: Config, known: Known, folder: Path | None, *, mfu: float = estimate.MFU) -> tuple[int, str]:
    """Seconds of warning that the training needs, and from what: measured where it was, else reckoned."""
    seen = estimate.measured(folder)
    # The save at a stop does not go by way of scratch, whatever the others took.
    told = 0.0 if config.train.save_through_scratch else seen.save
    save = told or estimate.save_seconds(config, known.shape)
    step = seen.longest_step or seconds(config.train, config, known, mfu=mfu)
    how = "measured" if told else f"at {config.cluster.disk_gbs:g} GB/s"
    return estimate.lead_seconds(save, step), f"save {save:,.0f} s, {how}; step {step:,.0f} s"


def seconds(train: TrainConfig, config: Config, known: Known, *, mfu: float = estimate.MFU) -> float:
    """Seconds of a step, 0 where the cards' peak is not known."""
    tflops = config.cluster.gpu_tflops
    if not (tflops and on_gpus(config)):
        return 0.0
    return estimate.step_seconds(train, config.pack.seq_len, known.shape, tflops=tflops, mfu=mfu)


# --- what fits --------------------------------------------------------------------------------------------------------


def proposals(config: Config, known: Known, *, mfu: float = estimate.MFU) -> list[str]:
    """Lines of a table: overrides that fit, memory, speed; the fastest first."""
    found = alternatives(config, known, mfu=mfu)
    if not found:
        return ["  Nothing that cathpc can do fits: take more nodes (train.nodes, cluster.nodes) or a smaller model."]
    texts = [" ".join(c.overrides) for c in found]
    width = max(map(len, texts))
    base = seconds(config.train, config, known, mfu=mfu)
    head = (
        "  What fits, on the same cards first and the fastest of them first; take one line as it stands\n"
        f"    {'overrides':<{width}}  {'GPU':>5}  {'node':>6}  GiB{'  step' if base else ''}"
    )
    rows = [
        f"    {text:<{width}}  {c.gpu_bytes / memory.GIB:5.1f}  {c.host_bytes / memory.GIB:6,.0f}   "
        + (f"  {c.seconds / base - 1:+5.0%}" if base else "")
        + f"  {c.why}"
        for text, c in zip(texts, found, strict=True)
    ]
    return [head, *rows]


def alternatives(config: Config, known: Known, *, mfu: float = estimate.MFU) -> list[Candidate]:
    """Configs that fit the same cards, none of which changes all that another one changes and more; fastest first."""
    kept: list[tuple[frozenset[str], Candidate]] = []
    options = sorted(_options(config), key=lambda o: len(o[1]))
    for changes, overrides in options:
        train = replace(config.train, **changes)
        cluster = replace(config.cluster, nodes=max(config.cluster.nodes, train.nodes))
        changed = replace(config, train=train, cluster=cluster)
        names = frozenset(overrides)
        if train.global_batch % (train.micro_batch * train.nodes * train.ranks_per_node):
            continue
        if any(less <= names for less, candidate in kept if not candidate.tight):
            continue
        found = fit(changed, known)
        if not found.gpu_fits or (found.tight and any(less <= names for less, _ in kept)):
            continue
        costs = _costs(changed, known, mfu)
        order = (train.nodes > config.train.nodes, train.lora.rank > config.train.lora.rank)
        notes = [f"{c.name} {c.seconds:.0f} s" for c in costs[1:]]
        if order[1]:
            notes.append("adapters only")
        if train.optimizer is Optimizer.adamw8bit and config.train.optimizer is Optimizer.adamw:
            notes.append("needs bitsandbytes")
        if found.tight:
            notes.append("tight")
        host = memory.host_total(found.host)
        if not found.host_fits:
            overrides = (*overrides, f"cluster.mem_gb={host * 1.02 / memory.GIB:.0f}")
        took = sum(c.seconds for c in costs)
        candidate = Candidate(overrides, found.gpu.total, host, took, ", ".join(notes), found.tight, order)
        kept.append((names, candidate))
    return sorted((c for _, c in kept), key=lambda c: (c.order, c.seconds, c.gpu_bytes))[:SHOWN]


def _costs(config: Config, known: Known, mfu: float) -> list[estimate.Cost]:
    tflops = config.cluster.gpu_tflops or TFLOPS
    return estimate.step_costs(config.train, config.pack.seq_len, known.shape, tflops=tflops, mfu=mfu)


def _options(config: Config) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Changes of the training and the overrides that make them."""
    train = config.train
    axes: list[list[tuple[dict[str, Any], tuple[str, ...]]]] = [
        [({"activation_checkpointing": True}, ("train.activation_checkpointing=true",))]
        if not train.activation_checkpointing
        else [],
        [({"offload": o}, (f"train.offload={o.name}",)) for o in Offload if o is not train.offload],
        [({"offload_activations": True}, ("train.offload_activations=true",))] if not train.offload_activations else [],
        [({"optimizer": Optimizer.adamw8bit}, ("train.optimizer=adamw8bit",))]
        if train.optimizer is Optimizer.adamw
        else [],
        [({"lora": replace(train.lora, rank=RANK)}, (f"train.lora.rank={RANK}",))] if not train.lora.rank else [],
        [({"micro_batch": 1}, ("train.micro_batch=1",))] if train.micro_batch > 1 else [],
        [({"loss_chunk": 256}, ("train.loss_chunk=256",))] if train.loss_chunk > 256 else [],
        [
            ({"nodes": n}, (f"train.nodes={n}", *((f"cluster.nodes={n}",) if n > config.cluster.nodes else ())))
            for n in (2 * train.nodes, 4 * train.nodes)
            if config.cluster.kind is ClusterKind.slurm
        ],
    ]
    for chosen in itertools.product(*([({}, ()), *axis] for axis in axes)):
        changes: dict[str, Any] = {}
        for change, _ in chosen:
            changes |= change
        changed = replace(train, **changes)
        offloaded = changed.offload is not Offload.none
        if changed.optimizer is Optimizer.adamw8bit and (offloaded or changed.lora.rank):
            continue  # its kernels run on GPUs alone; of adapters' states there are few anyway
        if changed.offload_activations and not changed.activation_checkpointing:
            continue
        if changed.lora.rank and offloaded:
            continue
        if changes:
            yield changes, tuple(o for _, overrides in chosen for o in overrides)
