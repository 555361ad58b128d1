"""Stage `score`: a score row for every record, a shard of them at a time.

In: the record shards of pull and the three models. Out: `scores/scores-NNNNN.parquet` (SCORE_SCHEMA), with the number
and the row order of its record shard. The shards may be divided over any number of processes; what is measured, and
how, is in `cathpc.data.likelihood`, which alone needs torch. Memory grows with one shard and the models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.broken import Broken, Child, among, bisect
from cathpc.errors import DataError
from cathpc.models.config import ScoreConfig
from cathpc.record import SCORE_SCHEMA, Record, Score
from cathpc.shards import clear_failed, complete, each, forget, is_done, whole
from cathpc.store import read_json

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.data.likelihood import ScoringModels

MEANS = {"mean_nll": "nll", "mean_pool_nll": "pool_nll", "mean_contrast": "contrast", "mean_refusal": "refusal"}


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """The whole stage in one process; shards that failed before are tried again."""
    clear_failed(out)
    work(config, inputs, out, range(count(config, inputs)))
    return finish(config, inputs, out)


def count(config: Config, inputs: dict[str, Path]) -> int:
    """Number of shards: that of the record shards."""
    return len(_record_shards(inputs))


def work(config: Config, inputs: dict[str, Path], out: Path, shards: Sequence[int]) -> None:
    """Score the record shards of these numbers, those already done left alone."""
    paths = _record_shards(inputs)
    (out / "scores").mkdir(exist_ok=True)
    _forget_others(out, paths, shards)
    rows = {n: _rows(paths[n]) for n in shards}
    total, before = sum(rows.values()), sum(rows[n] for n in shards if is_done(out, n))
    loaded: list[ScoringModels] = []

    def ready() -> None:
        loaded.append(_models(config.score, inputs))

    def one(number: int, careful: bool) -> dict[str, Any]:
        nonlocal before
        records = _read(paths[number])
        if careful:
            with Child(scorer, config.score, inputs, out, before, total) as attempt:
                results = bisect(records, attempt)
        else:
            results = scorer(config.score, inputs, out, before, total, loaded[0])(records)
        broken = {b.row.id: b.error for b in among(results)}
        scores = [Score(r.row.id, "broken") if isinstance(r, Broken) else r for r in results]
        with whole(_scores_path(out, number)) as file:
            pq.write_table(pa.Table.from_pylist([asdict(s) for s in scores], schema=SCORE_SCHEMA), file)
        before += len(records)
        tokens = sum(s.tokens or 0 for s in scores if s.status == "ok")
        return {"records": len(scores), "tokens": tokens, "broken": broken, "dtype": _dtype(config.score)}

    each(out, shards, one, ready)


def scorer(
    config: ScoreConfig,
    inputs: dict[str, Path],
    out: Path,
    before: int,
    total: int,
    models: ScoringModels | None = None,
) -> Callable[[Sequence[Record]], list[Score | Broken]]:
    """What scores records and tells the progress; with models of its own where none are given."""
    from cathpc.data.likelihood import score_records

    using, told = models or _models(config, inputs), progress.counter(out, before, total, "records")
    return lambda records: score_records(records, using, told)


def _models(config: ScoreConfig, inputs: dict[str, Path]) -> ScoringModels:
    from cathpc.data.likelihood import ScoringModels

    return ScoringModels.load(config, **{name: inputs[name] for name in ("reference", "pool", "refusal")})


def _dtype(config: ScoreConfig) -> str:
    """The floating-point type that this process scores in."""
    from cathpc.models import precision

    return precision.name(precision.usable(config.dtype))


def finish(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """The summary of the stage; raises `DataError` where shards are not done. Reads one shard's columns at a time."""
    paths = _record_shards(inputs)
    _forget_others(out, paths, range(len(paths)))
    marks = complete(out, len(paths))
    for left in (out / "scores").glob(".*.tmp"):  # of processes that were killed
        left.unlink(missing_ok=True)
    statuses: Counter[str] = Counter()
    sums = dict.fromkeys(MEANS.values(), 0.0)
    tokens = answer_tokens = 0
    for number in marks:
        table = pq.read_table(_scores_path(out, number))
        statuses.update({row["values"]: row["counts"] for row in pc.value_counts(table["status"]).to_pylist()})
        tokens += pc.sum(table["tokens"]).as_py() or 0
        answer_tokens += pc.sum(table["answer_tokens"]).as_py() or 0
        for name in MEANS.values():
            sums[name] += pc.sum(table[name]).as_py() or 0.0
    records, good = statuses.total(), statuses["ok"]
    seconds = sum(mark["seconds"] for mark in marks.values())
    described = read_json(inputs["reference"] / "model" / "config.json") or {}
    asked = config.score.dtype.value
    dtypes = Counter(str(mark.get("dtype", asked)) for mark in marks.values())  # nodes may differ
    fell_back = "; ".join(
        f"{number:,} of {len(marks):,} shards in {used}: the CPU has no {asked}"
        for used, number in dtypes.items()
        if used != asked
    )
    others = ", ".join(f"{number:,} {status}" for status, number in sorted(statuses.items()) if status != "ok")
    line = "; ".join(filter(None, [f"{good:,} of {records:,} records, {tokens:,} tokens", others, fell_back]))
    return {
        "records": records,
        "statuses": dict(statuses.most_common()),
        "tokens": tokens,
        "answer_tokens": answer_tokens,
        **{key: sums[name] / good if good else None for key, name in MEANS.items()},
        "seconds": round(seconds, 1),  # of all processes together
        "tokens_per_s": round(sum(mark["tokens"] for mark in marks.values()) / max(seconds, 1e-9), 1),
        "dtypes": dict(dtypes),
        "window": config.score.longest(described.get("max_position_embeddings")),
        "line": line,
    }


def _record_shards(inputs: dict[str, Path]) -> list[Path]:
    return sorted((inputs["pull"] / "records").glob("records-*.parquet"))


def _scores_path(out: Path, shard: int) -> Path:
    return out / "scores" / f"scores-{shard:05d}.parquet"


def _rows(path: Path) -> int:
    """Records of a shard; 0 where it cannot be read, which its own turn will tell."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid):
        return 0


def _read(path: Path) -> list[Record]:
    try:
        return [Record(**row) for row in pq.read_table(path).to_pylist()]
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is no readable Parquet file ({error}); delete the stage's folder and pull again."
        ) from error


def _forget_others(out: Path, paths: list[Path], shards: Sequence[int]) -> None:
    """Scores of other records than those that are there now, or none, are not done, whatever their mark says."""
    for number in shards:
        if is_done(out, number) and not _same(_scores_path(out, number), paths[number]):
            forget(out, number)


def _same(scores: Path, records: Path) -> bool:
    try:
        return bool(pq.read_table(scores, columns=["id"]) == pq.read_table(records, columns=["id"]))
    except (OSError, pa.ArrowInvalid):
        return False
