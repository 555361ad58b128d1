"""`status`: how far an experiment is, on this machine or in the queue."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cathpc.config import Config, compose

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from cathpc.dispatch.status import StageStatus

HELP = "how far an experiment is: stages, jobs and why they wait, shards, steps"

EVERY_S = 5.0
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "held": "red", "stale": "yellow", "queued": "blue"}


def options(parser: argparse.ArgumentParser) -> None:
    """--json for programs, --watch for people."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help=f"look again every {EVERY_S:.0f} s until all is done; q leaves")


def main(arguments: argparse.Namespace) -> int:
    """Print one line a stage, and what needs a hand below; --watch repeats it."""
    from cathpc import terminal
    from cathpc.dispatch.status import gather

    config = compose(arguments.overrides)
    if arguments.json:
        states, hindrance = gather(config)
        print(json.dumps({n: asdict(s) for n, s in states.items()} | _note(hindrance), indent=1))
        return 0
    console = terminal.console()
    bars = terminal.lively(console)

    def look() -> tuple[Group, bool]:
        states, hindrance = gather(config)
        return view(config, states, hindrance, bars=bars), not _ended(states)

    if arguments.watch:
        terminal.repeat(console, look, EVERY_S)
    else:
        console.print(look()[0])
    return 0


def _note(hindrance: str) -> dict[str, Any]:
    return {"note": hindrance} if hindrance else {}


def _ended(states: dict[str, StageStatus]) -> bool:
    """Whether nothing will change any more without a hand."""
    return not any(s.state in ("running", "queued", "unknown") for s in states.values())


def view(config: Config, states: dict[str, StageStatus], hindrance: str, *, bars: bool = False) -> Group:
    """The table, with `bars` for stages at work, the training's figures, and what needs a hand."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=config.name, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "state", "jobs", *(("",) if bars else ()), "what"):
        table.add_column(name, overflow="fold")
    for name, found in states.items():
        colour = COLOURS.get(found.state, "")
        ids = ", ".join(dict.fromkeys(j["id"] for j in found.jobs))
        state = f"[{colour}]{found.state}[/{colour}]" if colour else found.state
        table.add_row(name, state, ids, *((_bar(found),) if bars else ()), escape(_what(found)))
    below = [Text(f"{n}: {s.message}") for n, s in states.items() if s.message and s.message != s.line]
    for name, found in states.items():
        if found.failed_shards:
            some = ", ".join(map(str, found.failed_shards[:8])) + (", …" if len(found.failed_shards) > 8 else "")
            below.append(Text(f"{name}: shards {some} failed: logs --stage {name} --shard {found.failed_shards[0]}"))
    if hindrance:
        below.append(Text(hindrance))
    return Group(table, *below)


def _bar(found: StageStatus) -> RenderableType:
    """How far a stage at work is; nothing where it is not known."""
    from rich.progress_bar import ProgressBar

    total = float(found.progress.get("total", 0))
    if found.state != "running" or not total:
        return ""
    return ProgressBar(total=total, completed=float(found.progress["done"]), width=16)


def _what(found: StageStatus) -> str:
    """One line: how far it is, and at what rate."""
    from cathpc.progress import duration

    parts = [found.line] if found.line else []
    training = found.training
    if found.state == "running" and "step" in training:
        parts = [f"step {training['step']:,}" + (f" of {training['steps']:,}" if "steps" in training else "")]
        parts.append(f"loss {training['loss']:.3f}, {training['tokens_per_s']:,.0f} tokens/s")
        parts += [f"MFU {training['mfu']:.0%}"] if "mfu" in training else []
        if training.get("left_s"):
            parts.append(f"{duration(training['left_s'])} left")
    if found.state not in ("done", "waiting") and training.get("last_checkpoint"):
        parts.append(f"saved {training['last_checkpoint']}")
    if found.requeues and found.state != "done":
        parts.append(f"came back {found.requeues} time{'s' * (found.requeues != 1)}")
    where = [j for j in found.jobs if j["nodes"]]
    if found.state == "running" and where:
        parts.append(f"on {where[0]['nodes']}")
    if found.state == "queued":
        parts += [f"expected {j['start']}" for j in found.jobs[:1] if j["start"]]
    return "; ".join(parts)
