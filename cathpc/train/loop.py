"""Stage `train`: the training loop, on every rank.

In: packed rows and the prepared base model. Out: `checkpoints/step-000012/...`, `metrics.jsonl`, `samples.jsonl` (the
ledger of consumed rows) and `final.json`. A run that was killed or stopped goes on from its newest sound checkpoint
and takes the very steps that an uninterrupted one takes. Memory: the model's states partitioned over the ranks, see
`cathpc.train.engine`.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cathpc import progress
from cathpc.errors import ChangedError, TryAgainError, UserError
from cathpc.models.template import Template
from cathpc.train import (
    batches,
    checkpoint,
    finish,
    flops,
    metrics,
    microbatch,
    passed,
    ranks,
    saver,
    schedule,
    slow,
    stop,
    unchanged,
    worlds,
)
from cathpc.train import engine as engines
from cathpc.train.clock import Clock
from cathpc.train.config import OnSpike
from cathpc.train.guard import Guard
from cathpc.train.logs import Logs
from cathpc.train.watchdog import Watchdog

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.train.config import TrainConfig


@dataclass
class Position:
    """Where a training is; with the weights, the optimizer and the random generators all that a resumed one needs."""

    tokens_seen: int = 0
    epoch: int = 0
    evaluated: bool = False
    """Whether the evaluation that was due at this step is done."""
    norms: list[float] = field(default_factory=list)
    """The guard's memory."""
    bad: int = 0
    """Bad steps in a row."""


