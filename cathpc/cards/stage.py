"""The stage `cards`: every kept record gets a system card that its answers obey, a shard of records at a time.

In: `select/kept.parquet`. Out: `carded.parquet` (the same records, in order, with a system message), `cards.jsonl` (one
row a record: verdict, card, rules, checks, attempts) and `cache/drafts-NNNNN.jsonl`. A record with a system prompt of
its own keeps it as the card's persona ('given'); another gets the first written card that passes its checks
('verified'), else a card without a scene ('plain'). Shard i holds the records from i x `cards.shard_records` on, and
leaves its rows in `parts` until all are done. A share of the records gets a system prompt and answers edited to obey it
before anything else (`cathpc.cards.enact`). Memory grows with a shard, time with the cards that have to be written.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.broken import Broken, Child, among, bisect
from cathpc.cards import card, enact, prompt, verify
from cathpc.cards.rules import Rule, extract
from cathpc.progress import counter
from cathpc.record import RECORD_SCHEMA
from cathpc.shards import clear_failed, complete, each, forget, is_done, whole

if TYPE_CHECKING:
    from cathpc.cards.cache import Drafts
    from cathpc.cards.config import CardsConfig
    from cathpc.cards.writer import TransformersWriter
    from cathpc.config import Config

CRASH = "crash"
"""The check that a record fails with which writing or checking a card raises."""

Row = dict[str, Any]


@dataclass
class Outcome:
    """What becomes of one record."""

    verdict: str
    card: card.Card
    text: str = ""
    """The card as a system message."""
    checks: dict[str, str] = field(default_factory=dict)
    """Of the last card that was written for it: check -> '' or what was seen."""
    attempts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """What its written cards cost."""
    refused: list[str] = field(default_factory=list)
    """The check that refused each written card."""


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
    layout = _layout(cards)
    _forget_lost(out, shards)
    (out / "parts").mkdir(exist_ok=True)
    rows = {n: min(size, source.metadata.num_rows - n * size) for n in shards}
    total, before = sum(rows.values()), sum(rows[n] for n in shards if is_done(out, n))
    loaded: list[TransformersWriter] = []

    def ready() -> None:
        if cards.model:
            loaded.append(_writer(cards, cache))

    def one(shard: int, careful: bool) -> dict[str, Any]:
        nonlocal before
        kept = _rows(source, shard * size, size)
        records = [enact.enacted(row, cards.enact) for row in kept]
        job = (cards, cache, out, shard, before, total)
        if careful:
            with Child(carder, *job) as attempt:
                results = bisect(records, attempt)
        else:
            results = bisect(records, carder(*job, *loaded))
        broken = {b.row["id"]: b.error for b in among(results)}
        outcomes = [
            _unwritten(r.row, [], layout, checks={CRASH: r.error}, refused=[CRASH]) if isinstance(r, Broken) else r
            for r in results
        ]
        parquet, listing = _parts(out, shard)
        with whole(parquet) as file:
            table = [_carded(row, outcome) for row, outcome in zip(records, outcomes, strict=True)]
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
            "tokens": sum(o.tokens for o in outcomes),
            "writing_s": sum(o.seconds for o in outcomes),
            "refused": Counter(name for o in outcomes for name in o.refused),
            "broken": broken,
        }

    each(out, shards, one, ready)


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
    return _summary(list(marks.values()), bool(config.cards.model))


# --- one shard ----------------------------------------------------------------------------------------------------


def carder(
    cards: CardsConfig,
    cache: Path,
    out: Path,
    shard: int,
    before: int,
    total: int,
    writer: TransformersWriter | None = None,
) -> Callable[[Sequence[Row]], list[Outcome]]:
    """What finds the outcomes of records of one shard and tells the progress; with a writer of its own where none is
    given. Cards that were written once are in the shard's cache, whatever raised after them."""
    layout = _layout(cards)
    progress = counter(out, before, total, "cards")
    if not cards.model:

        def plain(rows: Sequence[Row]) -> list[Outcome]:
            progress(len(rows))
            return [_unwritten(row, _rules(row, cards.max_rules), layout) for row in rows]

        return plain

    from cathpc.cards.cache import Drafts

    writing = writer or _writer(cards, cache)
    drafts = Drafts(out / "cache" / f"drafts-{shard:05d}.jsonl")
    return lambda rows: _write(rows, writing, drafts, layout, cards, progress)


def _writer(cards: CardsConfig, cache: Path) -> TransformersWriter:
    """The writer, its model loaded: what fails there is no record's fault."""
    from cathpc.cards.writer import TransformersWriter

    writer = TransformersWriter(cards, cache)
    writer.load()
    return writer


