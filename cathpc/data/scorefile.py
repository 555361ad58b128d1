"""Scores of a file that no run has seen: any rows in, one score row for each out, in their order.

In: a file of any kind that a source may have; a finished run's models. Out: JSON Lines or Parquet with `COLUMNS`. A row
that is no record gets the reason as its status (`cathpc.data.formats`: 'no_prompt', 'bad_turns', 'not_json', ...; an
answer that is missing or empty is 'empty'), beside what `cathpc.data.likelihood` says of records; its figures are null.

Memory holds `CHUNK_ROWS` rows or `CHUNK_CHARACTERS` of text, and the models, whatever the size of the file. It is read
twice: first to count rows and see their columns, so that whatever is wrong with it shows before anything is scored.
Rows that are done lie in `.OUTPUT.partial`, JSON Lines behind a line that says of which file, fields and models: the
same command goes on behind them, and the output appears when it is whole.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.broken import Broken
from cathpc.data.config import Format, SourceConfig
from cathpc.data.files import blocks
from cathpc.data.formats import NO_ANSWER, UNREADABLE, Reject, note_columns, to_record
from cathpc.data.read import rows
from cathpc.data.sources import COMPRESSIONS, KINDS, file_kind
from cathpc.errors import UserError
from cathpc.record import SCORE_SCHEMA, Record, Score
from cathpc.shards import whole

COLUMNS = (
    "id", "status", "perplexity", "nll", "contrast", "refusal", "tokens", "correlatives", "steps",
    "turn_tokens", "diagnosis",
)  # fmt: skip
CHUNK_ROWS, CHUNK_CHARACTERS = 256, 2_000_000
OUTPUTS = (".jsonl", ".parquet")

MESSAGES = ("messages", "conversations")
INSTRUCTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "response", "answer", "completion", "chosen")
"""Columns that are taken where none is named, the first that is there."""
_USUAL = (*MESSAGES, *INSTRUCTIONS, *ANSWERS, "input", "id")
_INT64 = 2**63


@dataclass(frozen=True)
class Fields:
    """Which column holds what; '' where none does. A row with `messages` is read by them alone."""

    messages: str = ""
    instruction: str = ""
    answer: str = ""
    system: str = ""
    input: str = ""
    """What stands behind the instruction, Alpaca's `input`."""
    id: str = ""


@dataclass(frozen=True)
class Survey:
    """What is in a file."""

    rows: int
    columns: tuple[str, ...]
    """Of any row, in the order in which they were seen; see `note_columns`."""


def survey(file: Path, max_bytes: int, named: Collection[str] = ()) -> Survey:
    """Read `file` once, with an eye to the columns `named` and the usual ones.

    Raises `UserError` where it is not what its name says, or has no row.
    """
    if not file.is_file():
        raise UserError(f"--input {file}: no such file")
    if file_kind(file.name) is None:
        raise UserError(
            f"--input {file}: unknown file format {file.suffix!r}. Valid: {', '.join(KINDS)}; text also as "
            f"{' or '.join(COMPRESSIONS)}"
        )
    count, columns, wanted = 0, dict[str, None](), frozenset((*named, *_USUAL))
    damage: Reject | None = None
    for row in _rows(file, max_bytes):
        count += 1
        if isinstance(row, dict):
            note_columns(columns, row, wanted)
        elif isinstance(row, Reject) and row.reason == UNREADABLE:
            damage = damage or row
    if damage and not columns:
        raise UserError(f"--input {file} cannot be read as {file_kind(file.name)}: {damage}")
    if not count:
        raise UserError(f"--input {file} has no row")
    return Survey(count, tuple(columns))


def fields(seen: Survey, *, instruction: str = "", answer: str = "", system: str = "", identity: str = "") -> Fields:
    """The columns to read: those named, else the usual ones; raises `UserError` for one that no row has."""
    named = {"--instruction": instruction, "--answer": answer, "--system": system, "--id": identity}
    columns = f"Columns seen: {', '.join(seen.columns) or 'none'}"
    for option, column in named.items():
        if column and column not in seen.columns:
            raise UserError(f"{option} {column}: no row has such a column. {columns}")
    if bool(instruction) != bool(answer):
        given, other = ("--instruction", "--answer") if instruction else ("--answer", "--instruction")
        raise UserError(f"{given} is given without {other}: name both. {columns}")

    def first(names: Iterable[str]) -> str:
        return next((name for name in names if name in seen.columns), "")

    found = Fields(
        messages="" if instruction else first(MESSAGES),
        instruction=instruction or first(INSTRUCTIONS),
        answer=answer or first(ANSWERS),
        system=system,
        id=identity or first(["id"]),
    )
    if found.instruction == "instruction" and "input" not in (found.answer, found.system, found.id):
        found = replace(found, input=first(["input"]))
    if not found.messages and not (found.instruction and found.answer):
        raise UserError(
            "no column is known to hold the prompt or the answer. Name them: --instruction COLUMN --answer COLUMN. "
            f"{columns}"
        )
    return found


