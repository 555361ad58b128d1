"""`compare`: the runs of a sweep side by side, the best first.

Figures come from the manifests of the stages that each run links to; nothing is computed anew and no model is loaded.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc.pipeline import STAGES
from cathpc.saved import Saved, chosen
from cathpc.store import MANIFEST, read_json

HELP = "table the runs of a sweep side by side, the best first"

FIGURES = {
    "kept": "records that select kept",
    "kept_share": "of those it was given",
    "held_out": "loss over the held-out records, at the end of the training",
    "first_loss": "training loss of the first step",
    "last_loss": "training loss of the last step",
    "steps": "",
    "tokens": "tokens trained on",
    "tokens_per_s": "",
    "base": "share of the probes that the base model passes",
    "tuned": "share of the probes that the trained model passes",
    "difference": "tuned less base",
    "seconds": "seconds of all stages together",
}
"""Column -> what it is. Of `dropped.RULE`, records that select dropped by a rule, there are as many as rules did."""


def options(parser: argparse.ArgumentParser) -> None:
    """Which runs, and in which form."""
    parser.add_argument(
        "--runs",
        nargs="*",
        default=[],
        metavar="RUN",
        help="names of runs or patterns ('demo-*'); without them: the runs of +experiment=NAME, or those of its grid "
        "where values are swept ('+experiment=demo +sweep=lr')",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, every figure in full")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to FILE as well, one row a run")


def main(arguments: argparse.Namespace) -> int:
    """Print the table of the runs, what they share, and where their figures cannot be set against each other."""
    # '--runs a b +experiment=demo': the list of an option takes all words that follow it.
    names = [word for word in arguments.runs if "=" not in word]
    overrides = arguments.overrides + [word for word in arguments.runs if "=" in word]
    runs, missing = chosen(names, overrides)
    rows = ranked([row(run) for run in runs])
    label_overrides(rows)
    remarks = notes(rows) + [f"not begun: {one}" for one in missing]
    if arguments.csv:
        write_csv(rows, arguments.csv)
    if arguments.json:
        print(json.dumps({"shared": shared(rows), "notes": remarks, "runs": [plain(r) for r in rows]}, indent=1))
    else:
        show(rows, remarks)
    return 0


@dataclass
class Row:
    """One run of the table."""

    run: Saved
    state: str
    message: str
    """What the failed stage said."""
    fingerprints: dict[str, str]
    figures: dict[str, Any]
    """Of `FIGURES`, and `dropped.RULE`; None where the run has not come that far."""
    seconds: dict[str, float]
    """Finished stage -> seconds."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Key -> value, of the keys in which the compared runs differ."""
    best: bool = False


# --- one run --------------------------------------------------------------------------------------------------------


def row(run: Saved) -> Row:
    """What the manifests say of `run`."""
    folders = run.stages()
    found = {name: read_json(folder / MANIFEST) for name, folder in folders.items()}
    manifests: dict[str, dict[str, Any]] = {name: m for name, m in found.items() if isinstance(m, dict)}
    state, message = _state(run, folders, manifests)
    seconds = {name: float(m.get("seconds", 0.0)) for name, m in manifests.items()}
    figures = _figures({name: m.get("summary", {}) for name, m in manifests.items()})
    figures["seconds"] = round(sum(seconds.values()), 1) if seconds else None
    return Row(run, state, message, {name: folder.name for name, folder in folders.items()}, figures, seconds)


