"""What a finished stage shows in W&B beside its steps: figures, tables, histograms and single numbers.

In: the stage's folder. Out: a `Shown`, plain data without W&B. The report's pictures are those that it drew; it names
them in `shown.json`. Memory is bounded: scores are counted into bins a batch at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc.store import read_json

FILE = "shown.json"
Table = tuple[list[str], list[list[Any]]]
"""Column names and rows."""


@dataclass
class Shown:
    """What there is to show; every mapping is by name."""

    numbers: dict[str, float | str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    bars: dict[str, tuple[str, Table]] = field(default_factory=dict)
    """Title and a table of two columns: what a bar stands for, and how long it is."""
    histograms: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Counts and the edges of their bins."""
    pictures: dict[str, tuple[Path, str]] = field(default_factory=dict)
    """A PNG file and its caption."""


def shown(stage: str, folder: Path, manifest: Mapping[str, Any]) -> Shown:
    """What the finished `stage` in `folder` shows; where a file cannot be read, what was found before it, and why."""
    found = Shown(numbers=numbers(manifest.get("summary", {})))
    found.numbers["seconds"] = float(manifest.get("seconds", 0.0))
    if stage in _OWN:
        try:
            _OWN[stage](folder, manifest.get("summary", {}), found)
        except (OSError, KeyError, TypeError, ValueError) as error:
            found.numbers["not_shown"] = f"{type(error).__name__}: {error}"[:200]
    return found


def numbers(summary: Mapping[str, Any], above: str = "") -> dict[str, float | str]:
    """The numbers of a summary by their path, 'train/tokens', and its line for people."""
    found: dict[str, float | str] = {}
    for key, value in summary.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value
        elif name == "line":
            found[name] = str(value)
    return found


def write(folder: Path, pictures: Mapping[str, tuple[Path, str]], tables: Mapping[str, Table], **more: float) -> None:
    """Leave in `folder` what the stage wants shown: pictures below it with their captions, tables and numbers."""
    value = {
        "pictures": {key: [str(file.relative_to(folder)), caption] for key, (file, caption) in pictures.items()},
        "tables": {key: [head, rows] for key, (head, rows) in tables.items()},
        "numbers": more,
    }
    (folder / FILE).write_text(json.dumps(value, ensure_ascii=False, default=str), encoding="utf-8")


