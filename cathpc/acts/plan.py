"""`plan`: check an experiment and reckon what it takes, without running anything.

Memory of a GPU and of a node, checkpoints, disk, tokens, operations, hours and the time of every stage, each with the
formula, the measurement or the assumption that it stands on; and what fits where the training does not.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.acts import program
from cathpc.config import Config, as_plain, compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import TryAgainError, UserError
from cathpc.train import estimate, fit, memory

if TYPE_CHECKING:
    from rich.table import Table

    from cathpc.models.shape import Known
    from cathpc.store import Place

HELP = "check an experiment and reckon memory, disk and time before anything is queued; changes nothing"
NETWORK_GBS = 0.1
"""Assumed rate of a download, in 10^9 bytes/s."""
WIDTH = 140
"""Columns where there is no terminal."""


def options(parser: argparse.ArgumentParser) -> None:
    """--cfg prints the composed config; --mfu and --tokens replace assumptions."""
    parser.add_argument("--cfg", action="store_true", help="print the composed configuration as JSON and stop")
    parser.add_argument(
        "--mfu", type=float, default=estimate.MFU, help=f"share of the GPUs' peak to reckon with ({estimate.MFU})"
    )
    parser.add_argument("--tokens", type=float, help="tokens of an epoch, where `pack` has not counted them: 3e8")


def main(arguments: argparse.Namespace) -> int:
    """Print the table of stages, what the training takes, and what is missing or would be refused."""
    from rich.console import Console

    from cathpc.dispatch.show import stage_table
    from cathpc.models import shape

    config = compose(arguments.overrides)
    if arguments.cfg:
        print(json.dumps(as_plain(config), indent=2))
        return 0
    if not 0 < arguments.mfu <= 1:
        raise UserError(f"--mfu is {arguments.mfu:g}: a share of the GPUs' peak in 0..1, such as --mfu {estimate.MFU}")
    console = Console(highlight=False, soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else WIDTH)
    missing = _missing(config, arguments.overrides)
    places = _places(config, known=not missing)
    known = shape.find(config)
    train = places["train"].folder if not missing else None
    epoch = estimate.tokens(config, places["pack"].folder if places["pack"].fresh() else None)
    if arguments.tokens and not (epoch and epoch.exact):
        epoch = estimate.stated(config, arguments.tokens)
    times = _times(config, places, known, epoch, arguments.mfu)
    console.print(stage_table(f"{config.name}: what would run", _states(config, places, known=not missing), times))
    console.print(_training(config, known), markup=False)
    if known:
        found = fit.fit(config, known)
        console.print(_rank_table(found))
        console.print(_host_table(found))
        for name, text in _figures(config, known, epoch, train, arguments.mfu):
            console.print(f"{name:<12} {text}", markup=False)
    for line in missing:
        console.print(f"missing: {line}", markup=False)
    for line in [*fit.faults(config, folder=train, mfu=arguments.mfu), *_refused(config)]:
        console.print(f"refused: {line}", markup=False)
    return 0


def _missing(config: Config, overrides: list[str]) -> list[str]:
    from cathpc.acts.pin import unpinned

    command = f"{program()} pin {shlex.join(overrides)}"
    return [f"a commit for {kind} {name}: {command}" for kind, name in unpinned(config)]


def _places(config: Config, *, known: bool) -> dict[str, Place]:
    """Where the stages are or will be; `known`: whether fingerprints are."""
    from cathpc.store import places, unnamed_places

    try:
        return places(config) if known else unnamed_places(config)
    except UserError as error:
        raise UserError(f"the experiment composes, but cannot run here: {error}") from None


def _states(config: Config, places: dict[str, Place], *, known: bool) -> dict[str, tuple[str, str]]:
    """Stage -> whether it would run, and what its job asks of a cluster."""
    from cathpc.dispatch.requests import words

    clustered = config.cluster.kind is ClusterKind.slurm
    return {
        name: (
            "up to date" if place.fresh() else "would run" if known else "",
            f"{place.stage.does}  [{words(place.stage, config)}]" if clustered else "",
        )
        for name, place in places.items()
    }


def _refused(config: Config) -> list[str]:
    """What the models' tokenizers, or the cluster at hand, would refuse; nothing of what is not there to ask."""
    from cathpc.models.contract import check_models

    try:
        check_models(config)
    except UserError as error:
        return [str(error)]
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


