"""Trainings of one model on the same packed rows: by cathpc's loop, and by TRL's SFTTrainer.

Run as a program by each rank, with a task in JSON, this file trains. Both contenders take the same rows in the same
order, the same DeepSpeed config, and write the same `metrics.jsonl` (see `cathpc.train.metrics`), where `seconds.save`
is how long the training stood still for a checkpoint; at its end rank 0 writes `memory.json`. TRL is not among our
dependencies: the folder that holds it is put before its own processes' path.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from cathpc.train import batches
from cathpc.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
OURS, PEER, PEER_JIT = "cathpc", "TRL", "TRL, jit checkpoint"
POLL_S = 0.03
GRACE_S = 300.0
"""How long ranks may take to end when they were told to, or when one of them has."""


def peer_missing(folder: Path | None) -> str:
    """Why TRL cannot be a contender; '' where it can."""
    paths = [str(folder)] * bool(folder) + sys.path
    missing = [name for name in ("trl", "datasets") if importlib.machinery.PathFinder.find_spec(name, paths) is None]
    return f"{' and '.join(missing)} not there" if missing else ""


def write_rows(pack: Path, train: TrainConfig, steps: int, file: Path) -> list[dict[str, int]]:
    """Write the rows of the first `steps` steps, as the loop takes them, to an Arrow file in the form in which TRL
    packs (padding is left out); tokens, supervised tokens and attended pairs of each step."""
    from cathpc.train import flops

    data = batches.load(pack / "train", json.loads((pack / "pack.json").read_text())["pad_id"])
    order = batches.epoch_order(data.bins, train.seed, 0)
    assert steps * train.global_batch <= data.bins, f"{steps} steps of {train.global_batch} rows: there are {data.bins}"
    column = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", column), ("labels", column), ("seq_lengths", column)])
    counts = []
    with pa.ipc.new_stream(file, schema) as arrow:
        for step in range(steps):
            rows = batches.batch_rows(order, step, train.global_batch)
            full = [int(data.tokens[row]) for row in rows]
            lengths = [np.bincount(data.segment_ids[row][:n])[1:] for row, n in zip(rows, full, strict=True)]
            arrow.write(
                pa.record_batch(
                    [
                        pa.array([data.input_ids[row][:n] for row, n in zip(rows, full, strict=True)], column),
                        pa.array([data.labels[row][:n] for row, n in zip(rows, full, strict=True)], column),
                        pa.array(lengths, column),
                    ],
                    schema=schema,
                )
            )
            bounds = [[0, *np.cumsum(each).tolist()] for each in lengths]
            counts.append(
                {
                    "tokens": sum(full),
                    "supervised_tokens": batches.count(data.supervised, rows),
                    "attended": sum(flops.attended(each) for each in bounds),
                }
            )
    return counts


@dataclass
class Training:
    """One training by one contender, which may be stopped and run again."""

    contender: str
    base: Path
    """Holds `model/`, with a template."""
    pack: Path
    rows: Path
    """What `write_rows` wrote."""
    counts: list[dict[str, int]]
    """What it returned."""
    train: dict[str, Any]
    """Fields of TrainConfig; enums by name."""
    out: Path
    saves: bool = True
    gpu: bool = False
    peer_path: Path | None = None
    began: list[float] = field(default_factory=list)
    """When each attempt began."""

    def run(self, *, stop_after: int = 0, limit_s: float = 3600.0) -> list[int]:
        """Run the ranks to their end and return their exit codes.

        `stop_after`: all ranks get SIGTERM once that step is logged. After `limit_s` seconds they are killed, and also
        when one has ended and the others do not.
        """
        self.out.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        task = {
            **{name: str(getattr(self, name)) for name in ("contender", "base", "pack", "rows", "out")},
            **{"counts": self.counts, "train": self.train, "saves": self.saves, "gpu": self.gpu},
        }
        world = self.train["ranks_per_node"]
        env = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if not self.gpu:
            env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        theirs = [self.peer_path] * bool(self.peer_path and self.contender != OURS)
        env["PYTHONPATH"] = os.pathsep.join(str(p) for p in (*theirs, ROOT, os.environ.get("PYTHONPATH", "")) if p)
        self.began.append(time.time())
        ranks = []
        for rank in range(world):
            mine = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._log(rank).open("w") as log:
                command = [sys.executable, __file__, json.dumps(task)]
                ranks.append(subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT))
        try:
            self._watch(ranks, stop_after, time.monotonic() + limit_s)
        finally:
            for process in ranks:
                process.kill()
        return [process.wait() for process in ranks]

    def _watch(self, ranks: Sequence[subprocess.Popen[bytes]], stop_after: int, deadline: float) -> None:
        ending = False
        while (living := sum(process.poll() is None for process in ranks)) and time.monotonic() < deadline:
            told = bool(stop_after) and self.last(len(self.began)) >= stop_after
            if not ending and (told or living < len(ranks)):
                ending, deadline = True, min(deadline, time.monotonic() + GRACE_S)
                for process in ranks if told else []:
                    process.send_signal(signal.SIGTERM)
            time.sleep(POLL_S)

    def rows_of(self, attempt: int) -> list[dict[str, Any]]:
        """What the attempt (1, 2, ...) logged, in order."""
        file = self.out / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row["attempt"] == attempt]

    def steps(self, attempt: int) -> list[dict[str, Any]]:
        """What the attempt logged of its steps."""
        return [row for row in self.rows_of(attempt) if "loss" in row]

    def last(self, attempt: int) -> int:
        """The attempt's last step, 0 where it took none."""
        return max((row["global_step"] for row in self.steps(attempt)), default=0)

    def first_step_s(self, attempt: int) -> float:
        """Seconds from the start of the attempt's processes to the end of its first step."""
        return float(self.steps(attempt)[0]["time"] - self.began[attempt - 1])

    def tokens_per_s(self) -> list[float]:
        """Of every step, in all attempts, but for the first two of each."""
        steady = [row for attempt in range(1, len(self.began) + 1) for row in self.steps(attempt)[2:]]
        return [row["tokens"] / row["step_s"] for row in steady]

    def saves_s(self) -> list[float]:
        """Seconds that the training stood still for each save."""
        rows = [row for attempt in range(1, len(self.began) + 1) for row in self.rows_of(attempt)]
        return [row["seconds"]["save"] for row in rows if "save" in row.get("seconds", {})]

    def words(self, lines: int = 12) -> str:
        """The last lines that the ranks printed."""
        logs = [self._log(rank) for rank in range(self.train["ranks_per_node"])]
        return "\n".join("\n".join(log.read_text(errors="replace").splitlines()[-lines:]) for log in logs)

    def _log(self, rank: int) -> Path:
        return self.out.with_name(f"{self.out.name}.{rank}.log")


