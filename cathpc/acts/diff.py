"""`diff A B`: which records two runs' selections keep and drop differently, and by which rules.

Reads the verdicts of both, nothing else: seconds for millions of records.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from cathpc import saved
from cathpc.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

HELP = "what moved between the selections of two runs: kept, dropped, by which rule"

KEPT, ABSENT = "kept", "not there"
"""Beside the names of the rules: what became of a record."""


def options(parser: argparse.ArgumentParser) -> None:
    """Two runs, and how much is shown."""
    what = "names of two runs (`compare` lists them), or one and the overrides of the other (+experiment=NAME ...)"
    parser.add_argument("runs", nargs=2, metavar="RUN", help=what)
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="ids shown of each move (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Print what differs in the thresholds, and how many records went where."""
    found = difference(*_two(arguments.runs + arguments.overrides), arguments.examples)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(text(found))
    return 0


def _two(words: list[str]) -> tuple[saved.Saved, saved.Saved]:
    """The two runs that the command line means; raises `UserError` where it means another number of them."""
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    overrides = [word for word in words if word not in names]
    given = [word for word in overrides if not saved.names_folder(word)]
    if len(names) + bool(given) != 2 or not names:
        raise UserError(
            f"diff compares two runs, and {' '.join(words)} names {len(names) + bool(given)}. Give two names "
            "(diff demo demo-2f1c9a70), or one and the overrides of the other (diff demo +experiment=demo KEY=VALUE)"
        )
    a = saved.one(names[0], overrides)
    b = saved.one("" if given else names[1], overrides)
    if a.folder == b.folder:
        raise UserError(f"{' '.join(words)} names the run {a.name} twice")
    return a, b


def difference(a: saved.Saved, b: saved.Saved, examples: int) -> dict[str, Any]:
    """The moves between the selections of two runs, with some ids of each; the settings in which they differ."""
    settings = [saved.manifest(run, "select")["config"]["select"] for run in (a, b)]
    differ = {key: [s.get(key) for s in settings] for key in settings[0] | settings[1]}
    both = _joined(_fates(a), _fates(b))
    moves: Counter[tuple[str, str]] = Counter()
    components: dict[str, Counter[str]] = {}
    some: dict[tuple[str, str], list[str]] = {}
    for batch in both.to_batches(max_chunksize=100_000):
        fates = [[f or ABSENT for f in batch.column(name).to_pylist()] for name in ("a", "b")]
        names = [x or y for x, y in zip(batch.column("component").to_pylist(), batch.column("component_b").to_pylist())]
        for id_, component, move in zip(batch.column("id").to_pylist(), names, zip(*fates), strict=True):
            moves[move] += 1
            counted = components.setdefault(component, Counter())
            counted.update({"a": move[0] == KEPT, "b": move[1] == KEPT, "left": move[0] == KEPT != move[1]})
            counted["joined"] += move[1] == KEPT != move[0]
            if move[0] != move[1] and len(ids := some.setdefault(move, [])) < examples:
                ids.append(id_)
    return {
        "runs": [a.name, b.name],
        "settings": {key: values for key, values in differ.items() if values[0] != values[1]},
        "same": sum(count for (x, y), count in moves.items() if x == y),
        "moves": [
            {"from": x, "to": y, "records": count, "examples": some[x, y]}
            for (x, y), count in moves.most_common()
            if x != y
        ],
        "components": {name: dict(counts) for name, counts in sorted(components.items())},
    }


def _fates(run: saved.Saved) -> pa.Table:
    """id, component, and what became of each record: `KEPT` or the rule that dropped it."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    saved.manifest(run, "select")
    table = pq.read_table(run.stages()["select"] / "verdicts.parquet", columns=["id", "kept", "rule", "component"])
    fate = pc.if_else(table["kept"], KEPT, table["rule"])
    return table.select(["id", "component"]).append_column("fate", fate)


def _joined(a: pa.Table, b: pa.Table) -> pa.Table:
    """Both fates of every record, by id, in the order of ids."""
    import pyarrow as pa

    names = ["id", "component", "a"], ["id", "component_b", "b"]
    a, b = a.rename_columns(names[0]), b.rename_columns(names[1])
    if a["id"].equals(b["id"]):  # selections of the same records
        return pa.table([*a.columns, *b.columns[1:]], names=[*names[0], *names[1][1:]])
    return a.join(b, "id", join_type="full outer").sort_by("id")


def text(found: dict[str, Any]) -> str:
    """The difference for people."""
    a, b = found["runs"]
    lines = [f"{a} -> {b}"]
    lines += [f"  select.{k}: {json.dumps(x)} -> {json.dumps(y)}" for k, (x, y) in found["settings"].items()]
    width = max(map(len, ["component", *found["components"]]))
    lines.append(f"\n{'component':<{width}}{'kept before':>13}{'now':>10}{'left':>10}{'joined':>10}")
    for name, counts in found["components"].items():
        before, now, left, joined = (counts.get(key, 0) for key in ("a", "b", "left", "joined"))
        lines.append(f"{name:<{width}}{before:>13,}{now:>10,}{left:>10,}{joined:>10,}")
    lines.append("")
    for move in found["moves"]:
        ids = f"   e.g. {', '.join(move['examples'])}" if move["examples"] else ""
        lines.append(f"{move['records']:>10,}  {move['from']} -> {move['to']}{ids}")
    lines.append(f"{found['same']:>10,}  as before")
    if found["moves"] and found["moves"][0]["examples"]:
        lines.append(f"\nwhy: python -m cathpc explain {found['moves'][0]['examples'][0]} --run {b}")
    return "\n".join(lines)