# --- the training -----------------------------------------------------------------------------------------------------


def _training(config: Config, known: Known | None) -> str:
    from cathpc.models.shape import parameters
    from cathpc.progress import duration

    train, pack = config.train, config.pack
    ranks = train.nodes * train.ranks_per_node
    accumulation = train.global_batch // (train.micro_batch * ranks)
    extras = [
        f"AdamW in {8 if train.optimizer.name == 'adamw8bit' else 32} bits",
        *([f"offloaded: {train.offload.name}"] if train.offload.name != "none" else []),
        *(["activations offloaded"] if train.offload_activations else []),
        *([f"adapters of rank {train.lora.rank}"] if train.lora.rank else []),
        *(["activation checkpointing"] if train.activation_checkpointing else []),
    ]
    size = f"{parameters(known.shape):,} parameters by {known.source}" if known else "size unknown"
    lines = [
        f"\ntraining: {config.model.base} ({size}), {train.epochs} epochs, {train.nodes} x {train.ranks_per_node} "
        f"ranks, ZeRO-{train.zero_stage}, {train.dtype.name}, {train.attention.name}, {', '.join(extras)}",
        f"  a step: {train.micro_batch} x {ranks} ranks x {accumulation} accumulation = {train.global_batch} sequences "
        f"of {pack.seq_len:,} = {train.global_batch * pack.seq_len:,} tokens",
        f"  limit of one job: {duration(config.cluster.timeout_min * 60)}",
    ]
    if not known:
        lines.append(
            "  memory and time are not known: the model is not on this machine and model.shape does not describe it. "
            "Run `python -m cathpc fetch` first, or state model.shape as conf/model/llama3_70b.yaml does"
        )
    return "\n".join(lines) + "\n"


