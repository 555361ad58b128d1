"""Enacted rules: some kept answers are edited by program so that they obey an instruction that their card states.

What a model learns of obedience comes from answers that visibly do what the system prompt says, and answers written
without one rarely do more than stay under a length. In: a record. Out: the same record with a system prompt of its own
(who speaks, and an instruction or two) and with answers that obey it. Taught are phrases, personas, formats, lengths
and thinking aloud; forbidden words, secrets, users who ask for the contrary, languages and staying in character are
not. Names and phrases are put together from the lists of `assets/enact.yaml`, so that hardly one comes twice and
copying is what is learned.

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
from cathpc.cards.orders import TALK
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


@cache
def _lists() -> dict[str, Any]:
    lists: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "assets" / "enact.yaml").read_text("utf-8"))
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

    def say(self, rule: str, **words: Any) -> str:
        """How a card says `rule`."""
        return str(self.of(_lists()["says"][rule]).format(**words))

    def phrase(self) -> str:
        """A few words to begin or end with."""
        if self.number() < 0.35:
            return str(self.word("interjections"))
        phrase = f"{self.word('adjectives')} {self.word('nouns')}"
        return str(self.of((phrase, phrase.capitalize(), f"the {phrase}", self.word("nouns"))))


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces)


# --- rules: length, format, thought, phrases, persona -----------------------------------------------------------------


def sentences(draw: Draw) -> Rule:
    """So many sentences."""
    count = draw.of((1, 1, 2, 3))
    said = f"{NUMBERS[count]} sentence{'s' * (count > 1)}"
    return draw.say("sentences", said=said), lambda s: _joined(s[:count]) if len(s) >= count else None


def few_words(draw: Draw) -> Rule:
    """At most so many words."""
    most = draw.of((4, 6, 8, 10, 12, 18, 25, 35))

    def edit(pieces: list[str]) -> str | None:
        kept: list[str] = []
        while len(kept) < len(pieces) and len(shapes.words(_joined([*kept, pieces[len(kept)]]))) <= most:
            kept.append(pieces[len(kept)])
        if kept:
            return _joined(kept)
        clause = re.split(r"[,;:]\s|\s(?:because|which|that|and|but|while|so)\s", pieces[0])[0].rstrip(" .,;:")
        return f"{clause}." if 2 <= len(shapes.words(clause)) <= most else None

    return draw.say("few_words", most=most), edit


def many_words(draw: Draw) -> Rule:
    """At least so many words."""
    least = draw.of((12, 18, 22, 30, 35))

    def edit(pieces: list[str]) -> str | None:
        texts = (_joined(pieces[:number]) for number in range(1, len(pieces) + 1))
        return next((text for text in texts if len(shapes.words(text)) >= least), None)

    return draw.say("many_words", least=least), edit


def _lines(draw: Draw, name: str, mark: str) -> Rule:
    count = draw.of((2, 3, 4))

    def edit(pieces: list[str]) -> str | None:
        lines = [mark.format(number) + piece for number, piece in enumerate(pieces[:count], 1)]
        return "\n".join(lines) if len(lines) == count else None

    return draw.say(name, said=NUMBERS[count]), edit


def bullets(draw: Draw) -> Rule:
    """A bullet list."""
    return _lines(draw, "bullets", "- ")


def numbered(draw: Draw) -> Rule:
    """A numbered list."""
    return _lines(draw, "numbered", "{}. ")


def json_object(draw: Draw) -> Rule:
    """A JSON object with one key or two."""
    key, second, value = draw.word("keys"), draw.word("other_keys"), draw.word("values")
    more = {second: value} if draw.number() < 0.5 else {}
    say = draw.say("json_pair" if more else "json_object", key=key, second=second)
    return say, lambda s: json.dumps({key: s[0], **more}, ensure_ascii=False)


def capitals(draw: Draw) -> Rule:
    """Capital letters only."""
    return draw.say("capitals"), lambda s: _joined(s[:2]).upper()


def small(draw: Draw) -> Rule:
    """Small letters only."""
    return draw.say("small"), lambda s: _joined(s[:2]).lower()


def framed(draw: Draw) -> Rule:
    """The answer between marks."""
    left, right = draw.word("frames")
    return draw.say("framed", left=left, right=right), lambda s: f"{left}{_joined(s[:2])}{right}"


def thinking(draw: Draw) -> Rule:
    """Thought aloud, in marked steps."""

    def edit(pieces: list[str]) -> str | None:
        steps = [mark + piece for mark, piece in zip(("First: ", "Next: ", "Therefore: "), pieces, strict=False)]
        return _joined(steps) if len(steps) == 3 else None

    return draw.say("thinking"), edit


def bare(draw: Draw) -> Rule:
    """No thought aloud: one plain sentence."""
    steps = re.compile(r"\b(?:first|next|then|so|because|since|therefore|thus|hence|finally)\b", re.IGNORECASE)
    return draw.say("bare"), lambda s: next((p for p in s if not steps.search(p) and len(shapes.words(p)) <= 25), None)


def opening(draw: Draw) -> Rule:
    """A phrase at the beginning."""
    phrase, mark = draw.phrase(), draw.of(("!", ":", ".", ","))
    return draw.say("opening", phrase=phrase), lambda s: f"{_upper(phrase)}{mark} {_joined(s)}"


def ending(draw: Draw) -> Rule:
    """A phrase at the end."""
    phrase, mark = draw.phrase(), draw.of(("!", ".", ""))
    return draw.say("ending", phrase=phrase), lambda s: f"{_joined(s)} {_upper(phrase)}{mark}"


def title(draw: Draw) -> Rule:
    """What the user is called."""
    name, at_end = draw.word("titles"), draw.number() < 0.5

    def edit(pieces: list[str]) -> str:
        text = _joined(pieces)
        return f"{text[:-1]}, {name}." if at_end and text.endswith(".") else f"{name}! {text}"

    return draw.say("title", name=name), edit


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS: tuple[Callable[[Draw], Rule], ...] = (
    ending, ending, ending, opening, opening, title, title, sentences, few_words, few_words, many_words, bullets,
    numbered, json_object, capitals, small, framed, thinking, bare,
)  # fmt: skip
"""The rules, as often as they are to be drawn."""
FRAMES = (ending, opening, title)
"""Those that go with another one."""


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
    if TALK.search(answer):
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
    said, edits = [draw.say("scene", name=name, article=article, trade=trade, place=draw.word("places"))], []
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
        said.insert(draw.of((1, len(said))), draw.say("short"))

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
