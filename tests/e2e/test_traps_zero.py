"""Traps of ZeRO-3: what a rank holds while it loads, what a parameter is outside of a gathering, and what a save never
does. Run as a program by each rank, this file prints what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cathpc.models.shape import ShapeConfig, parameters
from tests import memory_use

SHAPE = ShapeConfig(layers=6, width=768, mlp_width=2304, heads=12, kv_heads=4, head_dim=64, vocab=16000)


def rank(task: dict[str, Any]) -> None:
    """Load a small model, for what is imported and allocated once; then the large one, and look at it."""
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine

    from cathpc.train import engine as engines
    from cathpc.train import ranks, saver

    train = memory_use.train_config(task["train"])
    ranks.start(train)
    settings = engines.deepspeed_config(train, ranks.world_size())
    engines.load_model(train, Path(task["small"]), settings)
    with memory_use.Peak(gpu=False) as peak:
        model, _ = engines.load_model(train, Path(task["folder"]), settings)
    outside = {tuple(p.shape) for p in model.parameters()}
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        inside = sum(p.numel() for p in model.parameters())
    del model
    engine, _ = engines.start(train, Path(task["small"]))
    gathered = []
    for name in ("_zero3_consolidated_16bit_state_dict", "save_16bit_model"):
        setattr(DeepSpeedEngine, name, lambda *a, name=name, **k: gathered.append(name))
    keeper = saver.Saver(Path(task["out"]), engine, {}, keep=1)
    keeper.start(0, {})
    keeper.finish()
    largest = max(f.stat().st_size for f in Path(task["out"]).rglob("*.pt"))
    memory_use.tell(
        {
            "bytes": peak.bytes,
            "outside": sorted(outside),
            "inside": inside,
            "gathered": gathered,
            "largest": largest,
            "small": sum(p.ds_numel for p in engine.module.parameters()),
        }
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    top = tmp_path_factory.mktemp("zero")
    memory_use.build(SHAPE, top / "model")
    memory_use.build(memory_use.SMALL, top / "small")
    (top / "out").mkdir()
    train = {"ranks_per_node": 2, "global_batch": 2, "dtype": "bfloat16"}
    task = {"folder": str(top / "model"), "small": str(top / "small"), "out": str(top / "out"), "train": train}
    return memory_use.answers(__file__, task, 2)


def test_trap_10_no_rank_ever_loads_all_of_the_model(seen: list[dict[str, Any]]) -> None:
    """Half of it stays on each of two ranks, and a tensor or two are whole at a time."""
    whole = 2 * parameters(SHAPE)
    for one in seen:
        assert whole / 4 < one["bytes"] < 0.95 * whole, one["bytes"] / whole


def test_trap_11_a_parameter_is_empty_outside_of_a_gathering_and_whole_inside(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["outside"] == [[0]]
        assert one["inside"] == parameters(SHAPE)


def test_trap_13_a_save_gathers_nothing_and_each_rank_writes_its_own_part(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["gathered"] == []
        assert one["largest"] < 4 * 12 * one["small"] / 2, "no file holds the states of all ranks"


if __name__ == "__main__":
    rank(json.loads(sys.argv[1]))
