"""Trainings of the same data and config by another number of ranks, and what is taken over from one.

The number of ranks is part of a training's fingerprint, so with another number it has a folder of its own, which begins
empty: `refuse` keeps a command from throwing away what the other folder holds. No torch here; costs a look at the
newest checkpoint's manifest of each unfinished training in the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc import store
from cathpc.errors import UserError
from cathpc.schema import identity
from cathpc.train import history, metrics, passed

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig

SPLIT = frozenset({"micro_batch", "resume_from"})
"""Settings of a training that say how a global batch is divided over ranks, not what is learnt from it."""


@dataclass(frozen=True)
class Other:
    """An unfinished training."""

    folder: Path
    world_size: int
    step: int


def same_config(one: Any, other: Any) -> bool:
    """Whether two trainings' configs, as plain data, differ in `SPLIT` at most."""
    return bool(compared(one) == compared(other))


def decisive(train: TrainConfig) -> dict[str, Any]:
    """What of its config a training's checkpoints hold: what is not at its default, and of adapters all, which the
    export of an old checkpoint needs whatever the defaults are by then."""
    adapters = {"lora": identity(train.lora)} if train.lora.rank else {}
    return {**identity(train, defaults=False), **adapters}


def compared(config: Any) -> Any:
    """A training's config without `SPLIT`."""
    return {k: v for k, v in config.items() if k not in SPLIT} if isinstance(config, dict) else config


def other_worlds(folder: Path, inputs: dict[str, str], train: TrainConfig) -> list[Other]:
    """The unfinished trainings beside the stage folder `folder` that differ in the number of ranks only, those with the
    most steps first; `inputs` are the fingerprints of what it stands on."""
    world_size = train.nodes * train.ranks_per_node
    found = []
    for other in sorted(folder.parent.glob("*/checkpoints")):
        stage_folder = other.parent
        checkpoints = history.committed(other)
        if stage_folder == folder or not checkpoints or (stage_folder / store.MANIFEST).exists():
            continue
        saved = history.manifest(checkpoints[0])
        used = store.read_json(stage_folder / store.INPUTS) or {}
        if (
            saved.get("world_size", world_size) != world_size
            and same_config(saved.get("identity", {}).get("config"), decisive(train))
            and {name: value.get("fingerprint") for name, value in used.items()} == inputs
        ):
            found.append(Other(stage_folder, saved["world_size"], history.step_of(checkpoints[0])))
    return sorted(found, key=lambda o: -o.step)


def refuse(place: store.Place, train: TrainConfig, *, busy: Callable[[Path], bool]) -> None:
    """Raise UserError where training in `place` would begin at step 0 while an unfinished one of `other_worlds` lies
    idle; one that is `busy` is another run's, and wanted."""
    if train.resume_from or place.manifest() or history.has_history(place.folder / "checkpoints"):
        return
    inputs = {name: folder.name for name, folder in place.inputs.items()}
    idle = [other for other in other_worlds(place.folder, inputs, train) if not busy(other.folder)]
    if idle:
        other = idle[0]
        raise UserError(
            f"a training of the same data and config by {other.world_size} ranks has come to step {other.step:,} and "
            f"is not finished; with {train.nodes * train.ranks_per_node} it would begin again at step 0. Choose one:"
            f"\n  go on from it            train.resume_from={other.folder}"
            f"\n  finish it as it was      train.nodes x train.ranks_per_node = {other.world_size}"
            f"\n  train from the start     mv {other.folder} elsewhere"
        )


def take_over(source: Path, out: Path) -> None:
    """Copy what the training in `source` wrote about its steps to `out`: logs, and which steps are passed over.

    Rows of steps that are taken again are superseded by what is written next, as after any crash. Which steps are
    passed over is taken once: a rollback before the first checkpoint of `out` adds to it.
    """
    for name in (metrics.METRICS, metrics.SAMPLES, passed.FILE):
        if (source / name).exists() and not (name == passed.FILE and (out / name).exists()):
            temporary = out / f".{name}"
            shutil.copyfile(source / name, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, out / name)
