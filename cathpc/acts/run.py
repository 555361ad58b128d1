"""`run`: bring every stage of an experiment up to date."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.acts import program
from cathpc.acts.pin import is_hub_id, unpinned
from cathpc.config import Config, compose, expand
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.dispatch.show import Show

HELP = "run an experiment: finish what is missing, redo what has changed, nothing else"


def options(parser: argparse.ArgumentParser) -> None:
    """-m makes a grid of runs out of swept values."""
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of swept values (a=1,2)")


def main(arguments: argparse.Namespace) -> int:
    """Compose, check and walk; a multirun does so for each combination, sharing all stages that are equal."""
    grid = expand(arguments.overrides) if arguments.multirun else [arguments.overrides]
    configs = [compose(overrides) for overrides in grid]  # all are checked before the first one starts
    for number, (config, overrides) in enumerate(zip(configs, grid, strict=True), start=1):
        if len(grid) > 1:
            print(f"[{number}/{len(grid)}] {' '.join(overrides)}", flush=True)
        one(config, overrides)
    return 0


def one(config: Config, overrides: list[str], *, targets: set[str] | None = None) -> None:
    """Run one experiment in the foreground and say where its results lie."""
    from cathpc.dispatch import local
    from cathpc.dispatch.show import Show
    from cathpc.progress import duration
    from cathpc.runs import open_run

    if config.cluster.kind is not ClusterKind.local:
        raise UserError(
            f"cluster.kind is {config.cluster.kind.name}: this version runs stages on the machine where it is started. "
            "Take cluster=local, or `plan` to check the experiment"
        )
    refuse_unpinned(config)
    run = open_run(config, overrides)
    began = time.monotonic()
    show = Show()
    fetch_models(config, show)
    local.walk(config, run, show, targets=targets)
    if targets is not None:
        return
    stages = run.folder / "stages"
    took = f"in {duration(time.monotonic() - began)}" if show.worked else "everything is up to date"
    command = f"{program()} chat {shlex.join(overrides)} --prompt 'Hello!'"
    show.console.print(
        f"\n{run.name}: done, {took}\n"
        f"  model    {(stages / 'export').resolve() / 'model'}\n"
        f"  report   {(stages / 'report').resolve() / 'report.html'}\n"
        f"  figures  {(stages / 'report').resolve() / 'figures'}\n"
        f"  chat     {command}",
        markup=False,
    )


def fetch_models(config: Config, show: Show) -> None:
    """Put the Hub's models that the experiment uses into the cache: stages that compute run without a network."""
    from cathpc.models import source

    cache = Path(config.paths.cache)
    for name, template in (
        (config.model.base, config.model.template),
        (config.gpt.base, config.gpt.template),
        (config.refusal.base, None),
        (config.cards.model, config.cards.template),
    ):
        if name and is_hub_id(name) and not source.ready(name, template, cache):
            show.note(f"fetching {name}")
            source.prepare(name, template, cache)


def refuse_unpinned(config: Config) -> None:
    """Raise `UserError` when a Hub id that the experiment uses has no commit in the lock file."""
    missing = unpinned(config)
    if missing:
        raise UserError(
            "these are not pinned to a commit: "
            + ", ".join(f"{kind} {name}" for kind, name in missing)
            + f"\n  Resolve them where the Hub is in reach: python -m cathpc pin +experiment={config.name}"
        )
