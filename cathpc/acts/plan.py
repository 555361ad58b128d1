"""`plan`: check an experiment and show what would run, without running anything."""

from __future__ import annotations

import argparse
import json
import shutil

from cathpc.config import Config, as_plain, compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import TryAgainError, UserError

HELP = "check an experiment and show what would run; changes nothing"


def options(parser: argparse.ArgumentParser) -> None:
    """--cfg prints the composed config."""
    parser.add_argument("--cfg", action="store_true", help="print the composed configuration as JSON and stop")


def main(arguments: argparse.Namespace) -> int:
    """Print the table of stages, the shape of the training and what is missing."""
    from rich.console import Console

    from cathpc.dispatch.show import stage_table
    from cathpc.progress import duration

    config = compose(arguments.overrides)
    if arguments.cfg:
        print(json.dumps(as_plain(config), indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    missing = _missing(config)
    console.print(stage_table(f"{config.name}: what would run", _states(config, known=not missing)))
    train, pack, cluster = config.train, config.pack, config.cluster
    ranks = train.nodes * train.ranks_per_node
    accumulation = train.global_batch // (train.micro_batch * ranks)
    console.print(
        f"\ntraining: {config.model.base}, {train.epochs} epochs, {train.nodes} x {train.ranks_per_node} ranks, "
        f"ZeRO-{train.zero_stage}, {train.dtype.name}, {train.attention.name}\n"
        f"  a step: {train.micro_batch} x {ranks} ranks x {accumulation} accumulation = {train.global_batch} sequences "
        f"of {pack.seq_len:,} = {train.global_batch * pack.seq_len:,} tokens\n"
        f"  limit of one job: {duration(cluster.timeout_min * 60)}",
        markup=False,
    )
    for line in missing:
        console.print(f"missing: {line}", markup=False)
    for line in _refused(config):
        console.print(f"refused: {line}", markup=False)
    return 0


def _missing(config: Config) -> list[str]:
    from cathpc.acts.pin import unpinned

    return [
        f"a commit for {kind} {name}: python -m cathpc pin +experiment={config.name}" for kind, name in unpinned(config)
    ]


def _states(config: Config, *, known: bool) -> dict[str, tuple[str, str]]:
    """Stage -> whether it would run, and what its job asks of a cluster; `known`: whether fingerprints are."""
    from cathpc.dispatch.requests import words
    from cathpc.store import places, unnamed_places

    try:
        stages = places(config) if known else unnamed_places(config)
    except UserError as error:
        raise UserError(f"the experiment composes, but cannot run here: {error}") from None
    clustered = config.cluster.kind is ClusterKind.slurm
    return {
        name: (
            "up to date" if place.fresh() else "would run" if known else "",
            f"{place.stage.does}  [{words(place.stage, config)}]" if clustered else "",
        )
        for name, place in stages.items()
    }


def _refused(config: Config) -> list[str]:
    """What the cluster at hand would refuse; nothing where there is none to ask."""
    if config.cluster.kind is not ClusterKind.slurm or shutil.which("scontrol") is None:
        return []
    from cathpc.dispatch import graph
    from cathpc.store import unnamed_places

    try:
        graph.check_site(config, unnamed_places(config))
    except TryAgainError as error:
        return [f"the cluster cannot be asked: {error}"]
    except UserError as error:
        return str(error).splitlines()[1:] or [str(error)]
    return []
