"""Checkpoints that are whole or not there.

`save`: all ranks write into a temporary folder, each fsyncs and hashes its own files, all agree that all is well, rank
0 renames the folder and writes `manifest.json` last. `load`: the newest checkpoint whose every byte is as recorded;
others are set aside as `bad-...`. A folder without a manifest was never committed.

    step-000012/manifest.json   step, world size, identity of data, template and config, size and hash of all files
                rng-00000.json  a rank's Python, NumPy and torch generators
                deepspeed/*.pt  fp32 weights and optimizer states, partitioned over the ranks

Size: 12 bytes a parameter (14 in bfloat16) over all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from cathpc.errors import ChangedError, DataError, DiskError, UserError
from cathpc.lease import fence, slurm_job
from cathpc.models.weights import write_json
from cathpc.train import ranks

MANIFEST = "manifest.json"
TAG = "deepspeed"


class CheckpointWriter(CheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """How DeepSpeed writes and reads its files.

    A failed write is kept in `error` rather than raised, because the other ranks would wait for this one in DeepSpeed's
    next barrier; `save` looks at it when all are through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Path] = []
        self.error: OSError | None = None

    def create(self, info: Any) -> None:
        """Start a new checkpoint."""
        self.written, self.error = [], None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder of the checkpoint."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = self.error or error

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file and wait until it is on the disk."""
        if self.error:
            return
        try:
            with open(path, "wb") as file:
                torch.save(_plain(state_dict), file)
                file.flush()
                os.fsync(file.fileno())
            self.written.append(Path(path))
        except OSError as error:
            self.error = error
        except RuntimeError as error:
            # torch's zip writer, closing after a failed write, hides the reason behind an error of its own.
            reason = error.__context__
            self.error = reason if isinstance(reason, OSError) else OSError(f"{path}: {error}")

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file, whose hash `load` of this module has verified."""
        with _trusted():
            return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: Any) -> bool:
        """Nothing: `save` of this module commits."""
        return True


