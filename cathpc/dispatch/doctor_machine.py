"""`doctor` on the machine where it is started: Python, keys, the folders of a run and how fast they write.

In: the composed config. Out: checks. Nothing heavy is imported here; torch is asked in a process of its own. The
folders that a run would make are made (mode 0700) and taken away again where they stay empty.
"""

from __future__ import annotations

import os
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cathpc import __version__
from cathpc.config import Config, PathsConfig, cores
from cathpc.dispatch.doctor_check import Check, fail, warn, well

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "pyarrow", "safetensors", "numpy")
"""Packages whose version changes results or file formats: equal here and on the nodes."""
FREE_GB = (1.0, 50.0)
"""Free space below which a run is refused, and below which it is warned."""
FREE_INODES = 100_000
WRITE_MB = 256
SLOW_MB_S = 200.0
FSYNCS = 100
SLOW_FSYNC_MS = 50.0


def software() -> dict[str, str]:
    """Versions of Python, cathpc and the packages that matter, read without importing them."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "cathpc": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def folders(paths: PathsConfig) -> dict[str, Path]:
    """The folders that a run writes, by their config key."""
    return {f"paths.{n}": Path(getattr(paths, n)).absolute() for n in ("runs", "store", "cache")}


@contextmanager
def made(paths: PathsConfig) -> Iterator[dict[str, Check]]:
    """Make the folders of a run; yields a failed check for each that cannot be made. Empty ones go away at the end."""
    faults: dict[str, Check] = {}
    new: list[Path] = []
    for key, folder in folders(paths).items():
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            new += missing
        except OSError as error:
            faults[key] = fail(
                key, f"{folder} cannot be made: {error.strerror}", f"choose a folder of your own: {key}=FOLDER"
            )
    try:
        yield faults
    finally:
        for folder in sorted(new, key=lambda p: len(p.parts), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # something lies in it by now, or a run has come to use it
                pass


def machine(config: Config) -> list[Check]:
    """Python, torch, cores, memory and keys of this machine."""
    return [python(software()), torch_import(), _cores(config), *keys(config, _hub_token(), _wandb_key())]


def python(found: dict[str, str]) -> Check:
    """Whether all packages are there."""
    missing = [name for name, text in found.items() if text == "missing"]
    seen = f"Python {found['python']}, cathpc {found['cathpc']}, torch {found['torch']}"
    if missing:
        return fail("python", f"{seen}; missing: {', '.join(missing)}", "install cathpc into this Python: make install")
    return well("python", f"{seen} ({sys.executable})")


def torch_import() -> Check:
    """How long `import torch` takes: minutes where the environment lies on a slow file system."""
    began = time.monotonic()
    try:
        code = "import torch, transformers"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return fail("import", "torch is not imported after 180 s", "move the environment to a faster file system")
    took = time.monotonic() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        return fail("import", f"torch or transformers cannot be imported: {last}", "install again: make install")
    if took > 60:
        return warn(
            "import",
            f"torch and transformers take {took:.0f} s",
            "every rank pays this at each start: move the environment to a faster file system, or use a container",
        )
    return well("import", f"torch and transformers in {took:.1f} s")


def _cores(config: Config) -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return well("cores", f"{cores(config.cluster)} cores, {memory:.0f} GB of memory")


def _hub_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _wandb_key() -> bool:
    from cathpc.tracking.mode import has_key

    return has_key()


def keys(config: Config, hub: bool, wandb: bool) -> list[Check]:
    """Whether the keys that the run will ask for are there; they are never shown."""
    from cathpc.data import lock
    from cathpc.models.fetch import is_hub_id

    checks = []
    mode = config.tracker.mode.name
    if mode in ("disabled", "offline"):
        checks.append(well("W&B", f"tracker.mode is {mode}: no key needed"))
    elif wandb:
        checks.append(well("W&B", "a key is present"))
    elif mode == "online":
        checks.append(warn("W&B", "tracker.mode is online and there is no key", "wandb login, or set WANDB_API_KEY"))
    else:
        advice = "nothing is lost: `sync` sends the run later; for that: wandb login"
        checks.append(warn("W&B", "no key (WANDB_API_KEY or ~/.netrc): the run is written offline", advice))
    bases = (config.model.base, config.gpt.base, config.refusal.base, *config.cards.models)
    entries = lock.read()["models"]
    gated = sorted({b for b in bases if b and is_hub_id(b) and entries.get(b, {}).get("gated", True)})
    if hub:
        checks.append(well("Hub token", "present"))
    elif gated:
        advice = "accept the licence on the model's page, then: hf auth login (or set HF_TOKEN)"
        checks.append(warn("Hub token", f"absent, and gated or not known: {', '.join(gated)}", advice))
    else:
        checks.append(well("Hub token", "absent, and none is needed"))
    return checks


# --- folders --------------------------------------------------------------------------------------------------------


def folder_checks(config: Config, faults: dict[str, Check]) -> list[Check]:
    """Modes, room, speed and hard links of the folders of a run; each file system is measured once."""
    checks = list(faults.values())
    known = {key: folder for key, folder in folders(config.paths).items() if key not in faults}
    for key, folder in known.items():
        try:
            status = folder.stat()
            checks.append(private(key, folder, status.st_mode, status.st_uid, os.getuid(), file_system(folder)))
        except OSError as error:
            checks.append(fail(key, f"{folder}: {error.strerror}", f"choose another folder: {key}=FOLDER"))
    measured: dict[int, str] = {}
    for key in ("paths.store", "paths.runs", "paths.cache"):
        if key not in known or known[key].stat().st_dev in measured:
            continue
        measured[known[key].stat().st_dev] = key
        room = os.statvfs(known[key])
        checks.append(space(key, room.f_bavail * room.f_frsize / 1e9, room.f_favail, room.f_files))
        if checks[-1].state.value != "fail" and key != "paths.cache":
            checks += [*speed_of(key, known[key]), linked(f"{key} links", {key: links(known[key])})]
    return checks


def private(key: str, folder: Path, mode: int, owner: int, me: int, kind: str) -> Check:
    """Whether others can write into a folder, or read it."""
    seen = f"{folder} ({kind}, mode {stat.S_IMODE(mode):04o})"
    if owner != me:
        return fail(key, f"{seen} belongs to user {owner}", f"choose a folder of your own: {key}=FOLDER")
    if mode & 0o022:
        return fail(key, f"{seen} can be written by others", f"chmod 700 {folder}")
    if mode & 0o055:
        return warn(key, f"{seen} can be read by others", f"chmod 700 {folder}, unless that is wanted")
    return well(key, seen)


def file_system(folder: Path, mounts: str | None = None) -> str:
    """Type of the file system that a folder lies on, such as 'lustre' or 'nfs4', from the text of /proc/mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "?"
    real, best = os.path.realpath(folder), ("", "?")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        where = fields[1].replace("\\040", " ")
        if (real == where or real.startswith(where.rstrip("/") + "/")) and len(where) >= len(best[0]):
            best = (where, fields[2])
    return best[1]


