"""`doctor`: check a site before a job waits two days in its queue."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cathpc import terminal
from cathpc.config import compose
from cathpc.errors import EXIT_DONE, EXIT_USER

if TYPE_CHECKING:
    from cathpc.dispatch.doctor_check import Check

HELP = "check this machine, a Slurm site and its nodes before a job waits in a queue"
MARKS = {"pass": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def options(parser: argparse.ArgumentParser) -> None:
    """--json for programs; --no-jobs, --wait and --all-gpus for what is submitted."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-jobs", action="store_true", help="submit nothing: leave out what only a node can tell")
    parser.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="how long a job may wait (120)")
    parser.add_argument("--all-gpus", action="store_true", help="ask for all GPUs of the nodes, not for one")


def main(arguments: argparse.Namespace) -> int:
    """Print the table; returns 0 where nothing fails, else 2."""
    from cathpc.dispatch.doctor import Options, examine

    named = any(o.lstrip("+").startswith("experiment=") for o in arguments.overrides)
    config = compose(arguments.overrides if named else ["+experiment=smoke", *arguments.overrides])
    wanted = Options(jobs=not arguments.no_jobs, wait_s=arguments.wait, all_gpus=arguments.all_gpus, named=named)
    checks = examine(config, wanted, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    failed = any(check.state.value == "fail" for check in checks)
    if arguments.json:
        rows = [
            {"group": c.group, "name": c.name, "state": c.state.value, "seen": c.seen, "advice": c.advice}
            for c in checks
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        show(checks)
    return EXIT_USER if failed else EXIT_DONE


def show(checks: list[Check]) -> None:
    """One line a check and one for what to do, under the heading of its group; a table in a terminal."""
    from rich.markup import escape
    from rich.table import Table

    console = terminal.console()
    width = max(len(check.name) for check in checks)
    for group in dict.fromkeys(check.group for check in checks):
        console.print(f"[bold]{escape(group)}[/bold]")
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=1)
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for check in (c for c in checks if c.group == group):
            mark, colour = MARKS[check.state.value]
            advice = f"→ {check.advice}" if check.advice else ""
            if console.is_terminal:
                text = escape(check.seen) + (f"\n[{colour}]{escape(advice)}[/{colour}]" if advice else "")
                table.add_row(f"[{colour}]{mark}[/{colour}]", check.name, text)
            else:
                console.print(f"{mark} {check.name:<{width}}  {check.seen}", markup=False)
                if advice:
                    console.print(f"  {'':<{width}}  {advice}", markup=False)
        if console.is_terminal:
            console.print(table, soft_wrap=False)
    count = {state: sum(check.state.value == state for check in checks) for state in MARKS}
    console.print(f"{count['pass']} passed, {count['warn']} warnings, {count['fail']} failures")
