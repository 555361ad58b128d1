"""Rows of the usual instruction formats -> `Record`.

In: one decoded row (a dict) and the config of its source. Out: a `Record`, or a `Reject` that carries one of the
reasons below. No row can raise anything else: what a stranger wrote in it is only ever text.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Iterable
from typing import Any

from cathpc.data.clean import consultation
from cathpc.data.config import Format, SourceConfig
from cathpc.errors import UserError
from cathpc.record import Message, Record, record_id

NOT_JSON = "not_json"
"""The line is not one JSON value."""
NOT_CSV = "not_csv"
"""Broken quotes, or another number of fields than the header has."""
NO_PROMPT = "no_prompt"
"""No user turn, or an empty one."""
NO_ANSWER = "no_answer"
"""No assistant turn, or an empty one."""
BAD_TURNS = "bad_turns"
"""An unknown role, two turns of one role in a row, a first turn not the user's, a last one not the assistant's."""
TOO_LARGE = "too_large"
"""The row is larger than `dataset.max_row_mb`."""
WRONG_TYPE = "wrong_type"
"""A value is not of the type that the format has there."""
BAD_TEXT = "bad_text"
"""Text that is not valid UTF-8, a lone surrogate, a NUL."""
BAD_LABEL = "bad_label"
"""A label that is missing, not in `labels`, or not a number in 0..1."""
DUPLICATE = "duplicate"
"""The same prompt and answer, up to case and white space."""
NEAR_DUPLICATE = "near_duplicate"
"""Prompt and answer each share at least `dataset.near_duplicates` of their word 5-grams with another record's."""
OVER_LIMIT = "over_limit"
"""Not among the `limit` records that are taken of the source."""
UNREADABLE = "unreadable"
"""A file, or what follows a place in it, that is damaged: cut short, not what its name says, not valid JSON."""
CONTAMINATED = "contaminated"
"""Shares a run of words with an evaluation set of `dataset.decontaminate`."""

NOT_AS_DESCRIBED = frozenset({NOT_JSON, NOT_CSV, NO_PROMPT, NO_ANSWER, WRONG_TYPE, BAD_LABEL})
"""Reasons that speak of a wrong format or column where they befall every row of a source."""