def space(key: str, free_gb: float, free_inodes: int, inodes: int) -> Check:
    """Free space and inodes; file systems without a count of inodes say 0 of 0."""
    seen = f"{free_gb:,.0f} GB free" + (f", {free_inodes:,} inodes" if inodes else "")
    if free_gb < FREE_GB[0]:
        return fail(f"{key} room", f"{free_gb:.2f} GB free", f"free some space, or choose another folder: {key}=FOLDER")
    if inodes and free_inodes < FREE_INODES:
        return warn(f"{key} room", seen, "free some inodes: a run makes thousands of small files")
    if free_gb < FREE_GB[1]:
        advice = "a checkpoint takes 14 bytes a parameter, and train.keep_checkpoints + 1 of them lie there at a time"
        return warn(f"{key} room", seen, f"enough for small models only: {advice}")
    return well(f"{key} room", seen)


def speed_of(key: str, folder: Path) -> list[Check]:
    """Write speed of one large file and the time of small durable writes, measured in `folder`."""
    probe = folder / f".doctor-speed.{os.getpid()}"
    block = os.urandom(4 << 20)
    try:
        with open(probe, "wb") as file:
            began = time.monotonic()
            for _ in range(WRITE_MB * 1_000_000 // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            mb_s = file.tell() / 1e6 / (time.monotonic() - began)
            times = []
            for _ in range(FSYNCS):
                began = time.monotonic()
                file.write(b"x" * 200)
                file.flush()
                os.fsync(file.fileno())
                times.append((time.monotonic() - began) * 1000)
                if sum(times) > 20_000:
                    break
    except OSError as error:
        return [fail(f"{key} speed", f"{folder}: {error.strerror}", f"choose another folder: {key}=FOLDER")]
    finally:
        probe.unlink(missing_ok=True)
    return [write_speed(key, mb_s), fsync_time(key, times)]


def write_speed(key: str, mb_s: float) -> Check:
    """What the speed of one writer means for a checkpoint."""
    seen = f"{mb_s:,.0f} MB/s by one writer ({WRITE_MB} MB with fsync): 1 TB would take {1e6 / mb_s / 60:,.0f} min"
    if mb_s < SLOW_MB_S:
        advice = "put the store on the parallel file system (paths.store=FOLDER), or raise cluster.lead_s to fit a save"
        return warn(f"{key} speed", seen, advice)
    return well(f"{key} speed", seen)


def fsync_time(key: str, times_ms: list[float]) -> Check:
    """How long a small durable write takes."""
    median = statistics.median(times_ms)
    seen = f"{median:.1f} ms in the median, {max(times_ms):.0f} ms at most ({len(times_ms)} small writes)"
    if median > SLOW_FSYNC_MS:
        return warn(f"{key} fsync", seen, f"each shard and step marker pays this: a faster folder helps, {key}=FOLDER")
    return well(f"{key} fsync", seen)


def links(folder: Path) -> str:
    """'' where `folder` takes a hard link, and none under a name that is taken; else why not."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
            file, link = Path(place) / "file", Path(place) / "link"
            file.touch()
            os.link(file, link)
            try:
                os.link(file, link)
            except FileExistsError:
                return ""
            return "a second one under the same name is not refused"
    except OSError as error:
        return str(error.strerror)


def linked(name: str, found: dict[str, str]) -> Check:
    """Whether folders, by their keys, take hard links: who makes a lease or a marker first is told by one."""
    faults = {key: fault for key, fault in found.items() if fault}
    if faults:
        advice = "choose a folder on a file system with hard links, such as NFS, Lustre, GPFS, XFS or ext4"
        seen = ", ".join(f"{key}: {fault}" for key, fault in faults.items())
        return fail(name, f"no hard links: {seen}", f"{advice}: {' '.join(f'{key}=FOLDER' for key in faults)}")
    return well(name, "hard links are made, and refused under a name that is taken")
