"""Stage `train`: the training loop, on every rank.

In: packed rows and the prepared base model. Out: `checkpoints/step-000012/...`, `metrics.jsonl`, `samples.jsonl` (the
ledger of consumed records) and `final.json`. A run that was killed or stopped goes on from its newest sound
checkpoint and takes the very steps that an uninterrupted one takes. Memory: the model's states partitioned over the
ranks, see `cathpc.train.engine`.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cathpc import progress
from cathpc.errors import CathpcError, ChangedError, TryAgainError, UserError
from cathpc.models.template import Template
from cathpc.models.weights import write_json
from cathpc.schema import identity
from cathpc.train import batches, checkpoint, metrics, ranks, stop
from cathpc.train import engine as engines
from cathpc.train.config import Attention

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.train.config import TrainConfig


@ranks.together()
def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Train the model of `base` on the rows of `pack`; called by every rank with the same arguments.

    Ends with TryAgainError after a stop signal, when the checkpoint is saved.
    """
    stop.install()
    train = config.train
    ranks.start(train)
    _seed(train.seed)

    pack = json.loads((inputs["pack"] / "pack.json").read_text(encoding="utf-8"))
    data = batches.load(inputs["pack"] / "train", pack["pad_id"])
    held_out = batches.load(inputs["pack"] / "eval", pack["pad_id"])
    per_epoch = batches.steps_per_epoch(data.bins, train.global_batch)
    total = per_epoch * train.epochs

    same = _identity(train, pack, Template.load(inputs["base"] / "model").hash)
    engine = engines.start(train, inputs["base"] / "model", total)
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    saved = checkpoint.load(folder, engine, same)
    first = saved["step"] if saved else 0
    tokens_seen = saved["tokens_seen"] if saved else 0
    evaluated = saved["evaluated"] if saved else False

    logs = Logs(out, first, inputs["pack"]) if ranks.rank() == 0 else None
    if not evaluated:
        evaluated = _evaluate(train, engine, held_out, first, logs)

    for step in range(first + 1, total + 1):
        epoch, position = divmod(step - 1, per_epoch)
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        with clock(seconds, "data"):
            rows = batches.batch_rows(batches.epoch_order(data.bins, train.seed, epoch), position, train.global_batch)
            supervised = batches.count(data.supervised, rows)
            tokens = batches.count(data.tokens, rows)
        lr = engine.get_lr()[0]

        loss_sum, mine = 0.0, []
        for micro in batches.rank_rows(rows, ranks.rank(), ranks.world_size(), train.micro_batch):
            with clock(seconds, "data"):
                batch = _tensors(train, data, micro)
                mine += micro
            with clock(seconds, "forward"):
                loss = engine(**batch)
                loss_sum += loss.item()
            with clock(seconds, "backward"):
                # DeepSpeed averages gradients over ranks; times world size it is their sum, and the loss a mean over
                # the supervised tokens of the whole global batch.
                engine.backward(loss * (ranks.world_size() / supervised), scale_wrt_gas=False)
            with clock(seconds, "step"):
                engine.step()

        everyone = ranks.gather([loss_sum, float(stop.requested()), *map(float, mine)])
        mean_loss = sum(row[0] for row in everyone) / supervised
        stopping = any(row[1] for row in everyone)
        tokens_seen += tokens
        grad_norm = float(engine.get_global_grad_norm())
        # DeepSpeed gives -1 for a norm that is not finite.
        if not math.isfinite(mean_loss) or not math.isfinite(grad_norm) or grad_norm < 0:
            raise UserError(
                f"the loss or its gradient is not finite in step {step} of {total} (loss {mean_loss}, gradient norm "
                f"{grad_norm}). Lower train.lr={train.lr:g}; the last checkpoint in {folder} is from before."
            )
        if logs:
            logs.step(
                {
                    "global_step": step,
                    "epoch": epoch,
                    "loss": mean_loss,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "tokens": tokens,
                    "supervised_tokens": supervised,
                    "tokens_seen": tokens_seen,
                    "tokens_per_s": tokens / (time.perf_counter() - began),
                    "seconds": {name: round(value, 4) for name, value in seconds.items()},
                    "memory_gb": round(metrics.memory_gb(), 3),
                },
                [int(row) for part in everyone for row in part[2:]],
                shown=step % train.log_every_steps == 0 or step == total,
            )
            progress.report(out, step, total, "steps", note=f"loss {mean_loss:.3f}")

        evaluated = True
        if step % train.eval_every_steps == 0 or step == total:
            evaluated = not stopping and _evaluate(train, engine, held_out, step, logs)
            stopping = stopping or not evaluated
        if stopping or step % train.save_every_steps == 0 or step == total:
            notes = {"tokens_seen": tokens_seen, "epoch": epoch, "evaluated": evaluated}
            _save(train, engine, folder, step, same, notes, logs)
        if stopping and step < total:
            raise TryAgainError(
                f"stopped on request ({stop.reason() or 'another rank was told to'}) after step {step} of {total}; "
                f"the checkpoint {folder / checkpoint.folder_name(step)} is saved. Run the same command to go "
                f"on from it."
            )

    summary: dict[str, Any] = {"line": ""}
    if logs:
        logs.close()
        summary = _finish(out, inputs["pack"], train, total)
    ranks.barrier()
    return summary


