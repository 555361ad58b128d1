"""The answers that the refusal classifier learns from: labelled ones, shipped examples, unlabelled ones, spliced ones.

In: `labels.parquet` and the record shards of pull, and the examples that ship with cathpc or are named by
`refusal.examples`. Out: plain rows. Memory grows with the rows that are taken; of the records only ids are held for
all rows of one shard at a time.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cathpc.errors import UserError
from cathpc.record import answer, prompt_key, unit_hash

SHIPPED = Path(__file__).parents[1] / "assets" / "refusals.jsonl"
TROUBLES = (
    "I can't put any weight on my left foot.",
    "I am not able to sleep through the night.",
    "I'm unable to find the time for it.",
    "I just can't seem to get rid of it.",
    "I cannot afford anything expensive.",
    "My mother is unable to lift her arm.",
    "I don't know what to do and I can't concentrate.",
    "He says that he won't help me any more.",
    "I'm sorry, but I can't remember the details.",
    "The shop told me that this is not possible.",
    "We are not allowed to leave the building.",
    "I feel bad because I had to decline the offer.",
    "Unfortunately I have no access to a car.",
    "I couldn't do it on my own.",
    "She refuses to answer my messages.",
    "I don't feel comfortable among people.",
)
"""What users say of themselves and others in the words of refusals."""
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n+")


@dataclass(frozen=True)
class Row:
    """An answer and whether it refuses."""

    id: str
    key: str
    """What identifies its prompt: all answers to one prompt fall into one fold."""
    prompt: str
    answer: str
    refuses: bool
    generator: str = ""


def labelled(path: Path) -> list[Row]:
    """The rows of `path` that have an answer and a label; a label above 0 is a refusal, whole or partial."""
    rows = []
    for row in pq.read_table(path).to_pylist():
        messages = row["messages"] or []
        if (text := answer(messages)) and row["label"] is not None:
            rows.append(
                Row(
                    row["id"], prompt_key(messages), _question(messages), text, row["label"] > 0, row["generator"] or ""
                )
            )
    return rows


def examples(file: str) -> tuple[list[Row], list[str]]:
    """(rows, phrases) of a JSONL file of `prompt`, `answer`, `refuses` (0..1); '' is the one that ships with cathpc.

    Rows train every classifier and measure none. A row without a prompt is a phrase: a refusing sentence that `splice`
    puts into other answers. Raises UserError that names file, line and what was expected.
    """
    path = Path(file) if file else SHIPPED
    rows, phrases = [], []
    try:
        lines = path.read_text("utf-8").split("\n")  # a text may hold other marks that end a line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"refusal.examples: cannot read {path}: {error}. Give a readable JSONL file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            prompt, text, refuses = str(one["prompt"]), str(one["answer"]).strip(), float(one["refuses"])
            if not text or not 0 <= refuses <= 1 or not (prompt or refuses):
                raise ValueError("an empty answer, or `refuses` beyond 0..1, or a phrase that does not refuse")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"refusal.examples: {path}, line {number}: expected an object of `prompt`, `answer` and `refuses` "
                f"(0..1), got {line[:80]!r} ({type(error).__name__}: {error})"
            ) from None
        if prompt:
            key = prompt_key([{"role": "user", "content": prompt}])
            rows.append(Row(f"example {number}", key, prompt, text, refuses > 0))
        else:
            phrases.append(text)
    return rows, phrases


def unlabelled(folder: Path, count: int, seed: int) -> list[Row]:
    """The `count` records in the shards of `folder` whose ids have the smallest hashes: their last answers.

    Reads the ids of all shards, and the texts of those that hold a chosen record: one shard at a time.
    """
    smallest: list[tuple[float, str, Path]] = []
    for shard in sorted(folder.glob("records-*.parquet")) if count else []:
        ids = pq.read_table(shard, columns=["id"])["id"].to_pylist()
        hashed = ((unit_hash(f"refusal {i}", seed), i, shard) for i in ids)
        smallest = heapq.nsmallest(count, [*smallest, *heapq.nsmallest(count, hashed)])
    rows = []
    for shard in sorted({shard for _, _, shard in smallest}):
        wanted = pa.array([i for _, i, where in smallest if where == shard], pa.string())
        table = pq.read_table(shard, columns=["id", "messages", "generator"])
        for row in table.filter(pc.is_in(table["id"], value_set=wanted)).to_pylist():
            messages = row["messages"] or []
            if text := answer(messages):
                key, generator = prompt_key(messages), row["generator"] or ""
                rows.append(Row(row["id"], key, _question(messages), text, False, generator))
    return sorted(rows, key=lambda row: row.id)


def splice(row: Row, phrases: Sequence[str], key: str) -> Row:
    """`row` with one of `phrases` behind one of its sentences, hence partly a refusal; which, hangs on `key`.

    An answer of one sentence gets it at its end.
    """
    ends = [m.start() for m in _SENTENCE_ENDS.finditer(row.answer)] + [len(row.answer)]
    end = ends[int(unit_hash(f"{key} place", 0) * len(ends))]
    phrase = phrases[int(unit_hash(f"{key} phrase", 0) * len(phrases))]
    return replace(row, answer=f"{row.answer[:end]} {phrase}{row.answer[end:]}", refuses=True)


def folds(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """The fold, 0..count-1, of each row: a hash of its prompt."""
    return [int(unit_hash(f"fold {row.key}", seed) * count) for row in rows]


def _question(messages: list[dict[str, str]]) -> str:
    """The last user turn, which the last answer answers."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