FIELDS: dict[Format, dict[str, str]] = {
    Format.alpaca: {"instruction": "instruction", "input": "input", "answer": "output"},
    Format.messages: {"messages": "messages"},
    Format.sharegpt: {"messages": "conversations"},
    Format.prompt_response: {"instruction": "prompt", "answer": "response"},
    Format.preference: {"instruction": "prompt", "answer": "chosen"},
    Format.question_answer: {"instruction": "question", "answer": "answer"},
    Format.chatdoctor: {"instruction": "input", "answer": "output"},
}
"""Field of each format -> the column that holds it unless `columns` names another."""
OPTIONAL = ("system", "generator", "label")
"""Fields that are read only from the column that `columns` names."""
MOST_COLUMNS = 1000
"""Columns that are remembered of a source, for errors that name them."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


class Reject(Exception):
    """A row that is set aside: `reason` is one of the constants above, `detail` says what was seen; or `rows` of them
    that follow each other."""

    def __init__(self, reason: str, detail: str, excerpt: str = "", rows: int = 1) -> None:
        super().__init__(reason, detail, excerpt, rows)  # all of them, so that it can be pickled
        self.reason, self.detail, self.excerpt, self.rows = reason, detail, excerpt, rows

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def excerpt(row: Any, size: int = 200) -> str:
    """The start of a row for the rejects file, at most `size` characters; never copies a huge value."""
    text = row[:size] if isinstance(row, str) else _short.repr(row)[:size]
    return text.encode("utf-8", "backslashreplace").decode()[:size]


def columns_of(key: str, source: SourceConfig) -> dict[str, str]:
    """Field -> column of one source. `columns` may name a field ('answer') or the column that it replaces ('output').

    Raises `UserError` for a name that the format does not have.
    """
    columns = dict(FIELDS[source.format])
    own = {column: field for field, column in columns.items()}
    for name, column in source.columns.items():
        field = name if name in columns or name in OPTIONAL else own.get(name)
        if field is None:
            raise UserError(
                f"dataset.sources.{key}.columns: format {source.format.name} has no field {name!r}. "
                f"Valid: {', '.join([*columns, *OPTIONAL])}"
            )
        columns[field] = column
    return columns


def note_columns(seen: dict[str, None], names: Iterable[str], wanted: Collection[str]) -> None:
    """Add columns to those seen, `wanted` ones always, others up to `MOST_COLUMNS`: keys may be ids, new in every
    row."""
    for name in names:
        if len(seen) < MOST_COLUMNS or name in wanted:
            seen[name] = None


def missing_column(key: str, source: SourceConfig, seen: Iterable[str]) -> UserError | None:
    """The error for a source whose `columns` name a column that no row has, or None."""
    seen = sorted(seen)
    for name, column in source.columns.items():
        if column not in seen:
            return UserError(
                f"dataset.sources.{key}.columns.{name}: no row of {source.path or source.hub} has a column {column!r}. "
                f"Columns seen: {', '.join(seen) or 'none'}"
            )
    return None


def to_record(row: Any, key: str, source: SourceConfig, columns: dict[str, str], origin: str) -> Record:
    """One row of source `key` as a record; `columns` is `columns_of(key, source)`. Raises `Reject` alone."""
    if not isinstance(row, dict):
        raise Reject(WRONG_TYPE, f"the row is a {type(row).__name__}, expected an object with named values")
    if "messages" in columns:
        messages = _turns(row.get(columns["messages"]), columns["messages"])
    else:
        messages = _single(row, source, columns)
    if "system" in columns and messages[0]["role"] != "system":
        system = _text(row.get(columns["system"]), columns["system"])
        if system:
            messages.insert(0, {"role": "system", "content": system})
    generator = _text(row.get(columns["generator"]), columns["generator"]) if "generator" in columns else ""
    return Record(
        id=record_id(key, messages),
        source=key,
        component=source.component.name,
        messages=messages,
        generator=generator or source.generator,
        license=source.license,
        origin=origin,
        label=_label(row.get(columns["label"]), source) if "label" in columns else None,
    )


def _single(row: dict[str, Any], source: SourceConfig, columns: dict[str, str]) -> list[Message]:
    """Messages of a row with one prompt and one answer."""
    answer = row.get(columns["answer"])
    if source.format is Format.preference and isinstance(answer, list):
        return _turns(answer, columns["answer"])
    prompt = _text(row.get(columns["instruction"]), columns["instruction"])
    if "input" in columns:
        extra = _text(row.get(columns["input"]), columns["input"])
        prompt = f"{prompt}\n\n{extra}" if prompt and extra else prompt or extra
    text = _text(answer, columns["answer"])
    if not prompt:
        raise Reject(NO_PROMPT, f"column {columns['instruction']!r} is empty or missing")
    if not text:
        raise Reject(NO_ANSWER, f"column {columns['answer']!r} is empty or missing")
    if source.format is Format.chatdoctor:
        prompt, text = consultation(prompt, text)
        if not text:
            raise Reject(NO_ANSWER, f"column {columns['answer']!r} holds greetings alone")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def _turns(turns: Any, column: str) -> list[Message]:
    """Messages of a list of turns ({role, content} or {from, value}), checked: [system], user, assistant, user, ..."""
    if turns is None or turns == []:
        raise Reject(NO_PROMPT, f"column {column!r} is empty or missing")
    if not isinstance(turns, list):
        raise Reject(WRONG_TYPE, f"column {column!r} is a {type(turns).__name__}, expected a list of turns")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise Reject(WRONG_TYPE, f"turn {number} of {column!r} is a {type(turn).__name__}, expected an object")
        said = turn.get("role", turn.get("from"))
        role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
        if role is None:
            raise Reject(BAD_TURNS, f"turn {number} has the role {_short.repr(said)}")
        content = _text(turn.get("content", turn.get("value")), f"{column}[{number}]")
        if role == "system":
            if number > 1:
                raise Reject(BAD_TURNS, f"turn {number} is the system's; it may only be the first")
            if content:
                messages.append({"role": role, "content": content})
            continue
        expected = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        if role != expected:
            raise Reject(BAD_TURNS, f"turn {number} is the {role}'s, expected the {expected}'s")
        if not content:
            raise Reject(NO_PROMPT if role == "user" else NO_ANSWER, f"turn {number}, the {role}'s, is empty")
        messages.append({"role": role, "content": content})
    if not any(m["role"] == "user" for m in messages):
        raise Reject(NO_PROMPT, "no turn is the user's")
    if not any(m["role"] == "assistant" for m in messages):
        raise Reject(NO_ANSWER, "no turn is the assistant's")
    if messages[-1]["role"] != "assistant":
        raise Reject(BAD_TURNS, "the last turn is the user's: nothing answers it")
    return messages


def _text(value: Any, column: str) -> str:
    """A text value, line ends unified, outer white space and a stray byte-order mark removed; '' for null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject(WRONG_TYPE, f"column {column!r} is {_short.repr(value)}, a {type(value).__name__}, expected text")
    if "\0" in value:
        raise Reject(BAD_TEXT, f"column {column!r} has a NUL at character {value.index(chr(0)) + 1}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject(BAD_TEXT, f"column {column!r} is not valid UTF-8 at character {error.start + 1}") from None
    return value.replace("\r\n", "\n").replace("\r", "\n").strip().strip("\ufeff").strip()


def _label(value: Any, source: SourceConfig) -> float | None:
    """The label in 0..1: looked up in `labels`, or a number as it stands."""
    if source.labels:
        name = value.strip() if isinstance(value, str) else str(value)
        if name not in source.labels:
            raise Reject(BAD_LABEL, f"label {_short.repr(value)} is not one of {', '.join(source.labels)}")
        return float(source.labels[name])
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise Reject(BAD_LABEL, f"label {_short.repr(value)} is not a number in 0..1; name its values in `labels`")
    return number