def _evaluate(train: TrainConfig, engine: Any, held_out: batches.Packed, step: int, logs: Logs | None) -> bool:
    """Write the mean loss over the held-out tokens; False where a stop came first. Takes no random numbers."""
    supervised = int(held_out.supervised.sum())
    if not supervised:
        return True
    began = time.perf_counter()
    engine.eval()
    loss_sum = 0.0
    taken = train.micro_batch * ranks.world_size()
    for position in range(batches.steps_per_epoch(held_out.bins, taken)):
        rows = batches.batch_rows(list(range(held_out.bins)), position, taken)
        (mine,) = batches.rank_rows(rows, ranks.rank(), ranks.world_size(), train.micro_batch)
        with torch.no_grad():
            mine_sum = engine(**_tensors(train, held_out, mine)).item()
        everyone = ranks.gather([mine_sum, float(stop.requested())])
        loss_sum += sum(row[0] for row in everyone)
        if any(row[1] for row in everyone):
            break
    else:
        if logs:
            seconds = {"eval": round(time.perf_counter() - began, 4)}
            logs.metrics.write({"global_step": step, "eval_loss": loss_sum / supervised, "seconds": seconds})
        engine.train()
        return True
    engine.train()
    return False


def _save(
    train: TrainConfig,
    engine: Any,
    folder: Path,
    step: int,
    same: dict[str, Any],
    notes: dict[str, Any],
    logs: Logs | None,
) -> None:
    """Commit a checkpoint after the lines that it stands for are on the disk."""
    began = time.perf_counter()
    if logs:
        logs.sync()
    checkpoint.save(folder, engine, step, same, keep=train.keep_checkpoints, notes=notes)
    if logs:
        logs.metrics.write({"global_step": step, "seconds": {"save": round(time.perf_counter() - began, 4)}})


def _tensors(train: TrainConfig, data: batches.Packed, rows: list[int]) -> dict[str, Any]:
    return batches.micro_batch(data, rows, ranks.device(), masked=train.attention is Attention.sdpa)


def _identity(train: TrainConfig, pack: dict[str, Any], template_hash: str) -> dict[str, Any]:
    """What a resumed run must share with the checkpoint. The number of ranks is checked by itself."""
    if template_hash != pack["template_hash"]:
        raise ChangedError(
            f"the data was packed with the template {pack['template_hash']}, the base model has {template_hash}: "
            f"run the command again without these two folders, so that both are made anew."
        )
    if ranks.world_size() != train.nodes * train.ranks_per_node:
        raise UserError(
            f"{ranks.world_size()} ranks are running, train.nodes={train.nodes} x "
            f"train.ranks_per_node={train.ranks_per_node} are {train.nodes * train.ranks_per_node}: "
            f"start as many processes as configured."
        )
    return {"pack": pack["digest"], "template": template_hash, "config": identity(train)}


