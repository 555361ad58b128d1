"""Training with real ranks: two gloo processes under ZeRO-3 on a tiny random Llama, killed, stopped and damaged.

Run as a program, this file imports what ranks need, once, and forks the ranks of one training after another: each
line of its input is a task, each line of its output says how the ranks ended.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.errors import EXIT_AGAIN, EXIT_CHANGED, EXIT_DATA, EXIT_DISK, EXIT_USER, CathpcError
from cathpc.models.config import Dtype, TemplateConfig
from cathpc.record import RECORD_SCHEMA
from cathpc.train import metrics
from cathpc.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
STEPS = 12  # 3 steps an epoch, 4 epochs
SEQ_LEN = 96


# --- one rank -------------------------------------------------------------------------------------------------------


def rank_main(task: dict[str, Any]) -> int:
    """Train as this process's rank; `task` may say at which step something happens to which rank."""
    from cathpc.train import loop, ranks

    train = TrainConfig(**{**task["train"], "dtype": Dtype[task["train"]["dtype"]]})
    plain_gather = ranks.gather
    finished = 0

    def gather(values: list[float]) -> list[list[float]]:
        """What the loop calls at the end of each step, with the rows that this rank took behind two other values."""
        nonlocal finished
        rows = plain_gather(values)
        if len(values) == 4 + train.global_batch // ranks.world_size():
            finished += 1
            if task.get("at") == finished and task["rank"] == ranks.rank():
                if task["do"] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif task["do"] == "small_disk":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
                else:
                    os.kill(os.getpid(), getattr(signal, task["do"]))
        return rows

    ranks.gather = gather
    config = SimpleNamespace(train=train, name="test")
    inputs = {"pack": Path(task["pack"]), "base": Path(task["base"])}
    try:
        loop.run(config, inputs, Path(task["out"]))  # type: ignore[arg-type]
    except CathpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def nursery() -> None:
    """Fork the ranks of each task and wait for them."""

    import cathpc.train.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        task = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank, log in enumerate(task["logs"]):
            child = os.fork()
            if not child:
                where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(task["logs"]), "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
                file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                code = 1
                try:
                    code = rank_main(task)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


