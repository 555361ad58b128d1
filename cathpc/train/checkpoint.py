"""Checkpoints that are whole or not there: what the loop calls.

`save`: all ranks write into a temporary folder and hash what they write, all agree that all is well, rank 0 renames the
folder and writes `manifest.json` last (`cathpc.train.saver`, which can also do it while the training goes on). `load`:
the newest checkpoint whose every byte is as recorded; others are set aside as `bad-...`. Which there are and what a
folder holds: `cathpc.train.history`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cathpc.errors import ChangedError, DataError, UserError
from cathpc.lease import fence
from cathpc.train import history, partitions, ranks, rng, worlds
from cathpc.train.history import committed as committed
from cathpc.train.history import folder_name as folder_name
from cathpc.train.history import has_history as has_history
from cathpc.train.history import manifest as manifest
from cathpc.train.history import step_of as step_of
from cathpc.train.history import verify as verify
from cathpc.train.saver import Saver as Saver
from cathpc.train.states import CheckpointWriter as CheckpointWriter
from cathpc.train.writing import TAG as TAG


def save(
    folder: Path,
    engine: Any,
    step: int,
    identity: dict[str, Any],
    *,
    keep: int,
    notes: dict[str, Any],
    milestone: bool = False,
) -> Path:
    """Commit a checkpoint of `engine` after `step` steps and wait until it was read back; called by all ranks.

    Afterwards the `keep` newest ones remain, and the milestones. Raises what `Saver.start` raises.
    """
    saver = Saver(folder, engine, identity, keep=keep)
    saver.start(step, notes, milestone=milestone)
    saver.finish()
    assert saver.newest is not None
    return saver.newest


def load(
    folder: Path, engine: Any, identity: dict[str, Any], *, keep: int | None = None, resume_from: str = ""
) -> dict[str, Any] | None:
    """Load the newest checkpoint that verifies into `engine`; its manifest, None where nothing was ever committed.

    Called by all ranks; each hashes its share of the files, rank 0 sets bad ones aside, decides, and removes what is
    beyond the `keep` newest. Where `folder` has no history and `resume_from` names another training's folder, its
    newest sound checkpoint is loaded instead, whatever the number of ranks that saved it, and its logs come along.

    Raises DataError where there are checkpoints and none is sound, ChangedError where one belongs to other data,
    template or config, and UserError where it was saved by another number of ranks or `resume_from` has none.
    """
    if ranks.from_first(has_history(folder)):
        checkpoint = _choose(folder)
        saved = manifest(checkpoint)
        _require_identity(checkpoint, saved, identity, lambda value: value)
        if saved["world_size"] != ranks.world_size():
            raise UserError(
                f"{checkpoint} was saved by {saved['world_size']} ranks and cannot be loaded by "
                f"{ranks.world_size()}: its states are partitioned. Run again with train.nodes x train.ranks_per_node "
                f"= {saved['world_size']}, or, in a folder of its own, with train.resume_from={folder.parent}, which "
                f"divides them anew."
            )
        _restore(checkpoint, engine)
        rng.restore(_rng(checkpoint, ranks.rank()))
        if keep is not None and ranks.rank() == 0:
            fence(folder)
            history.prune(folder, keep)
        return saved
    if not resume_from:
        return None
    checkpoint = _source(Path(resume_from))
    saved = manifest(checkpoint)
    _require_identity(checkpoint, saved, identity, worlds.compared)
    if saved["world_size"] == ranks.world_size():
        _restore(checkpoint, engine)
    else:
        partitions.load(checkpoint / TAG, engine)
        assert engine.global_steps == saved["step"], (engine.global_steps, saved["step"])
    if ranks.rank() < saved["world_size"]:  # further ranks keep the numbers that they begin with
        rng.restore(_rng(checkpoint, ranks.rank()))
    if ranks.rank() == 0:
        worlds.take_over(Path(resume_from), folder.parent)
    ranks.barrier()
    return saved


def _restore(checkpoint: Path, engine: Any) -> None:
    """DeepSpeed's own load, for the number of ranks that saved."""
    # In the memory of the node the optimizer keeps the very tensors that it is given, so they must not be the file's.
    engine.checkpoint_engine.mapped = ranks.device().type != "cpu" and not engine.zero_offload_optimizer()
    trained = all(parameter.requires_grad for parameter in engine.module.parameters())
    path, _ = engine.load_checkpoint(str(checkpoint), tag=TAG, load_module_strict=trained)  # frozen ones are not saved
    step = history.step_of(checkpoint)
    assert path is not None and engine.global_steps == step, (path, engine.global_steps, step)


