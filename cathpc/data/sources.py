"""What identifies the sources of a dataset, and whether they may be read at all; light enough for a login node.

A local file counts by the SHA-256 of its content (one read; a cached digest is taken while path, size, times and inode
are the same), a Hub dataset by the commit in the lock file. Every source is checked here, before anything is queued.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from cathpc.data import lock
from cathpc.data.config import DatasetConfig, SourceConfig
from cathpc.data.formats import columns_of
from cathpc.digests import Digests
from cathpc.errors import UserError

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File name extension -> how the file is read."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""What may follow the extension of a text file -> how it is compressed."""
TEXT = ("jsonl", "json", "csv")
PROBES = "probes"
"""In `dataset.decontaminate`: all of `SHIPPED`."""
SHIPPED = ("probes", "requests")
"""The sets that stage `evaluate` asks and cathpc ships, in `assets`."""
_HUB_ID = re.compile(r"(?!buckets/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Without 'org/' the `datasets` library takes a name for one of its loaders ('json'), with a dot for a folder."""
_NO_LICENSE = ("", "?", "-", "n/a", "none", "null", "tbd", "todo", "unknown", "not stated", "unlicensed")


def identity(dataset: DatasetConfig, cache: Path | None = None) -> dict[str, Any]:
    """Source key -> {'sha256'} of a local file or {'hub', 'commit'} of a Hub dataset; 'decontaminate NAME' ->
    {'sha256'}.

    `cache` is a JSON file of digests, made when absent and ignored when it cannot be written. Raises one `UserError`
    for everything that is wrong with the sources: a missing, empty or unreadable file, an unknown extension, a path
    that leaves the data root, no licence, an unknown field in `columns`, a Hub dataset that is not pinned.
    """
    digests = Digests(cache)
    found: dict[str, Any] = {}
    faults: list[str] = []
    for key, source in dataset.sources.items():
        try:
            check(key, source)
            if source.hub:
                found[key] = {"hub": source.hub, "commit": lock.commit(source.hub, "dataset")}
            else:
                found[key] = {"sha256": digests.of(local_file(dataset, key))}
        except UserError as error:
            faults.append(str(error))
    try:
        sets = evaluation_sets(dataset)
        found |= {f"decontaminate {name}": {"sha256": digests.of(file)} for name, file in sets.items()}
    except UserError as error:
        faults.append(str(error))
    if faults:
        raise UserError("\n  ".join(dict.fromkeys(faults)))
    digests.save()
    return found


def check(key: str, source: SourceConfig) -> None:
    """Raise `UserError` for a source that could not be used whatever its file holds."""
    at = f"dataset.sources.{key}"
    if bool(source.path) == bool(source.hub):
        raise UserError(f"{at}: give either path (a local file) or hub (an id), one of them")
    if source.hub and not _HUB_ID.fullmatch(source.hub):
        raise UserError(f"{at}.hub is {source.hub!r}: expected the id of a dataset on the Hub, 'org/name'")
    if source.license.strip().casefold() in _NO_LICENSE:
        raise UserError(
            f"{at}.license is {source.license!r}: state the licence of {source.path or source.hub}, as its card or its "
            "authors do, e.g. apache-2.0. What has none may not be used, so it is not read"
        )
    if source.limit is not None and source.limit <= 0:
        raise UserError(f"{at}.limit is {source.limit}: it must be greater than 0, or null for all records")
    if source.component.name == "refusal" and "label" not in source.columns:
        raise UserError(f"{at}.columns has no label: component refusal needs one, e.g. columns: {{label: COLUMN}}")
    for name, value in source.labels.items():
        if not 0 <= value <= 1:
            raise UserError(f"{at}.labels.{name} is {value}: a refusal label lies in 0..1")
    columns_of(key, source)


def local_file(dataset: DatasetConfig, key: str) -> Path:
    """The resolved file of a local source; see `_inside`."""
    return _inside(dataset, dataset.sources[key].path, f"dataset.sources.{key}.path")


def evaluation_sets(dataset: DatasetConfig) -> dict[str, Path]:
    """Name -> file of every set of `dataset.decontaminate`; see `_inside`."""
    assets = Path(__file__).parents[1] / "assets"
    found: dict[str, Path] = {}
    for name in dataset.decontaminate:
        if name == PROBES:
            found |= {shipped: assets / f"{shipped}.jsonl" for shipped in SHIPPED}
        else:
            found[name] = _inside(dataset, name, "dataset.decontaminate")
    return found


def _inside(dataset: DatasetConfig, name: str, key: str) -> Path:
    """The resolved file `name`, as the config's `key` has it. Raises `UserError` unless it is a readable, non-empty
    file of a known kind that lies inside `dataset.root` once every symbolic link is followed."""
    at = f"{key}: {name}"
    if not dataset.root:
        raise UserError(f"{at}: dataset.root is empty; it names the folder that the paths are relative to")
    root = Path(dataset.root).expanduser().resolve()
    path = root / name
    try:
        file = path.resolve()
        inside = not Path(name).is_absolute() and file.is_relative_to(root)
        if not inside:
            raise UserError(f"{at}: path leaves the data root ({root}). Give a file inside it, relative to it")
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{at}: no such file under {root}. Check the name, or set dataset.root") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL in the name, a loop of links
        raise UserError(f"{at}: cannot be opened under {root}: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{at}: not a file ({file})")
    if file_kind(name) is None:
        raise UserError(
            f"{at}: unknown file format {Path(name).suffix!r}. Valid: {', '.join(KINDS)}; text also as "
            f"{' or '.join(COMPRESSIONS)}"
        )
    if not status.st_size:
        raise UserError(f"{at}: the file is empty ({file})")
    if not os.access(file, os.R_OK):
        raise UserError(f"{at}: no permission to read {file}")
    return file


def file_kind(path: str) -> str | None:
    """How a file is read ('jsonl', 'json', 'csv', 'parquet', 'arrow') by its extension, or None."""
    name = Path(path.lower())
    if name.suffix in COMPRESSIONS:
        kind = KINDS.get(Path(name.stem).suffix)
        return kind if kind in TEXT else None
    return KINDS.get(name.suffix)
