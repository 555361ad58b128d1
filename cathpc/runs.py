"""The folder of a run: its config, its ledger of jobs, its logs and links to its stages' folders in the store."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc import store
from cathpc.config import Config, as_plain, run_name
from cathpc.errors import UserError


@dataclass(frozen=True)
class Run:
    """`runs/<name>`: `config.json`, `ledger.jsonl`, `logs/<stage>/`, `stages/<stage>` -> the store."""

    name: str
    folder: Path

    def logs(self, stage: str) -> Path:
        """Folder of the stage's job logs."""
        folder = self.folder / "logs" / stage
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def log(self, **event: Any) -> None:
        """Append one event to the ledger, durably."""
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False) + "\n"
        with open(self.folder / "ledger.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def link(self, place: store.Place) -> None:
        """Point `stages/<stage>` to the stage's folder."""
        links = self.folder / "stages"
        links.mkdir(exist_ok=True, mode=0o700)
        link = links / place.stage.name
        if link.is_symlink() and os.readlink(link) == str(place.folder):
            return
        temporary = links / f".{place.stage.name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(place.folder)
        os.replace(temporary, link)


def run_folder(config: Config, overrides: list[str]) -> Path:
    """Where the run's folder is, or would be."""
    return Path(config.paths.runs).absolute() / run_name(config, overrides)


def open_run(config: Config, overrides: list[str]) -> Run:
    """Make (or find) the run's folder and write its config; raises `UserError` where the folder cannot be written."""
    folder = run_folder(config, overrides)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        store.write_json(folder / "config.json", {"overrides": overrides, "config": as_plain(config)})
    except OSError as error:
        raise UserError(
            f"cannot write the run's folder {folder}: {error.strerror}. Choose another one with paths.runs=FOLDER"
        ) from None
    return Run(folder.name, folder)
