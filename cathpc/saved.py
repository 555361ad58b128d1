"""Runs that were started earlier, read from their folders `runs/<name>`: what they were told, which stages are theirs.

Nothing is composed from today's `conf/`: a run is what it was when it was started. A stage's folder is the one that the
run links to; where it has not come that far, the one that its saved config leads to. No heavy library is imported.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cathpc import store
from cathpc.config import PathsConfig, compose, expand, from_plain, run_name
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME, STAGES


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
        if any(stage.name not in known for stage in STAGES):
            try:
                known = self.planned | known
            except UserError:
                pass
        return {name: known[name] for name in BY_NAME if name in known}


def read(folder: Path, option: str = "paths.runs=FOLDER") -> list[Saved]:
    """All runs in the folder `folder`, by name; `option` is how the user names another one."""
    if not folder.is_dir():
        raise UserError(f"there is no folder of runs {folder.absolute()}. Name it with {option}")
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


def chosen(names: list[str], overrides: list[str]) -> tuple[list[Saved], list[str]]:
    """The runs that the user means, and the overrides of those of a grid that were never started.

    Raises `UserError` with the runs that there are where there is none of them.
    """
    folder = _folder(overrides)
    if names:
        return matching(read(folder), names, folder), []
    _experiment(overrides, "+experiment=NAME for all of its runs, or --runs RUN ... (patterns may be 'demo-*')", folder)
    grid = expand(overrides)
    configs = [compose(one) for one in grid]
    runs = read(Path(configs[0].paths.runs))
    narrowed = any(not o.lstrip("+").startswith(("experiment=", "paths.")) for one in grid for o in one)
    missing: list[str] = []
    if narrowed:
        wanted = {run_name(config, one): " ".join(one) for config, one in zip(configs, grid, strict=True)}
        found = [run for run in runs if run.name in wanted]
        missing = [text for name, text in wanted.items() if not any(run.name == name for run in found)]
    else:
        ours = re.compile(rf"{re.escape(configs[0].name)}(-[0-9a-f]{{8}})?")
        found = [run for run in runs if ours.fullmatch(run.name)]
    if not found:
        what = f"{' '.join(overrides)} has no run in {Path(configs[0].paths.runs).absolute()}"
        sweep = "-m " if len(grid) > 1 else ""
        there = ", ".join(run.name for run in runs) or "none"
        raise UserError(f"{what}. Start it: python -m cathpc {sweep}{' '.join(overrides)}. Runs there: {there}")
    return found, missing


def one(name: str, overrides: list[str]) -> Saved:
    """The run `name` (or the only one that a pattern matches), or without one that of `overrides`.

    Raises `UserError` where it is not there, or where the pattern matches several.
    """
    folder = _folder(overrides)
    if not name:
        _experiment(overrides, "--run RUN or +experiment=NAME", folder)
        config = compose(overrides)
        name, folder = run_name(config, overrides), Path(config.paths.runs)
    found = matching(read(folder), [name], folder)
    if len(found) > 1:
        raise UserError(f"{name!r} names {len(found)} runs; give one of: {', '.join(run.name for run in found)}")
    return found[0]


def names_folder(override: str) -> bool:
    """Whether an override says where runs lie, and nothing of a run."""
    return override.lstrip("+").startswith("paths.runs=")


def _folder(overrides: list[str]) -> Path:
    given = [o.partition("=")[2] for o in overrides if names_folder(o)]
    return Path(given[-1] if given else PathsConfig().runs)


def _experiment(overrides: list[str], wanted: str, folder: Path) -> None:
    """Raise `UserError`, which asks for what is `wanted`, where the overrides name no experiment."""
    if not any(o.lstrip("+").startswith("experiment=") for o in overrides):
        there = ", ".join(run.name for run in read(folder)) if folder.is_dir() else ""
        raise UserError(f"no run is named. Give {wanted}. Runs in {folder}: {there or 'none'}")


def manifest(run: Saved, stage: str) -> dict[str, Any]:
    """The manifest of a stage of `run`; `UserError` where it has not come that far."""
    folder = run.stages().get(stage)
    found = store.read_json(folder / store.MANIFEST) if folder else None
    if not isinstance(found, dict):
        words = " ".join(run.overrides)
        raise UserError(f"{run.name}: the stage {stage} is not finished. Finish it: python -m cathpc {words}")
    return found
