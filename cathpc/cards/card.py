"""The system card: where and when the conversation takes place, who the model is, who else is there, the style rules.

In: fields and rules. Out: the text of a system message, by a Jinja template that sees nothing but the card.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cathpc.cards.rules import Rule
from cathpc.config import conf_dir
from cathpc.errors import UserError

TEMPLATE = conf_dir() / "cards" / "card.j2"
"""The template that ships with cathpc."""

MAX_FIELD_CHARS = 240
MAX_PEOPLE = 4

USER = "the user"
"""Name of the person whom the first one talks to."""

PLAIN = {
    "health": "You are a doctor who answers patients' questions in writing.",
    "reasoning": "You are a helpful assistant who thinks before answering.",
    "roleplay": "You take on the role that the user gives you and stay in it.",
    "science": "You are a scientist who explains clearly.",
}
PLAIN_DEFAULT = "You are a helpful assistant."


@dataclass
class Person:
    """Somebody in the scene; the first person of a card is who the model is."""

    name: str
    role: str = ""
    appearance: str = ""
    personality: str = ""
    relation: str = ""
    """To the first person, or of the first person to the user."""
    invented: bool = False
    """Whether the record does not know them."""


@dataclass
class Card:
    """A system card: a scene (`place`, `time`, `people`), or a `persona`, a text that stands for itself."""

    place: str = ""
    time: str = ""
    people: list[Person] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    persona: str = ""
    place_invented: bool = False
    """Whether the record does not name the place."""
    style: list[str] = field(default_factory=list)
    """What the writer says of how the person answers; `rules` are what a program says."""

    def to_json(self) -> dict[str, Any]:
        """The card as plain data."""
        return {
            "place": self.place,
            "place_invented": self.place_invented,
            "time": self.time,
            "people": [asdict(p) for p in self.people],
            "style": self.style,
            "rules": [r.to_json() for r in self.rules],
            "persona": self.persona,
        }


def texts_of(person: Person) -> dict[str, str]:
    """The fields of a person that hold text."""
    return {key: value for key, value in asdict(person).items() if isinstance(value, str)}


def plain(component: str, rules: list[Rule]) -> Card:
    """The card without a scene: what an assistant for this component is, and the rules."""
    return Card(persona=PLAIN.get(component, PLAIN_DEFAULT), rules=rules)


def problems(card: Card) -> list[str]:
    """What is wrong with the card's form; [] for a valid one."""
    found = []
    if not card.persona and not card.people:
        found.append("neither a persona nor a person")
    if len(card.people) > MAX_PEOPLE:
        found.append(f"{len(card.people)} people, {MAX_PEOPLE} at most")
    texts = {"place": card.place, "time": card.time}
    for number, person in enumerate(card.people, 1):
        if not person.name:
            found.append(f"person {number} has no name")
        texts |= {f"{key} of person {number}": text for key, text in texts_of(person).items()}
    texts |= {f"style {number}": text for number, text in enumerate(card.style, 1)}
    for what, value in texts.items():
        if "\n" in value or "\r" in value or value != value.strip():
            found.append(f"{what} is not one trimmed line")
        if len(value) > MAX_FIELD_CHARS:
            found.append(f"{what} has {len(value)} characters, {MAX_FIELD_CHARS} at most")
    return found


class Layout:
    """A compiled Jinja template of cards."""

    def __init__(self, path: Path = TEMPLATE) -> None:
        """Raises `UserError` where `path` cannot be read, is no template, or uses a field that a card does not have."""
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._path = path
        self._error = TemplateError
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the card template cannot be read ({error}); see cards.layout") from None
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise UserError(f"{path}: line {getattr(error, 'lineno', '?')}: not a Jinja template: {error}") from None
        rule = Rule("no_exclamation")
        user = Person(USER, "g")
        people = [Person("A", "b", "c", "d", "e"), user, Person("F")]
        self.render(Card("a place", "a time", people, [rule], style=["briefly"]))
        self.render(plain("general", [rule]))

    def render(self, card: Card) -> str:
        """The system message of `card`, trimmed, at most one blank line in a row."""
        try:
            text = self._template.render(
                place=card.place,
                time=card.time,
                people=[asdict(p) for p in card.people],
                persona=card.persona,
                rules=[r.sentence for r in card.rules],
                style=card.style,
            )
        except self._error as error:
            raise UserError(
                f"{self._path}: {error}; a card has place, time, persona, style, rules and people (name, role, "
                "appearance, personality, relation, invented)"
            ) from None
        lines = [line.rstrip() for line in text.strip().splitlines()]
        return "\n".join(line for at, line in enumerate(lines) if line or lines[at - 1])
