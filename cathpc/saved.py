"""Runs that were started earlier, read from their folders `runs/<name>`: what they were told, which stages are theirs.

Nothing is composed from today's `conf/`: a run is what it was when it was started. A stage's folder is the one that the
run links to; where it has not come that far, the one that its saved config leads to. No heavy library is imported.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cathpc import store
from cathpc.config import from_plain
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME


@dataclass(frozen=True)
class Saved:
    """One run: `config` is the composed one as plain data, {} where it cannot be read."""

    name: str
    folder: Path
    overrides: list[str]
    config: dict[str, Any]

    @cached_property
    def linked(self) -> dict[str, Path]:
        """Stage -> folder, as the run's links say; the folder may be gone."""
        links = self.folder / "stages"
        return {n: links / os.readlink(links / n) for n in BY_NAME if (links / n).is_symlink()}

    @cached_property
    def planned(self) -> dict[str, Path]:
        """Stage -> folder, by the fingerprints of the saved config.

        Raises `UserError` where they cannot be known: the config is of another version of cathpc, data is gone.
        """
        from omegaconf.errors import OmegaConfBaseException

        if not self.config:
            raise UserError(f"{self.folder / 'config.json'} cannot be read")
        try:
            return {name: place.folder for name, place in store.places(from_plain(self.config)).items()}
        except OmegaConfBaseException as error:
            raise UserError(f"{self.folder / 'config.json'}: {str(error).splitlines()[0]}") from None

    def stages(self) -> dict[str, Path]:
        """Stage -> folder, in order, of all stages whose folder is known."""
        known = dict(self.linked)
        if len(known) < len(BY_NAME):
            try:
                known = self.planned | known
            except UserError:
                pass
        return {name: known[name] for name in BY_NAME if name in known}


def read(folder: Path) -> list[Saved]:
    """All runs in the folder `folder` (`paths.runs`), by name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder of runs {folder.absolute()}. Name it with paths.runs=FOLDER")
    runs = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and ((path / "config.json").exists() or (path / "stages").is_dir()):
            found = store.read_json(path / "config.json")
            found = found if isinstance(found, dict) else {}
            runs.append(Saved(path.name, path, found.get("overrides", []), found.get("config", {})))
    return runs


def matching(runs: list[Saved], patterns: Iterable[str], where: Path) -> list[Saved]:
    """Those of `runs` whose names match one of `patterns` ('demo-*'); `UserError` for a pattern that matches none."""
    names = [run.name for run in runs]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, 5, 0.4)
            hint = f"Did you mean: {', '.join(near)}" if near else f"Runs there: {', '.join(names) or 'none'}"
            raise UserError(f"there is no run {pattern!r} in {where.absolute()}. {hint}")
    return [run for run in runs if any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)]
