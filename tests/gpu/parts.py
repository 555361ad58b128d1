"""The parts of `python -m tests.gpu`: each gives a dictionary of what it found."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Any

from cathpc.models.shape import ShapeConfig, parameters
from cathpc.train import estimate, memory
from tests.bench.contenders import OURS, PEER, Training, peer_missing, train_config, write_rows
from tests.gpu import made

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "triton", "transformers", "deepspeed", "accelerate", "flash-attn", "liger-kernel", "trl")
MARGIN_S = 20.0
"""Kept for the table."""
TRAINING_S = 150.0
"""Longest that one training may take on a GPU; what it did until then counts."""
ROOM = 0.92
"""Share of the card's free memory that `plan` may fill."""


@dataclass(frozen=True)
class Scale:
    """How large all is."""

    shapes: dict[str, ShapeConfig]
    """Small ones first."""
    seq_len: int
    rows_a_step: int
    steps: int
    same: ShapeConfig
    """For the deterministic mode, which writes checkpoints."""
    same_seq_len: int


def shape(layers: int, width: int, mlp: int, heads: int, kv: int, dim: int, vocab: int, *, tied: bool) -> ShapeConfig:
    """A shape in one line."""
    return ShapeConfig("", layers, width, mlp, heads, kv, dim, vocab, tied)


LARGE = Scale(
    {
        "Llama 1B": shape(16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
        "Llama 3B": shape(28, 3072, 8192, 24, 8, 128, 128_256, tied=True),
        "Llama 8B": shape(32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
    },
    seq_len=8192,
    rows_a_step=8,
    steps=10,
    same=shape(8, 1024, 4096, 16, 4, 64, 32_768, tied=True),
    same_seq_len=2048,
)
TINY = Scale(
    {"Llama tiny": shape(2, 64, 128, 4, 2, 16, 1016, tied=True)},
    seq_len=128,
    rows_a_step=2,
    steps=4,
    same=shape(2, 64, 128, 4, 2, 16, 1016, tied=True),
    same_seq_len=64,
)


class Session:
    """One run of all parts: what it found, and how much time is left."""

    def __init__(self, chosen: argparse.Namespace, top: Path) -> None:
        self.tiny, self.peer_path, self.top = chosen.tiny, chosen.peer_path, top
        self.scale = TINY if chosen.tiny else LARGE
        self.until = time.monotonic() + 60 * chosen.minutes - MARGIN_S
        self.found: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "tiny": chosen.tiny,
            "versions": versions(chosen.peer_path),
            "card": {},
            "training": {},
            "deterministic": {},
            "failed": [],
            "skipped": [],
        }

    @property
    def left_s(self) -> float:
        """Seconds until the time is up."""
        return max(0.0, self.until - time.monotonic())

    def part(self, name: str, work: Callable[[], dict[str, Any]], *, needs_s: float = 0.0) -> dict[str, Any]:
        """What `work` returns, or why there is nothing: a line in the results, and the next part begins."""
        if self.left_s < needs_s:
            return self.skip(name, f"{self.left_s:.0f} s are left, it needs {needs_s:.0f}")
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            return {**work(), "seconds": round(time.monotonic() - began, 1)}
        except Exception as error:
            traceback.print_exc()
            return self.fail(name, str(error)[-2000:])

    def skip(self, name: str, why: str) -> dict[str, Any]:
        """Note that a part is left out."""
        self.found["skipped"].append(f"{name}: {why}")
        return {"skipped": why}

    def fail(self, name: str, why: str) -> dict[str, Any]:
        """Note that a part failed, or found what must not be."""
        self.found["failed"].append(f"{name}: {why}")
        return {"failed": why}

    def training(self, contender: str, base: Path, pack: Path, train: dict[str, Any], out: str) -> Training:
        """A training of one rank, in the folder `out` beside its data."""
        rows = pack / "rows.arrow"
        counts = write_rows(pack, train_config(train), train["max_steps"], rows)
        places = (contender, base, pack, rows, counts, train, pack.parent / out)
        return Training(*places, gpu=not self.tiny, peer_path=self.peer_path)

    def run(self, training: Training) -> list[int]:
        """Run it while there is time; its exit codes."""
        return training.run(limit_s=self.left_s if self.tiny else min(self.left_s, TRAINING_S))


def card(session: Session) -> dict[str, Any]:
    """The card's own figures."""
    command = [sys.executable, "-m", "tests.gpu.card", *["--tiny"] * session.tiny]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=session.left_s)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for case in found["attention"]:
        if not case["equal"]:
            session.fail(f"{case['kind']} attention, {case['case']}", f"is not SDPA's math: {case['errors']}")
    return found


def config(session: Session, steps: int, rows: int, **changes: Any) -> dict[str, Any]:
    """Fields of a training of one rank."""
    plain = {
        "ranks_per_node": 1,
        "max_steps": steps,
        "epochs": 1,
        "global_batch": rows,
        "schedule": "constant",
        "warmup_share": 0.0,
        "save_every_steps": 1000,
        "save_milestones": False,
        "eval_every_steps": 1000,
        "attention": "flash" if installed("flash_attn") and not session.tiny else "sdpa",
        "fused_kernels": installed("liger_kernel") and not session.tiny,
        "activation_checkpointing": True,
    }
    return {**plain, **changes}


