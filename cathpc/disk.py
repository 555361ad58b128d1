"""What lies on the disk: sizes of folders, free space and inodes, the user's quota, and removal that stays inside.

Symbolic links are counted as links and never followed. Sizes are what a file takes (its blocks), as quotas count it.
Measuring costs one `lstat` a file.
"""

from __future__ import annotations

import getpass
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

QUOTA_TIMEOUT_S = 10.0
BLOCK = 512  # bytes of a block in `st_blocks`, whatever the file system; see stat(2)


@dataclass(frozen=True)
class Size:
    """What a folder takes."""

    bytes: int = 0
    inodes: int = 0
    newest: float = 0.0
    """Time of the latest change in it, in seconds since 1970."""

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.inodes + other.inodes, max(self.newest, other.newest))


def size(path: Path) -> Size:
    """What `path` takes with all that is in it; a file with several hard links counts for its share of them.

    What vanishes meanwhile is not counted: others may be at work.
    """
    total = Size()
    pending = [path]
    while pending:
        here = pending.pop()
        try:
            status = here.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending += [Path(entry.path) for entry in os.scandir(here)]
        except FileNotFoundError:
            continue
        except PermissionError:  # a folder that may not be read counts as itself
            pass
        links = 1 if stat.S_ISDIR(status.st_mode) else max(1, status.st_nlink)
        total += Size(status.st_blocks * BLOCK // links, 1, status.st_mtime)
    return total


def human(count: float) -> str:
    """'512 B', '1.4 kB', '23 MB', '1.2 TB': units of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


@dataclass(frozen=True)
class Free:
    """What an ordinary user may still take of a file system."""

    bytes: int
    total_bytes: int
    inodes: int
    total_inodes: int
    """0 where the file system does not count them."""


def free(path: Path) -> Free:
    """The file system that holds `path`, or the nearest folder above it that there is."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return Free(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files)


def quota(path: Path) -> list[str]:
    """What the site's own commands say of the user's quota, line by line; [] where there is none."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    for command in (["lfs", "quota", "-h", "-u", user, str(path)], ["quota", "-s"]):
        if not shutil.which(command[0]):
            continue
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=QUOTA_TIMEOUT_S, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            continue
        lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
        if len(lines) > 1:  # one line says that there is none; `quota` exits with 1 where one is exceeded
            return lines
    return []


def remove(path: Path, *, inside: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; raises `OSError` for the first that will not go.

    No link is followed, not even one in the folders between `inside` and `path`.
    """
    relative = path.relative_to(inside)
    assert relative.parts and ".." not in relative.parts, path
    for number in range(1, len(relative.parts)):
        between = inside.joinpath(*relative.parts[:number])
        if between.is_symlink():
            raise OSError(f"{between} is a symbolic link")
    remover: Callable[[Path], None] = shutil.rmtree if path.is_dir() and not path.is_symlink() else Path.unlink
    remover(path)
