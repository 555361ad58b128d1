"""Trainings with real ranks: gloo processes under ZeRO-3 on a tiny random Llama, which may be killed, stopped or
hindered at a step, or in a named function.

Run as a program, this file imports what ranks need, once, and forks the ranks of one training after another: each
line of its input is a task, each line of its output says how the ranks ended.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.errors import CathpcError
from cathpc.models.config import Dtype, TemplateConfig
from cathpc.record import RECORD_SCHEMA
from cathpc.train import metrics
from cathpc.train.config import LoraConfig, Offload, OnSpike, TrainConfig

ROOT = Path(__file__).parents[2]
PRELOADED = (
    "cathpc.train.loop",
    "torch._inductor.compile_fx",
    "transformers.integrations.deepspeed",
    "transformers.models.llama.modeling_llama",
)
"""Imported once, before ranks are forked: three seconds of each one's life."""
STEPS = 12  # 3 steps an epoch, 4 epochs
SEQ_LEN = 96


# --- one rank -------------------------------------------------------------------------------------------------------


def rank_main(task: dict[str, Any]) -> int:
    """Train as this process's rank; `task` may say what happens to which rank, and when."""
    from cathpc.train import loop

    enums = {
        "dtype": Dtype[task["train"]["dtype"]],
        "lora": LoraConfig(**task["train"].get("lora", {})),
        "on_spike": OnSpike[task["train"].get("on_spike", "skip")],
        "offload": Offload[task["train"].get("offload", "none")],
    }
    train = TrainConfig(**{**task["train"], **enums})
    if "do" in task and task["rank"] == int(os.environ["RANK"]):
        arm(**{name: task[name] for name in ("do", "at", "hook", "call") if name in task})
    for where, value in task.get("set", {}).items():
        module, _, name = where.partition(":")
        setattr(importlib.import_module(module), name, value)
    if "spoil" in task and task["rank"] == int(os.environ["RANK"]):
        spoil(task["spoil"], task["value"])
    if "gradients" in task:
        keep_gradients(Path(task["gradients"]))
    if "sub_group_size" in task:
        small_groups(task["sub_group_size"])
    config = SimpleNamespace(train=train, name="test")
    inputs = {"pack": Path(task["pack"]), "base": Path(task["base"])}
    try:
        loop.run(config, inputs, Path(task["out"]))  # type: ignore[arg-type]
    except CathpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def arm(do: str, at: int = 0, hook: str = "", call: int = 1) -> None:
    """Have something happen to this rank: when it has exchanged numbers with the others for the first time after its
    `at`-th step of this attempt, or before the `call`-th call of the function `hook` ('module:name.name')."""
    if hook:
        module, _, path = hook.partition(":")
        owner: Any = importlib.import_module(module)
        *parts, name = path.split(".")
        for part in parts:
            owner = getattr(owner, part)
        plain, calls = getattr(owner, name), itertools.count(1)

        def hooked(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == call:
                happen(do)
            return plain(*arguments, **keywords)

        setattr(owner, name, hooked)
        return
    from deepspeed.runtime.engine import DeepSpeedEngine

    from cathpc.train import ranks

    plain_step, plain_gather = DeepSpeedEngine._take_model_step, ranks.gather
    steps, done = 0, False

    def step(*arguments: Any, **keywords: Any) -> Any:
        nonlocal steps
        result = plain_step(*arguments, **keywords)
        steps += 1
        return result

    def gather(*arguments: Any) -> Any:
        nonlocal done
        rows = plain_gather(*arguments)
        if steps == at and not done:
            done = True
            happen(do)
        return rows

    DeepSpeedEngine._take_model_step = step
    ranks.gather = gather


def happen(do: str) -> None:
    """What happens: 'kill', 'small_disk', 'full_log', 'eio', 'no_children' may be there, or one after the other
    signals and a 'wait' of two seconds ('SIGUSR2 wait')."""
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "small_disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    elif do == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    elif do == "full_log":
        for number in (1, 2):
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif do == "no_children":
        assert psutil.Process().children(recursive=True) == []
    else:
        for name in do.split():
            if name == "wait":
                time.sleep(2)
            else:
                os.kill(os.getpid(), getattr(signal, name))


def spoil(steps: list[int], value: float) -> None:
    """Have the gradients of this rank in some steps multiplied by `value`."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    plain = DeepSpeedEngine.backward

    def backward(engine: Any, loss: Any, **keywords: Any) -> Any:
        return plain(engine, loss * value if engine.global_steps + 1 in steps else loss, **keywords)

    DeepSpeedEngine.backward = backward


def keep_gradients(file: Path) -> None:
    """Have the whole gradients of the first step, as they reach the optimizer before clipping, written to `file`."""
    import torch
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.utils import safe_get_full_grad

    plain = DeepSpeedEngine._take_model_step

    def step(engine: Any, *arguments: Any, **keywords: Any) -> Any:
        if not engine.global_steps:
            found = {name: safe_get_full_grad(p).float().cpu() for name, p in engine.module.named_parameters()}
            if os.environ["RANK"] == "0":
                torch.save(found, file)
        return plain(engine, *arguments, **keywords)

    DeepSpeedEngine._take_model_step = step


def small_groups(size: int) -> None:
    """Have DeepSpeed cut its flat buffers into groups of some `size` elements, as it does with large models."""
    from cathpc.train import engine

    plain = engine.deepspeed_config

    def smaller(*arguments: Any) -> dict[str, Any]:
        settings = plain(*arguments)
        settings["zero_optimization"]["sub_group_size"] = size
        return settings

    engine.deepspeed_config = smaller


def nursery() -> None:
    """Fork the ranks of each task and wait for them."""
    for name in PRELOADED:
        importlib.import_module(name)
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
        print(json.dumps(ends(children, task.get("outlive_s", 60.0))), file=answers, flush=True)


def ends(children: list[int], outlive_s: float) -> list[int]:
    """Exit codes of all ranks; as srun does, this launcher kills those that outlive a failed rank by `outlive_s`."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + outlive_s) if codes[child] else deadline
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


# --- the world ------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> dict[str, Any]:
    """The config of a training of two ranks with 12 steps, saving every fourth."""
    plain = {
        "ranks_per_node": 2,
        "lr": 3e-3,
        "global_batch": 4,
        "dtype": "float32",
        "activation_checkpointing": False,
        "loss_chunk": 50,
        "save_every_steps": 4,
        "save_milestones": False,
        "keep_checkpoints": 3,
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
    env["TMPDIR"] = str(top / "scratch")
    (top / "scratch").mkdir()
    command = [sys.executable, __file__]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ranks:
        yield SimpleNamespace(top=top, base=base, pack=folder, summary=summary, nursery=ranks)
        ranks.stdin.close()  # type: ignore[union-attr]


def launch(world: SimpleNamespace, out: Path, train: dict[str, Any], **event: Any) -> list[SimpleNamespace]:
    """Run a training to its end; exit code (-n: killed by signal n) and terminal output of each rank.

    `event`: what of `arm` happens to the rank `rank`; `set` has variables ('module:NAME') given other values; and
    `sub_group_size` is for `small_groups`.
    """
    out.mkdir(exist_ok=True)
    logs = [out.parent / f"{out.name}.{rank}.log" for rank in range(train["ranks_per_node"])]
    task = {"train": train, "pack": str(world.pack), "base": str(world.base), "out": str(out), **event}
    world.nursery.stdin.write(json.dumps({**task, "logs": list(map(str, logs))}) + "\n")
    world.nursery.stdin.flush()
    codes = json.loads(world.nursery.stdout.readline())
    return [SimpleNamespace(returncode=c, stderr=log.read_text()) for c, log in zip(codes, logs, strict=True)]


def trained(world: SimpleNamespace, out: Path, train: dict[str, Any], **event: Any) -> Path:
    """Run a training that has to end well."""
    results = launch(world, out, train, **event)
    assert [r.returncode for r in results] == [0] * len(results), "\n".join(r.stderr for r in results)
    return out


def losses(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["loss"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}


def grad_norms(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["grad_norm"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}


def evals(out: Path) -> dict[int, float]:
    return {row["global_step"]: row["eval_loss"] for row in metrics.read(out / "metrics.jsonl") if "eval_loss" in row}


def final_weights(out: Path, steps: int = STEPS) -> dict[str, Any]:
    from cathpc.train import export, history, writing

    newest = history.committed(out / "checkpoints")[0]
    assert newest.name == history.folder_name(steps)
    assert history.verify(newest) == ""
    return dict(export.tensors(newest / writing.TAG))


def assert_same_training(one: Path, other: Path, steps: int = STEPS) -> None:
    """Every loss, held-out loss and final weight, bit for bit."""
    assert sorted(losses(one)) == list(range(1, steps + 1))
    assert losses(one) == losses(other)
    assert evals(one) == evals(other)
    theirs = final_weights(other, steps)
    for name, tensor in final_weights(one, steps).items():
        assert tensor.equal(theirs[name]), name


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def plain(world: SimpleNamespace) -> SimpleNamespace:
    """The world without dropout, whose random numbers depend on how a batch is split over ranks."""
    base = world.top / "plain"
    shutil.copytree(world.base, base)
    config = json.loads((base / "model/config.json").read_text())
    (base / "model/config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    return SimpleNamespace(**{**vars(world), "base": base})


@pytest.fixture(scope="module")
def whole(world: SimpleNamespace) -> Path:
    """An uninterrupted run in float32."""
    return trained(world, world.top / "whole", settings())


@pytest.fixture(scope="module")
def killed(world: SimpleNamespace) -> Path:
    """A run of which rank 0 was killed after step 6, with the checkpoint of step 4."""
    out = world.top / "killed"
    results = launch(world, out, settings(), at=6, rank=0, do="kill")
    assert results[0].returncode == -signal.SIGKILL
    assert results[1].returncode != 0, "the peer of a dead rank must not end well"
    assert checkpoints(out) == ["step-000004"]
    return out


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


if __name__ == "__main__":
    nursery()
