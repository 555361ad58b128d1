"""A checkpoint's tensors, whichever number of ranks saved them: whole, or divided anew over the ranks of now.

DeepSpeed keeps fp32 weights and the optimizer's moments in flat buffers, a few groups a rank. ZeRO-3 cuts each tensor
into as many equal pieces as there are ranks (the last ones padded) and lays a rank's pieces end to end; ZeRO 1 and 2
lay whole tensors end to end and cut the result. Both are a `Cut`, and a division over other ranks is a copy from cuts
to cuts. Only what a rank needs is read, block by block: memory is a block (`states.BLOCK`), time one read of the
checkpoint over all ranks. (DeepSpeed's universal checkpoint would write everything to disk once more, a file a tensor,
and read it whole on each rank.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cathpc.errors import UserError
from cathpc.train import ranks, states

MOMENTS = ("exp_avg", "exp_avg_sq")
Flats = dict[str, list[Any]]
"""A rank's flat buffers, one a group, of the `fp32` weights and of each moment."""


@dataclass(frozen=True)
class Cut:
    """A run of `count` elements, of which rank r has those from `r * piece` on, at `offset` in its buffer `group`."""

    group: int
    offset: int
    piece: int
    count: int

    def mine(self, rank: int) -> range:
        """The elements that a rank has."""
        return range(min(rank * self.piece, self.count), min((rank + 1) * self.piece, self.count))


