"""The stage `cards`: every kept record gets a system card that its answers obey, a shard of records at a time.

In: `select/kept.parquet`. Out: `carded.parquet` (the same records, in order, with a system message; without those whose
verdict is 'dropped'), `cards.jsonl` (one row a record: verdict, card, rules, checks, attempts) and
`cache/drafts-NNNNN.jsonl`. How a record comes to its card stands in `cathpc.cards.rounds`; a share of the records gets
a system prompt and answers edited to obey it before anything else (`cathpc.cards.enact`). Shard i holds the records
from i x `cards.shard_records` on, and leaves its rows in `parts` until all are done. Memory grows with a shard, time
with the cards that have to be written.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.broken import Broken, Child, among, bisect
from cathpc.cards import enact
from cathpc.cards.rounds import Outcome, Row, carder, layout_of, ready, unwritten
from cathpc.record import RECORD_SCHEMA
from cathpc.shards import clear_failed, complete, each, forget, is_done, whole

if TYPE_CHECKING:
    from cathpc.config import Config

CRASH = "crash"
"""The check that a record fails with which writing or checking a card raises."""


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """The whole stage in one process. A second attempt in the same `out` writes no card again that is in the cache."""
    clear_failed(out)
    work(config, inputs, out, range(count(config, inputs)))
    return finish(config, inputs, out)


def count(config: Config, inputs: dict[str, Path]) -> int:
    """Number of shards."""
    return -(-int(pq.read_metadata(_kept(inputs)).num_rows) // config.cards.shard_records)


def work(config: Config, inputs: dict[str, Path], out: Path, shards: Sequence[int]) -> None:
    """Card the records of these shards, those already done left alone."""
    cards, source = config.cards, pq.ParquetFile(_kept(inputs))
    cache, size = Path(config.paths.cache), cards.shard_records
    layout = layout_of(cards)
    _forget_lost(out, shards)
    (out / "parts").mkdir(exist_ok=True)
    rows = {n: min(size, source.metadata.num_rows - n * size) for n in shards}
    total, before = sum(rows.values()), sum(rows[n] for n in shards if is_done(out, n))
    loaded: list[Any] = []

    def load() -> None:
        if cards.writes:
            loaded.extend(ready(cards, cache, config.serving))

    def one(shard: int, careful: bool) -> dict[str, Any]:
        nonlocal before
        kept = _rows(source, shard * size, size)
        records = [enact.enacted(row, cards.enact) for row in kept]
        job = (cards, cache, out, shard, before, total, config.serving)
        if careful:
            with Child(carder, *job) as attempt:
                results = bisect(records, attempt)
        else:
            results = bisect(records, carder(*job, *loaded))
        broken = {b.row["id"]: b.error for b in among(results)}
        outcomes = [
            unwritten(r.row, [], layout, checks={CRASH: r.error}, refused=[CRASH]) if isinstance(r, Broken) else r
            for r in results
        ]
        parquet, listing = _parts(out, shard)
        with whole(parquet) as file:
            pairs = zip(records, outcomes, strict=True)
            table = [_carded(row, outcome) for row, outcome in pairs if outcome.verdict != "dropped"]
            pq.write_table(pa.Table.from_pylist(table, RECORD_SCHEMA), file)
        with whole(listing) as file:
            for row, outcome in zip(records, outcomes, strict=True):
                file.write(json.dumps(_entry(row, outcome), ensure_ascii=False).encode() + b"\n")
        before += len(records)
        return {
            "records": len(records),
            "enacted": sum(edited is not row for edited, row in zip(records, kept, strict=True)),
            "verdicts": Counter(o.verdict for o in outcomes),
            "rules": Counter(r.name for o in outcomes for r in o.card.rules),
            "because": Counter(_because(o) for o in outcomes if o.verdict in ("plain", "dropped") and o.checks),
            "paraphrased": sum(bool(o.answer) for o in outcomes),
            "tokens": sum(o.tokens for o in outcomes),
            "writing_s": sum(o.seconds for o in outcomes),
            "refused": Counter(name for o in outcomes for name in o.refused),
            "broken": broken,
        }

    each(out, shards, one, load)


def finish(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Join the parts of all shards, a part at a time, and remove them; the summary of the stage.

    Raises `DataError` where shards are not done. `cards.jsonl` comes last: where it is, nothing is left to join.
    """
    number = count(config, inputs)
    _forget_lost(out, range(number))
    marks = complete(out, number)
    if not _joined(out):
        with whole(out / "carded.parquet") as file, pq.ParquetWriter(file, RECORD_SCHEMA) as writer:
            for shard in marks:
                writer.write_table(pq.read_table(_parts(out, shard)[0], schema=RECORD_SCHEMA))
        with whole(out / "cards.jsonl") as file:
            for shard in marks:
                with open(_parts(out, shard)[1], "rb") as part:
                    shutil.copyfileobj(part, file)
    shutil.rmtree(out / "parts", ignore_errors=True)
    return _summary(list(marks.values()), config.cards.writes)


