"""What of the store no run needs, and its removal.

A stage's folder is needed if a run in the folders of runs leads to it (by its links, or by its saved config), if a
needed folder was made from it, or if somebody works on it or has jobs queued for it. Only folders of the form
`store/<stage>/<16 hex digits>`, and what lies in them, are ever removed. Costs one `lstat` a file of the store.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cathpc import disk, lease, saved
from cathpc.disk import Size
from cathpc.dispatch import jobs, slurm
from cathpc.dispatch.config import ClusterConfig
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME
from cathpc.store import MANIFEST, read_json

DAY_S = 86_400.0
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
DOOMED = re.compile(r"\.gc-[0-9a-f]{16}")
"""A folder whose removal had begun."""


@dataclass
class Folder:
    """A stage's folder in the store."""

    stage: str
    path: Path
    size: Size
    needed_by: list[str] = field(default_factory=list)
    """Names of runs, and other reasons; a folder without any is not needed."""
    young: bool = False
    """Not needed, but changed too lately for --older-than."""


@dataclass
class Leftover:
    """Something inside the store that may go whether or not its stage is needed."""

    path: Path
    what: str
    size: Size


@dataclass
class Survey:
    """What was found."""

    store: Path
    folders: list[Folder]
    leftovers: list[Leftover]
    empty_runs: list[str]
    """Runs all of whose stages are gone."""
    unsure: list[str]
    """Runs whose saved config leads nowhere today: their links alone count."""

    def unneeded(self) -> list[Folder]:
        """The folders that may go."""
        return [f for f in self.folders if not f.needed_by and not f.young]


@dataclass
class Freed:
    """What was removed and what was not, with the reason."""

    size: Size = field(default_factory=Size)
    removed: list[Path] = field(default_factory=list)
    spared: list[str] = field(default_factory=list)
    """Taken into use since it was listed."""
    failed: list[str] = field(default_factory=list)


# --- finding --------------------------------------------------------------------------------------------------------


