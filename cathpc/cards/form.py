"""The form of a card: lines or JSON that a writer fills, how they are read, and how a model is led through them.

In: what was written. Out: a `Card`, or what is wrong with it. A small model never writes a label: `Steps` puts them,
and what the record says of the person who answers, and the model only fills the lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cathpc.cards.card import MAX_PEOPLE, Card, Person
from cathpc.cards.config import CardForm
from cathpc.cards.rules import Rule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LABELS = ("Role:", "Name:", "Place:", "Time:", "Appearance:", "Personality:")
STARTS = {"Place:": " in", "Appearance:": " wears"}
"""Words that are put after a label: they keep a small model from describing something else."""

MAX_LINE_CHARS = 120
PERSON = ("name", "role", "appearance", "personality", "relation")
TRIMMED = ' \t"*,;:'


class Malformed(ValueError):
    """What was written is no card; says what is wrong."""


def read(text: str, form: CardForm, rules: list[Rule], name: str = "") -> Card:
    """The card that `text` holds, with `rules`; `name` is that of the first person where the record gives one.

    Raises `Malformed` for a missing label or key, a wrong type, or an unknown key.
    """
    return _from_json(text, rules) if form is CardForm.json else _from_lines(text, rules, name)


def lines(text: str) -> dict[str, str]:
    """The lines of a filled form by label ('Place' ...), trimmed; a line without a known label is left out."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon and f"{label.strip()}:" in LABELS:
            fields.setdefault(label.strip(), value.strip(TRIMMED))
    return fields


def _from_lines(text: str, rules: list[Rule], name: str) -> Card:
    """Nobody can mark in these lines what is invented: whoever checks the card does."""
    fields = lines(text)
    for label in LABELS:
        value = fields.get(label.rstrip(":"), "")
        if not value:
            raise Malformed(f"{label} is missing or empty")
        if len(value) > MAX_LINE_CHARS:
            raise Malformed(f"{label} has {len(value)} characters, {MAX_LINE_CHARS} at most")
    person = Person(
        name=name or fields["Name"].rstrip("."),
        role=fields["Role"].rstrip("."),
        appearance=fields["Appearance"],
        personality=fields["Personality"],
    )
    return Card(fields["Place"], fields["Time"], [person], rules)


def _from_json(text: str, rules: list[Rule]) -> Card:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not one JSON value: {error}") from None
    _typed("the card", value, {"place": str, "time": str, "people": list, "style": list}, {"place_invented": bool})
    if not value["people"]:
        raise Malformed("people is empty")
    if not all(isinstance(line, str) and line.strip() for line in value["style"]):
        raise Malformed("style is no list of lines")
    for number, person in enumerate(value["people"], 1):
        _typed(f"person {number}", person, dict.fromkeys(PERSON, str), {"invented": bool})
        if not person["name"].strip():
            raise Malformed(f"person {number} has no name")
    people = [Person(**_trimmed(person)) for person in value["people"]]
    style = [" ".join(line.split()) for line in value["style"]]
    return Card(**{**_trimmed(value), "people": people, "style": style, "rules": rules})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise Malformed("a key stands twice")
    return dict(pairs)


def _typed(what: str, value: Any, needed: dict[str, type], optional: dict[str, type]) -> None:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is no object")
    if missing := sorted(needed.keys() - value.keys()):
        raise Malformed(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - needed.keys() - optional.keys()):
        raise Malformed(f"{what} has the unknown key {', '.join(unknown)}")
    for key, kind in {**needed, **optional}.items():
        if key in value and not isinstance(value[key], kind):
            raise Malformed(f"{key} of {what} is {type(value[key]).__name__}, {kind.__name__} expected")


def _trimmed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: " ".join(v.split()) if isinstance(v, str) else v for key, v in value.items()}


def schema() -> dict[str, Any]:
    """The JSON Schema of a card, for engines that decode by one."""
    text, flag = {"type": "string"}, {"type": "boolean"}
    person = {**dict.fromkeys(PERSON, text), "invented": flag}
    card = {"place": text, "place_invented": flag, "time": text}

    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    people = {"type": "array", "minItems": 1, "maxItems": MAX_PEOPLE, "items": closed(person)}
    return closed({**card, "people": people, "style": {"type": "array", "items": text, "maxItems": 4}})


def filled(values: tuple[str, ...], form: CardForm) -> str:
    """An example's lines (one for each of `LABELS`) as a writer would give them."""
    if form is CardForm.labels:
        return "\n".join(f"{label} {line}" for label, line in zip(LABELS, values, strict=True))
    role, name, place, when, appearance, personality = values
    person = dict(zip(PERSON, (name, role, appearance, personality, "answers the user"), strict=True))
    people = [{**person, "invented": True}]
    return json.dumps({"place": place, "place_invented": True, "time": when, "people": people, "style": []})


@dataclass
class _Line:
    """Where one row of a batch stands in the form."""

    number: int = 0
    """The label whose line is being written."""
    queue: list[int] = field(default_factory=list)
    """Tokens that are still to be put."""
    length: int = 0
    """Tokens of the line so far."""


class Steps:
    """Steers generation (`cathpc.evaluate.generate`) through the form: labels are put, the model fills the lines.

    A line ends with a line break, with the first mark of `SOFT_ENDS`, or after `HARD_TOKENS` tokens.
    Make a new one for each batch. The first label belongs to the prompt: `first`. The tokens in `unpenalised` recur in
    any form and must not count as repetition. A row of the batch whose person has a name in `names` gets it put.
    """

    SOFT_ENDS = ((7, ",.;"), (1, ",;"), (9, ",.;"), (6, ",.;"), (9, ",.;"), (9, ",.;"))
    """For each label: after how many tokens which marks end its line ('Dr.' ends no name)."""
    HARD_TOKENS = 24

    def __init__(self, tokenizer: Tokenizer, stop_id: int, names: list[str]) -> None:
        self._tokenizer = tokenizer
        self._names = names
        self._labels = [self._tokens(f"\n{label}{STARTS.get(label, '')}") for label in LABELS]
        self.unpenalised = {t for label in LABELS for t in self._tokens(f"\n{label}")}
        self.unpenalised |= set(self._tokens(", . a and the of in"))
        self._stop_id = stop_id
        self._rows: dict[int, _Line] = {}
        self._texts: dict[int, str] = {}

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def first(self, role: str) -> list[int]:
        """The first label, and what the record says that the person is."""
        return self._tokens(f"{LABELS[0]} {role}" if role else LABELS[0])

    def _ends_line(self, token: int, length: int, soft: int, ends: str) -> bool:
        if token not in self._texts:
            self._texts[token] = "\n" if token == self._stop_id else self._tokenizer.decode([token])
        text = self._texts[token]
        return "\n" in text or length >= self.HARD_TOKENS or (length >= soft and text.strip() in ends)

    def steer(self, row: int, written: list[int], token: int) -> int:
        """The token to write after `written`: the next one of a label, else `token` while its line goes on."""
        line = self._rows.setdefault(row, _Line())
        if line.queue:
            return line.queue.pop(0)
        if not self._ends_line(token, line.length, *self.SOFT_ENDS[line.number]):
            line.length += 1
            return token
        if line.number == len(LABELS) - 1:
            return self._stop_id
        line.number, line.length = line.number + 1, 0
        line.queue = list(self._labels[line.number])
        if line.number == 1 and self._names[row]:  # the name is known: put it, and go on with the next label
            line.queue = [*self._tokens(f"\n{LABELS[1]} {self._names[row]}"), *self._labels[2]]
            line.number = 2
        return line.queue.pop(0)
