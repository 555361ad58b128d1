"""A W&B run: opened, filled and closed. The one module that imports wandb; it runs in a process of its own.

In: a `Described` stage, its steps and what it shows. Out: a run on the server, or an offline run below a folder, from
where `wandb sync` sends it. A run's step is the training's global step: the server knows the last one that it has, so
what is sent again is left out, whoever sent it before. Every failure is an exception of wandb's own kind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc import __version__
from cathpc.tracking.config import TrackerConfig
from cathpc.tracking.described import Described
from cathpc.tracking.rows import AXIS
from cathpc.tracking.shown import Shown

if TYPE_CHECKING:
    import wandb

KINDS = {
    "base": "model",
    "reference": "model",
    "pool": "model",
    "refusal": "model",
    "train": "checkpoint",
    "export": "model",
    "score": "scores",
    "evaluate": "evaluation",
    "report": "report",
    "benchmarks": "evaluation",
    "sweep": "report",
}
"""Stage -> type of the artifact that it makes; of every other one a dataset."""
OUTAGE_TRIES = 1_000_000
"""Tries to send what was logged: an outage of hours must not end the sending."""


class Run:
    """An open run; `first` is the first step that the server lacks."""

    def __init__(
        self, described: Described, tracker: TrackerConfig, *, offline_below: Path | None, timeout_s: float
    ) -> None:
        """Open it: on the server, which may take `timeout_s`, or in `offline_below/wandb`."""
        import wandb

        self._online = offline_below is None
        self._scratch = _scratch() if self._online else None
        versions = (described.manifest or {}).get("versions", {"cathpc": __version__})
        self._run = wandb.init(
            project=tracker.project,
            entity=tracker.entity or None,
            mode="online" if self._online else "offline",
            dir=self._scratch.name if self._scratch else offline_below,
            id=described.id,
            name=described.name,
            group=described.experiment,
            job_type=described.stage,
            resume="allow" if self._online else None,
            config={
                **described.config,
                "fingerprint": described.folder.name,
                "inputs": described.inputs,
                "versions": versions,
            },
            settings=_settings(timeout_s),
        )
        self.first = int(self._run.starting_step)
        self.url = str(self._run.url) if self._online else ""
        self._run.define_metric(AXIS, hidden=True)
        for prefix in ("train", "eval"):
            self._run.define_metric(f"{prefix}/*", step_metric=AXIS)

    def steps(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Log those of `rows` that the server lacks; how many they were."""
        fresh = [row for row in rows if row[AXIS] >= self.first]
        for row in fresh:
            self._run.log(dict(row), step=row[AXIS], commit=True)  # else it waits for the next one
        return len(fresh)

    def show(self, shown: Shown) -> None:
        """Log figures, tables and histograms, and put the numbers in the summary."""
        import numpy as np
        import wandb

        media: dict[str, Any] = {
            f"figures/{key}": wandb.Image(str(path), caption=caption) for key, (path, caption) in shown.pictures.items()
        }
        for key, (columns, rows) in shown.tables.items():
            if rows:
                media[f"tables/{key}"] = wandb.Table(columns=[*columns], data=[*rows], allow_mixed_types=True)
        for key, (title, (columns, rows)) in shown.bars.items():
            if rows:
                table = wandb.Table(columns=[*columns], data=[*rows])
                media[f"figures/{key}"] = wandb.plot.bar(table, columns[0], columns[1], title=title)
        for key, (counts, edges) in shown.histograms.items():
            if any(counts):
                media[f"figures/{key}"] = wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
        if media:
            self._run.log(media)
        self._run.summary.update(shown.numbers)

    def lineage(self, described: Described) -> None:
        """Say what the stage made, if it is finished, and from what, as artifacts by reference: their bytes stay."""
        if self._online:  # offline W&B knows no inputs; the config names them
            for name, of in described.inputs.items():
                folder = described.folder.parents[1] / name / of["fingerprint"]
                if (folder / "manifest.json").is_file():
                    self._run.use_artifact(_artifact(described, name, folder, of["digest"]))
        if manifest := described.manifest:
            made = _artifact(described, described.stage, described.folder, manifest["digest"])
            self._run.log_artifact(made, aliases=["latest", manifest["fingerprint"]])

    def close(self) -> None:
        """End the run, which waits until all is sent; raises where that takes too long."""
        self._run.finish()
        if self._scratch:
            self._scratch.cleanup()


def _artifact(described: Described, stage: str, folder: Path, digest: str) -> wandb.Artifact:
    """The stage's manifest, which holds the hash of every file, and the address of its folder. No other file is read or
    listed: a folder that is named as a reference is walked and looked into."""
    import wandb

    artifact = wandb.Artifact(
        f"{described.experiment}-{stage}",
        type=KINDS.get(stage, "dataset"),
        metadata={"stage": stage, "fingerprint": folder.name, "digest": digest, "folder": folder.as_uri()},
    )
    artifact.add_reference((folder / "manifest.json").as_uri(), name="manifest.json")
    return artifact


def drop() -> None:
    """End W&B's service, whatever it still has to send: after a failure it would hold the run's id."""
    import wandb

    with contextlib.suppress(Exception):  # it may be gone already
        wandb.teardown(exit_code=1 if sys.exc_info()[0] else 0)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cathpc-wandb-", ignore_cleanup_errors=True)


def _settings(timeout_s: float) -> wandb.Settings:
    """Quiet, patient with a server that is away, and nothing of the machine, the account or the code in the run."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="",
        symlink=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_file_stream_retry_max=OUTAGE_TRIES,
        x_file_stream_retry_wait_max_seconds=60,
        init_timeout=timeout_s,
        finish_timeout=2 * timeout_s,
        finish_timeout_raises=True,
    )


@contextlib.contextmanager
def private(staging: Path | None) -> Iterator[None]:
    """Nothing of W&B in the home folder, which may be read-only; what an offline run points to lies in `staging`."""
    with _scratch() as scratch:
        data = staging or Path(scratch)
        data.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "WANDB_SILENT": "true",
            "WANDB_CACHE_DIR": scratch,
            "WANDB_CONFIG_DIR": scratch,
            "WANDB_DATA_DIR": str(data.absolute()),
        }
        try:
            yield
        finally:
            drop()