def cuts(
    groups: Sequence[Mapping[str, Sequence[int]]], sizes: Sequence[int], world_size: int, stage: int
) -> dict[str, Cut]:
    """The cuts of all tensors, whose shapes `groups` gives; `sizes` are those of a rank's buffers, one a group."""
    found: dict[str, Cut] = {}
    for group, (shapes, size) in enumerate(zip(groups, sizes, strict=True)):
        counts = {name: math.prod(shape) for name, shape in shapes.items()}
        if stage < 3:
            found[f"group {group}"] = Cut(group, 0, size, sum(counts.values()))
            continue
        offset = 0
        for name, count in counts.items():
            found[name] = Cut(group, offset, -(-count // world_size), count)
            offset += found[name].piece
        assert offset == size, (group, offset, size)
    return found


def flats(state: dict[str, Any]) -> Flats:
    """The flat buffers in what an optimizer of DeepSpeed saves.

    Raises UserError for moments that cannot be cut: those of 8-bit Adam lie in blocks with a scale each.
    """
    moments = _of_torch(state)["state"]
    if other := sorted({key for of_group in moments.values() for key in of_group} - {"step", *MOMENTS}):
        raise UserError(
            f"the optimizer's states ({', '.join(other)}) cannot be divided over another number of ranks, those of "
            f"train.optimizer=adamw alone can: go on with the number of ranks that saved them."
        )
    return {"fp32": _weights(state)} | {key: [moments[g][key] for g in sorted(moments)] for key in MOMENTS}


def _weights(state: dict[str, Any]) -> list[Any]:
    """The fp32 weights, a buffer a group; ZeRO 1 and 2 leave the padding out."""
    found: list[Any] = state.get("fp32_flat_groups") or state["single_partition_of_fp32_groups"]
    return found


def _of_torch(state: dict[str, Any]) -> dict[str, Any]:
    """What torch's optimizer saves, in what DeepSpeed's saves."""
    found: dict[str, Any] = state.get("optimizer_state_dict") or state["base_optimizer_state"]
    return found


class Saved:
    """The states in a checkpoint's folder of DeepSpeed files; looks into all, and reads what it is asked for."""

    def __init__(self, folder: Path) -> None:
        found = [*folder.glob("zero_pp_rank_0_mp_rank_00_model_states.pt"), *folder.glob("mp_rank_00_model_states.pt")]
        (self.module_file,) = found
        self.module = states.peek(self.module_file)
        """Rank 0's file of the module: shapes, the step, and under ZeRO 1 and 2 the weights too."""
        self.groups: list[dict[str, tuple[int, ...]]] = [
            {name: tuple(shape) for name, shape in group.items()} for group in self.module["param_shapes"]
        ]
        """Shape of each trained tensor by name, a dictionary a group; a tied tensor is there once."""
        self.shapes = {name: shape for group in self.groups for name, shape in group.items()}
        """The same in one."""
        self.optimizers: list[dict[str, Any]] = []
        """What each rank's optimizer saved."""
        for rank in range(len(list(folder.glob("*optim_states.pt")))):
            (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            self.optimizers.append(states.peek(path)["optimizer_state_dict"])
        first = self.optimizers[0]
        self.stage = int(first["zero_stage"])
        padded = _weights(first) if self.stage == 3 else flats(first)["exp_avg"]
        self.cuts = cuts(self.groups, [buffer.numel() for buffer in padded], len(self.optimizers), self.stage)
        """Where each tensor lies."""

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A trained tensor in flat blocks, in order: of ZeRO-3 its fp32 weights, of ZeRO 1 and 2 those that the model
        computes with."""
        if self.stage < 3:
            stored: states.Stored = self.module["module"][name]
            yield from stored.blocks(0, stored.numel())
            return
        cut = self.cuts[name]
        for rank, state in enumerate(self.optimizers):
            yield from _weights(state)[cut.group].blocks(cut.offset, len(cut.mine(rank)))

    def whole(self, name: str) -> torch.Tensor:
        """A trained tensor, whole."""
        blocks = list(self.blocks(name))
        return torch.cat(blocks).view(self.shapes[name]) if blocks else torch.empty(self.shapes[name])


# --- into an engine ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def load(folder: Path, engine: Any) -> None:
    """Load the DeepSpeed files in `folder`, saved by any number of ranks, into an engine; called by all ranks.

    Raises UserError where the optimizer's states cannot be divided.
    """
    saved = Saved(folder)
    optimizer = engine.optimizer
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    module = engine.checkpoint_engine.load(str(saved.module_file), map_location="cpu")
    engine.load_module_state_dict(module, strict=all(p.requires_grad for p in engine.module.parameters()))
    padded = optimizer.fp32_partitioned_groups_flat if saved.stage == 3 else optimizer.single_partition_of_fp32_groups
    mine = optimizer.state_dict()  # no copy: what is written into it is written into the optimizer
    now, then = _of_torch(mine), _of_torch(saved.optimizers[0])
    now["state"] = {  # a new optimizer has none yet, and takes these
        group: {"step": _number(then["state"][0]["step"]), **{key: torch.zeros_like(buffer) for key in MOMENTS}}
        for group, buffer in enumerate(padded)
    }
    sizes = [buffer.numel() for buffer in padded]
    _fill(flats(mine), cuts(engine._get_zero_param_shapes(), sizes, ranks.world_size(), saved.stage), saved)
    for group, before in zip(now["param_groups"], then["param_groups"], strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})
    optimizer.load_state_dict([mine] * ranks.world_size(), load_from_fp32_weights=engine.zero_load_from_fp32_weights())
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(module["lr_scheduler"])
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, module[name])


def _number(value: Any) -> Any:
    """A count of steps, which some optimizers keep as a tensor, each group its own."""
    return value.read().view(value.shape) if isinstance(value, states.Stored) else value


def _fill(buffers: Flats, here: dict[str, Cut], saved: Saved) -> None:
    """Copy this rank's part of every tensor from the files of the ranks that saved it."""
    there = saved.cuts
    assert here.keys() == there.keys(), sorted(here.keys() ^ there.keys())
    theirs = [flats(state) for state in saved.optimizers]
    for name, cut in here.items():
        was = there[name]
        mine = cut.mine(ranks.rank())
        at = mine.start
        while at < mine.stop:
            owner = at // was.piece
            count = min(mine.stop, was.mine(owner).stop) - at
            for key, of_groups in buffers.items():
                target = of_groups[cut.group].narrow(0, cut.offset + at - mine.start, count)
                source: states.Stored = theirs[owner][key][was.group]
                done = 0
                for block in source.blocks(was.offset + at - owner * was.piece, count):
                    target.narrow(0, done, len(block)).copy_(block)
                    done += len(block)
            at += count
