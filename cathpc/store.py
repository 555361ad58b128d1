"""The stage store: the same work is never done twice.

A stage's folder is `store/<stage>/<fingerprint>`. The fingerprint is a hash of the stage's name and version, of what
its own part of the config has beside the defaults, and of its inputs' fingerprints, so it is known before anything
runs; a default that changes must raise the version. The folder is complete when its `manifest.json` is there; it is
written last (temporary name, fsync, rename) and holds the hash of every file and the digests of the inputs that were
consumed: a stage whose input was made anew with another content is stale.

Hashing costs one read of what a stage wrote (about 1 GB/s); subfolders with a manifest of their own, such as
checkpoints, count by that file alone and are not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc import lease
from cathpc.config import Config
from cathpc.dispatch import jobs
from cathpc.errors import ChangedError, UserError
from cathpc.pipeline import Stage
from cathpc.pipeline import stages as wanted_stages
from cathpc.schema import identity

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
_IGNORED = {MANIFEST, INPUTS, "progress.json"}


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of plain JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(config: Config, stages: tuple[Stage, ...] | None = None) -> dict[str, str]:
    """Fingerprint of every stage under `config`, in order. Local sources are read once (digests are cached)."""
    known: dict[str, str] = {}
    for stage in stages or wanted_stages(config):
        known[stage.name] = digest(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": {s: identity(getattr(config, s), defaults=False) for s in stage.config},
                "identity": stage.identity(config) if stage.identity else None,
                "inputs": {i: known[i] for i in stage.inputs},
            }
        )
    return known


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, fsync, rename, fsync the folder: after a crash the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> str:
    """What a manifest records of a file: its SHA-256; of a link, where it points, since that may be gone."""
    return f"-> {os.readlink(path)}" if path.is_symlink() else file_hash(path)


def _passing(name: str) -> bool:
    """Whether a file at the top of a stage's folder belongs to the making of it and not to the result."""
    return name in _IGNORED or name.startswith("error.") or bool(lease.PATTERN.fullmatch(name))


def _outputs(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of everything that a stage wrote."""
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if here != folder and MANIFEST in files:
            found[str((here / MANIFEST).relative_to(folder))] = file_hash(here / MANIFEST)
            folders.clear()
            continue
        for name in sorted(files):
            if not name.startswith(".") and not (here == folder and _passing(name)):
                found[str((here / name).relative_to(folder))] = _content(here / name)
    return found


@dataclass(frozen=True)
class Place:
    """One stage of one run: where its folder is and what it stands on."""

    stage: Stage
    fingerprint: str
    folder: Path
    inputs: dict[str, Path]

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the stage is not complete."""
        manifest = read_json(self.folder / MANIFEST)
        return manifest if isinstance(manifest, dict) and manifest.get("fingerprint") == self.fingerprint else None

    def fresh(self) -> bool:
        """Whether the stage is complete and stands on its inputs as they are now."""
        manifest = self.manifest()
        if manifest is None:
            return False
        for name, folder in self.inputs.items():
            now = read_json(folder / MANIFEST)
            if now is None or now.get("digest") != manifest["inputs"][name]["digest"]:
                return False
        return True


def places(config: Config, stages: tuple[Stage, ...] | None = None) -> dict[str, Place]:
    """Every stage's place in the store under `config`; of those that it asks for, or of `stages`."""
    stages = stages or wanted_stages(config)
    root = Path(config.paths.store).absolute()
    known = fingerprints(config, stages)
    folders = {name: root / name / fp for name, fp in known.items()}
    return {s.name: Place(s, known[s.name], folders[s.name], {i: folders[i] for i in s.inputs}) for s in stages}


def unnamed_places(config: Config) -> dict[str, Place]:
    """Places whose fingerprints cannot be known yet, for a look at what would be submitted."""
    stages = wanted_stages(config)
    root = Path(config.paths.store).absolute()
    folders = {s.name: root / s.name / "unknown" for s in stages}
    return {s.name: Place(s, "unknown", folders[s.name], {i: folders[i] for i in s.inputs}) for s in stages}


def _digests(place: Place) -> dict[str, dict[str, str]]:
    """Fingerprint and digest of each input as it is now."""
    found = {}
    for name, folder in place.inputs.items():
        manifest = read_json(folder / MANIFEST)
        if manifest is None:
            raise ChangedError(f"{folder}, which {place.stage.name} stands on, is not finished; run the command again")
        found[name] = {"fingerprint": manifest["fingerprint"], "digest": manifest["digest"]}
    return found


def begun(place: Place) -> bool:
    """Whether the folder is ready for work on the inputs as they are now."""
    return read_json(place.folder / INPUTS) == _digests(place) and not (place.folder / MANIFEST).exists()


def begin(place: Place) -> dict[str, dict[str, str]]:
    """Make the folder ready for an attempt by the holder of its lease; returns the inputs that the attempt stands on.

    What an earlier attempt left is kept only if it stood on the same inputs: else a half-scored folder would mix the
    scores of two models. `inputs.json` is removed last, so that a kill in the middle is noticed by the next attempt.
    """
    used = _digests(place)
    recorded = read_json(place.folder / INPUTS)
    if (place.folder / MANIFEST).exists() or recorded not in (None, used):
        for path in sorted(place.folder.iterdir(), key=lambda p: (p.name == INPUTS, p.name != MANIFEST)):
            if path.name == jobs.FOLDER or lease.PATTERN.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_json(place.folder / INPUTS, used)
    return used


def commit(
    place: Place,
    config: Config,
    summary: dict[str, Any],
    used: dict[str, dict[str, str]],
    *,
    started: float,
    seconds: float,
) -> dict[str, Any]:
    """Write the manifest of a finished stage; from then on the folder is complete.

    Raises `ChangedError` where an input is no longer what `begin` found: it would pass for the new one's result; and
    `FencedError` where the folder has another owner by now.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("cathpc", "torch", "transformers", "deepspeed", "datasets", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    outputs = _outputs(place.folder)
    if _digests(place) != used:
        raise ChangedError(f"what {place.stage.name} stands on was made anew while it ran; run the command again")
    lease.fence(place.folder)
    manifest = {
        "stage": place.stage.name,
        "fingerprint": place.fingerprint,
        "digest": digest(outputs),
        "version": place.stage.version,
        "config": {s: identity(getattr(config, s)) for s in place.stage.config},
        "inputs": used,
        "outputs": outputs,
        "summary": summary,
        "attempt": list(lease.slurm_job()),
        "seconds": round(seconds, 3),
        "started": started,
        "versions": versions,
    }
    write_json(place.folder / MANIFEST, manifest)
    (place.folder / "progress.json").unlink(missing_ok=True)
    return manifest


def prepare_folder(place: Place) -> None:
    """Make the stage's folder, private; raises `UserError` where that is not possible."""
    try:
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {place.folder}: {error.strerror}. Choose another one with paths.store=FOLDER"
        ) from None