def _figures(summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    select, train, models = (summaries.get(n, {}) for n in ("select", "train", "evaluate"))
    shares = {name: model["all"]["share"] for name, model in models.get("models", {}).items()}
    figures = {
        "kept": select.get("kept"),
        "kept_share": select["kept"] / select["in"] if select.get("in") else None,
        "held_out": train.get("eval_loss"),
        "first_loss": train.get("first_loss"),
        "last_loss": train.get("loss"),
        **{name: train.get(name) for name in ("steps", "tokens", "tokens_per_s")},
        "base": shares.get("base"),
        "tuned": shares.get("tuned"),
        "difference": models.get("difference", {}).get("share"),
    }
    return figures | {f"dropped.{rule}": count for rule, count in select.get("dropped", {}).items()}


def _state(run: Saved, folders: dict[str, Path], manifests: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """How far the run is, and the message of what failed."""
    from cathpc import lease, progress

    for stage in STAGES:
        folder, manifest = folders.get(stage.name), manifests.get(stage.name)
        if manifest is not None:
            used = {name: i.get("digest") for name, i in manifest.get("inputs", {}).items()}
            if any(manifests.get(name, {}).get("digest") != digest for name, digest in used.items()):
                return f"stale from {stage.name} on", ""
            continue
        if folder is None or not folder.is_dir():
            return (f"{stage.name} was removed" if stage.name in run.linked else f"waits for {stage.name}"), ""
        if lease.holder(folder):
            report = progress.read(folder)
            how = f" {report['done']:,.0f}/{report['total']:,.0f} {report['unit']}" if report else ""
            return f"{stage.name}{how}", ""
        errors = [e for e in map(read_json, sorted(folder.glob("error.*.json"))) if isinstance(e, dict)]
        if errors:
            return f"failed in {stage.name}", str(errors[0].get("message", ""))
        return f"stopped in {stage.name}", ""
    return "finished", ""


# --- side by side ---------------------------------------------------------------------------------------------------


def ranked(rows: list[Row]) -> list[Row]:
    """The rows by held-out loss, or by kept records where none has one; the best are marked."""
    by, sign = ("held_out", 1) if any(r.figures["held_out"] is not None for r in rows) else ("kept", -1)
    have = sorted((r for r in rows if r.figures[by] is not None), key=lambda r: (sign * r.figures[by], r.run.name))
    for one in have:
        one.best = len(rows) > 1 and one.figures[by] == have[0].figures[by]
    return have + [r for r in rows if r.figures[by] is None]


def label_overrides(rows: list[Row]) -> None:
    """Set each row's `overrides`: the keys that any of the runs overrides, without those that are the same in all."""
    keys = dict.fromkeys(_key(o) for r in rows for o in r.run.overrides)
    keys.pop("experiment", None)
    values = {"experiment": [r.run.config.get("name", "") for r in rows]}
    values |= {key: [_value(r.run, key) for r in rows] for key in keys}
    for key, column in values.items():
        if any(value != column[0] for value in column):
            for one, value in zip(rows, column, strict=True):
                one.overrides[key] = value


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(run: Saved, key: str) -> Any:
    """What `key` is in `run`: the value of its saved config, or, of a group, the option that was taken."""
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if node is not None and not isinstance(node, dict):
        return node
    return next((o.partition("=")[2] for o in run.overrides if _key(o) == key), None)


def shared(rows: list[Row]) -> list[str]:
    """The stages that all runs have in common."""
    if len(rows) < 2:
        return []
    return [s.name for s in STAGES if len({r.fingerprints.get(s.name, r.run.name) for r in rows}) == 1]


def notes(rows: list[Row]) -> list[str]:
    """Where the figures of the runs are not of the same thing."""
    compared = [r for r in rows if r.figures["held_out"] is not None]
    found = []
    if len({r.fingerprints.get("pack") for r in compared}) > 1:
        found.append("the runs hold out different records: their held-out losses are not of the same text")
    asked = [r for r in rows if r.figures["tuned"] is not None]
    settings = {json.dumps(r.run.config.get("evaluate"), sort_keys=True) for r in asked}
    if len(settings) > 1:
        found.append("the runs are evaluated under different settings: their shares are not of the same probes")
    return found


def plain(one: Row) -> dict[str, Any]:
    """A row as JSON data."""
    dropped = {n.removeprefix("dropped."): count for n, count in one.figures.items() if n.startswith("dropped.")}
    return {
        "run": one.run.name,
        "best": one.best,
        "overrides": one.overrides,
        "state": one.state,
        "message": one.message,
        **{name: one.figures[name] for name in FIGURES},
        "dropped": dropped,
        "stage_seconds": one.seconds,
        "fingerprints": one.fingerprints,
    }


def columns(rows: list[Row]) -> list[str]:
    """The figures that a table of `rows` has: drops by rule only where the runs' selections differ."""
    dropped = sorted({name for r in rows for name in r.figures if name.startswith("dropped.")})
    differ = len({r.fingerprints.get("select") for r in rows}) > 1
    return [*list(FIGURES)[:2], *(dropped if differ else []), *list(FIGURES)[2:]]


def write_csv(rows: list[Row], file: Path) -> None:
    """Write one row a run; the file appears whole."""
    names = columns(rows)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["run", "best", "state", *rows[0].overrides, *names])
        for r in rows:
            values = [r.figures.get(name, 0 if name.startswith("dropped.") else None) for name in names]
            writer.writerow([r.run.name, int(r.best), r.state, *map(_text, r.overrides.values()), *values])
    os.replace(temporary, file)


def show(rows: list[Row], remarks: list[str]) -> None:
    """Print the table; a figure that is the same in all runs stands once below it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names = [n for n in columns(rows) if any(r.figures.get(n) is not None for r in rows)]
    same = [n for n in names if len(rows) > 1 and len({_figure(n, r.figures.get(n)) for r in rows}) == 1]
    varying = [n for n in names if n not in same]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("run", no_wrap=True)
    for key in rows[0].overrides:
        table.add_column(key, justify="right", overflow="fold")
    table.add_column("state", overflow="fold", min_width=len("finished"))
    for name in varying:
        table.add_column(_heading(name), justify="right")
    for r in rows:
        table.add_row(
            "*" if r.best else "",
            escape(r.run.name),
            *(escape(_text(value)) for value in r.overrides.values()),
            escape(r.state),
            *(_figure(name, r.figures.get(name)) for name in varying),
            style="bold green" if r.best else "",
        )
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=1000)  # a file or a pipe has no width: nothing is folded
    console.print(table)
    lines = []
    if any(r.best for r in rows):
        lines.append("* lowest held-out loss" if rows[0].figures["held_out"] is not None else "* most records kept")
    if same:
        lines.append("same in all: " + ", ".join(f"{_heading(n)} {_figure(n, rows[0].figures[n])}" for n in same))
    if names := shared(rows):
        lines.append(f"shared by all: {', '.join(names)}")
    lines += [f"note: {text}" for text in remarks]
    lines += [f"{r.run.name} {r.state}: {r.message}" for r in rows if r.message]
    console.print("\n".join(["", *lines]) if lines else "", markup=False)


def _heading(name: str) -> str:
    short = {"difference": "change", "tokens_per_s": "tokens/s"}
    return short.get(name, name.replace("dropped.", "dropped ").replace("_", " "))


def _figure(name: str, value: Any) -> str:
    """A figure as the table shows it; '' where there is none."""
    from cathpc.progress import duration

    if value is None:
        return "0" if name.startswith("dropped.") else ""
    if name == "seconds":
        return duration(value)
    if name == "difference":
        return f"{value:+.0%}"
    if name in ("kept_share", "base", "tuned"):
        return f"{value:.0%}"
    if name in ("held_out", "first_loss", "last_loss"):
        return f"{value:.3f}"
    return f"{value:,.0f}"


def _text(value: Any) -> str:
    """A value of an override as one writes it on the command line."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
