"""A stage as a W&B run: its id, its names and its config, from its folder and nothing else.

The id follows from the fingerprint and from what the stage stands on, so that every attempt, on whatever node, goes on
in the same run, and a stage that several runs of a sweep share is one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.config import Config
from cathpc.pipeline import BY_NAME
from cathpc.schema import identity
from cathpc.store import INPUTS, MANIFEST, digest, read_json

FOLDER = ".tracking"
"""In a stage's folder: who sends it, and what was sent."""
NOTE = "note.json"


@dataclass(frozen=True)
class Described:
    """One stage of one experiment."""

    experiment: str
    """What W&B groups by."""
    stage: str
    folder: Path
    id: str
    name: str
    config: dict[str, Any]
    manifest: dict[str, Any] | None
    """None while the stage is not complete."""
    inputs: dict[str, dict[str, str]]
    """Input -> its fingerprint and digest."""

    @property
    def note(self) -> Path:
        """Where it is noted what was sent."""
        return self.folder / FOLDER / NOTE

    def plain(self) -> dict[str, Any]:
        """As JSON data, for another process."""
        return {"experiment": self.experiment, "stage": self.stage, "folder": str(self.folder), "config": self.config}


def describe(experiment: str, stage: str, folder: Path, config: dict[str, Any]) -> Described:
    """The stage in `folder` as it is now; `config` holds its sections, which a finished stage's manifest overrides."""
    manifest = read_json(folder / MANIFEST)
    manifest = manifest if isinstance(manifest, dict) else None
    inputs = manifest["inputs"] if manifest else read_json(folder / INPUTS) or {}
    return Described(
        experiment=experiment,
        stage=stage,
        folder=folder,
        id=digest({"experiment": experiment, "stage": stage, "fingerprint": folder.name, "inputs": inputs}),
        name=f"{stage} {folder.name[:8]}",
        config=(manifest["config"] if manifest else config),
        manifest=manifest,
        inputs=inputs,
    )


def sections(config: Config, stage: str) -> dict[str, Any]:
    """What of the config decides the stage's result."""
    return {name: identity(getattr(config, name)) for name in BY_NAME[stage].config}
