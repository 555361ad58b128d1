"""The end of a training: the proof that every record was seen, and `final.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from cathpc.errors import CathpcError
from cathpc.models.weights import write_json
from cathpc.train import checkpoint, metrics, ranks

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig


def run(out: Path, pack: Path, train: TrainConfig, total: int, *, whole: bool) -> dict[str, Any]:
    """Prove from the ledger that every row of packed data, and so every record, was consumed `epochs` times, write
    `final.json` and return its content. `whole`: no step was left out by `train.max_steps`.

    Where a full disk swallowed lines of the ledger that cannot be proven, and `final.json` says so.
    """
    steps = metrics.by_step(out / metrics.METRICS)
    trained = [row for row in steps if "step_s" in row]
    losses = [row["loss"] for row in trained if "loss" in row]
    evals = [{"global_step": row["global_step"], "eval_loss": row["eval_loss"]} for row in steps if "eval_loss" in row]
    seconds: dict[str, float] = {}
    for row in steps:
        for name, value in row["seconds"].items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 3)
    dropped = [row["global_step"] for row in trained if "fault" in row]
    final: dict[str, Any] = {
        "steps": total,
        "epochs": train.epochs,
        "ranks": ranks.world_size(),
        "records": pq.ParquetFile(pack / "train" / "segments.parquet").metadata.num_rows,
        "proven": _proven(out, pack, train, total) if whole else None,
        "tokens": trained[-1]["tokens_seen"],
        "supervised_tokens": sum(row["supervised_tokens"] for row in trained),
        "dropped_steps": dropped,
        "first_loss": losses[0],
        "loss": losses[-1],
        "evals": evals,
        "eval_loss": evals[-1]["eval_loss"] if evals else None,
        "tokens_per_s": sum(row["tokens"] for row in trained) / sum(row["step_s"] for row in trained),
        "mfu": _mean([row["mfu"] for row in trained if "mfu" in row]),
        "goodput": metrics.goodput(out / metrics.METRICS),
        "held_s": metrics.held_s(out / metrics.METRICS),
        "seconds": seconds,
        "memory_gb": max(row["memory_gb"] for row in trained),
        "attempts": max(row["attempt"] for row in steps),
        "checkpoint": checkpoint.folder_name(total),
    }
    held_out = f", held-out {evals[0]['eval_loss']:.3f} -> {evals[-1]['eval_loss']:.3f}" if evals else ""
    final["line"] = (
        f"{total:,} steps over {final['tokens']:,} tokens, "
        f"loss {final['first_loss']:.3f} -> {final['loss']:.3f}{held_out}"
        + (f", {len(dropped)} steps dropped" if dropped else "")
    )
    write_json(out / "final.json", final)
    return final


def _proven(out: Path, pack: Path, train: TrainConfig, total: int) -> bool:
    """Whether the ledger is there in full; a ledger that contradicts the order of samples is a fault of ours."""
    rows = metrics.read(out / metrics.SAMPLES)
    if {row["global_step"] for row in rows} != set(range(1, total + 1)):
        metrics.say(f"cathpc: {out / metrics.SAMPLES} lacks some steps, so the samples that were seen are not proven")
        return False
    ledger = metrics.consumed(out / metrics.SAMPLES)
    expected = range(len(np.load(pack / "train" / "input_ids.npy", mmap_mode="r")))
    wrong = [number for number in expected if ledger[number] != train.epochs]
    if wrong or set(ledger) - set(expected):
        raise CathpcError(
            f"{out / metrics.SAMPLES}: {len(wrong)} rows were not seen {train.epochs} times each (first: {wrong[:3]}). "
            f"This is a fault of cathpc; keep the folder for a report."
        )
    return True


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
