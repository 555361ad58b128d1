"""Enacted rules: some kept answers are edited by program so that they obey an instruction that their card states.

What a model learns of obedience comes from answers that visibly do what the system prompt says, and answers written
without one rarely do more than stay under a length. In: a record. Out: the same record with a system prompt of its own
(who speaks, and an instruction or two) and with answers that obey it. Taught are the families of `FAMILIES`; forbidden
words, secrets, users who ask for the contrary, languages and staying in character are not. Names and phrases are put
together from the lists of `assets/enact.yaml`, so that hardly one comes twice and copying is what is learned.

Answers keep their meaning: whole sentences are taken, set in another form, framed by a phrase, or spread over some
turns in which the user says 'Go on.'; some conversations begin with the question who speaks. Health, code, lists and
records with a system prompt are left alone. Everything is drawn by hashes of the record's id. Time is linear in the
texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cathpc.cards import shapes
from cathpc.cards.verify import ASSISTANT
from cathpc.record import Message, unit_hash

Row = dict[str, Any]
Edit = Callable[[list[str]], str | None]
Rule = tuple[str, Edit]
"""What the card says, and how the sentences of an answer become one that obeys; None where they cannot."""

MAX_SENTENCES = 12
"""Sentences of an answer that are used, over all turns."""
MAX_SENTENCE_WORDS = 30
MAX_TURNS = 4
TRIES = 8
"""Rules that are drawn for a record until one fits its answer."""
NUMBERS = ("zero", "one", "two", "three", "four")
FAMILIES = ("phrase", "persona", "format", "length", "thought")
"""Families of probes that are taught."""


@cache
def _lists() -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = yaml.safe_load(
        (Path(__file__).parents[1] / "assets" / "enact.yaml").read_text("utf-8")
    )
    return lists


class Draw:
    """Choices that depend on a record's id alone."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key, 0

    def number(self) -> float:
        """The next number in [0, 1)."""
        self._count += 1
        return unit_hash(f"enact/{self._key}/{self._count}", 0)

    def of(self, choices: Sequence[Any]) -> Any:
        """One of `choices`."""
        return choices[int(self.number() * len(choices))]

    def word(self, name: str) -> Any:
        """An entry of the list `name` in enact.yaml."""
        return self.of(_lists()[name])

    def phrase(self) -> str:
        """A few words to begin or end with."""
        if self.number() < 0.35:
            return str(self.word("interjections"))
        phrase = f"{self.word('adjectives')} {self.word('nouns')}"
        return str(self.of((phrase, phrase.capitalize(), f"the {phrase}", self.word("nouns"))))


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces)


def _count(number: int, noun: str) -> str:
    return f"{NUMBERS[number]} {noun}" + ("s" if number != 1 else "")


# --- length -----------------------------------------------------------------------------------------------------------


def sentences(draw: Draw) -> Rule:
    """So many sentences."""
    count = draw.of((1, 1, 2, 3))
    said = _count(count, "sentence")
    say = draw.of(
        (
            f"Give your answers in {said}.",
            f"Use exactly {said} each time.",
            f"Each reply consists of {said}, no more and no less.",
            f"You always speak in {said}.",
        )
    )
    return say, lambda s: _joined(s[:count]) if len(s) >= count else None


def few_words(draw: Draw) -> Rule:
    """At most so many words."""
    most = draw.of((4, 6, 8, 10, 12, 18, 25, 35))
    say = draw.of(
        (
            f"Replies have {most} words at the most.",
            f"Use no more than {most} words a reply.",
            f"Be brief: {most} words are the limit.",
            f"You never go beyond {most} words.",
        )
    )

    def edit(pieces: list[str]) -> str | None:
        kept: list[str] = []
        while len(kept) < len(pieces) and len(shapes.words(_joined([*kept, pieces[len(kept)]]))) <= most:
            kept.append(pieces[len(kept)])
        if kept:
            return _joined(kept)
        clause = re.split(r"[,;:]\s|\s(?:because|which|that|and|but|while|so)\s", pieces[0])[0].rstrip(" .,;:")
        return f"{clause}." if 2 <= len(shapes.words(clause)) <= most else None

    return say, edit


# --- format -----------------------------------------------------------------------------------------------------------


def bullets(draw: Draw) -> Rule:
    """A bullet list."""
    count = draw.of((2, 3, 4))
    say = draw.of(
        (
            f"Reply with a list of {NUMBERS[count]} bullets and no other text.",
            f"All you write is a bullet list with {NUMBERS[count]} entries, each on a line that starts with a dash.",
            f"Write {NUMBERS[count]} bullet points, one a line, each beginning with '- '.",
        )
    )
    return say, lambda s: "\n".join(f"- {p}" for p in s[:count]) if len(s) >= count else None


