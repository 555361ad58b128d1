"""Selection: which scored records go into the mix, and why the others do not.

In: the record shards of pull and the score shards beside them. Out: `kept.parquet` (RECORD_SCHEMA), `verdicts.parquet`
(VERDICT_SCHEMA with source and component) with a row for every record, and `flow.json` (records in, kept, and dropped
by rule, over all, by source and by component; and the cuts that compare records, by component). No model is loaded. Two
passes over the shards: the first reads scores alone, the second copies what is kept. Memory grows with the number of
records by some 60 bytes each, not with their text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
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
_SCORES = ["id", "status", "language", "refusal", "tokens", "answer_tokens", "correlatives", "steps", "diagnosis"]


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
    times = [time.perf_counter()]
    table = _judge(settings, shards, out)
    times.append(time.perf_counter())
    cuts = _compare(settings, table)
    flow = _flow(table)
    if not flow["kept"]:
        raise UserError(_emptied(settings, table))
    times.append(time.perf_counter())
    _write(shards, table, out)
    write_json(out / "flow.json", {**flow, "cuts": cuts})
    times.append(time.perf_counter())
    seconds = {
        name: round(b - a, 2) for name, (a, b) in zip(("judge", "compare", "write"), pairwise(times), strict=True)
    }
    return {**_summary(table, flow), "seconds": seconds}


def _judge(settings: SelectConfig, shards: list[tuple[Path, Path]], out: Path) -> Table:
    """Apply the rules that look at one record at a time."""
    names: dict[str, dict[str, int]] = {"source": {}, "component": {}}
    table = _empty(sum(_rows(records) for records, _ in shards))
    start = 0
    for number, (records, scores) in enumerate(shards):
        meta, score = _read(records, _META), _read(scores, [*_SCORES, settings.quality])
        if not meta["id"].equals(score["id"]):
            raise DataError(
                f"{scores} does not hold the records of {records} in their order; delete its stage and score again."
            )
        columns = to_columns(meta, score, settings.quality)
        rows = slice(start, start + len(meta))
        start = rows.stop
        code, value, threshold = table.code[rows], table.value[rows], table.threshold[rows]  # views
        for place, rule in enumerate(filters.RULES):
            drop = rule.apply(settings, columns)
            if drop is not None:
                new = drop.dropped & (code == KEPT)
                code[new], value[new], threshold[new] = place, drop.value[new], drop.threshold
        if settings.max_records or settings.quotas:
            passed = np.flatnonzero(code == KEPT)
            table.hash[start - len(meta) + passed] = list(
                map(filters.sample_hash, meta["id"].take(pa.array(passed)).to_pylist())
            )
        table.quality[rows] = columns.quality
        table.answer_tokens[rows], table.steps[rows] = columns.answer_tokens, columns.steps
        table.refusal[rows] = columns.refusal
        for key, known in names.items():
            encoded = meta[key].combine_chunks().fill_null("").dictionary_encode()
            codes = np.array([known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()], np.int32)
            getattr(table, key)[rows] = codes[encoded.indices.to_numpy()] if len(codes) else 0
        progress.report(out, number + 1, 2 * len(shards), "shards")
    table.sources, table.components = list(names["source"]), list(names["component"])
    return table


def _empty(count: int) -> Table:
    """A table of `count` records that no rule has looked at."""
    floats, counts, small = np.float64, np.int32, np.float32
    return Table(
        code=np.full(count, KEPT, np.int8),
        value=np.full(count, np.nan, floats),
        threshold=np.full(count, np.nan, floats),
        quality=np.full(count, np.nan, floats),
        hash=np.full(count, np.nan, floats),
        source=np.zeros(count, counts),
        component=np.zeros(count, counts),
        answer_tokens=np.zeros(count, small),
        steps=np.zeros(count, small),
        refusal=np.zeros(count, small),
        sources=[],
        components=[],
    )


def _compare(settings: SelectConfig, table: Table) -> dict[str, dict[str, float]]:
    """Apply what compares the records of a component with each other: population, quality and quotas.

    Returns the cuts, by component and rule, of the rules that are switched on.
    """
    cuts: dict[str, dict[str, float]] = {name: {} for name in table.components}

    def left(component: int) -> Any:
        return np.flatnonzero((table.component == component) & (table.code == KEPT))

    for component, name in enumerate(table.components):
        rows = left(component)
        if settings.population:
            densities = filters.density(settings, table.refusal[rows].astype(float), table.quality[rows])
            cut = filters.population_cut(settings, densities)
            if cut is not None:
                cuts[name][filters.POPULATION] = cut
                _drop(table, rows, densities < cut, filters.POPULATION, densities, cut)
                rows = left(component)
        values = table.quality[rows]
        cut = filters.quality_cut(settings, values)
        if cut is not None:
            cuts[name][filters.QUALITY] = cut
            _drop(table, rows, filters.worse(settings, values, cut), filters.QUALITY, values, cut)
    if not settings.max_records and not settings.quotas:
        return cuts
    passed = {name: left(component) for component, name in enumerate(table.components)}
    shares = {name: min(len(rows), settings.quotas.get(name) or len(rows)) for name, rows in passed.items()}
    if settings.max_records:
        shares = filters.quotas(shares, settings.max_records)
    for name, rows in passed.items():
        order = rows[np.argsort(table.hash[rows], kind="stable")]
        over = order[shares[name] :]
        if len(over):
            cut = cuts[name][filters.QUOTA] = float(table.hash[order[shares[name] - 1]]) if shares[name] else 0.0
            _drop(table, over, np.ones(len(over), bool), filters.QUOTA, table.hash[over], cut)
    return cuts


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
    keys = filters.keys(settings, name)
    steps = ", ".join(
        f"{n} {int((table.code == i).sum()):,}" for i, n in enumerate(filters.NAMES) if (table.code == i).any()
    )
    seen = table.value[rows][~np.isnan(table.value[rows])]
    figures = f" (values from {seen.min():.4g} to {seen.max():.4g})" if len(seen) else ""
    set_by = " and ".join(f"select.{key} is {getattr(settings, key)!r}" for key in keys)
    remedy = f"{set_by}; relax it." if keys else "See the statuses in the scores."
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


def to_columns(meta: pa.Table, score: pa.Table, quality: str) -> filters.Columns:
    """What the rules see, of the `_META` columns of records and of their scores; `quality` is `select.quality`."""
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
        quality=_numbers(score[quality]),
        **{
            name: _numbers(score[name])
            for name in ("refusal", "tokens", "answer_tokens", "correlatives", "steps", "diagnosis")
        },
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


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid):
        return 0  # its own turn will tell


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
        repeating = [f.name for f in schema if f.type == pa.string() and f.name not in ("id", "origin")]
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeating) as writer:
            yield writer
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
