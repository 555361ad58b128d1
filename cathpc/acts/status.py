"""`status`: how far an experiment is."""

from __future__ import annotations

import argparse
import json

from cathpc.config import compose

HELP = "how far an experiment is, stage by stage"


def options(parser: argparse.ArgumentParser) -> None:
    """--json for programs."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Print one line a stage: done, running (with progress), failed, waiting."""
    from cathpc import progress
    from cathpc.dispatch.show import stage_table
    from cathpc.lease import holder
    from cathpc.store import places, read_json

    config = compose(arguments.overrides)
    states: dict[str, tuple[str, str]] = {}
    for name, place in places(config).items():
        manifest = place.manifest()
        report = progress.read(place.folder)
        errors = [e for e in map(read_json, sorted(place.folder.glob("error.*.json"))) if e]
        if place.fresh():
            states[name] = ("done", (manifest or {}).get("summary", {}).get("line", ""))
        elif place.folder.is_dir() and holder(place.folder):
            text = f"{report['done']:,.0f}/{report['total']:,.0f} {report['unit']}" if report else ""
            states[name] = ("running", text)
        elif errors:
            states[name] = ("failed", errors[0]["message"])
        else:
            states[name] = ("stale" if manifest else "waiting", "")
    if arguments.json:
        print(json.dumps({n: {"state": s, "line": line} for n, (s, line) in states.items()}, indent=1))
        return 0
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, emoji=False).print(stage_table(config.name, states))
    return 0