def survey(store: Path, runs: list[Path], *, older_than_s: float = 0.0) -> Survey:
    """Look through the store and the runs. Sizes come first, since they take long: what is needed is asked last."""
    now = time.time()
    folders, leftovers = [], []
    for stage in BY_NAME.values():
        top = store / stage.name
        if top.is_symlink() or not top.is_dir():
            continue
        for path in sorted(top.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            if FINGERPRINT.fullmatch(path.name):
                folders.append(Folder(stage.name, path, disk.size(path)))
            elif DOOMED.fullmatch(path.name) and not lease.holder(path):
                leftovers.append(Leftover(path, "of a removal that was interrupted", disk.size(path)))
    reasons, empty, unsure = needed(folders, runs)
    for folder in folders:
        folder.needed_by = reasons.get(folder.path, [])
        folder.young = not folder.needed_by and now - folder.size.newest < older_than_s
        if (folder.needed_by or folder.young) and not _live(folder.path):
            leftovers += _leftovers(folder.path, now)
    return Survey(store, folders, leftovers, empty, unsure)


def needed(folders: list[Folder], runs: list[Path]) -> tuple[dict[Path, list[str]], list[str], list[str]]:
    """Folder -> who needs it; the runs that have lost all stages; the runs whose saved config leads nowhere today."""
    known = {(f.stage, f.path.name): f.path for f in folders}
    reasons: dict[Path, list[str]] = {f.path: [reason] for f in folders if (reason := _live(f.path))}
    empty, unsure = [], []
    for run in [run for folder in runs for run in saved.read(folder, "--runs FOLDER")]:
        # Stage and fingerprint are compared, not paths: a store may have been moved, or reached by another name.
        pairs = {(name, folder.name) for name, folder in run.linked.items()}
        if pairs and not pairs & set(known):
            empty.append(str(run.folder))
        try:
            pairs |= {(name, folder.name) for name, folder in run.planned.items()}
        except UserError as error:
            unsure.append(f"{run.folder}: {error}")
        if source := run.config.get("train", {}).get("resume_from"):
            pairs.add(("train", Path(source).name))
        for pair in pairs & set(known):
            reasons.setdefault(known[pair], []).append(run.name)
    pending = list(reasons)
    while pending:  # what a needed folder was made from
        manifest = read_json(pending.pop() / MANIFEST)
        inputs = manifest.get("inputs", {}) if isinstance(manifest, dict) else {}
        for name, used in inputs.items():
            path = known.get((name, used.get("fingerprint")))
            if path is not None and path not in reasons:
                reasons[path] = ["what was made from it"]
                pending.append(path)
    return {path: sorted(set(names)) for path, names in reasons.items()}, empty, unsure


def _live(folder: Path) -> str:
    """Why nobody may touch `folder` now: somebody works on it, or jobs are queued for it; '' where neither is so."""
    if lease.holder(folder, job_state=slurm.job_state):
        return "somebody works on it"
    record = jobs.read(folder)
    if record is None or (folder / MANIFEST).is_file():
        return ""
    cluster = ClusterConfig(slurm_conf=record.slurm_conf)
    live = slurm.live_jobs(cluster, lambda job: record.has(id=job.base, name=job.name))
    if live is None:
        return "jobs for it may be queued: Slurm does not answer"
    return f"job {', '.join(sorted(live))} is queued for it" if live else ""


def _leftovers(folder: Path, now: float) -> list[Leftover]:
    """In a folder that stays: checkpoints set aside, where a sound one is left, and temporary ones older than a day."""
    found = []
    checkpoints = folder / "checkpoints"
    # Without a committed one, those set aside are the proof that training must not start afresh.
    if (folder / MANIFEST).is_file() or any(checkpoints.glob(f"step-*/{MANIFEST}")):
        found += [Leftover(p, "a broken checkpoint", disk.size(p)) for p in sorted(checkpoints.glob("bad-*"))]
    for path in sorted([*folder.glob(".tmp-*"), *checkpoints.glob(".tmp-*")]):
        taken = disk.size(path)
        if now - taken.newest > DAY_S:
            found.append(Leftover(path, "a temporary one of an attempt that was killed", taken))
    return found


# --- removing -------------------------------------------------------------------------------------------------------


def delete(found: Survey, runs: list[Path]) -> Freed:
    """Remove what `found` lists; what a run that began since then needs is spared."""
    freed = Freed()
    reasons, _, _ = needed(found.folders, runs)
    for folder in found.unneeded():
        if folder.path in reasons:
            freed.spared.append(f"{folder.path}: needed by now ({', '.join(reasons[folder.path])})")
            continue
        _attempt(freed, folder.path, folder.size, lambda path: _delete_stage(path, found.store))
    for leftover in found.leftovers:
        stage_folder = found.store.joinpath(*leftover.path.relative_to(found.store).parts[:2])
        if lease.holder(stage_folder):
            freed.spared.append(f"{leftover.path}: somebody works there by now")
            continue
        _attempt(freed, leftover.path, leftover.size, lambda path: disk.remove(path, inside=found.store))
    return freed


def _attempt(freed: Freed, path: Path, size: Size, remove: Callable[[Path], None]) -> None:
    try:
        remove(path)
    except OSError as error:
        freed.failed.append(f"{path}: {error.strerror or error}")
        return
    freed.removed.append(path)
    freed.size += size


def _delete_stage(path: Path, store: Path) -> None:
    """Remove a stage's folder: its manifest first, then, under a name that no run looks for, all the rest."""
    assert path.parent.parent == store and FINGERPRINT.fullmatch(path.name), path
    with lease.held(path) as mine:
        if mine is None:
            raise OSError("somebody has begun to work on it")
        (path / MANIFEST).unlink(missing_ok=True)
        doomed = path.with_name(f".gc-{path.name}")
        if doomed.exists():
            disk.remove(doomed, inside=store)
        path.rename(doomed)
    disk.remove(doomed, inside=store)
