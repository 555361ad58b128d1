"""The stage store: the same work is never done twice.

A stage's folder is `store/<stage>/<fingerprint>`. The fingerprint is a hash of the stage's name and version, of its own
part of the config, and of its inputs' fingerprints, so it is known before anything runs. The folder is complete when
its `manifest.json` is there; it is written last (temporary name, fsync, rename) and holds the hash of every file and
the digests of the inputs that were consumed: a stage whose input was made anew with another content is stale.

Hashing costs one read of what a stage wrote (about 1 GB/s); subfolders with a manifest of their own, such as
checkpoints, count by that file alone and are not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.config import Config
from cathpc.errors import ChangedError, UserError
from cathpc.pipeline import BY_NAME, STAGES, Stage
from cathpc.schema import identity

MANIFEST = "manifest.json"
CLAIM = "claim.json"
_IGNORED = {MANIFEST, CLAIM, "progress.json"}


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of plain JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(config: Config, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    """Fingerprint of every stage under `config`, in order. Local sources are read once (digests are cached)."""
    known: dict[str, str] = {}
    for stage in stages:
        known[stage.name] = digest(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": {s: identity(getattr(config, s)) for s in stage.config},
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
            if not name.startswith(".") and not (here == folder and (name in _IGNORED or name.startswith("error"))):
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


def places(config: Config, stages: tuple[Stage, ...] = STAGES) -> dict[str, Place]:
    """Every stage's place in the store under `config`."""
    root = Path(config.paths.store).absolute()
    known = fingerprints(config, stages)
    folders = {name: root / name / fp for name, fp in known.items()}
    return {s.name: Place(s, known[s.name], folders[s.name], {i: folders[i] for i in s.inputs}) for s in stages}


def commit(place: Place, config: Config, summary: dict[str, Any], *, started: float, seconds: float) -> dict[str, Any]:
    """Write the manifest of a finished stage; from then on the folder is complete."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("cathpc", "torch", "transformers", "deepspeed", "datasets", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    outputs = _outputs(place.folder)
    inputs = {}
    for name, folder in place.inputs.items():
        used = read_json(folder / MANIFEST)
        if used is None:
            raise ChangedError(
                f"{folder} lost its {MANIFEST} while {place.stage.name} ran on it; run the command again"
            )
        inputs[name] = {"fingerprint": used["fingerprint"], "digest": used["digest"]}
    manifest = {
        "stage": place.stage.name,
        "fingerprint": place.fingerprint,
        "digest": digest(outputs),
        "version": place.stage.version,
        "config": {s: identity(getattr(config, s)) for s in place.stage.config},
        "inputs": inputs,
        "outputs": outputs,
        "summary": summary,
        "seconds": round(seconds, 3),
        "started": started,
        "versions": versions,
    }
    write_json(place.folder / MANIFEST, manifest)
    (place.folder / "progress.json").unlink(missing_ok=True)
    return manifest


# --- claims ---------------------------------------------------------------------------------------------------------


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; tells a process from a later one with the same id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after = stat.rpartition(")")[2].split()
    return None if after[0] == "Z" else int(after[19])


def owner() -> dict[str, Any]:
    """This process, as a claim names it."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "ticks": _start_ticks(pid), "time": time.time()}


def alive(claim: dict[str, Any]) -> bool:
    """Whether the owner of a claim may still be at work; one on another machine cannot be asked: alive."""
    if claim.get("host") != socket.gethostname():
        return True
    if claim.get("boot") != _boot():
        return False
    return _start_ticks(int(claim["pid"])) == claim.get("ticks")


def claimed(folder: Path) -> dict[str, Any] | None:
    """The live claim on a stage's folder, or None."""
    claim = read_json(folder / CLAIM)
    return claim if isinstance(claim, dict) and alive(claim) else None


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Take the claim on `folder` for this process; False where a live owner holds it; a dead one's is taken over."""
    path = folder / CLAIM
    mine = owner()
    got = False
    for _ in range(3):
        temporary = folder / f".{CLAIM}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(mine))
        try:
            os.link(temporary, path)  # atomic: fails where the claim exists, and is never seen half written
            got = True
        except FileExistsError:
            held = read_json(path)
            if isinstance(held, dict) and alive(held):
                break
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, folder / f".{CLAIM}.stale.{os.getpid()}")
                (folder / f".{CLAIM}.stale.{os.getpid()}").unlink()
            continue
        finally:
            temporary.unlink(missing_ok=True)
        break
    try:
        yield got
    finally:
        if got and (read_json(path) or {}).get("ticks") == mine["ticks"]:
            path.unlink(missing_ok=True)


def prepare_folder(place: Place) -> None:
    """Make the stage's folder, private; a stale result is removed first, so that nothing of it leaks in."""
    try:
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {place.folder}: {error.strerror}. Choose another one with paths.store=FOLDER"
        ) from None
    if place.manifest() is not None and not place.fresh():
        aside = place.folder.with_name(f".stale-{place.fingerprint}-{os.getpid()}")
        os.rename(place.folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
        place.folder.mkdir(mode=0o700)


def stage(name: str) -> Stage:
    """The stage called `name`; a `UserError` lists the known ones."""
    if name not in BY_NAME:
        raise UserError(f"there is no stage {name!r}. Stages: {', '.join(BY_NAME)}")
    return BY_NAME[name]
