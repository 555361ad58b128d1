"""Style rules: what a program can see that an answer does, said as an instruction that the answer obeys.

In: the assistant turns of one record. Out: a few rules, the most telling first, each of which every one of the turns
obeys. They end every card, so that a model that trains on the record sees an instruction and its fulfilment. A rule is
its name and parameters; sentence and checker are looked up, so that a stored rule can be checked again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cathpc.cards import shapes

Params = dict[str, Any]

WORD_BOUNDS = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1200, 2000, 4000)
"""Round numbers of words that an upper bound is taken from; the next larger one stays within twice the answer."""

LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian",
    "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip

_OPENING = re.compile(
    r"^[\"'“*]*((?:certainly|of course|sure(?: thing)?|absolutely|hello|hi(?: there)?|hey|greetings|welcome|"
    r"(?:great|good) question|thank(?:s| you)[^.!,\n]{0,30}|ah|oh|well|ahoy|arr+|indeed|alas|(?:my )?dear \w+)"
    r"(?: there)?)(?=\s*[,!.:—–-])",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"^(?:i )?(?:hope (?:this|that|it|i)\b|wish(?:ing)? you\b|let me know\b|feel free\b|good luck\b|take care\b|"
    r"best wishes\b|(?:best|kind|warm|yours)\b.{0,12}\bregards\b|sincerely\b|thank you\b|thanks\b|cheers\b|"
    r"stay (?:safe|well|healthy)\b|enjoy\b|farewell\b|goodbye\b|have a\b|"
    r"happy \w+ing\b|get well\b|all the best\b|you(?:'ve| have) got this\b)",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I've|I'd|I'll|my|me|myself)\b")
_BECAUSE = re.compile(
    r"\b(?:because|therefore|thus|hence|since|consequently|as a result|so that|which means)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Rule:
    """One style rule; `name` is a key of `KINDS`."""

    name: str
    params: Params = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The rule as an instruction for the card."""
        return KINDS[self.name].say(self.params)

    def holds(self, answer: str) -> bool:
        """Whether `answer` obeys the rule; an empty answer obeys none."""
        return bool(answer.strip()) and KINDS[self.name].check(answer, self.params)

    def to_json(self) -> dict[str, Any]:
        """Name, parameters and sentence as plain data."""
        return {"name": self.name, "params": dict(self.params), "sentence": self.sentence}


@dataclass(frozen=True)
class Kind:
    """How one kind of rule is found in answers, said and checked."""

    find: Callable[[list[str]], Params | None]
    """Parameters that fit the answers, or None where the rule says nothing about them."""
    say: Callable[[Params], str]
    check: Callable[[str, Params], bool]


def _same(measure: Callable[[str], int], least: int) -> Callable[[list[str]], Params | None]:
    """Finds the count that all answers share, at least `least`."""

    def find(answers: list[str]) -> Params | None:
        counts = {measure(a) for a in answers}
        return {"count": counts.pop()} if len(counts) == 1 and min(counts) >= least else None

    return find


def _when(test: Callable[[str], bool]) -> Callable[[list[str]], Params | None]:
    """Finds a rule without parameters in answers that all pass `test`."""
    return lambda answers: {} if all(test(a) for a in answers) else None


def _common_words(answers: list[str], *, end: bool) -> str:
    """The words (up to five) that two or more answers share at their end or beginning, as the first answer has them."""
    split = [a.split()[::-1] if end else a.split() for a in answers]
    shared: list[str] = []
    for column in zip(*split, strict=False):
        if len(shared) == 5 or len({shapes.folded(w).strip(".,!?\"'*~") for w in column}) > 1:
            break
        shared.append(column[0])
    return " ".join(shared[::-1] if end else shared).strip("\"'*“”,;:")


def _find_ending(answers: list[str]) -> Params | None:
    """A closing formula, an interjection, or what all of several answers end with: never a result."""
    if len(answers) > 1:
        phrase = _common_words(answers, end=True)
    else:
        pieces = shapes.sentences(answers[0])
        phrase = pieces[-1].strip("\"'*“” ") if len(pieces) > 1 else ""
        count = len(shapes.words(phrase))
        if not ((_CLOSING.match(phrase) and count <= 8) or (phrase.endswith("!") and 1 <= count <= 2)):
            return None
    return {"phrase": phrase} if shapes.words(phrase) and not re.search(r"\d", phrase) else None


def _find_opening(answers: list[str]) -> Params | None:
    if len(answers) > 1:
        phrase = _common_words(answers, end=False)
        if not re.search(r"[,.!?:]$", phrase) and len(phrase.split()) < 3:
            return None  # 'The', 'I am': chance, not style
    else:
        match = _OPENING.match(answers[0])
        phrase = match.group(1) if match else ""
    return {"phrase": phrase} if shapes.words(phrase) and not re.search(r"\d", phrase) else None


def _find_max_words(answers: list[str]) -> Params | None:
    most = max(len(shapes.words(a)) for a in answers)
    return next(({"words": bound} for bound in WORD_BOUNDS if most < bound), None)


def _find_min_words(answers: list[str]) -> Params | None:
    least = min(len(shapes.words(a)) for a in answers)
    bounds = [b for b in WORD_BOUNDS if b >= 100 and least >= b]
    return {"words": bounds[-1]} if bounds else None


def _find_language(answers: list[str]) -> Params | None:
    codes = {shapes.language(a) for a in answers}
    code = codes.pop() if len(codes) == 1 else "en"
    return {"language": code} if code != "en" and code in LANGUAGES else None


def _plain_prose(answer: str) -> bool:
    return not any(count(answer) for count in (shapes.numbered, shapes.bullets, shapes.code_blocks, shapes.headings))


