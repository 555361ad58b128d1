"""Training with real ranks on a tiny random Llama: killed, stopped, damaged, and exported. See tests/e2e/ranks.py."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

from cathpc.errors import EXIT_AGAIN, EXIT_CHANGED, EXIT_DATA, EXIT_DISK, EXIT_USER
from cathpc.train import metrics
from tests.e2e.ranks import (
    STEPS,
    assert_same_training,
    checkpoints,
    copy,
    evals,
    final_weights,
    flip,
    killed,
    launch,
    losses,
    settings,
    trained,
    whole,
    world,
)

__all__ = ["killed", "whole", "world"]  # fixtures


def test_a_run_killed_after_a_checkpoint_goes_on_to_the_same_losses_and_weights(
    world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = trained(world, copy(killed, tmp_path / "out"), settings())
    assert_same_training(out, whole)
    attempts = {row["global_step"]: row["attempt"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}
    assert [attempts[step] for step in (4, 5, 12)] == [1, 2, 2]


def test_in_bfloat16_with_activation_checkpointing_too(world: SimpleNamespace, tmp_path: Path) -> None:
    train = settings(dtype="bfloat16", activation_checkpointing=True)
    one = trained(world, tmp_path / "whole", train)
    other = tmp_path / "killed"
    results = launch(world, other, train, at=9, rank=1, do="kill")
    assert results[1].returncode == -signal.SIGKILL
    assert_same_training(trained(world, other, train), one)


def test_every_row_is_seen_once_an_epoch_and_the_ledger_says_so(world: SimpleNamespace, whole: Path) -> None:
    ledger = metrics.consumed(whole / "samples.jsonl")
    assert set(ledger.values()) == {4}
    assert len(ledger) == world.summary["train"]["bins"]
    rows = metrics.read(whole / "samples.jsonl")
    orders = [[b for row in rows if row["epoch"] == epoch for b in row["bins"]] for epoch in range(4)]
    assert all(sorted(order) == sorted(ledger) for order in orders)
    assert len({tuple(order) for order in orders}) == 4, "each epoch has an order of its own"
    final = json.loads((whole / "final.json").read_text())
    assert final["steps"] == STEPS
    assert final["tokens"] == 4 * world.summary["train"]["tokens"]
    assert final["loss"] < final["first_loss"]
    assert sorted(evals(whole)) == [0, 5, 10, 12]


def test_the_ledger_of_a_resumed_run_counts_no_record_twice(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    lines = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(lines + '{"attempt": 1, "global_st')  # killed in the middle of a line
    trained(world, out, settings())
    assert set(metrics.consumed(out / "samples.jsonl").values()) == {4}


def test_damaged_checkpoints_are_set_aside_and_the_one_before_is_used(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = copy(whole, tmp_path / "out")
    assert checkpoints(out) == ["step-000004", "step-000008", "step-000012"]
    (out / "checkpoints/step-000012/manifest.json").unlink()  # killed between the rename and the marker
    flip(next((out / "checkpoints/step-000008/deepspeed").glob("*rank_1*optim_states.pt")))
    (out / "checkpoints/.tmp-step-000012").mkdir()  # killed before the rename
    trained(world, out, settings())
    assert checkpoints(out) == ["bad-step-000008-1", "step-000004", "step-000008", "step-000012"]
    assert_same_training(out, whole)


def test_with_no_sound_checkpoint_left_training_ends_and_never_starts_afresh(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    (out / "checkpoints/step-000004/rng-00001.json").write_text("{}")
    for _ in range(2):  # the second time it is already set aside
        results = launch(world, out, settings())
        assert [r.returncode for r in results] == [EXIT_DATA] * 2, results[0].stderr
        assert "no checkpoint is sound" in results[0].stderr
    assert checkpoints(out) == ["bad-step-000004-1"]
    assert losses(out) == losses(killed), "no step was taken"


def test_a_stop_signal_to_one_rank_stops_all_after_the_same_step_with_one_checkpoint(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = launch(world, out, settings(), at=4, rank=1, do="SIGUSR2")
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    # The signal comes when rank 1 has said for step 4 that it goes on: both stop after step 5, where an evaluation is
    # due.
    assert "SIGUSR2" in results[1].stderr
    assert all("after step 5 of 12" in r.stderr for r in results)
    assert checkpoints(out) == ["step-000004", "step-000005"]
    assert 5 not in evals(out), "no time is spent on an evaluation once a stop is requested"
    assert_same_training(trained(world, out, settings()), whole)


def test_other_settings_or_another_number_of_ranks_are_refused(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    (changed,) = {r.returncode for r in launch(world, out, settings(lr=1e-3))}
    assert changed == EXIT_CHANGED
    result = launch(world, out, settings(ranks_per_node=1))[0]
    assert result.returncode == EXIT_USER
    assert "saved by 2 ranks and cannot be loaded by 1" in result.stderr
    assert checkpoints(out) == ["step-000004"]


def test_a_rank_that_cannot_write_makes_all_give_up_the_checkpoint_and_the_old_one_stays(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    results = launch(world, out, settings(), at=2, rank=1, do="small_disk")
    assert [r.returncode for r in results] == [EXIT_DISK] * 2, results[1].stderr
    assert "File too large" in results[1].stderr
    assert checkpoints(out) == ["step-000004"]


def test_the_exported_model_loads_in_plain_transformers_and_has_the_trained_weights(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cathpc.models.template import Template
    from cathpc.train import checkpoint, export

    config = SimpleNamespace(name="tiny")
    inputs = {"train": whole, "base": world.base, "pack": world.pack}
    summary = export.run(config, inputs, tmp_path)  # type: ignore[arg-type]
    assert summary["shards"] == 1
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    trained_weights = final_weights(whole)
    reference = AutoModelForCausalLM.from_pretrained(world.base / "model", dtype=torch.bfloat16)
    reference.load_state_dict({name: tensor.bfloat16() for name, tensor in trained_weights.items()})
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert model(ids).logits.equal(reference(ids).logits)
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Yes."}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    there = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert there == Template.load(tmp_path / "model").encode(messages)[0]
    assert model.generation_config.eos_token_id == Template.load(world.base / "model").stop_id
    card = (tmp_path / "model/README.md").read_text()
    assert "<|begin_of_text|><|im_start|>system" in card

    states = checkpoint.committed(whole / "checkpoints")[0] / checkpoint.TAG
    small = tmp_path / "small"
    shutil.copytree(tmp_path / "model", small)
    (small / "model.safetensors").unlink()
    _, shards = export.write_weights(states, small, tmp_path, shard_bytes=100_000)
    assert shards > 2
    again = AutoModelForCausalLM.from_pretrained(small)
    for name, tensor in again.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name