def _pull(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    sources = read_json(folder / "sources.json") or {}
    rows = [
        [name, s["component"], s.get("license", ""), s["rows"], s["kept"], sum(s["rejected"].values())]
        for name, s in sources.items()
    ]
    found.tables["sources"] = ["source", "component", "license", "rows", "records", "set aside"], rows
    found.bars["set_aside"] = "Rows set aside", _counts("reason", summary.get("reasons"))


def _base(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    rows = [
        [one["tensor"], t["token"], t["id"], t["norm_before"], t["norm"], one["trained_norm_median"]]
        for one in summary.get("rows", ())
        for t in one["tokens"]
    ]
    found.tables["token_rows"] = ["tensor", "token", "id", "norm before", "norm", "median of trained rows"], rows


def _gpt(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    metrics = read_json(folder / "metrics.json") or {}
    for key in ("curve", "heldout_curve"):
        if points := metrics.get(key):
            columns = list(points[0])
            found.tables[key] = columns, [[point.get(c) for c in columns] for point in points]
    found.bars["generators"] = "Answers by generator", _counts("generator", summary.get("generators"))


def _refusal(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    bands = summary.get("bands", {})
    rows = [[name, summary.get(name), *bands.get(name, (None, None))] for name in ("precision", "recall", "f1", "ece")]
    found.tables["measures"] = ["measure", "value", "low", "high"], [row for row in rows if row[1] is not None]
    files = [folder / "heldout.parquet"]
    for key, value in (("refusals", True), ("other_answers", False)):
        found.histograms[f"probability_{key}"] = _binned(files, "probability", _steps(0, 1, 40), ("label", value))


def _score(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    files = sorted((folder / "scores").glob("*.parquet"))
    for column, edges in SCORES.items():
        found.histograms[column] = _binned(files, column, edges)
    found.bars["statuses"] = "Records by status", _counts("status", summary.get("statuses"))


def _select(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    found.bars["dropped"] = "Records dropped, by rule", _counts("rule", summary.get("dropped"))
    flow = read_json(folder / "flow.json") or {}
    for by in ("source", "component"):
        parts = flow.get(f"by_{by}") or {}
        rules = sorted({rule for part in parts.values() for rule in part["dropped"]})
        rows = [[n, p["in"], p["kept"], *(p["dropped"].get(r, 0) for r in rules)] for n, p in parts.items()]
        if rows:
            found.tables[f"by_{by}"] = [by, "in", "kept", *rules], rows


def _cards(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    for key, title in (("verdicts", "Cards by verdict"), ("rules", "Rules"), ("refused_by_check", "Refused, by check")):
        found.bars[key] = title, _counts(key, summary.get(key))


def _train(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    found.bars["seconds"] = "Where the time went, in seconds", _counts("part", summary.get("seconds"))
    rows = [[one["global_step"], one["eval_loss"]] for one in summary.get("evals", ())]
    found.tables["held_out"] = ["global_step", "held-out loss"], rows


def _evaluate(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    fidelity = read_json(folder / "fidelity.json") or {}
    rows = []
    for model, measured in fidelity.get("models", {}).items():
        for family, share in {"all": measured["all"], **measured["families"]}.items():
            rows.append([model, family, share["share"], share["low"], share["high"]])
    found.tables["fidelity"] = ["model", "family", "share passed", "low", "high"], rows
    overall = {model: measured["all"]["share"] for model, measured in fidelity.get("models", {}).items()}
    found.bars["fidelity"] = "Share of probes passed", _counts("model", overall)
    found.numbers |= {f"fidelity/{model}": share for model, share in overall.items()}


def _report(folder: Path, summary: Mapping[str, Any], found: Shown) -> None:
    left = read_json(folder / FILE) or {}
    found.pictures |= {key: (folder / file, caption) for key, (file, caption) in left.get("pictures", {}).items()}
    found.tables |= {key: (head, rows) for key, (head, rows) in left.get("tables", {}).items()}
    found.numbers |= left.get("numbers", {})


def _counts(what: str, counts: Mapping[str, float] | None) -> Table:
    return [what, "count"], [[name, value] for name, value in (counts or {}).items()]


def _steps(low: float, high: float, bins: int) -> list[float]:
    return [low + (high - low) * n / bins for n in range(bins + 1)]


SCORES = {
    "perplexity": [10**x for x in _steps(0, 4, 80)],
    "contrast": _steps(-4, 4, 80),
    "refusal": _steps(0, 1, 50),
    "answer_tokens": [10**x for x in _steps(0, 5, 80)],
}
"""Columns of scores and the edges of their bins; what lies beyond counts to the outermost."""


def _binned(
    files: Iterable[Path], column: str, edges: list[float], only: tuple[str, Any] | None = None
) -> tuple[list[int], list[float]]:
    """How many values of a column of Parquet files lie between the `edges`, of rows where a column has a value."""
    import numpy as np
    import pyarrow.parquet as pq

    counts = np.zeros(len(edges) - 1, np.int64)
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=[column, *([only[0]] if only else [])]):
            values = batch.column(0).to_numpy(zero_copy_only=False).astype(float)
            if only:
                values = values[batch.column(1).to_numpy(zero_copy_only=False) == only[1]]
            values = values[np.isfinite(values)]
            counts += np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts.tolist(), edges


_OWN: dict[str, Callable[[Path, Mapping[str, Any], Shown], None]] = {
    "pull": _pull,
    "base": _base,
    "reference": _gpt,
    "pool": _gpt,
    "refusal": _refusal,
    "score": _score,
    "select": _select,
    "cards": _cards,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "sweep": _report,
}