# --- the world ------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> dict[str, Any]:
    plain = {
        "ranks_per_node": 2,
        "lr": 3e-3,
        "global_batch": 4,
        "dtype": "float32",
        "activation_checkpointing": False,
        "loss_chunk": 50,
        "save_every_steps": 4,
        "keep_checkpoints": 3,
        "save_milestones": False,
        "eval_every_steps": 5,
        "threads_per_rank": 1,
    }
    return {**plain, **changes}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A tiny base model with dropout and 11 packed rows of it: three steps an epoch, the last one short."""
    from cathpc.data import pack
    from cathpc.data.config import PackConfig
    from cathpc.models.source import prepare

    top = tmp_path_factory.mktemp("train")
    template = TemplateConfig(
        bos="<|begin_of_text|>",
        pad="<|reserved_special_token_2|>",
        renames={"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"},
    )
    base = top / "base"
    shutil.copytree(prepare("random:llama", template, top / "cache"), base / "model")
    config = json.loads((base / "model/config.json").read_text())
    (base / "model/config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    cards = top / "cards"
    cards.mkdir()
    words = ["the", "captain", "looked", "at", "a", "sea", "and", "asked", "for", "water", "bread", "or", "numbers"]
    rows = []
    for i in range(27):
        text = " ".join(words[(i * 7 + k * (i % 5 + 1)) % len(words)] for k in range(6 + i % 11))
        messages = [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": text}]
        row = dict.fromkeys(RECORD_SCHEMA.names, "") | {"id": f"r{i:02d}", "label": None, "messages": messages}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), cards / "carded.parquet")
    folder = top / "pack"
    folder.mkdir()
    config = SimpleNamespace(pack=PackConfig(seq_len=SEQ_LEN, eval_share=0.1))
    summary = pack.run(config, {"cards": cards, "base": base}, folder)  # type: ignore[arg-type]
    assert 8 < summary["train"]["bins"] < 12, summary
    assert summary["eval"]["bins"] > 0
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ranks:
        yield SimpleNamespace(top=top, base=base, pack=folder, summary=summary, nursery=ranks)
        ranks.stdin.close()  # type: ignore[union-attr]


def launch(world: SimpleNamespace, out: Path, train: dict[str, Any], **event: Any) -> list[SimpleNamespace]:
    """Run a training to its end; exit code (-n: killed by signal n) and terminal output of each rank."""
    out.mkdir(exist_ok=True)
    logs = [out.parent / f"{out.name}.{rank}.log" for rank in range(train["ranks_per_node"])]
    task = {"train": train, "pack": str(world.pack), "base": str(world.base), "out": str(out), **event}
    world.nursery.stdin.write(json.dumps({**task, "logs": list(map(str, logs))}) + "\n")
    world.nursery.stdin.flush()
    codes = json.loads(world.nursery.stdout.readline())
    return [SimpleNamespace(returncode=c, stderr=log.read_text()) for c, log in zip(codes, logs, strict=True)]


def trained(world: SimpleNamespace, out: Path, train: dict[str, Any]) -> Path:
    results = launch(world, out, train)
    assert [r.returncode for r in results] == [0] * len(results), "\n".join(r.stderr for r in results)
    return out


def losses(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["loss"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}


def grad_norms(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["grad_norm"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}


def evals(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["eval_loss"] for row in metrics.read(out / "metrics.jsonl") if "eval_loss" in row}


def final_weights(out: Path) -> dict[str, Any]:
    from cathpc.train import checkpoint, export

    newest = checkpoint.committed(out / "checkpoints")[0]
    assert newest.name == f"step-{STEPS:06d}"
    assert checkpoint.verify(newest) == ""
    return {name: tensor.clone() for name, tensor in export.tensors(newest / checkpoint.TAG)}


def assert_same_training(one: Path, other: Path) -> None:
    """Every loss, held-out loss and final weight, bit for bit."""
    assert losses(one) == losses(other)
    assert evals(one) == evals(other)
    theirs = final_weights(other)
    for name, tensor in final_weights(one).items():
        assert tensor.equal(theirs[name]), name


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(world: SimpleNamespace) -> Path:
    """An uninterrupted run in float32."""
    return trained(world, world.top / "whole", settings())


@pytest.fixture(scope="module")
def killed(world: SimpleNamespace) -> Path:
    """A run of which rank 0 was killed in step 6, after the checkpoint of step 4."""
    out = world.top / "killed"
    results = launch(world, out, settings(), at=6, rank=0, do="kill")
    assert results[0].returncode == -signal.SIGKILL
    assert results[1].returncode != 0, "the peer of a dead rank must not end well"
    assert checkpoints(out) == ["step-000004"]
    return out


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# --- tests ----------------------------------------------------------------------------------------------------------


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


def test_every_record_is_seen_once_an_epoch_and_the_ledger_says_so(world: SimpleNamespace, whole: Path) -> None:
    ledger = metrics.consumed(whole / "samples.jsonl")
    assert set(ledger.values()) == {4}
    assert len(ledger) == world.summary["train"]["bins"]
    rows = metrics.read(whole / "samples.jsonl")
    for epoch in range(4):
        seen = [number for row in rows if row["epoch"] == epoch for number in row["bins"]]
        assert sorted(seen) == sorted(ledger)
    orders = [[b for row in rows if row["epoch"] == epoch for b in row["bins"]] for epoch in range(4)]
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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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
    assert max(losses(out)) == 5, "no step was taken"


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


def test_the_loss_is_the_same_for_any_split_into_ranks_and_accumulation(world: SimpleNamespace, tmp_path: Path) -> None:
    base = world.top / "plain"
    shutil.copytree(world.base, base)
    config = json.loads((base / "model/config.json").read_text())
    (base / "model/config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    plain = SimpleNamespace(top=world.top, pack=world.pack, base=base, nursery=world.nursery)
    runs = {}
    for ranks, micro in ((1, 1), (2, 2), (4, 1)):
        train = settings(ranks_per_node=ranks, micro_batch=micro, save_every_steps=100)
        runs[ranks] = trained(plain, tmp_path / f"{ranks}", train)
    for ranks in (2, 4):
        assert losses(runs[ranks]) == pytest.approx(losses(runs[1]), rel=2e-5)
        norms, single = (grad_norms(runs[n]) for n in (ranks, 1))
        assert norms == pytest.approx(single, rel=1e-3)
        assert norms[1] == pytest.approx(single[1], rel=1e-5)


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


if __name__ == "__main__":
    nursery()
