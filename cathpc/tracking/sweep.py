"""The table of a sweep as a W&B run: what `compare` shows, one row a run of the experiment.

It lies as a stage of its own beside the runs, so that it is sent, noted and sent again like any other.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cathpc.acts import compare
from cathpc.config import Config
from cathpc.saved import Saved
from cathpc.store import write_json
from cathpc.tracking import shown
from cathpc.tracking.beside import plain
from cathpc.tracking.described import describe
from cathpc.tracking.send import Spec

STAGE = "sweep"


def spec(config: Config, runs: list[Saved], *, offline_below: Path | None = None) -> Spec:
    """What the sender is told of the table of `runs`, which is written below the folder of runs first."""
    rows = compare.ranked([compare.row(run) for run in runs])
    compare.label_overrides(rows)
    keys = list(rows[0].overrides)
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = [
        [row.run.name, row.state, *(_cell(row.overrides.get(k)) for k in keys), *(row.figures.get(f) for f in figures)]
        for row in rows
    ]
    folder = runs[0].folder.parent / ".sweep" / config.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shown.write(folder, {}, {"runs": (["run", "state", *keys, *figures], table)}, runs=len(rows))
    text = (folder / shown.FILE).read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:16]
    manifest = {"fingerprint": config.name, "digest": digest, "config": {}, "inputs": {}, "summary": {}}
    write_json(folder / "manifest.json", manifest)
    return Spec(
        tracker=plain(config.tracker),
        stages=[describe(config.name, STAGE, folder, {}).plain()],
        offline_below=str(offline_below) if offline_below else "",
    )


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)
