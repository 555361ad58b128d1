"""`explain ID`: one record's way: where it came from, its scores and by which models, every rule and how far it was
off.

Reads the columns of ids until it finds the record, then single rows: seconds for millions of records. A row that never
became a record has no id and is named by its origin ('notes.jsonl:17').
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cathpc import saved
from cathpc.errors import UserError
from cathpc.store import MANIFEST, read_json

HELP = "why a record was kept or dropped: source, scores, models, every rule and how far from it"

MODELS = ("reference", "pool", "refusal")
_MOST = 5
"""Rejected rows that are shown; characters of a text are limited too."""


def options(parser: argparse.ArgumentParser) -> None:
    """Which record, of which run."""
    parser.add_argument("id", metavar="ID", help="a record's id, its beginning (6 characters or more), or an origin")
    parser.add_argument("--run", default="", metavar="RUN", help="name of a run; without it that of the overrides")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Print all that is known of the record."""
    found = explain(saved.one(arguments.run, arguments.overrides), arguments.id)
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else text(found))
    return 0


def explain(run: saved.Saved, name: str) -> dict[str, Any]:
    """What the run's stages say of the record `name`; `UserError` where none knows it.

    Keys: `run`, `record`, `rejects` (rows set aside by that name, or for repeating it), and as far as the run has come
    `score`, `models`, `verdict` and `rules`.
    """
    saved.manifest(run, "pull")
    folders = run.stages()
    place = _find(folders["pull"], name)
    rejects = _rejects(folders["pull"] / "rejects.jsonl", place[2]["id"] if place else name)
    if place is None:
        if not rejects:
            raise UserError(
                f"{run.name} knows no record {name!r}. Ids are in verdicts.parquet of select and in the report; rows "
                "that were set aside go by their origin, as rejects.jsonl of pull has it ('notes.jsonl:17')"
            )
        return {"run": run.name, "record": None, "rejects": rejects}
    shard, row, record = place
    found: dict[str, Any] = {"run": run.name, "record": record, "rejects": rejects}
    scores = folders["score"] / "scores" / f"scores-{shard:05d}.parquet" if "score" in folders else Path()
    if shard >= 0 and scores.is_file():
        found["score"] = _row(scores, row)
        found["models"] = {stage: _model(run, stage) for stage in MODELS}
        select = folders.get("select")
        if select and (select / MANIFEST).is_file():  # without one it is being written
            import pyarrow.dataset as pads

            verdicts = pads.dataset(select / "verdicts.parquet")
            found["verdict"] = verdicts.to_table(filter=pads.field("id") == record["id"]).to_pylist()[0]
            found["rules"] = _rules(run, select, record, scores, row, found["verdict"])
    return found


def _find(pull: Path, name: str) -> tuple[int, int, dict[str, Any]] | None:
    """Shard (-1: the labelled refusals), row and record of an id, of the beginning of one, or of an origin."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = [*sorted((pull / "records").glob("records-*.parquet")), pull / "labels.parquet"]
    by_origin = ":" in name
    hits: list[tuple[int, int, Path]] = []
    for path in paths:
        column = pq.read_table(path, columns=["origin" if by_origin else "id"]).column(0)
        if by_origin:
            rows = pc.indices_nonzero(pc.equal(column, name))
        else:
            rows = pc.indices_nonzero(pc.starts_with(column, name)) if len(name) >= 6 else []
        shard = -1 if path.name == "labels.parquet" else int(path.stem.rpartition("-")[2])
        hits += [(shard, row.as_py(), path) for row in rows]
        if len(hits) > 1 or (hits and len(name) == 16):
            break
    if len(hits) > 1:
        raise UserError(f"several records go by {name!r}; give more of the id")
    if not hits:
        return None
    shard, row, path = hits[0]
    return shard, row, _row(path, row)


def _row(path: Path, row: int) -> dict[str, Any]:
    """One row of a Parquet file, by its number."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = pq.read_table(path).slice(row, 1).to_pylist()[0]
    return found


def _rejects(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows that were set aside by this origin, or because they repeat this record."""
    found = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if name in line:
                reject = json.loads(line)
                if reject["origin"] == name or f"repeats {name}" in reject["detail"]:
                    found.append(reject)
    return found


def _model(run: saved.Saved, stage: str) -> dict[str, Any]:
    """Which model scored: its stage's fingerprint, what it was made from, and what it said of itself."""
    manifest = saved.manifest(run, stage)
    section = manifest["config"].get("refusal" if stage == "refusal" else "gpt", {})
    return {
        "fingerprint": manifest["fingerprint"],
        "digest": manifest["digest"],
        "base": section.get("base", ""),
        "line": manifest["summary"].get("line", ""),
    }


def _rules(
    run: saved.Saved, select: Path, record: dict[str, Any], scores: Path, row: int, verdict: dict[str, Any]
) -> list[dict[str, Any]]:
    """How every rule saw the record: see `cathpc.data.judged`."""
    import pyarrow.parquet as pq

    from cathpc.data import judged
    from cathpc.data.config import SelectConfig

    settings = SelectConfig(**saved.manifest(run, "select")["config"]["select"])
    cuts = (read_json(select / "flow.json") or {}).get("cuts", {}).get(record["component"], {})
    window = judged.window_of(saved.manifest(run, "score"))
    return judged.rules(settings, cuts, record, pq.read_table(scores).slice(row, 1), verdict, window)


def text(found: dict[str, Any]) -> str:
    """The explanation for people."""
    lines: list[str] = []
    record = found["record"]
    if record:
        lines += [
            f"{record['id']}  source {record['source']} ({record['component']}), {record['origin']}",
            f"  answers by {record['generator'] or 'an unnamed author'}, licence {record['license']}",
            *(f"  {m['role']}: {_short(m['content'])}" for m in record["messages"][:4]),
        ]
        if record["label"] is not None:
            lines.append(
                f"  a labelled answer ({record['label']:g}): it trains the refusal classifier and is not selected"
            )
    for reject in found["rejects"][:_MOST]:
        lines.append(f"  set aside: {reject['origin']}: {reject['reason']}: {reject['detail']}")
    if len(found["rejects"]) > _MOST:
        lines.append(f"  … and {len(found['rejects']) - _MOST:,} more rows")
    if "score" in found:
        figures = {k: v for k, v in found["score"].items() if k != "id" and v is not None}
        lines.append(
            "\nscores  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        )
        lines += [f"  by {name} {m['fingerprint']} of {m['base']}: {m['line']}" for name, m in found["models"].items()]
    if "verdict" in found:
        verdict = found["verdict"]
        lines.append(f"\n{found['run']}: " + ("kept" if verdict["kept"] else f"dropped by the rule {verdict['rule']}"))
        lines.append(f"  {'rule':<16}{'':<14}{'value':>12}{'threshold':>12}{'off by':>12}")
        for rule in found["rules"]:
            mark = {True: "passes", False: "fails", None: "not measured"}[rule["passes"]]
            cells = ("" if rule[key] is None else f"{rule[key]:.4g}" for key in ("value", "threshold", "off"))
            lines.append(f"  {rule['rule']:<16}{mark:<14}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _short(content: str, size: int = 200) -> str:
    line = " ".join(content.split())
    return line if len(line) <= size else line[: size - 1] + "…"