def _plain(value: Any) -> Any:
    """`value` with Enum members as their values: how Python pickles them differs between its patch releases."""
    if isinstance(value, Enum):
        return value.value
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _trusted() -> torch.serialization.safe_globals:
    """The only classes beside tensors that DeepSpeed puts into its files."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    return torch.serialization.safe_globals([LossScaler])


def read_states(path: Path) -> dict[str, Any]:
    """One of DeepSpeed's files, its tensors mapped from disk, not read. Only for files that `verify` has passed."""
    with _trusted():
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return states


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` steps; names sort like steps."""
    return f"step-{step:06d}"


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints in `folder`, newest first."""
    return sorted((m.parent for m in folder.glob(f"step-*/{MANIFEST}")), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; {} where it cannot be read."""
    try:
        data = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return data if isinstance(data.get("files"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def verify(checkpoint: Path, *, share: int = 0, shares: int = 1) -> str:
    """What is wrong with a checkpoint, '' where every file is as its manifest says; every `shares`-th file is read."""
    files = manifest(checkpoint).get("files")
    if not files:
        return f"{checkpoint / MANIFEST} cannot be read"
    for name in sorted(files)[share::shares]:
        try:
            digest, size = _sha256(checkpoint / name)
        except OSError as error:
            return f"{checkpoint / name} cannot be read ({error.strerror})"
        if [digest, size] != [files[name]["sha256"], files[name]["bytes"]]:
            return f"{checkpoint / name} is not the file that was saved ({size} bytes, {files[name]['bytes']} recorded)"
    return ""


def save(folder: Path, engine: Any, step: int, identity: dict[str, Any], *, keep: int, notes: dict[str, Any]) -> Path:
    """Commit a checkpoint of `engine` after `step` steps; called by all ranks.

    `identity` is what a resumed run must share; `notes` go into the manifest. Afterwards the `keep` newest committed
    ones remain. Raises DiskError on all ranks where one could not write, and FencedError on rank 0 where another
    attempt owns the training by now; what was there before stays as it was.
    """
    final = folder / folder_name(step)
    temporary = folder / ".".join([f".tmp-{final.name}", *map(str, slurm_job())])  # an attempt's own
    if ranks.rank() == 0:
        fence(folder)
        for stale in folder.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if final.exists() and not (final / MANIFEST).exists():
            shutil.rmtree(final)  # renamed but never committed
    ranks.barrier()
    writer: CheckpointWriter = engine.checkpoint_engine
    engine.save_checkpoint(str(temporary), tag=TAG, save_latest=False)
    files: dict[str, Any] = {}
    try:
        if writer.error:
            raise writer.error
        rng = temporary / f"rng-{ranks.rank():05d}.json"
        write_json(rng, rng_state())
        for path in [*writer.written, rng]:
            digest, size = _sha256(path)
            files[path.relative_to(temporary).as_posix()] = {"sha256": digest, "bytes": size}
        write_json(temporary / f"files-{ranks.rank():05d}.json", files)
        error = None
    except OSError as failure:
        error = failure
    if not ranks.agree(error is None):
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(
            f"{final}: the checkpoint after step {step} could not be written"
            + (f" ({error})" if error else " by another rank")
            + "; earlier ones are untouched. Free space there and run the same command again."
        ) from error
    if ranks.rank() == 0:
        everything: dict[str, Any] = {}
        for part in sorted(temporary.glob("files-*.json")):
            everything |= json.loads(part.read_text())
            part.unlink()
        _sync_folders(temporary)
        fence(folder)
        os.rename(temporary, final)
        _fsync(folder)
        data = {
            "step": step,
            "world_size": ranks.world_size(),
            "identity": identity,
            **notes,
            "files": everything,
        }
        write_json(final / MANIFEST, data)
        _fsync(final)
        for left in folder.glob("step-*"):
            if not (left / MANIFEST).exists():  # of a deletion that was killed
                shutil.rmtree(left)
        for old in committed(folder)[max(1, keep) :]:
            # The manifest goes first: what a killed deletion leaves behind is not committed.
            (old / MANIFEST).unlink()
            shutil.rmtree(old)
    ranks.barrier()
    return final


def load(folder: Path, engine: Any, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Load the newest checkpoint that verifies into `engine`; its manifest, None where nothing was ever committed.

    Called by all ranks; each hashes its share of the files, rank 0 sets bad ones aside and decides. Raises DataError
    where there are checkpoints and none is sound, ChangedError where one belongs to other data, template or config, and
    UserError where it was saved by another number of ranks.
    """
    chosen = _choose(folder)
    if chosen is None:
        return None
    checkpoint = folder / folder_name(chosen)
    saved = manifest(checkpoint)
    if saved["world_size"] != ranks.world_size():
        raise UserError(
            f"{checkpoint} was saved by {saved['world_size']} ranks and cannot be loaded by {ranks.world_size()}: its "
            f"states are partitioned. Run again with train.nodes x train.ranks_per_node = {saved['world_size']}."
        )
    for key, now in identity.items():
        if saved["identity"].get(key) != now:
            raise ChangedError(
                f"{checkpoint / MANIFEST}: {key} is {_short(saved['identity'].get(key), now)} there and "
                f"{_short(now, saved['identity'].get(key))} now. A training goes on with the same data, template and "
                f"config only; move {folder} away to train from the start."
            )
    path, _ = engine.load_checkpoint(str(checkpoint), tag=TAG)
    assert path is not None and engine.global_steps == chosen, (path, engine.global_steps, chosen)
    set_rng_state(json.loads((checkpoint / f"rng-{ranks.rank():05d}.json").read_text()))
    return saved


def _choose(folder: Path) -> int | None:
    """Step of the newest sound checkpoint, the same on all ranks; None where none was ever committed."""
    problems: list[str] = []
    while True:
        candidates = committed(folder) if ranks.rank() == 0 else []
        step = ranks.from_first(step_of(candidates[0]) if candidates else -1)
        if step < 0:
            break
        checkpoint = folder / folder_name(step)
        problem = verify(checkpoint, share=ranks.rank(), shares=ranks.world_size())
        if ranks.agree(not problem):
            return step
        problems.append(problem or f"{checkpoint}: another rank found it altered")
        if ranks.rank() == 0:
            os.rename(checkpoint, _aside(checkpoint))
        ranks.barrier()
    history = [p.parent for p in sorted(folder.glob(f"bad-*/{MANIFEST}"))]
    if problems or ranks.from_first(len(history)):
        raise DataError(
            f"{folder}: no checkpoint is sound ({'; '.join(problems) or 'all were set aside as bad-...'}). Training "
            f"does not start afresh by itself: restore one of them, or move {folder} away to train from the start."
        )
    return None


def _aside(checkpoint: Path) -> Path:
    number = 1
    while (target := checkpoint.with_name(f"bad-{checkpoint.name}-{number}")).exists():
        number += 1
    return target


def rng_state() -> dict[str, Any]:
    """This rank's random generators as JSON data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put this rank's random generators back to where `rng_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state:
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _short(value: Any, other: Any) -> str:
    """A value for a message; of two dictionaries only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {k: v for k, v in value.items() if other.get(k) != v}
    return json.dumps(value)


def _sha256(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def _sync_folders(top: Path) -> None:
    for folder in _folders(top):
        _fsync(folder)


def _folders(top: Path) -> Iterable[Path]:
    return [Path(root) for root, _, _ in os.walk(top)]


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
