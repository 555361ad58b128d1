"""W&B beside the work of a stage: starts the process that sends, and never waits for it long.

`tracked` goes round the work. A training is followed while it runs; every other stage is sent once it is finished, and
offline the last one writes the runs of all. Whatever goes wrong here is a line in the log: the stage has its result.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from cathpc.config import Config
from cathpc.dispatch import jobs
from cathpc.pipeline import OPTIONAL, STAGES
from cathpc.store import Place
from cathpc.tracking import mode
from cathpc.tracking.config import TrackerConfig
from cathpc.tracking.described import describe, sections
from cathpc.tracking.send import Spec, line

FOLLOWED = "train"
OFFLINE_S = 600.0
"""For the runs of all stages, which takes seconds where the machine has a core to spare: there is no network in it."""


@contextlib.contextmanager
def tracked(config: Config, place: Place) -> Iterator[None]:
    """Send the stage whose work and commit are the block, by the config's mode."""
    name = place.stage.name
    how = mode.mode(config.tracker)[0]
    sender = None
    if how == "online" and name == FOLLOWED:
        sender = _start(config, {name: place.folder}, follow=True)
    yield  # where the work fails this process ends, and with it the sender's input
    if how == "online":
        sender = sender or _start(config, {name: place.folder})
    elif how == "offline" and (name == STAGES[-1].name or place.stage in OPTIONAL):
        others = {} if place.stage in OPTIONAL else place.inputs
        sender = _start(config, {**others, name: place.folder}, offline_below=place.folder)
    if sender is not None:
        _await(sender, config.tracker.wait_s if how == "online" else OFFLINE_S)


def spec(
    config: Config, stages: Mapping[str, Path], *, follow: bool = False, offline_below: Path | None = None
) -> Spec:
    """What the sender is told of the stages in these folders."""
    gone: set[str] = set()
    for folder in stages.values():
        record = jobs.read(folder)
        gone |= set(record.gone) if record else set()
    return Spec(
        tracker=plain(config.tracker),
        stages=[describe(config.name, name, folder, sections(config, name)).plain() for name, folder in stages.items()],
        follow=follow,
        offline_below=str(offline_below) if offline_below else "",
        gone=sorted(gone),
    )


def plain(tracker: TrackerConfig) -> dict[str, object]:
    """What of the tracker's config the sender needs."""
    return {"project": tracker.project, "entity": tracker.entity, "every_s": tracker.every_s}


def start(what: Spec, *, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """The sender at work: in a session of its own, so that the signals of a job and of a terminal pass it by."""
    command = [sys.executable, "-m", "cathpc.tracking.send"]
    sender = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert sender.stdin is not None
    sender.stdin.write(line(what))
    sender.stdin.flush()
    return sender


def _start(config: Config, stages: Mapping[str, Path], **how: Any) -> subprocess.Popen[bytes] | None:
    try:
        return start(spec(config, stages, **how))
    except Exception as error:  # whatever it is, the stage goes on
        _say(f"W&B: nothing is sent now ({error}); the sync act sends later")
        return None


def _await(sender: subprocess.Popen[bytes], seconds: float) -> None:
    """Tell the sender that the work is done, and end it where it takes long."""
    with contextlib.suppress(OSError):
        assert sender.stdin is not None
        sender.stdin.close()
    try:
        sender.wait(seconds)
    except subprocess.TimeoutExpired:
        end(sender)
        _say(f"W&B: not sent within {seconds:.0f} s; the sync act sends it later")


def end(sender: subprocess.Popen[bytes]) -> None:
    """Kill the sender and what it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(sender.pid).children(recursive=True)
    sender.kill()
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    sender.wait()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, flush=True)