# --- one rank ---------------------------------------------------------------------------------------------------------


def train_config(plain: dict[str, Any]) -> TrainConfig:
    """A config out of JSON data."""
    enums = {f.name: type(f.default) for f in fields(TrainConfig) if isinstance(f.default, Enum)}
    return TrainConfig(**{name: enums[name][value] if name in enums else value for name, value in plain.items()})


def ours(task: dict[str, Any]) -> int:
    """Train by cathpc's loop; what the process shall return."""
    from cathpc.errors import CathpcError
    from cathpc.train import checkpoint, loop

    if not task["saves"]:
        checkpoint.Saver.start = lambda *_, **__: None
    config = SimpleNamespace(train=train_config(task["train"]), name="bench")
    inputs = {name: Path(task[name]) for name in ("pack", "base")}
    try:
        loop.run(config, inputs, Path(task["out"]))  # type: ignore[arg-type]
    except CathpcError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


def peer(task: dict[str, Any]) -> int:
    """Train by TRL's SFTTrainer; what the process shall return."""
    import datasets
    import deepspeed
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    from cathpc.models.config import Dtype
    from cathpc.train import engine, metrics

    if not task["gpu"]:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as ours: half a minute of compiling
    train, model = train_config(task["train"]), str(Path(task["base"]) / "model")
    settings = engine.deepspeed_config(train, int(os.environ["WORLD_SIZE"]))
    # Else Trainer saves the whole of DeepSpeed's states twice.
    settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    jit = {"enable_jit_checkpoint": True} if task["contender"] == PEER_JIT else {}
    arguments = SFTConfig(
        output_dir=str(Path(task["out"]) / "checkpoints"),
        deepspeed=settings,
        per_device_train_batch_size=train.micro_batch,
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        max_steps=train.max_steps,
        packing=True,
        packing_strategy="bfd",
        max_length=json.loads((Path(task["pack"]) / "pack.json").read_text())["seq_len"],
        dataset_kwargs={"skip_prepare_dataset": True},  # it is packed
        train_sampling_strategy="sequential",
        learning_rate=train.lr,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        max_grad_norm=train.clip,
        bf16=train.dtype is Dtype.bfloat16,
        use_cpu=not task["gpu"],
        gradient_checkpointing=train.activation_checkpointing,
        use_liger_kernel=train.fused_kernels,
        model_init_kwargs={"dtype": train.dtype.value, "attn_implementation": peer_attention(train)},
        save_strategy="steps" if task["saves"] else "no",
        save_steps=train.save_every_steps,
        save_total_limit=train.keep_checkpoints,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        seed=train.seed,
        **jit,
    )

    class Log(TrainerCallback):
        """Writes the metrics as our loop does; a step lasts until its loss is known, a save from there."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.log = (
                metrics.Log(Path(task["out"]) / metrics.METRICS, state.global_step) if args.process_index == 0 else None
            )
            self.since = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if self.log and "loss" in logs:
                counts = task["counts"][state.global_step - 1]
                self.log.write(
                    {
                        "global_step": state.global_step,
                        "loss": logs["loss"],
                        "grad_norm": logs.get("grad_norm"),
                        **counts,
                    }
                    | {"step_s": time.perf_counter() - self.since, "time": time.time()}
                )
            self.since = time.perf_counter()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.log:
                seconds = {"save": time.perf_counter() - self.since}
                self.log.write({"global_step": state.global_step, "seconds": seconds, "time": time.time()})
            self.since = time.perf_counter()

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_file(task["rows"]),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Log()],
    )
    folder = Path(arguments.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    return 0


def peer_attention(train: TrainConfig) -> str:
    """transformers' name of the attention that a config asks for."""
    return "flash_attention_2" if train.attention.name == "flash" else "sdpa"


def memory() -> dict[str, float]:
    """Most bytes so far: what tensors took and what torch's allocator held; without a GPU the process's own, twice."""
    import torch

    from cathpc.train import metrics

    gpu = torch.cuda.is_available()
    reserved = torch.cuda.max_memory_reserved() if gpu else metrics.memory_gb() * 1e9
    return {"allocated": torch.cuda.max_memory_allocated() if gpu else reserved, "reserved": reserved}


def main(task: dict[str, Any]) -> int:
    """One rank."""
    code = ours(task) if task["contender"] == OURS else peer(task)
    if os.environ["RANK"] == "0":
        (Path(task["out"]) / "memory.json").write_text(json.dumps(memory()))
    return code


if __name__ == "__main__":
    ended = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # as a job's ranks: gloo's threads may abort a process that leaves in an orderly way