def _finish(out: Path, pack: Path, train: TrainConfig, total: int) -> dict[str, Any]:
    """Prove from the ledger that every record was seen `epochs` times, write `final.json` and return its content."""
    ledger = metrics.consumed(out / metrics.SAMPLES)
    expected = batches.record_names(pack / "train")
    seen = {name: ledger.get(name, 0) for row in expected for name in row}
    if set(ledger) - set(seen) or any(times != train.epochs for times in seen.values()):
        wrong = [name for name, times in seen.items() if times != train.epochs]
        raise CathpcError(
            f"{out / metrics.SAMPLES}: {len(wrong)} records were not seen {train.epochs} times each "
            f"(first: {wrong[:3]}). This is a fault of cathpc; keep the folder for a report."
        )
    steps = metrics.by_step(out / metrics.METRICS)
    trained = [row for row in steps if "loss" in row]
    evals = [{"global_step": row["global_step"], "eval_loss": row["eval_loss"]} for row in steps if "eval_loss" in row]
    seconds: dict[str, float] = {}
    for row in steps:
        for name, value in row["seconds"].items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 3)
    busy = sum(seconds.get(name, 0.0) for name in ("data", "forward", "backward", "step"))
    final: dict[str, Any] = {
        "steps": total,
        "epochs": train.epochs,
        "ranks": ranks.world_size(),
        "records": len(seen),
        "tokens": trained[-1]["tokens_seen"],
        "supervised_tokens": sum(row["supervised_tokens"] for row in trained),
        "first_loss": trained[0]["loss"],
        "loss": trained[-1]["loss"],
        "evals": evals,
        "eval_loss": evals[-1]["eval_loss"] if evals else None,
        "tokens_per_s": trained[-1]["tokens_seen"] / busy,
        "seconds": seconds,
        "memory_gb": max(row["memory_gb"] for row in trained),
        "attempts": max(row["attempt"] for row in steps),
        "checkpoint": checkpoint.folder_name(total),
    }
    held_out = f", held-out {evals[0]['eval_loss']:.3f} -> {evals[-1]['eval_loss']:.3f}" if evals else ""
    final["line"] = (
        f"{total:,} steps over {final['tokens']:,} tokens, "
        f"loss {final['first_loss']:.3f} -> {final['loss']:.3f}{held_out}"
    )
    write_json(out / "final.json", final)
    return final


class Logs:
    """Rank 0's two logs and its line a step on the terminal."""

    def __init__(self, out: Path, global_step: int, pack: Path) -> None:
        self.metrics = metrics.Log(out / metrics.METRICS, global_step)
        self.samples = metrics.Log(out / metrics.SAMPLES, global_step)
        self.names = batches.record_names(pack / "train")

    def step(self, row: dict[str, Any], rows: list[int], *, shown: bool) -> None:
        """Write a step's metrics and the records that the ranks say they consumed."""
        bins = [number for number in rows if number != batches.EMPTY]
        self.metrics.write(row)
        records = [name for number in bins for name in self.names[number]]
        where = {"global_step": row["global_step"], "epoch": row["epoch"]}
        self.samples.write({**where, "bins": bins, "records": records})
        if shown:
            print(
                f"step {row['global_step']:6d}  epoch {row['epoch'] + 1:2d}  loss {row['loss']:7.4f}  "
                f"lr {row['lr']:.3e}  grad {row['grad_norm']:8.3f}  "
                f"{row['tokens_per_s']:9.1f} tokens/s  {row['memory_gb']:6.2f} GB",
                flush=True,
            )

    def sync(self) -> None:
        """Wait until both are on the disk."""
        self.metrics.sync()
        self.samples.sync()

    def close(self) -> None:
        """Close both."""
        self.metrics.close()
        self.samples.close()


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of a block to `seconds[name]`."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def _seed(seed: int) -> None:
    """Seed this rank's generators (dropout); ranks draw different numbers."""
    mine = seed + 1_000_003 * int(os.environ["RANK"])
    random.seed(mine)
    np.random.seed(mine % 2**32)
    torch.manual_seed(mine)