def choose(session: Session, free: float) -> list[tuple[str, ShapeConfig, dict[str, Any]]]:
    """The smallest shape and the largest that fits, each without activation checkpointing where that fits too."""
    scale = session.scale
    fitting = []
    for name, dimensions in scale.shapes.items():
        for recomputed in (False, True):
            plain = config(session, scale.steps, scale.rows_a_step, activation_checkpointing=recomputed)
            planned = memory.rank(train_config(plain), scale.seq_len, dimensions, gpu=not session.tiny)
            if planned.total <= ROOM * free:
                fitting.append((name, dimensions, plain))
                break
        else:
            session.skip(name, f"plan says {planned.total / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    return fitting[:1] + fitting[1:][-1:]


def train(session: Session, name: str, dimensions: ShapeConfig, plain: dict[str, Any], about: Any) -> dict[str, Any]:
    """Both contenders on one shape, and `plan`; `about` is the card."""
    scale, folder = session.scale, session.top / name.replace(" ", "-")
    base = made.base(dimensions, folder / "base", session.top / "cache")
    rows = (scale.steps + 1) * scale.rows_a_step
    pack = made.pack(folder / "pack", base, dimensions.vocab, scale.seq_len, rows)
    found: dict[str, Any] = {
        "shape": asdict(dimensions),
        "parameters": parameters(dimensions),
        "seq_len": scale.seq_len,
        "train": plain,
    }

    def one(contender: str) -> dict[str, Any]:
        training = session.training(contender, base, pack, plain, contender)
        training.saves = False
        codes = session.run(training)
        return figures(training, codes, dimensions, about)

    found[OURS] = session.part(f"{name}, {OURS}", lambda: one(OURS))
    if why := peer_missing(session.peer_path):
        found[PEER] = session.skip(f"{name}, {PEER}", why)
    else:
        found[PEER] = session.part(f"{name}, {PEER}", lambda: one(PEER), needs_s=60.0)
    planned = memory.rank(train_config(plain), scale.seq_len, dimensions, gpu=not session.tiny)
    found["plan"] = {"tensors": planned.tensors, "total": planned.total, "peak": planned.peak.value}
    if took := found[OURS].get("memory"):
        # A process's own memory holds more than tensors.
        found["plan"]["of_measured"] = (planned.total if session.tiny else planned.tensors) / took["allocated"]
    if "tokens_per_s" in found[OURS] and "tokens_per_s" in found[PEER]:
        found["ratio"] = found[OURS]["tokens_per_s"] / found[PEER]["tokens_per_s"]
        found["losses_apart"] = abs(found[OURS]["first_loss"] / found[PEER]["first_loss"] - 1)
    shutil.rmtree(folder)
    return found


def figures(training: Training, codes: list[int], dimensions: ShapeConfig, about: dict[str, Any]) -> dict[str, Any]:
    """What a training was worth; of one that the time ran out for, what it did until then."""
    steps = training.steps(1)
    if len(steps) < 3:
        raise RuntimeError(f"{len(steps)} steps, then the ranks ended with {codes}:\n{training.words()}")
    work, speeds, rates = estimate.work(dimensions), [], []
    for row in steps[2:]:
        counts = training.counts[row["global_step"] - 1]
        speeds.append(counts["tokens"] / row["step_s"])
        rates.append(work.flops(counts["tokens"], counts["supervised_tokens"], counts["attended"]) / row["step_s"])
    rate = statistics.median(rates)
    found = {
        "steps": len(steps),
        "exit_codes": codes,
        "tokens_per_s": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "step_s": statistics.median(row["step_s"] for row in steps[2:]),
        "first_step_s": training.first_step_s(1),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "tflops": rate / 1e12,
        "mfu": rate / 1e12 / about["peak"]["tflops"],
    }
    if about.get("sheet_flops"):
        found["mfu_sheet"] = rate / about["sheet_flops"]
    took = training.out / "memory.json"
    return {**found, "memory": json.loads(took.read_text())} if took.exists() else found


def same(session: Session) -> dict[str, Any]:
    """Six steps at once, and the last three again from the checkpoint of the third: are losses and weights the same?"""
    from cathpc.train import export, history, writing

    scale, folder = session.scale, session.top / "same"
    base = made.base(scale.same, folder / "base", session.top / "cache")
    pack = made.pack(folder / "pack", base, scale.same.vocab, scale.same_seq_len, 4 * 7)
    plain = config(session, 6, 4, deterministic=True, save_every_steps=3, keep_checkpoints=3)
    whole, again = (session.training(OURS, base, pack, plain, name) for name in ("whole", "again"))
    saved = [training.out / "checkpoints" for training in (whole, again)]
    losses, ends = [], []
    for training, path in zip((whole, again), saved, strict=True):
        if training is again:
            shutil.copytree(saved[0] / history.folder_name(3), path / history.folder_name(3))
        codes = session.run(training)
        if any(codes):
            raise RuntimeError(f"the ranks ended with {codes}:\n{training.words()}")
        losses.append({row["global_step"]: row["loss"] for row in training.steps(1) if row["global_step"] > 3})
        ends.append(export.tensors(path / history.folder_name(6) / writing.TAG))
    assert sorted(losses[1]) == [4, 5, 6] and again.steps(1)[0]["global_step"] == 4, losses
    verdicts = {name: one.equal(other) for (name, one), (_, other) in zip(*ends, strict=True)}
    differing = [name for name, equal in verdicts.items() if not equal]
    if losses[0] != losses[1] or differing:
        session.fail("deterministic", f"not the same to the bit: {differing[:5]}, losses {losses}")
    shutil.rmtree(folder)
    equal = losses[0] == losses[1] and not differing
    return {"equal": equal, "tensors": len(verdicts), "differing": differing, "losses": losses, "train": plain}


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def versions(peer_path: Path | None) -> dict[str, str]:
    """Those of what is here; '' for what is not."""
    paths = [str(peer_path)] * bool(peer_path) + sys.path
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        found[name] = next((each.version for each in islice(distributions(name=name, path=paths), 1)), "")
    return found
