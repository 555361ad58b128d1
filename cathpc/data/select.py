"""Selection: which scored records go into the mix, and why the others do not.

In: the record shards of pull and the score shards beside them. Out: `kept.parquet` (RECORD_SCHEMA), `verdicts.parquet`
(VERDICT_SCHEMA with source and component) with a row for every record, and `flow.json` (records in, kept, and dropped
by rule, over all, by source and by component). No model is loaded. Three passes over the shards: rules, cuts that
compare records, writing. Memory grows with the number of records by some 60 bytes each, not with their text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.data import filters
from cathpc.data.config import SelectConfig
from cathpc.errors import DataError, UserError
from cathpc.record import RECORD_SCHEMA, VERDICT_SCHEMA
from cathpc.store import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cathpc.config import Config

KEPT = len(filters.NAMES)
"""The code of a kept record; the codes below are places in `filters.NAMES`."""
VERDICT_FILE_SCHEMA = pa.schema([*VERDICT_SCHEMA, ("source", pa.string()), ("component", pa.string())])
_META = ["id", "source", "component", "messages.list.element.role"]
_SCORES = ["id", "status", "language", "refusal", "tokens", "answer_tokens", "correlatives", "steps"]


@dataclass
class Table:
    """What is remembered of every record, in the order of the shards."""

    code: NDArray[np.int8]
    value: NDArray[np.float64]
    threshold: NDArray[np.float64]
    quality: NDArray[np.float64]
    hash: NDArray[np.float64]
    source: NDArray[np.int32]
    component: NDArray[np.int32]
    answer_tokens: NDArray[np.float32]
    steps: NDArray[np.float32]
    refusal: NDArray[np.float32]
    sources: list[str]
    components: list[str]


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage `select`: judge every record, write the kept ones and all verdicts.

    Raises UserError where nothing is kept, naming the rule that dropped the last records.
    """
    settings = config.select
    filters.check(settings)
    shards = _shards(inputs)
    table = _judge(settings, shards, out)
    _compare(settings, table)
    flow = _flow(table)
    if not flow["kept"]:
        raise UserError(_emptied(settings, table))
    _write(shards, table, out)
    write_json(out / "flow.json", flow)
    return _summary(table, flow)


def _judge(settings: SelectConfig, shards: list[tuple[Path, Path]], out: Path) -> Table:
    """Apply the rules that look at one record at a time."""
    parts: dict[str, list[NDArray[Any]]] = {}
    names: dict[str, dict[str, int]] = {"source": {}, "component": {}}
    for number, (records, scores) in enumerate(shards):
        meta, score = _read(records, _META), _read(scores, [*_SCORES, settings.quality])
        ids = meta["id"].to_pylist()
        if ids != score["id"].to_pylist():
            raise DataError(
                f"{scores} does not hold the records of {records} in their order; delete its stage and score again."
            )
        columns = _columns(meta, score)
        code = np.full(len(ids), KEPT, np.int8)
        value, threshold = np.full(len(ids), np.nan), np.full(len(ids), np.nan)
        for place, rule in enumerate(filters.RULES):
            drop = rule.apply(settings, columns)
            if drop is not None:
                new = drop.dropped & (code == KEPT)
                code[new], value[new], threshold[new] = place, drop.value[new], drop.threshold
        passed = code == KEPT
        hashes = np.full(len(ids), np.nan)
        if settings.max_records:
            hashes[passed] = [filters.sample_hash(key) for key, ok in zip(ids, passed, strict=True) if ok]
        row = {
            "code": code,
            "value": value,
            "threshold": threshold,
            "quality": _numbers(score[settings.quality]),
            "hash": hashes,
            "answer_tokens": columns.answer_tokens.astype(np.float32),
            "steps": columns.steps.astype(np.float32),
            "refusal": columns.refusal.astype(np.float32),
        }
        for key, known in names.items():
            encoded = meta[key].combine_chunks().fill_null("").dictionary_encode()
            codes = np.array([known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()], np.int32)
            row[key] = codes[encoded.indices.to_numpy()] if len(codes) else np.zeros(0, np.int32)
        for key, array in row.items():
            parts.setdefault(key, []).append(array)
        progress.report(out, number + 1, 2 * len(shards), "shards")
    arrays: dict[str, Any] = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    return Table(**arrays, sources=list(names["source"]), components=list(names["component"]))


def _compare(settings: SelectConfig, table: Table) -> None:
    """Apply the quality cut and the quota, which compare the records of a component with each other."""
    for component in range(len(table.components)):
        rows = np.flatnonzero((table.component == component) & (table.code == KEPT))
        cut = filters.quality_cut(settings, table.quality[rows])
        if cut is not None:
            _drop(
                table,
                rows,
                filters.worse(settings, table.quality[rows], cut),
                filters.QUALITY,
                table.quality[rows],
                cut,
            )
    if not settings.max_records:
        return
    left = {n: np.flatnonzero((table.component == c) & (table.code == KEPT)) for c, n in enumerate(table.components)}
    shares = filters.quotas({name: len(rows) for name, rows in left.items()}, settings.max_records)
    for name, rows in left.items():
        order = rows[np.argsort(table.hash[rows], kind="stable")]
        over = order[shares[name] :]
        cut = float(table.hash[order[shares[name] - 1]]) if shares[name] else 0.0
        _drop(table, over, np.ones(len(over), bool), filters.QUOTA, table.hash[over], cut)


def _drop(table: Table, rows: Any, dropped: Any, rule: str, values: Any, threshold: float) -> None:
    table.code[rows[dropped]] = filters.NAMES.index(rule)
    table.value[rows[dropped]] = values[dropped]
    table.threshold[rows[dropped]] = threshold