def _rng(checkpoint: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / f"rng-{rank:05d}.json").read_text())
    return found


def _require_identity(
    checkpoint: Path, saved: dict[str, Any], identity: dict[str, Any], compared: Callable[[Any], Any]
) -> None:
    """Raise ChangedError where a checkpoint belongs to another training, by what is `compared` of each part."""
    for key, value in identity.items():
        then, now = compared(saved["identity"].get(key)), compared(value)
        if then != now:
            raise ChangedError(
                f"{checkpoint / history.MANIFEST}: {key} is {_short(then, now)} there and {_short(now, then)} now. A "
                f"training goes on with the same data, template and config only; move {checkpoint.parent} away to "
                f"train from the start."
            )


def _short(value: Any, other: Any) -> str:
    """A value for a message; of two dictionaries only what differs, where a key that one lacks is at its default."""
    if isinstance(value, dict) and isinstance(other, dict):
        keys = sorted(value.keys() | other.keys())
        value = {k: value.get(k, "the default") for k in keys if value.get(k) != other.get(k)}
    return json.dumps(value)


def _choose(folder: Path) -> Path:
    """The newest sound checkpoint of this training, the same on all ranks; bad ones are set aside."""
    problems: list[str] = []
    while (checkpoint := _candidate(folder, 0)) is not None:
        problem = _problem(checkpoint)
        if not problem:
            return checkpoint
        problems.append(problem)
        if ranks.rank() == 0:
            print(f"checkpoint: {problem}; {checkpoint.name} is set aside", flush=True)
            history.set_aside(checkpoint)
        ranks.barrier()
    raise DataError(
        f"{folder}: no checkpoint is sound ({'; '.join(problems) or 'all were set aside as bad-...'}). Training does "
        f"not start afresh by itself: restore one of them, or move {folder} away to train from the start."
    )


def _source(stage_folder: Path) -> Path:
    """The newest sound checkpoint of another training, whose folder is left as it is."""
    folder = stage_folder / "checkpoints"
    problems: list[str] = []
    while (checkpoint := _candidate(folder, len(problems))) is not None:
        problem = _problem(checkpoint)
        if not problem:
            return checkpoint
        problems.append(problem)
    if problems:
        raise DataError(f"train.resume_from={stage_folder}: none of its checkpoints is sound ({'; '.join(problems)})")
    raise UserError(
        f"train.resume_from={stage_folder} has no checkpoint ({folder}/step-.../{history.MANIFEST}): name the folder "
        f"of a training, such as store/train/0123456789abcdef, or leave it empty to train from the start."
    )


def _candidate(folder: Path, number: int) -> Path | None:
    """The `number`-th newest committed checkpoint as rank 0 sees it."""
    found = committed(folder) if ranks.rank() == 0 else []
    step = ranks.from_first(history.step_of(found[number]) if number < len(found) else -1)
    return folder / folder_name(step) if step >= 0 else None


def _problem(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, '' where all ranks find their share of it sound."""
    problem = verify(checkpoint, share=ranks.rank(), shares=ranks.world_size())
    if problem and ranks.rank() != 0:
        print(f"checkpoint: {problem}", flush=True)  # rank 0 says what it knows itself
    return "" if ranks.agree(not problem) else problem or f"{checkpoint}: another rank found it altered"
