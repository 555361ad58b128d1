"""The stage `cards`: every kept record gets a system card that its answers obey.

In: `select/kept.parquet`. Out: `carded.parquet` (the same records, in order, with a system message), `cards.jsonl` (one
row a record: verdict, card, rules, checks, attempts) and `cache/drafts.jsonl`. A record with a system prompt of its own
keeps it as the card's persona ('given'); another gets the first written card that passes its checks ('verified'), else
a card without a scene ('plain'). Records go by in chunks; time grows with the cards that have to be written.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.cards import card, prompt, verify
from cathpc.cards.rules import Rule, extract
from cathpc.progress import counter, report
from cathpc.record import RECORD_SCHEMA

if TYPE_CHECKING:
    from cathpc.cards.cache import Drafts
    from cathpc.cards.config import CardsConfig
    from cathpc.cards.writer import TransformersWriter
    from cathpc.config import Config

CHUNK_RECORDS = 2048
"""Records in memory at a time; batches of like length are found within a chunk."""

Row = dict[str, Any]


@dataclass
class Outcome:
    """What becomes of one record."""

    verdict: str
    card: card.Card
    checks: dict[str, str] = field(default_factory=dict)
    """Of the last card that was written for it: check -> '' or what was seen."""
    attempts: int = 0


@dataclass
class Writing:
    """The writer, its drafts, and what they cost."""

    writer: TransformersWriter
    drafts: Drafts
    tokens: int = 0
    seconds: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    """Written cards by the check that refused them."""


def _rules(row: Row, limit: int) -> list[Rule]:
    return extract([m["content"] for m in row["messages"] if m["role"] == "assistant"], limit)


def _given(row: Row, limit: int) -> Outcome | None:
    """The outcome of a record that has a system prompt of its own."""
    system = "\n".join(m["content"] for m in row["messages"] if m["role"] == "system").strip()
    return Outcome("given", card.Card(persona=system, rules=_rules(row, limit))) if system else None


def _write(
    rows: list[Row], writing: Writing, layout: card.Layout, config: CardsConfig, progress: Callable[[int], None]
) -> dict[str, Outcome]:
    """Write and check cards for `rows`, up to `cards.attempts` rounds; the outcomes by record id."""
    outcomes: dict[str, Outcome] = {}
    rules = {row["id"]: _rules(row, config.max_rules) for row in rows}
    pending = {row["id"]: row for row in rows}
    for attempt in range(config.attempts):
        ask = writing.writer.task
        tasks = {key: ask(key, row["messages"], row["component"], attempt) for key, row in pending.items()}
        done = sum(t.key in writing.drafts for t in tasks.values())
        for batch in writing.writer.write([t for t in tasks.values() if t.key not in writing.drafts]):
            writing.drafts.add(batch)
            done += len(batch)
            if attempt == 0:
                progress(done)
        for key, task in tasks.items():
            draft, row = writing.drafts[task.key], pending[key]
            fields = prompt.parse(draft.text)
            scene = prompt.card(fields, rules[key])
            written = verify.Written(fields, scene, layout.render(scene), row["messages"], row["component"])
            checks = verify.verify(written)
            writing.tokens += draft.tokens
            writing.seconds += draft.seconds
            if verify.passed(checks):
                outcomes[key] = Outcome("verified", scene, checks, attempt + 1)
                del pending[key]
            else:
                outcomes[key] = Outcome("plain", card.plain(row["component"], rules[key]), checks, attempt + 1)
                writing.failed.update(name for name, seen in checks.items() if seen)
        if not pending:
            break
    return outcomes


def _carded(row: Row, outcome: Outcome, layout: card.Layout) -> Row:
    talk = [m for m in row["messages"] if m["role"] != "system"]
    return {**row, "messages": [{"role": "system", "content": layout.render(outcome.card)}, *talk]}


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Run the stage. A second attempt in the same `out` writes no card again that is in the cache."""
    cards = config.cards
    layout = card.Layout(Path(cards.layout) if cards.layout else card.TEMPLATE)
    writing = None
    if cards.model:
        from cathpc.cards.cache import Drafts
        from cathpc.cards.writer import TransformersWriter

        writing = Writing(TransformersWriter(cards, Path(config.paths.cache)), Drafts(out / "cache" / "drafts.jsonl"))

    verdicts: Counter[str] = Counter()
    rule_counts: Counter[str] = Counter()
    source = pq.ParquetFile(inputs["select"] / "kept.parquet")
    total, done = source.metadata.num_rows, 0
    parquet, listing = out / ".carded.parquet.tmp", out / ".cards.jsonl.tmp"
    with pq.ParquetWriter(parquet, RECORD_SCHEMA) as writer, open(listing, "w", encoding="utf-8") as lines:
        for batch in source.iter_batches(batch_size=CHUNK_RECORDS):
            rows = batch.to_pylist()
            outcomes = {row["id"]: given for row in rows if (given := _given(row, cards.max_rules))}
            bare = [row for row in rows if row["id"] not in outcomes]
            if writing is not None:
                before = done + len(rows) - len(bare)
                outcomes |= _write(bare, writing, layout, cards, counter(out, before, total, "cards"))
            else:
                for row in bare:
                    outcomes[row["id"]] = Outcome("plain", card.plain(row["component"], _rules(row, cards.max_rules)))
            for row in rows:
                outcome = outcomes[row["id"]]
                verdicts[outcome.verdict] += 1
                rule_counts.update(r.name for r in outcome.card.rules)
                entry = {
                    "id": row["id"],
                    "verdict": outcome.verdict,
                    "card": outcome.card.to_json(),
                    "rules": [r.to_json() for r in outcome.card.rules],
                    "checks": outcome.checks,
                    "attempts": outcome.attempts,
                }
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
            carded = [_carded(row, outcomes[row["id"]], layout) for row in rows]
            writer.write_table(pa.Table.from_pylist(carded, RECORD_SCHEMA))
            done += len(rows)
            report(out, done, total, "cards")
        lines.flush()
        os.fsync(lines.fileno())
    with open(parquet, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(parquet, out / "carded.parquet")
    os.replace(listing, out / "cards.jsonl")
    return _summary(total, verdicts, rule_counts, writing)


def _summary(total: int, verdicts: Counter[str], rules: Counter[str], writing: Writing | None) -> dict[str, Any]:
    shares = {name: round(count / total, 4) for name, count in verdicts.most_common()} if total else {}
    summary: dict[str, Any] = {
        "records": total,
        "verdicts": dict(verdicts.most_common()),
        "shares": shares,
        "rules": dict(rules.most_common()),
    }
    names = {"verified": "written and verified", "given": "on a given system prompt", "plain": "plain"}
    line = f"{total:,} cards: " + ", ".join(f"{verdicts[v]:,} {what}" for v, what in names.items() if verdicts[v])
    if writing is not None:
        rate = writing.tokens / writing.seconds if writing.seconds else 0.0
        summary |= {
            "tokens": writing.tokens,
            "seconds": round(writing.seconds, 2),
            "tokens_per_s": round(rate, 1),
            "refused_by_check": dict(writing.failed.most_common()),
        }
        line += f"; {rate:,.0f} tokens/s" if rate else ""
    return {**summary, "line": line if total else "no record to card"}
