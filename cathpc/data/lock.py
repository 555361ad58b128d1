"""The lock file: which commit of a Hub repository this project uses, as `python -m cathpc pin` resolved it.

`conf/dataset/lock.yaml` maps 'datasets' and 'models' and a Hub id to {commit, license, gated, size_gb}. A commit is
never written by hand and never guessed; what is not in the file is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cathpc.config import conf_dir
from cathpc.errors import UserError

KINDS = ("datasets", "models")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEAD = "# Written by `python -m cathpc pin`: the commit of every Hub repository, with what its card said there.\n"


def lock_file() -> Path:
    """Where the lock file is: the environment's CATHPC_LOCK, else conf/dataset/lock.yaml beside the configs."""
    named = os.environ.get("CATHPC_LOCK")
    return Path(named) if named else conf_dir() / "dataset" / "lock.yaml"


def read(path: Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Entries by kind and Hub id; empty where the file is absent. Raises `UserError` for a file of another shape."""
    import yaml

    path = path or lock_file()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        found = {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not readable YAML ({first}). Delete it and pin again") from None
    if not isinstance(found, dict) or set(found) - set(KINDS):
        raise UserError(f"{path} is not a lock file: its keys must be {', '.join(KINDS)}. Delete it and pin again")
    entries = {kind: found.get(kind) or {} for kind in KINDS}
    for kind, repositories in entries.items():
        if not isinstance(repositories, dict):
            raise UserError(f"{path}: {kind} must map Hub ids to entries. Delete it and pin again")
        for hub_id, entry in repositories.items():
            sha = entry.get("commit") if isinstance(entry, dict) else None
            if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
                raise UserError(
                    f"{path}: {kind}.{hub_id} has the commit {sha!r}, expected 40 hexadecimal digits. "
                    "Pin it again: python -m cathpc pin"
                )
    return entries


def write(entries: dict[str, dict[str, dict[str, Any]]], path: Path | None = None) -> None:
    """Replace the lock file at once (temporary name, fsync, rename), sorted by id."""
    import yaml

    path = path or lock_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(_HEAD + yaml.safe_dump(entries, sort_keys=True))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def commit(hub_id: str, kind: str) -> str:
    """The pinned commit (40 hex digits) of a repository; `kind` is 'dataset' or 'model'.

    Raises `UserError` for one that is not pinned: the Hub's newest state is never taken silently.
    """
    entry = read()[f"{kind}s"].get(hub_id)
    if entry is None:
        raise UserError(
            f"{hub_id} ({kind} of the Hub) is not pinned in {lock_file()}. Resolve its commit, licence and size "
            "where the Hub can be reached: python -m cathpc pin +experiment=NAME"
        )
    return str(entry["commit"])