def numbered(draw: Draw) -> Rule:
    """A numbered list."""
    count = draw.of((2, 3, 4))
    say = draw.of(
        (
            f"Number your points: {NUMBERS[count]} of them, one a line.",
            f"Reply as a numbered list with {NUMBERS[count]} entries.",
            f"Write {NUMBERS[count]} numbered lines and nothing besides.",
        )
    )
    return say, lambda s: "\n".join(f"{n}. {p}" for n, p in enumerate(s[:count], 1)) if len(s) >= count else None


def json_object(draw: Draw) -> Rule:
    """A JSON object."""
    key, second, value = draw.word("keys"), draw.word("other_keys"), draw.word("values")
    if draw.number() < 0.5:
        say = f'Reply in JSON: an object with the key "{key}", without any text around it.'
        return say, lambda s: json.dumps({key: s[0]}, ensure_ascii=False)
    say = draw.of(
        (
            f'Your output is read by a program: a JSON object with the keys "{key}" and "{second}".',
            f'Write one JSON object with "{key}" and "{second}" as its keys and no prose outside.',
        )
    )
    return say, lambda s: json.dumps({key: s[0], second: value}, ensure_ascii=False)


def capitals(draw: Draw) -> Rule:
    """Capital letters only."""
    say = draw.of(
        ("Type in capital letters only.", "ALL your text is in upper case.", "You only ever write in capitals.")
    )
    return say, lambda s: _joined(s[:2]).upper()


def small(draw: Draw) -> Rule:
    """Small letters only."""
    say = draw.of(
        (
            "Type without any capital letter.",
            "Use small letters throughout.",
            "Your keyboard has lowercase letters alone.",
        )
    )
    return say, lambda s: _joined(s[:2]).lower()


def framed(draw: Draw) -> Rule:
    """The answer between marks."""
    left, right = draw.word("frames")
    say = draw.of((f"Put all that you say between {left} and {right}.", f"Start with {left} and close with {right}."))
    return say, lambda s: f"{left}{_joined(s[:2])}{right}"


# --- thought ----------------------------------------------------------------------------------------------------------


def thinking(draw: Draw) -> Rule:
    """Thought aloud, in marked steps."""
    say = draw.of(
        (
            "Let the user follow your reasoning: go step by step, with 'first', 'next' and 'therefore'.",
            "Show your chain of thought in steps that begin with first, next and therefore.",
            "Reason in the open before you conclude: first this, next that, therefore the result.",
        )
    )
    marks = ("First: ", "Next: ", "Therefore: ")
    return say, lambda s: _joined([m + p for m, p in zip(marks, s, strict=False)]) if len(s) >= 3 else None


def bare(draw: Draw) -> Rule:
    """No thought aloud: one plain sentence."""
    say = draw.of(
        (
            "Keep your reasoning to yourself: state the outcome in a single sentence.",
            "Neither explain nor count steps: the bare result in one sentence.",
            "Do not show how you think. One sentence is all that is wanted.",
        )
    )
    steps = re.compile(r"\b(?:first|next|then|so|because|since|therefore|thus|hence|finally)\b", re.IGNORECASE)
    return say, lambda s: next((p for p in s if not steps.search(p) and len(shapes.words(p)) <= 25), None)


# --- phrases and persona ----------------------------------------------------------------------------------------------


def opening(draw: Draw) -> Rule:
    """A phrase at the beginning."""
    phrase, mark = draw.phrase(), draw.of(("!", ":", ".", ","))
    say = draw.of(
        (
            f"Open every reply with '{phrase}'.",
            f'Your replies start with the words "{phrase}".',
            f"The first thing you say is always '{phrase}'.",
            f'You cannot speak without saying "{phrase}" first.',
        )
    )
    return say, lambda s: f"{_upper(phrase)}{mark} {_joined(s)}"


def ending(draw: Draw) -> Rule:
    """A phrase at the end."""
    phrase, mark = draw.phrase(), draw.of(("!", ".", ""))
    say = draw.of(
        (
            f"Close every reply with '{phrase}'.",
            f'Finish whatever you say with "{phrase}".',
            f"The last words of each reply are '{phrase}'.",
            f'You add "{phrase}" at the end, always.',
            f"You end all your messages with the words '{phrase}'.",
        )
    )
    return say, lambda s: f"{_joined(s)} {_upper(phrase)}{mark}"


