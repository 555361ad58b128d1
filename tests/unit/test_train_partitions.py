"""Tensors cut over one number of ranks, put together again and cut over another: without an engine, on real files."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from cathpc.errors import UserError
from cathpc.train import partitions, ranks

SHAPES = {"embed": (7, 5), "norm": (3,), "up": (11, 4), "down": (4, 11), "bias": (1,)}
MOMENTS = ("fp32", *partitions.MOMENTS)


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    """A tensor for each name, of weights and of both moments; all elements differ."""
    torch.manual_seed(0)
    return {key: {name: torch.rand(shape) for name, shape in SHAPES.items()} for key in MOMENTS}


def groups(size: int, world_size: int) -> list[OrderedDict[str, torch.Size]]:
    """DeepSpeed's rule for ZeRO-3: a group is full when a rank's part of it has `size` elements."""
    found: list[OrderedDict[str, torch.Size]] = [OrderedDict()]
    filled = 0
    for name, shape in SHAPES.items():
        if filled >= size:
            found.append(OrderedDict())
            filled = 0
        found[-1][name] = torch.Size(shape)
        filled += -(-math.prod(shape) // world_size)
    return found


def buffers(
    values: dict[str, torch.Tensor], named: list[OrderedDict[str, torch.Size]], rank: int, world_size: int, stage: int
) -> list[torch.Tensor]:
    """A rank's flat buffers, padded with NaN, which must never be read."""
    found = []
    for group in named:
        flat = [values[name].flatten() for name in group]
        runs = flat if stage == 3 else [torch.cat(flat)]
        pieces = []
        for run in runs:
            piece = -(-len(run) // world_size)
            padded = torch.cat([run, torch.full((piece * world_size - len(run),), math.nan)])
            pieces.append(padded[rank * piece : (rank + 1) * piece])
        found.append(torch.cat(pieces))
    return found


def save(folder: Path, size: int, world_size: int, stage: int, **more: Any) -> None:
    """The files that DeepSpeed would write."""
    folder.mkdir()
    values, named = tensors(), groups(size if stage == 3 else 10**9, world_size)
    module = {"module": values["fp32"] if stage < 3 else {}, "param_shapes": named, "global_steps": 6}
    name = "zero_pp_rank_0_mp_rank_00" if stage == 3 else "mp_rank_00"
    torch.save(module, folder / f"{name}_model_states.pt")
    for rank in range(world_size):
        flat = {key: buffers(values[key], named, rank, world_size, stage) for key in MOMENTS}
        moments = {
            g: {"step": torch.tensor(6.0), **{key: flat[key][g] for key in partitions.MOMENTS}, **more}
            for g in range(len(named))
        }
        inner = {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}
        if stage == 3:
            state: dict[str, Any] = {"fp32_flat_groups": flat["fp32"], "optimizer_state_dict": inner}
        else:
            lean = [buffer[~buffer.isnan()] for buffer in flat["fp32"]]
            state = {"single_partition_of_fp32_groups": lean, "base_optimizer_state": inner}
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": {"zero_stage": stage, **state}}, path)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_tensors_are_put_together_whatever_the_number_of_ranks(tmp_path: Path, world_size: int, stage: int) -> None:
    save(tmp_path / "saved", 12, world_size, stage)
    saved = partitions.Saved(tmp_path / "saved")
    assert saved.shapes == SHAPES
    for name, tensor in tensors()["fp32"].items():
        assert saved.whole(name).equal(tensor), name


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(("before", "now"), [(2, 1), (2, 4), (3, 2), (1, 5), (16, 3)])
def test_another_number_of_ranks_gets_exactly_its_own_part_of_weights_and_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, now: int, stage: int
) -> None:
    monkeypatch.setattr("cathpc.train.states.BLOCK", 12)  # three elements at a time
    save(tmp_path / "saved", 12, before, stage)
    saved = partitions.Saved(tmp_path / "saved")
    named = groups(20 if stage == 3 else 10**9, now)
    for rank in range(now):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        wanted = {key: buffers(values, named, rank, now, stage) for key, values in tensors().items()}
        mine = {key: [torch.full_like(buffer, math.nan) for buffer in flat] for key, flat in wanted.items()}
        sizes = [len(buffer) for buffer in wanted["fp32"]]
        partitions._fill(mine, partitions.cuts(named, sizes, now, stage), saved)
        for key, flat in wanted.items():
            for one, other in zip(mine[key], flat, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_moments_that_lie_in_blocks_with_a_scale_each_are_not_cut(tmp_path: Path) -> None:
    save(tmp_path / "saved", 12, 2, 3, absmax1=torch.ones(1))
    saved = partitions.Saved(tmp_path / "saved")
    assert saved.whole("up").equal(tensors()["fp32"]["up"]), "the weights can be exported"
    with pytest.raises(UserError, match=r"absmax1.*number of ranks that saved them"):
        partitions.flats(saved.optimizers[0])
