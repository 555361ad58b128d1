"""`drill`: disturb a tiny training on one's own cluster and see whether it comes back identical."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from cathpc import terminal
from cathpc.config import compose
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import EXIT_OURS, UserError

HELP = (
    "disturb a tiny training on your cluster (signal, kill, torn checkpoint, lost node); does it come back identical?"
)

TINY = (
    "+experiment=smoke",
    "tracker=disabled",
    "train.epochs=40",
    "train.save_every_steps=2",
    "train.eval_every_steps=20",
    "train.global_batch=4",
)


def options(parser: argparse.ArgumentParser) -> None:
    """Which faults, how long to wait, whether to keep the folders."""
    parser.add_argument("--faults", default="signal,kill,torn,lost", help="of signal, kill, torn, lost (default: all)")
    parser.add_argument("--wait", type=float, default=3600.0, metavar="SECONDS", help="for one fault (default: 3600)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--keep", action="store_true", help="keep what the drill wrote")


def main(arguments: argparse.Namespace) -> int:
    """Drill and print the table; 0 where every training came back identical."""
    from rich.table import Table

    from cathpc import lease
    from cathpc.dispatch import drill
    from cathpc.progress import duration

    faults = [name for name in arguments.faults.split(",") if name]
    unknown = [name for name in faults if name not in drill.FAULTS]
    if unknown or not faults:
        raise UserError(f"--faults {arguments.faults}: valid are {', '.join(drill.FAULTS)}, separated by commas")
    config = compose([*TINY, *arguments.overrides])
    if config.cluster.kind is not ClusterKind.slurm:
        raise UserError("drill needs a Slurm cluster: cluster=NAME. (slurm/devcluster up starts one on this machine)")
    home = Path(config.paths.runs).absolute() / "drill"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    console = terminal.console(stderr=arguments.json)
    with lease.held(home) as mine:
        if mine is None:
            raise UserError(f"another drill is going on in {home}")
        results = drill.drill(
            config, home, faults, wait_s=arguments.wait, note=lambda text: console.print(text, markup=False)
        )
    if arguments.json:
        print(json.dumps([asdict(r) for r in results], indent=1))
    else:
        table = Table(title="drill", title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in ("fault", "came back", "identical", "attempts", "steps taken twice", "took"):
            table.add_column(column)
        for r in results:
            same = "yes" if r.identical else f"no, losses differ by {r.difference:.2e}"
            took = duration(r.seconds)
            back = "yes" if r.came_back else r.remark or "no"
            table.add_row(r.fault, back, same, str(r.attempts), str(r.again), took)
        console.print(table)
    well = all(r.came_back and r.identical for r in results)
    if well and not arguments.keep:
        shutil.rmtree(home)
    elif not well:
        console.print(f"what they wrote is kept in {home}", markup=False)
    return 0 if well else EXIT_OURS