def _asks(answer: str) -> bool:
    return answer.rstrip("\"'”’*)_ \n").endswith("?")


def _paragraph_count(answer: str) -> int:
    return len(shapes.paragraphs(answer)) if _plain_prose(answer) else 0


def _sentence_count(answer: str) -> int:
    return len(shapes.sentences(answer)) if _plain_prose(answer) else 0


def _find_sentences(answers: list[str]) -> Params | None:
    found = _same(_sentence_count, 1)(answers)
    return found if found and found["count"] <= 3 else None


def _find_paragraphs(answers: list[str]) -> Params | None:
    found = _same(_paragraph_count, 1)(answers)
    return found if found and (found["count"] > 1 or min(_sentence_count(a) for a in answers) > 3) else None


def _plural(count: int, noun: str) -> str:
    number = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")[count] if count < 9 else str(count)
    return f"{number} {noun}" + ("" if count == 1 else "s")


KINDS: dict[str, Kind] = {
    "json": Kind(
        _when(lambda a: shapes.json_value(a) is not None),
        lambda p: "Answer with valid JSON and nothing else.",
        lambda a, p: shapes.json_value(a) is not None,
    ),
    "language": Kind(
        _find_language,
        lambda p: f"Answer in {LANGUAGES[p['language']]}.",
        lambda a, p: shapes.language(a) == p["language"],
    ),
    "numbered_steps": Kind(
        _same(shapes.numbered, 2),
        lambda p: f"Number the points of the answer, exactly {_plural(p['count'], 'point')}.",
        lambda a, p: shapes.numbered(a) == p["count"],
    ),
    "bullets": Kind(
        _same(shapes.bullets, 2),
        lambda p: f"Use a bullet list of {_plural(p['count'], 'point')}.",
        lambda a, p: shapes.bullets(a) == p["count"],
    ),
    "ends_with": Kind(
        _find_ending,
        lambda p: f'End every answer with "{p["phrase"]}"',
        lambda a, p: shapes.ends_with(a, p["phrase"]),
    ),
    "begins_with": Kind(
        _find_opening,
        lambda p: f'Begin every answer with "{p["phrase"]}"',
        lambda a, p: shapes.begins_with(a, p["phrase"]),
    ),
    "code_block": Kind(
        _when(lambda a: shapes.code_blocks(a) > 0),
        lambda p: "Put code in a fenced block.",
        lambda a, p: shapes.code_blocks(a) > 0,
    ),
    "calculation": Kind(
        _when(lambda a: shapes.calculations(a) > 0),
        lambda p: "Write out the calculation with its numbers.",
        lambda a, p: shapes.calculations(a) > 0,
    ),
    "asks_back": Kind(
        _when(_asks),
        lambda p: "End with a question to the user.",
        lambda a, p: _asks(a),
    ),
    "reasons": Kind(
        _when(lambda a: len(_BECAUSE.findall(a)) >= 2),
        lambda p: "Give reasons: connect your thoughts with words such as 'because' and 'therefore'.",
        lambda a, p: len(_BECAUSE.findall(a)) >= 2,
    ),
    "headings": Kind(
        _when(lambda a: shapes.headings(a) >= 2),
        lambda p: "Divide the answer by headings.",
        lambda a, p: shapes.headings(a) >= 2,
    ),
    "bold": Kind(
        _when(lambda a: shapes.bold(a) >= 2),
        lambda p: "Set key terms in bold.",
        lambda a, p: shapes.bold(a) >= 2,
    ),
    "sentences": Kind(
        _find_sentences,
        lambda p: f"Answer in {_plural(p['count'], 'sentence')}.",
        lambda a, p: _sentence_count(a) == p["count"],
    ),
    "paragraphs": Kind(
        _find_paragraphs,
        lambda p: f"Answer in {_plural(p['count'], 'paragraph')}" + (" without a list." if p["count"] == 1 else "."),
        lambda a, p: _paragraph_count(a) == p["count"],
    ),
    "first_person": Kind(
        _when(lambda a: len(_FIRST_PERSON.findall(a)) >= 2),
        lambda p: "Speak of yourself in the first person.",
        lambda a, p: len(_FIRST_PERSON.findall(a)) >= 2,
    ),
    "max_words": Kind(
        _find_max_words,
        lambda p: f"Keep every answer under {p['words']} words.",
        lambda a, p: len(shapes.words(a)) < p["words"],
    ),
    "min_words": Kind(
        _find_min_words,
        lambda p: f"Answer in detail, with at least {p['words']} words.",
        lambda a, p: len(shapes.words(a)) >= p["words"],
    ),
    "no_exclamation": Kind(
        _when(lambda a: "!" not in a),
        lambda p: "Use no exclamation marks.",
        lambda a, p: "!" not in a,
    ),
}
"""The kinds of rules, the most telling first."""


def _all(answers: list[str]) -> Iterator[Rule]:
    for name, kind in KINDS.items():
        params = kind.find(answers)
        if params is not None:
            rule = Rule(name, params)
            if all(rule.holds(a) for a in answers):
                yield rule


def extract(answers: list[str], limit: int) -> list[Rule]:
    """The up to `limit` most telling rules that every one of `answers` obeys; [] where an answer is empty.

    One of them is a bound on the number of words wherever the answers share one: all are under 4,000 words, or all have
    100 or more. Answers that share none, and nothing else either, have no rule ([]).
    """
    if not answers or not all(a.strip() for a in answers):
        return []
    found = list(_all(answers))
    telling = found[:limit]
    if limit > 1 and len(found) > limit and not any(r.name.endswith("_words") for r in telling):
        bound = next((r for r in found if r.name.endswith("_words")), None)
        telling[-1] = bound or telling[-1]  # the length teaches with any answer
    return telling