def _write(shards: list[tuple[Path, Path]], table: Table, out: Path) -> None:
    """Write the kept records and all verdicts, shard by shard."""
    rules = np.array([*filters.NAMES, ""], dtype=object)
    start = 0
    with (
        _writer(out / "kept.parquet", RECORD_SCHEMA) as kept,
        _writer(out / "verdicts.parquet", VERDICT_FILE_SCHEMA) as all_,
    ):
        for number, (path, _) in enumerate(shards):
            records = _read(path, None)
            rows = slice(start, start + len(records))
            keep = table.code[rows] == KEPT
            columns = [
                records["id"],
                pa.array(keep),
                pa.array(rules[table.code[rows]], pa.string()),
                pa.array(table.value[rows], mask=np.isnan(table.value[rows])),
                pa.array(table.threshold[rows], mask=np.isnan(table.threshold[rows])),
                records["source"],
                records["component"],
            ]
            all_.write_table(pa.table(columns, schema=VERDICT_FILE_SCHEMA))
            if keep.any():
                kept.write_table(records.filter(pa.array(keep)).select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA))
            start = rows.stop
            progress.report(out, len(shards) + number + 1, 2 * len(shards), "shards")


def _flow(table: Table) -> dict[str, Any]:
    """Counts in, kept and dropped by rule: over all, by source, by component."""

    def counts(rows: Any) -> dict[str, Any]:
        found = np.bincount(table.code[rows], minlength=KEPT + 1)
        dropped = {name: int(n) for name, n in zip(filters.NAMES, found[:KEPT], strict=True)}
        return {"in": int(found.sum()), "kept": int(found[KEPT]), "dropped": dropped}

    return {
        **counts(slice(None)),
        "by_source": {
            name: counts(table.source == i) for i, name in sorted(enumerate(table.sources), key=lambda x: x[1])
        },
        "by_component": {
            name: counts(table.component == i) for i, name in sorted(enumerate(table.components), key=lambda x: x[1])
        },
    }


def _emptied(settings: SelectConfig, table: Table) -> str:
    """Why nothing is kept: the rule after which no record was left, and how near the nearest came."""
    total = len(table.code)
    if not total:
        return "select has no record to choose from: pull kept none. See its rejects.jsonl."
    last = int(table.code.max())
    rows = table.code == last
    name = filters.NAMES[last]
    key = filters.KEYS[name]
    steps = ", ".join(
        f"{n} {int((table.code == i).sum()):,}" for i, n in enumerate(filters.NAMES) if (table.code == i).any()
    )
    seen = table.value[rows][~np.isnan(table.value[rows])]
    figures = f" (values from {seen.min():.4g} to {seen.max():.4g})" if len(seen) else ""
    remedy = f"select.{key} is {getattr(settings, key)!r}; relax it." if key else "See the statuses in the scores."
    return (
        f"nothing is kept: rule '{name}' dropped the last {int(rows.sum()):,} of {total:,} records{figures}. {remedy} "
        f"Dropped by rule: {steps}."
    )


def _summary(table: Table, flow: dict[str, Any]) -> dict[str, Any]:
    kept = table.code == KEPT
    by_component = {}
    for place, name in enumerate(table.components):
        rows = kept & (table.component == place)
        if rows.any():
            by_component[name] = {
                "kept": int(rows.sum()),
                "median_answer_tokens": float(np.median(table.answer_tokens[rows])),
                "two_or_more_steps": float((table.steps[rows] >= 2).mean()),
                "mean_refusal": float(table.refusal[rows].mean(dtype=float)),
            }
    reasons = {name: n for name, n in flow["dropped"].items() if n}
    steps = float((table.steps[kept] >= 2).mean())
    return {
        "in": flow["in"],
        "kept": flow["kept"],
        "dropped": reasons,
        "two_or_more_steps": steps,
        "median_answer_tokens": float(np.median(table.answer_tokens[kept])),
        "mean_refusal": float(table.refusal[kept].mean(dtype=float)),
        "components": by_component,
        "line": f"{flow['kept']:,} of {flow['in']:,} records kept, {steps:.0%} with two or more thought steps; "
        f"dropped: {', '.join(f'{name} {n:,}' for name, n in reasons.items()) or 'none'}",
    }


def _columns(meta: pa.Table, score: pa.Table) -> filters.Columns:
    lists = meta["messages"].combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    is_answer = np.asarray(lists.flatten().field("role").to_numpy(zero_copy_only=False) == "assistant", dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    sums = np.concatenate([[0], np.cumsum(is_answer)])
    return filters.Columns(
        component=_strings(meta["component"]),
        turns=sums[ends[1:]] - sums[ends[:-1]],
        status=_strings(score["status"]),
        language=_strings(score["language"]),
        **{name: _numbers(score[name]) for name in ("refusal", "tokens", "answer_tokens", "correlatives", "steps")},
    )


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy())


def _strings(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.asarray(column.fill_null("").to_numpy(), dtype=object)


def _shards(inputs: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Each record shard with its score shard."""
    records = sorted((inputs["pull"] / "records").glob("records-*.parquet"))
    pairs = [(p, inputs["score"] / "scores" / p.name.replace("records-", "scores-")) for p in records]
    if not pairs:
        raise DataError(f"{inputs['pull']} holds no record shard.")
    return pairs


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    try:  # `ParquetFile` takes paths inside a column, unlike `read_table`
        return pq.ParquetFile(path).read(columns=columns)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} is missing or no readable Parquet file ({error}); delete its stage and run again."
        ) from error


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file that appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            yield writer
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
