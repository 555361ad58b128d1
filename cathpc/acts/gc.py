"""`gc`: what of the store no run needs, how much it takes, and its removal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from cathpc import terminal
from cathpc import disk
from cathpc.config import PathsConfig
from cathpc.disk import Size
from cathpc.errors import EXIT_DONE, EXIT_OURS, UserError
from cathpc.pipeline import BY_NAME
from cathpc.unneeded import DAY_S, Freed, Survey, delete, survey

HELP = "list what of the store no run needs, with its size; --delete removes it (first: rm -r runs/NAME)"


def options(parser: argparse.ArgumentParser) -> None:
    """Where to look and what to do; no experiment is needed."""
    default = PathsConfig()
    parser.epilog = (
        "To delete a run: rm -r runs/NAME, then gc --delete. Give all folders of runs that use the store with --runs: "
        "what only a run elsewhere needs looks unneeded."
    )
    parser.add_argument("--delete", action="store_true", help="remove what is listed as unneeded")
    parser.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="spare what was changed since")
    parser.add_argument("--store", type=Path, default=Path(default.store), help="the store (%(default)s)")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[Path(default.runs)], help=f"folders of runs ({default.runs})"
    )
    parser.add_argument("--cache", type=Path, default=Path(default.cache), help="the cache (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """List, and with --delete remove what was listed."""
    if arguments.overrides:
        raise UserError(
            f"gc takes no overrides ({arguments.overrides[0]}): it looks at the whole store. "
            "Other places: --store, --runs, --cache"
        )
    if not arguments.older_than >= 0:
        raise UserError(f"--older-than is {arguments.older_than}: it must be 0 or more days")
    store = arguments.store.absolute()
    if not store.is_dir():
        raise UserError(f"there is no store {store}. Name it with --store FOLDER")
    found = survey(store, arguments.runs, older_than_s=arguments.older_than * DAY_S)
    freed = delete(found, arguments.runs) if arguments.delete else None
    if arguments.json:
        print(json.dumps(_plain(found, freed, arguments.cache), indent=1))
    else:
        show(found, freed, arguments.cache)
    return EXIT_OURS if freed and freed.failed else EXIT_DONE


def show(found: Survey, freed: Freed | None, cache: Path) -> None:
    """Print the table of the stages, what is not needed, and what the file system has left."""
    from rich.table import Table

    console = terminal.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("folders", "needed", "unneeded", "size", "inodes", "to free", "inodes"):
        table.add_column(name, justify="right")
    for name, row in _by_stage(found).items():
        table.add_row(
            name,
            *(f"{row[k]:,}" for k in ("folders", "needed", "unneeded")),
            *(disk.human(row["bytes"]), f"{row['inodes']:,}"),
            *(disk.human(row["unneeded_bytes"]), f"{row['unneeded_inodes']:,}"),
        )
    console.print(table)
    unneeded = found.unneeded()
    gone = set(freed.removed) if freed else set()
    now = time.time()
    lines = []
    for f in sorted(unneeded, key=lambda f: -f.size.bytes):
        word, age = "removed " if f.path in gone else "unneeded", (now - f.size.newest) / DAY_S
        lines.append(f"{word}  {f.path}  {disk.human(f.size.bytes)}, changed {age:,.1f} days ago")
    for x in found.leftovers:
        word = "removed " if x.path in gone else "leftover"
        lines.append(f"{word}  {x.path}  {disk.human(x.size.bytes)}, {x.what}")
    if young := [f for f in found.folders if f.young]:
        lines.append(f"spared    {len(young)} folders that no run needs, changed since --older-than")
    lines += [f"empty     {path}: all of its stages are gone; rm -r {path}" for path in found.empty_runs]
    lines += [f"unsure    {text}; what its links lead to is kept" for text in found.unsure]
    total = sum([f.size for f in unneeded] + [x.size for x in found.leftovers], Size())
    count = len(unneeded) + len(found.leftovers)
    if freed is not None:
        lines += [f"spared    {text}" for text in freed.spared] + [f"failed    {text}" for text in freed.failed]
        what = f"removed {len(freed.removed)} of {count}"
        lines.append(f"\n{what}: {disk.human(freed.size.bytes)}, {freed.size.inodes:,} inodes")
    elif count:
        lines.append(f"\n{count} to remove: {disk.human(total.bytes)}, {total.inodes:,} inodes; --delete removes them")
    else:
        lines.append("\nnothing to remove. To delete a run: rm -r runs/NAME, then this command again")
    taken = disk.size(cache.absolute()) if cache.is_dir() else Size()
    lines.append(f"cache     {cache}: {disk.human(taken.bytes)}, {taken.inodes:,} inodes; may be removed at any time")
    left = disk.free(found.store)
    inodes = f", {left.inodes:,} of {left.total_inodes:,} inodes" if left.total_inodes else ""
    lines.append(f"free      {disk.human(left.bytes)} of {disk.human(left.total_bytes)}{inodes}")
    lines += [f"quota     {line}" for line in disk.quota(found.store)]
    console.print("\n" + "\n".join(lines).lstrip("\n"), markup=False)


def _by_stage(found: Survey) -> dict[str, dict[str, int]]:
    rows = {}
    for stage in BY_NAME.values():
        every = [f for f in found.folders if f.stage == stage.name]
        gone = [f for f in found.unneeded() if f.stage == stage.name]
        all_of, to_free = sum((f.size for f in every), Size()), sum((f.size for f in gone), Size())
        if every:
            rows[stage.name] = {
                "folders": len(every),
                "needed": sum(bool(f.needed_by) for f in every),
                "unneeded": len(gone),
                "bytes": all_of.bytes,
                "inodes": all_of.inodes,
                "unneeded_bytes": to_free.bytes,
                "unneeded_inodes": to_free.inodes,
            }
    return rows


def _plain(found: Survey, freed: Freed | None, cache: Path) -> dict[str, Any]:
    """Everything as JSON data."""

    def entry(path: Path, size: Size, **more: Any) -> dict[str, Any]:
        return {"path": str(path), "bytes": size.bytes, "inodes": size.inodes, "changed": size.newest, **more}

    taken = disk.size(cache.absolute()) if cache.is_dir() else Size()
    return {
        "stages": _by_stage(found),
        "needed": [entry(f.path, f.size, by=f.needed_by) for f in found.folders if f.needed_by],
        "unneeded": [entry(f.path, f.size) for f in found.unneeded()],
        "spared": [entry(f.path, f.size) for f in found.folders if f.young],
        "leftovers": [entry(x.path, x.size, what=x.what) for x in found.leftovers],
        "empty_runs": found.empty_runs,
        "unsure": found.unsure,
        "cache": entry(cache, taken),
        "free": dataclasses.asdict(disk.free(found.store)),
        "quota": disk.quota(found.store),
        "removed": [str(path) for path in freed.removed] if freed else [],
        "freed": {"bytes": freed.size.bytes, "inodes": freed.size.inodes} if freed else None,
        "not_removed": freed.spared + freed.failed if freed else [],
    }