@ranks.together()
def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Train the model of `base` on the rows of `pack`; called by every rank with the same arguments.

    Ends with TryAgainError after a stop signal, when the checkpoint is saved.
    """
    stop.install()
    train = config.train
    ranks.start(train)
    with Watchdog(train.watchdog_s, rank=ranks.rank()) as watchdog:
        return _train(train, inputs, out, watchdog)


def _train(train: TrainConfig, inputs: dict[str, Path], out: Path, watchdog: Watchdog) -> dict[str, Any]:
    _seed(train.seed)
    folder = out / "checkpoints"
    watchdog.beat("comparing the files that the training stands on", starting=True)
    whole = not checkpoint.has_history(folder) or bool(train.lora.rank)
    unchanged.require([inputs["pack"], inputs["base"]], whole=whole)
    pack = json.loads((inputs["pack"] / "pack.json").read_text(encoding="utf-8"))
    data = batches.load(inputs["pack"] / "train", pack["pad_id"])
    held_out = batches.load(inputs["pack"] / "eval", pack["pad_id"])
    per_epoch = batches.steps_per_epoch(data.bins, train.global_batch)
    total = min(per_epoch * train.epochs, train.max_steps or per_epoch * train.epochs)
    total_tokens = _tokens(data, train, per_epoch, total)

    same = _identity(train, pack, Template.load(inputs["base"] / "model").hash)
    engine, work = engines.start(train, inputs["base"] / "model")
    folder.mkdir(exist_ok=True)
    watchdog.beat("loading the checkpoint", starting=True)
    saved = checkpoint.load(folder, engine, same, keep=train.keep_checkpoints, resume_from=train.resume_from)
    first = saved["step"] if saved else 0
    at = Position(**{name: saved[name] for name in asdict(Position())}) if saved else Position()
    guard = Guard(train, at.norms, at.bad)
    engines.guard(engine, guard.refuses)

    scratch = saver.scratch_folder() if train.save_through_scratch else None
    keeper = checkpoint.Saver(folder, engine, same, keep=train.keep_checkpoints, scratch=scratch)
    bad_ranges = passed.same(out)
    clock = Clock(ranks.device())
    logs = Logs(out, first, train) if ranks.rank() == 0 else None
    if not at.evaluated and not _evaluate(train, engine, held_out, first, logs, watchdog):
        raise TryAgainError(f"{_asked()} in the evaluation after step {first} of {total}; it comes first next time")

    for step in range(first + 1, total + 1):
        watchdog.beat(f"step {step}")
        began = time.perf_counter()
        at.epoch, position = divmod(step - 1, per_epoch)
        with clock.time("data", host=True):
            if position == 0 or step == first + 1:
                order = batches.epoch_order(data.bins, train.seed, at.epoch)
            rows = batches.batch_rows(order, position, train.global_batch)
            supervised = batches.count(data.supervised, rows)
            tokens = batches.count(data.tokens, rows)
            at.tokens_seen += tokens
        lr = train.lr * schedule.lr_factor(train, at.tokens_seen, total_tokens)
        engines.set_lr(engine, lr)
        loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device())
        attended = 0
        mine = batches.rank_rows(rows, ranks.rank(), ranks.world_size(), train.micro_batch)
        passing = passed.over(bad_ranges, step)
        for number, micro in enumerate(mine if not passing else []):
            if number:
                engine.step()  # only counts: gradients are summed up
            with clock.time("data", host=True):
                batch = microbatch.tensors(data, micro, ranks.device())
                attended += flops.attended(batch["bounds"])
            with clock.time("forward"):
                loss = engine(**batch)
                loss_sum += loss.detach()
            with clock.time("backward"):
                # DeepSpeed averages gradients over ranks; times world size it is their sum, and the loss a mean over
                # the supervised tokens of the whole global batch.
                engine.backward(loss * (ranks.world_size() / supervised), scale_wrt_gas=False)

        taken = [row for micro in mine for row in micro]
        told = ranks.gather([loss_sum, stop.requested(), keeper.ready(), attended, slow.probe(step), *taken])
        everyone = np.array(told)  # a row a rank
        guard.loss = float(everyone[:, 0].sum()) / supervised
        if passing:
            guard.fault = "passed over"
            engine.global_steps += 1
        else:
            with clock.time("step"):
                engine.step()

        at.norms, at.bad = list(guard.norms), guard.bad
        stopping = bool(everyone[:, 1].any())
        if everyone[:, 2].all():
            keeper.advance()
        seconds = clock.read()
        if logs:
            step_s = time.perf_counter() - began
            measured = {"loss": guard.loss, "grad_norm": guard.norm}
            logs.step(
                {
                    "global_step": step,
                    "epoch": at.epoch,
                    **{k: v for k, v in measured.items() if math.isfinite(v) and not passing},
                    "lr": lr,
                    "tokens": tokens,
                    "supervised_tokens": supervised,
                    "tokens_seen": at.tokens_seen,
                    "step_s": round(step_s, 4),
                    **_speed(work.flops(tokens, supervised, int(everyone[:, 3].sum())), tokens, step_s),
                    "seconds": seconds,
                    "memory_gb": round(metrics.memory_gb(), 3),
                    "time": time.time(),
                    **({"fault": guard.fault} if guard.fault else {}),
                    **slow.report(everyone[:, 4]),
                },
                everyone[:, 5:].flatten().astype(int).tolist(),
                shown=step % train.log_every_steps == 0 or step == total,
            )
            progress.report(out, step, total, "steps", note=f"loss {guard.loss:.3f}")
        if guard.fault and not passing:
            _bad(train, out, keeper, guard, first, step, total)

        at.evaluated = True
        if step % train.eval_every_steps == 0 or step == total:
            at.evaluated = not stopping and _evaluate(train, engine, held_out, step, logs, watchdog)
            stopping = stopping or not at.evaluated
        milestone = train.save_milestones and step % per_epoch == 0
        if stopping or milestone or step % train.save_every_steps == 0 or step == total:
            watchdog.beat(f"the save after step {step}")
            _save(keeper, step, at, logs, milestone=milestone, last=stopping)
        if stopping and (step < total or not at.evaluated):
            raise TryAgainError(
                f"{_asked()} after step {step} of {total}; the checkpoint {folder / checkpoint.folder_name(step)} is "
                f"saved. Run the same command to go on from it."
            )

    watchdog.beat("the end of the last save")
    keeper.finish()
    summary: dict[str, Any] = {"line": ""}
    if logs:
        logs.close()
        summary = finish.run(out, inputs["pack"], train, total, whole=total == per_epoch * train.epochs)
    ranks.barrier()
    return summary


def _asked() -> str:
    return f"stopped on request ({stop.reason() or 'another rank was told to'})"


def _tokens(data: batches.Packed, train: TrainConfig, per_epoch: int, steps: int) -> int:
    """Tokens of the first `steps` steps."""
    epochs, rest = divmod(steps, per_epoch)
    last: list[int] = []
    if rest:
        last = batches.epoch_order(data.bins, train.seed, epochs)[: rest * train.global_batch].tolist()
    return epochs * int(data.tokens.sum()) + batches.count(data.tokens, last)


def _evaluate(
    train: TrainConfig, engine: Any, held_out: batches.Packed, step: int, logs: Logs | None, watchdog: Watchdog
) -> bool:
    """Write the mean loss over the held-out tokens; False where a stop came first. Takes no random numbers."""
    supervised = int(held_out.supervised.sum())
    if not supervised:
        return True
    began = time.perf_counter()
    engine.eval()
    loss_sum = 0.0
    taken = train.micro_batch * ranks.world_size()
    stopped = False
    for position in range(batches.steps_per_epoch(held_out.bins, taken)):
        watchdog.beat(f"the evaluation after step {step}")
        rows = batches.batch_rows(list(range(held_out.bins)), position, taken)
        (mine,) = batches.rank_rows(rows, ranks.rank(), ranks.world_size(), train.micro_batch)
        with torch.no_grad():
            mine_sum = engine(**microbatch.tensors(held_out, mine, ranks.device()))
        everyone = np.array(ranks.gather([mine_sum, stop.requested()]))
        loss_sum += float(everyone[:, 0].sum())
        if stopped := bool(everyone[:, 1].any()):
            break
    if logs and not stopped:
        seconds = {"eval": round(time.perf_counter() - began, 4)}
        row = {"global_step": step, "eval_loss": loss_sum / supervised, "seconds": seconds, "time": time.time()}
        logs.metrics.write(row)
    engine.train()
    return not stopped


def _save(keeper: checkpoint.Saver, step: int, at: Position, logs: Logs | None, *, milestone: bool, last: bool) -> None:
    """Save after the lines that the checkpoint stands for are on the disk; the `last` one of an attempt at once."""
    began = time.perf_counter()
    if logs:
        logs.sync()
    keeper.start(step, asdict(at), milestone=milestone, at_once=last)
    if last:
        keeper.finish(verify=False)
    if logs:
        seconds = {"save": round(time.perf_counter() - began, 4)}
        logs.metrics.write({"global_step": step, "seconds": seconds, "time": time.time()})


def _bad(
    train: TrainConfig, out: Path, keeper: checkpoint.Saver, guard: Guard, first: int, step: int, total: int
) -> None:
    """What follows a step that the guard refused, in an attempt that began after the step `first`; returns where the
    training goes on without it."""
    what = f"step {step} of {total}: {guard.fault}"
    if train.on_spike is OnSpike.skip and guard.bad < train.max_skips:
        return
    keeper.finish(verify=False)  # a save that is under way is the newest one once it ends
    folder = keeper.folder
    newest = next((checkpoint.step_of(path) for path in checkpoint.committed(folder)), first)
    remedy = f"Lower train.lr={train.lr:g} or train.clip={train.clip:g}; {folder} holds step {newest}."
    if train.on_spike is OnSpike.fail:
        raise UserError(f"{what}. {remedy}")
    if train.on_spike is OnSpike.skip:
        raise UserError(f"{what}, as in the {guard.bad - 1} steps before it (train.max_skips). {remedy}")
    ranges = passed.read(out)
    if len(ranges) >= train.max_skips:
        raise UserError(f"{what}, after {len(ranges)} rollbacks (train.max_skips). {remedy}")
    ranks.barrier()
    if ranks.rank() == 0:
        passed.add(out, newest + 1, step)
    ranks.barrier()
    raise TryAgainError(
        f"{what}. Back to the checkpoint of step {newest}; steps {newest + 1} to {step} are passed over. Run the same "
        f"command to go on."
    )


def _speed(operations: int, tokens: int, seconds: float) -> dict[str, float]:
    speed = {"tokens_per_s": tokens / seconds, "tokens_per_s_per_rank": tokens / seconds / ranks.world_size()}
    if peak := flops.peak():
        speed["mfu"] = operations / seconds / ranks.world_size() / peak
    return speed


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
    return {"pack": pack["digest"], "template": template_hash, "config": worlds.decisive(train)}


def _seed(seed: int) -> None:
    """Seed this rank's generators (dropout); ranks draw different numbers."""
    mine = seed + 1_000_003 * int(os.environ["RANK"])
    random.seed(mine)
    np.random.seed(mine % 2**32)
    torch.manual_seed(mine)