def title(draw: Draw) -> Rule:
    """What the user is called."""
    name = draw.word("titles")
    say = draw.of(
        (
            f"Address whoever writes to you as '{name}'.",
            f"You call the user {name} each time you speak.",
            f'Never forget to say "{name}" to the user.',
        )
    )
    at_end = draw.number() < 0.5

    def edit(pieces: list[str]) -> str:
        text = _joined(pieces)
        return f"{text[:-1]}, {name}." if at_end and text.endswith(".") else f"{name}! {text}"

    return say, edit


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS: tuple[Callable[[Draw], Rule], ...] = (
    ending, ending, ending, opening, opening, title, title, sentences, few_words, few_words, bullets, numbered,
    json_object, capitals, small, framed, thinking, bare,
)  # fmt: skip
"""The rules, as often as they are to be drawn."""
FRAMES = (ending, opening, title)
"""Those that go with another one."""
SHORT = ("Keep it short.", "One or two sentences are enough.", "You are a person of few words.", "Answers stay short.")


# --- records ----------------------------------------------------------------------------------------------------------


def enacted(row: Row, share: float) -> Row:
    """`row` with a system prompt and answers that obey it; `row` itself outside of `share` and where nothing fits.

    `row` is one of RECORD_SCHEMA; only a record of one question and one answer in prose is edited.
    """
    draw = Draw(row["id"])
    if draw.number() >= share or row["component"] == "health" or not _editable(row["messages"]):
        return row
    question, answer = (m["content"] for m in row["messages"])
    pieces = _sentences(answer)
    for _ in range(TRIES if pieces else 0):
        talk = _talk(draw, question, pieces)
        if talk:
            return {**row, "messages": talk}
    return row


def _editable(messages: list[Message]) -> bool:
    if [m["role"] for m in messages] != ["user", "assistant"]:
        return False
    answer = messages[1]["content"]
    marks = (shapes.code_blocks, shapes.numbered, shapes.bullets, shapes.headings)
    if ASSISTANT.search(answer):
        return False  # nobody in the scene
    return not any(count(answer) for count in marks) and shapes.language(answer) == "en"


def _sentences(answer: str) -> list[str]:
    """The sentences that `answer` begins with, whole ones of moderate length only."""
    kept: list[str] = []
    for piece in shapes.sentences(answer)[:MAX_SENTENCES]:
        if not re.search(r"[.!?][\"'”’)]*$", piece) or len(shapes.words(piece)) > MAX_SENTENCE_WORDS:
            break
        kept.append(piece)
    return kept


def _talk(draw: Draw, question: str, pieces: list[str]) -> list[Message]:
    """The conversation under one or two rules, in one turn or in some; [] where the rule does not fit."""
    name, trade = f"{draw.word('first')} {draw.word('last')}", draw.word("trades")
    article = "an" if trade[0] in "aeiou" else "a"
    scene = draw.of(("You are {0}, {1} {2} {3}.", "Your name is {0}. You work as {1} {2} {3}.", "{0}, {1} {2} {3}."))
    said, edits = [scene.format(name, article, trade, draw.word("places"))], []
    first = draw.of(KINDS)
    kinds = [first]
    if first in FRAMES and draw.number() < 0.3:
        kinds += [kind for kind in FRAMES if kind is not first][:1]
    for kind in kinds:
        say, edit = kind(draw)
        said.append(say)
        edits.append(edit)
    each = draw.of((1, 1, 2)) if first in FRAMES else len(pieces)
    if first in FRAMES and draw.number() < 0.5:
        said.insert(draw.of((1, len(said))), draw.of(SHORT))

    asked = [question]
    parts = [pieces[:each]]
    if draw.number() < 0.5:  # on in the same way, turn by turn
        size = each if first in FRAMES else max(1, len(pieces) // MAX_TURNS)
        parts = [pieces[at : at + size] for at in range(0, len(pieces), size)][: draw.of((2, 3, MAX_TURNS))]
        asked += [draw.word("go_on") for _ in parts[1:]]
    if first is not bare and draw.number() < 0.25:
        asked.insert(0, draw.word("who"))
        parts.insert(0, [f"I am {name}, {article} {trade}."])
    talk: list[Message] = [{"role": "system", "content": _joined(said)}]
    for user, part in zip(asked, parts, strict=True):
        answer = edits[0](part)
        for edit in edits[1:]:
            answer = answer and edit([answer])
        if not answer:
            if len(talk) > 1:
                break  # what obeys so far is a conversation of its own
            return []
        talk += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return talk if any(m["content"] == question for m in talk) else []
