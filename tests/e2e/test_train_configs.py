"""Other ways to train: states and activations off the GPU, other ZeRO stages, adapters. What is the same stays so."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from cathpc.train import export, history, metrics, writing
from tests.e2e.ranks import STEPS, final_weights, losses, settings, trained
from tests.e2e.ranks import whole as whole
from tests.e2e.ranks import world as world


@pytest.mark.parametrize("offload", ["optimizer", pytest.param("parameters", marks=pytest.mark.faults)])
def test_states_in_the_memory_of_the_node_give_the_same_training_but_for_rounding(
    world: SimpleNamespace, whole: Path, tmp_path: Path, offload: str
) -> None:
    out = trained(world, tmp_path / "out", settings(offload=offload))
    assert list(losses(out).values()) == pytest.approx(list(losses(whole).values()), rel=1e-6)


def test_activations_in_the_memory_of_the_node_give_the_same_training_bit_for_bit(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    train = settings(activation_checkpointing=True, max_steps=4)
    plain = trained(world, tmp_path / "plain", train)
    away = trained(world, tmp_path / "away", {**train, "offload_activations": True})
    assert losses(plain) == losses(away) and len(losses(plain)) == 4


def test_zero_2_trains_the_same(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    out = trained(world, tmp_path / "out", settings(zero_stage=2))
    assert list(losses(out).values()) == pytest.approx(list(losses(whole).values()), rel=1e-4)


@pytest.mark.parametrize(("stage", "dtype"), [(2, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_the_guard_of_every_stage_and_dtype_drops_a_gradient_that_is_not_finite(
    world: SimpleNamespace, tmp_path: Path, stage: int, dtype: str
) -> None:
    train = settings(zero_stage=stage, dtype=dtype, max_steps=6)
    bad = trained(world, tmp_path / "bad", train, rank=0, spoil=[5], value=math.nan)
    rows = [row for row in metrics.by_step(bad / "metrics.jsonl") if "step_s" in row]
    assert [row["global_step"] for row in rows if "fault" in row] == [5]
    assert math.isfinite(losses(bad)[6])


def test_adapters_learn_and_the_base_stays_as_it_was(world: SimpleNamespace, tmp_path: Path) -> None:
    train = settings(lora={"rank": 4}, lr=3e-2, activation_checkpointing=True)
    out = trained(world, tmp_path / "out", train)
    assert losses(out)[STEPS] < losses(out)[1] - 0.1
    newest = history.committed(out / "checkpoints")[0]
    names = [name for name, _ in export.tensors(newest / writing.TAG)]
    assert names and all("lora_" in name for name in names), "a checkpoint holds the adapters alone"
    assert any(tensor.abs().max() > 0 for name, tensor in final_weights(out).items() if "lora_B" in name)