# --- one shard ----------------------------------------------------------------------------------------------------


def _carded(row: Row, outcome: Outcome) -> Row:
    talk = [m for m in row["messages"] if m["role"] != "system"]
    if outcome.answer:
        talk = [{**m, "content": outcome.answer} if m["role"] == "assistant" else m for m in talk]
    return {**row, "messages": [{"role": "system", "content": outcome.text}, *talk]}


def _because(outcome: Outcome) -> str:
    """The last check that a card failed, or why none was written."""
    return next(name for name, seen in outcome.checks.items() if seen)


def _entry(row: Row, outcome: Outcome) -> dict[str, Any]:
    """A row of `cards.jsonl`."""
    entry = {
        "id": row["id"],
        "verdict": outcome.verdict,
        "card": outcome.card.to_json(),
        "rules": [r.to_json() for r in outcome.card.rules],
        "checks": outcome.checks,
        "attempts": outcome.attempts,
    }
    if outcome.answer:
        entry["answered"] = next(m["content"] for m in row["messages"] if m["role"] == "assistant")
    return entry


# --- files --------------------------------------------------------------------------------------------------------


def _kept(inputs: dict[str, Path]) -> Path:
    return inputs["select"] / "kept.parquet"


def _rows(source: pq.ParquetFile, first: int, size: int) -> list[Row]:
    """`size` rows from `first` on; reads no other row groups than theirs."""
    starts = [0]
    for group in range(source.num_row_groups):
        starts.append(starts[-1] + source.metadata.row_group(group).num_rows)
    groups = [g for g in range(source.num_row_groups) if starts[g] < first + size and starts[g + 1] > first]
    rows: list[Row] = source.read_row_groups(groups).slice(first - starts[groups[0]], size).to_pylist()
    return rows


def _parts(out: Path, shard: int) -> tuple[Path, Path]:
    return out / "parts" / f"carded-{shard:05d}.parquet", out / "parts" / f"cards-{shard:05d}.jsonl"


def _joined(out: Path) -> bool:
    return (out / "cards.jsonl").exists() and (out / "carded.parquet").exists()


def _forget_lost(out: Path, shards: Sequence[int]) -> None:
    """A shard whose part is gone is not done, unless the parts were joined."""
    for shard in shards if not _joined(out) else ():
        if not all(part.exists() for part in _parts(out, shard)):
            forget(out, shard)


def _summary(marks: list[dict[str, Any]], written: bool) -> dict[str, Any]:
    total = sum(mark["records"] for mark in marks)
    keys = ("verdicts", "rules", "refused", "because")
    verdicts, rules, refused, because = (_sums(mark[key] for mark in marks) for key in keys)
    shares = {name: round(count / total, 4) for name, count in verdicts.most_common()} if total else {}
    summary: dict[str, Any] = {
        "records": total,
        "enacted": sum(mark["enacted"] for mark in marks),
        "verdicts": dict(verdicts.most_common()),
        "shares": shares,
        "rules": dict(rules.most_common()),
    }
    names = {
        "verified": "written and verified",
        "unjudged": "written, without the writer's own verdict",
        "summarised": "on a given system prompt, shortened",
        "given": "on a given system prompt",
        "plain": "plain",
        "dropped": "failed and dropped",
    }
    line = f"{total:,} cards: " + ", ".join(f"{verdicts[v]:,} {what}" for v, what in names.items() if verdicts[v])
    if written:
        tokens, seconds = sum(mark["tokens"] for mark in marks), sum(mark["writing_s"] for mark in marks)
        rate = tokens / seconds if seconds else 0.0
        summary |= {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_s": round(rate, 1)}
        line += f"; {rate:,.0f} tokens/s" if rate else ""
    if said := sum(mark["paraphrased"] for mark in marks):
        summary["paraphrased"] = said
        line += f"; {said:,} answers said again"
    if summary["enacted"]:
        line += f"; {summary['enacted']:,} with an enacted rule"
    if because:
        summary["plain_because"] = dict(because.most_common())
    if written or refused:
        summary["refused_by_check"] = dict(refused.most_common())
    return {**summary, "line": line if total else "no record to card"}


def _sums(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total