def _table(title: str, *columns: str, numbers: int) -> Table:
    """A table without lines whose columns after the first, `numbers` of them, hold figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        table.add_column(name, justify="right" if 0 < position <= numbers else "left")
    return table


def _rank_table(found: fit.Fit) -> Table:
    """Memory of one rank at the four moments of a step."""
    need, what = found.gpu, "one GPU" if found.on_gpus else "one CPU process"
    names = [m.name for m in memory.Moment]
    table = _table(f"memory of {what} in GiB; the peak: {need.peak.value}", "what", *names, "how", numbers=len(names))
    for row in need.rows:
        sizes = [f"{row.bytes[m] / memory.GIB:.2f}" if row.bytes.get(m) else "" for m in memory.Moment]
        table.add_row(row.name, *sizes, row.how)
    sums = [f"{need.at(m) / memory.GIB:.2f}" for m in memory.Moment]
    verdict = "tight" if found.tight else "fits" if found.gpu_fits else "does not fit"
    given = f"{need.total / memory.GIB:.1f} of {found.gpu_limit / memory.GIB:.1f}: {verdict}" if found.gpu_limit else ""
    table.add_row("together", *sums, given, style="bold")
    return table


def _host_table(found: fit.Fit) -> Table:
    table = _table("\nhost memory of one node of the training", "what", "GiB", "how", numbers=1)
    largest = max((r.bytes for r in found.host if r.passing), default=0.0)
    for row in found.host:
        counts = not row.passing or row.bytes == largest
        size = f"{row.bytes / memory.GIB:,.1f}"
        table.add_row(row.name, size if counts else f"({size})", row.how, style="" if counts else "dim")
    asked = (
        f"of {found.host_limit / memory.GIB:,.0f} asked of Slurm" if found.host_limit else "of all that the node has"
    )
    table.add_row("together", f"{memory.host_total(found.host) / memory.GIB:,.1f}", f"at most, {asked}", style="bold")
    return table


def _figures(
    config: Config, known: Known, epoch: estimate.Tokens | None, folder: Path | None, mfu: float
) -> Iterator[tuple[str, str]]:
    """Lines of figures: name and text."""
    from cathpc.disk import human
    from cathpc.progress import duration

    train, cluster, shape = config.train, config.cluster, known.shape
    yield "", ""
    seen = estimate.measured(folder)
    save = seen.save or estimate.save_seconds(config, shape)
    how = "measured" if seen.save else f"at cluster.disk_gbs={cluster.disk_gbs:g}"
    size = memory.checkpoint(train, shape)
    a_parameter = size / memory.sizes(train, 1, shape).trained
    yield "checkpoint", f"{human(size)}, {a_parameter:.3g} bytes a {'trained ' * bool(train.lora.rank)}parameter"
    yield "save", f"{duration(save)}, {how}"
    if cluster.kind is ClusterKind.slurm:
        lead, why = fit.needed_lead(config, known, folder, mfu=mfu)
        yield (
            "warning",
            f"{lead:,} s before a limit needed, 2 saves + 2 steps + 30 s ({why}); cluster.lead_s={cluster.lead_s}",
        )
    rows = estimate.disk(config, shape, epoch)
    yield (
        "disk",
        f"{human(sum(r.bytes for r in rows))}: " + ", ".join(f"{r.name} {human(r.bytes)}{r.how}" for r in rows),
    )
    counted = epoch or estimate.stated(config, 1e9)
    steps = estimate.steps(train, counted)
    if epoch:
        yield "tokens", f"{epoch.tokens:,} an epoch ({epoch.how}), {steps:,} steps in {train.epochs} epochs"
    else:
        yield "tokens", "unknown until `pack` has counted them (or say --tokens N): what follows is for 10^9 an epoch"
    flops = estimate.step_flops(train, config.pack.seq_len, shape)
    factor = estimate.hardware_factor(train)
    doing = f", the hardware does {flops * steps * factor:.3g} (x {factor:.3g}: recomputation)" if factor > 1 else ""
    yield "operations", f"{flops * steps:.3g}, {flops / (train.global_batch * config.pack.seq_len):.3g} a token{doing}"
    yield "time", _time(config, known, steps, seen, mfu)


def _time(config: Config, known: Known, steps: int, seen: estimate.Measured, mfu: float) -> str:
    from cathpc.progress import duration

    train, cluster = config.train, config.cluster
    step = seen.step or fit.seconds(train, config, known, mfu=mfu)
    if not step:
        return "unknown until steps are measured" + (
            "" if not fit.on_gpus(config) else ", or cluster.gpu_tflops is set"
        )
    hours = steps * step / 3600
    text = f"{duration(steps * step)} for {steps:,} steps of {step:.3g} s"
    if seen.step:
        text += ", measured"
    else:
        costs = estimate.step_costs(train, config.pack.seq_len, known.shape, tflops=cluster.gpu_tflops, mfu=mfu)
        text += ": " + ", ".join(f"{c.name} {c.seconds:.3g} s ({c.how})" for c in costs)
    segments = math.ceil(hours * 60 / cluster.timeout_min)
    text += f"; {segments} job{'s' * (segments != 1)} of {duration(cluster.timeout_min * 60)} at most"
    gpus = train.nodes * train.ranks_per_node
    return text + (f"; {hours * gpus:,.0f} GPU-hours" if fit.on_gpus(config) else "")


def _times(
    config: Config, places: dict[str, Place], known: Known | None, epoch: estimate.Tokens | None, mfu: float
) -> dict[str, str]:
    """Stage -> how long it took, took elsewhere or should take."""
    from cathpc.models.shape import parameters
    from cathpc.progress import duration
    from cathpc.store import read_json

    times = {}
    for name, place in places.items():
        if place.fresh() and (manifest := place.manifest()):
            times[name] = f"{duration(manifest.get('seconds', 0.0))}, measured"
            continue
        others = sorted(place.folder.parent.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
        took = (read_json(others[-1]) or {}).get("seconds") if others else None
        times[name] = f"{duration(took)}, another one" if took else "unknown"
    if not known:
        return times
    folder, count = places["train"].folder, parameters(known.shape)
    seen = estimate.measured(folder)
    step = seen.step or fit.seconds(config.train, config, known, mfu=mfu)
    if "measured" not in times["train"] and step and epoch:
        about = "" if epoch.exact else "~"
        times["train"] = f"{about}{duration(estimate.steps(config.train, epoch) * step)}, see below"
    if times["base"] == "unknown" and known.source == "model.shape" and ":" not in config.model.base:
        times["base"] = f"~{duration(2 * count / NETWORK_GBS / 1e9)}, {2 * count / 1e9:.0f} GB at 100 MB/s"
    if times["export"] == "unknown":
        # Reads fp32 weights and writes bfloat16.
        times["export"] = f"~{duration(6 * count / config.cluster.disk_gbs / 1e9)}, 6 N at the disk's rate"
    return times