def _write(
    rows: Sequence[Row],
    writer: TransformersWriter,
    drafts: Drafts,
    layout: card.Layout,
    cards: CardsConfig,
    progress: Callable[[int], None],
) -> list[Outcome]:
    """Write and check cards for those of `rows` without a system prompt, up to `cards.attempts` rounds."""
    rules = {row["id"]: _rules(row, cards.max_rules) for row in rows}
    outcomes = {row["id"]: _unwritten(row, rules[row["id"]], layout) for row in rows}
    pending = {row["id"]: row for row in rows if outcomes[row["id"]].verdict != "given"}
    done = len(rows) - len(pending)
    for attempt in range(cards.attempts):
        tasks = {key: writer.task(key, row["messages"], row["component"], attempt) for key, row in pending.items()}
        done += sum(t.key in drafts for t in tasks.values())
        for batch in writer.write([t for t in tasks.values() if t.key not in drafts]):
            drafts.add(batch)
            done += len(batch)
            if attempt == 0:
                progress(done)
        for key, task in tasks.items():
            draft, row, outcome = drafts[task.key], pending[key], outcomes[key]
            fields = prompt.parse(draft.text)
            scene = prompt.card(fields, rules[key])
            written = verify.Written(fields, scene, layout.render(scene), row["messages"], row["component"])
            outcome.checks, outcome.attempts = verify.verify(written), attempt + 1
            outcome.tokens += draft.tokens
            outcome.seconds += draft.seconds
            if verify.passed(outcome.checks):
                outcome.verdict, outcome.card, outcome.text = "verified", scene, written.text
                del pending[key]
            else:
                outcome.refused += [name for name, seen in outcome.checks.items() if seen]
        if not pending:
            break
    return [outcomes[row["id"]] for row in rows]


def _unwritten(row: Row, rules: list[Rule], layout: card.Layout, **noted: Any) -> Outcome:
    """The outcome without a written card: on the record's own system prompt where it has one, else plain."""
    system = "\n".join(m["content"] for m in row["messages"] if m["role"] == "system").strip()
    made = card.Card(persona=system, rules=rules) if system else card.plain(row["component"], rules)
    return Outcome("given" if system else "plain", made, layout.render(made), **noted)


def _rules(row: Row, limit: int) -> list[Rule]:
    return extract([m["content"] for m in row["messages"] if m["role"] == "assistant"], limit)


def _carded(row: Row, outcome: Outcome) -> Row:
    talk = [m for m in row["messages"] if m["role"] != "system"]
    return {**row, "messages": [{"role": "system", "content": outcome.text}, *talk]}


def _entry(row: Row, outcome: Outcome) -> dict[str, Any]:
    """A row of `cards.jsonl`."""
    return {
        "id": row["id"],
        "verdict": outcome.verdict,
        "card": outcome.card.to_json(),
        "rules": [r.to_json() for r in outcome.card.rules],
        "checks": outcome.checks,
        "attempts": outcome.attempts,
    }


# --- files --------------------------------------------------------------------------------------------------------


def _kept(inputs: dict[str, Path]) -> Path:
    return inputs["select"] / "kept.parquet"


def _layout(cards: CardsConfig) -> card.Layout:
    return card.Layout(Path(cards.layout) if cards.layout else card.TEMPLATE)


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
    verdicts, rules, refused = (_sums(mark[key] for mark in marks) for key in ("verdicts", "rules", "refused"))
    shares = {name: round(count / total, 4) for name, count in verdicts.most_common()} if total else {}
    summary: dict[str, Any] = {
        "records": total,
        "enacted": sum(mark["enacted"] for mark in marks),
        "verdicts": dict(verdicts.most_common()),
        "shares": shares,
        "rules": dict(rules.most_common()),
    }
    names = {"verified": "written and verified", "given": "on a given system prompt", "plain": "plain"}
    line = f"{total:,} cards: " + ", ".join(f"{verdicts[v]:,} {what}" for v, what in names.items() if verdicts[v])
    if written:
        tokens, seconds = sum(mark["tokens"] for mark in marks), sum(mark["writing_s"] for mark in marks)
        rate = tokens / seconds if seconds else 0.0
        summary |= {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_s": round(rate, 1)}
        line += f"; {rate:,.0f} tokens/s" if rate else ""
    if summary["enacted"]:
        line += f"; {summary['enacted']:,} with an enacted rule"
    if written or refused:
        summary["refused_by_check"] = dict(refused.most_common())
    return {**summary, "line": line if total else "no record to card"}


def _sums(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total