def to_row(row: Any, number: int, columns: Fields) -> tuple[int | str, Record | str]:
    """One row as (its id, a record or the status that says why it is none); without an id its number counts."""
    key: int | str = number
    if isinstance(row, dict) and columns.id:
        key = _id(row.get(columns.id), number)
    try:
        if isinstance(row, Reject):
            raise row
        turns = isinstance(row, dict) and columns.messages and row.get(columns.messages) is not None
        if turns or not columns.instruction or not columns.answer:
            form, names = Format.messages, {"messages": columns.messages}
        else:
            preferred = isinstance(row, dict) and isinstance(row.get(columns.answer), list)  # UltraFeedback's `chosen`
            form = Format.preference if preferred else Format.alpaca
            names = {"instruction": columns.instruction, "answer": columns.answer}
            names |= {"input": columns.input} if columns.input else {}
        names |= {"system": columns.system} if columns.system else {}
        return key, to_record(row, "", SourceConfig(format=form), names, "")
    except Reject as reject:
        return key, "empty" if reject.reason == NO_ANSWER else reject.reason


def score_file(
    file: Path,
    output: Path,
    columns: Fields,
    total: int,
    scorer: Callable[[Sequence[Record]], Sequence[Score | Broken]],
    *,
    about: str,
    max_bytes: int,
    report: Callable[[int, Sequence[Score]], None] = lambda done, scores: None,
) -> int:
    """Score all rows of `file` into `output`; returns how many an earlier attempt had left done.

    `about` is one line that says of what the scores are: what lies in the partial file under another one is dropped.
    `report` is told the rows done and the scores just added. Raises `UserError` where another process writes to
    `output`.
    """
    with _partial(output, about) as (sink, done):
        before = done
        for chunk in _chunks(_rows(file, max_bytes), columns, skip=done):
            records = [record for _, record in chunk if isinstance(record, Record)]
            results = iter(scorer(records))
            scores = [_score(key, one if isinstance(one, str) else next(results)) for key, one in chunk]
            sink.write(b"".join(_line(key, score) for (key, _), score in zip(chunk, scores, strict=True)))
            sink.flush()
            os.fsync(sink.fileno())
            done += len(chunk)
            report(done, scores)
        if done != total:
            raise UserError(f"{file} had {total:,} rows and has {done:,} now: it was changed while it was scored")
        _finish(Path(sink.name), output)
    return before


def check_output(output: Path, file: Path) -> None:
    """Raise `UserError` for an output that cannot be written."""
    if output.suffix not in OUTPUTS:
        raise UserError(f"--output {output}: its name must end with {' or '.join(OUTPUTS)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent.absolute()}; make it first")
    if output.is_dir() or (output.exists() and output.samefile(file)):
        raise UserError(f"--output {output} is {'a folder' if output.is_dir() else 'the input'}: name another file")


def _rows(file: Path, max_bytes: int) -> Iterator[Any]:
    """Every row, or in its place the `Reject` that says why it is none."""
    for block in blocks(file, file.name, max_bytes, sys.maxsize):
        for _, row in rows(block, max_bytes):
            yield from repeat(row, row.rows if isinstance(row, Reject) else 1)


def _chunks(rows: Iterable[Any], columns: Fields, skip: int) -> Iterator[list[tuple[int | str, Record | str]]]:
    """Rows from number `skip` on, in blocks that fit into memory."""
    chunk: list[tuple[int | str, Record | str]] = []
    size = 0
    for place, row in enumerate(rows):
        if place < skip:
            continue
        key, record = to_row(row, place + 1, columns)
        chunk.append((key, record))
        size += sum(len(m["content"]) for m in record.messages) if isinstance(record, Record) else 0
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _id(value: Any, number: int) -> int | str:
    """A row's own id, as a whole number or a text; its number where it has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return number
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _score(key: int | str, result: str | Score | Broken) -> Score:
    if isinstance(result, Score):
        return result
    return Score(str(key), "broken" if isinstance(result, Broken) else result)


def _line(key: int | str, score: Score) -> bytes:
    """One row of the output; JSON has no NaN, and the scores have none."""
    row = {name: key if name == "id" else getattr(score, name) for name in COLUMNS}
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def _partial(output: Path, about: str) -> Iterator[tuple[BinaryIO, int]]:
    """The partial file of `output`, open at its end, and the rows in it; held by one process at a time."""
    path = output.with_name(f".{output.name}.partial")
    header = about.encode() + b"\n"
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {output}: another process is writing it; wait for it, or name another") from None
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        rows, end = 0, 0
        if file.readline() == header:
            end = len(header)
            for line in file:
                if not line.endswith(b"\n"):  # of a kill in the middle of writing
                    break
                rows, end = rows + 1, end + len(line)
        file.truncate(end)
        if not end:
            file.write(header)
        yield file, rows
    path.unlink(missing_ok=True)


def _finish(partial: Path, output: Path) -> None:
    """The rows of the partial file as the output, which is there whole or not at all."""
    with open(partial, "rb") as lines, whole(output) as target:
        lines.readline()
        if output.suffix == ".jsonl":
            while block := lines.read(1 << 20):
                target.write(block)
            return
        start = lines.tell()
        numbers = all(isinstance(json.loads(line)["id"], int) for line in lines)
        lines.seek(start)
        kept = pa.schema([SCORE_SCHEMA.field(name) for name in COLUMNS])
        schema = kept.set(0, pa.field("id", pa.int64() if numbers else pa.string()))
        with pq.ParquetWriter(target, schema) as writer:
            block_of_rows: list[dict[str, Any]] = []
            for line in lines:
                row = json.loads(line)
                block_of_rows.append(row if numbers else {**row, "id": str(row["id"])})
                if len(block_of_rows) == 10_000:
                    writer.write_table(pa.Table.from_pylist(block_of_rows, schema=schema))
                    block_of_rows = []
            writer.write_table(pa.Table.from_pylist(block_of_rows, schema=schema))
