"""The checks of probes: small pure functions, answer and parameters in, verdict out.

A probe writes a check as {"type": NAME, parameter: value ...}; NAME is a key of `CHECKS`, the parameters are those of
the function, those with a default may be left out. None passes an empty answer. Case does not count where phrases are
compared.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from cathpc.cards import shapes
from cathpc.evaluate import languages
from cathpc.evaluate.thoughts import split

Check = dict[str, Any]

_REASONS = re.compile(
    r"\b(?:because|therefore|thus|hence|consequently|due to|given that|as a result|(?:this|that|which) means|"
    r"it follows|that is why)\b|\bsince\b(?!\s+\d)|(?:^|[.;:,!?]\s*|\band\s+)so\b(?!\s+(?:far|long|many|much)\b)|"
    r"\bso\s+(?:I|we|you|he|she|it|they|the|there|this|that|each)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""What links a thought with what follows from it; 'so' of a degree ('so glad') is none."""
_ORDER = re.compile(r"\b(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|finally|step \d+)\b", re.IGNORECASE)
_BEGINS = re.compile(r"\b(?:first(?:ly)?|step \d+)\b", re.IGNORECASE)
_LISTED = re.compile(r"^\s*(?:[*_#]*\s*(?:step\s+)?\d{1,3}\s*[.):]|[-*•‣–+]\s).*$", re.IGNORECASE | re.MULTILINE)
_QUOTES = str.maketrans("’‘‚“”„«»", '\'\'\'"""""')
_SPELT = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,3}[^\W_](?![^\W_]))+")
_INSIDE = re.compile(r"(?<=[^\W_])[-*_.·\u00ad\u200b]+(?=[^\W_])")


def _plain(text: str) -> str:
    """`text` without accents, with plain quotation marks."""
    parts = unicodedata.normalize("NFKD", text.translate(_QUOTES))
    return "".join(c for c in parts if not unicodedata.combining(c))


def _marks(text: str) -> int:
    """Words of reasoning and calculations; words of order ('then') count where something is begun or reasoned."""
    reasons = len(_REASONS.findall(text)) + shapes.calculations(text)
    order = len(_ORDER.findall(text))
    return reasons + (order if reasons or _BEGINS.search(text) else 0)


def thinks_aloud(answer: str) -> bool:
    """Whether a chain of thought is shown: thoughts set apart, or two words of reasoning outside of lists."""
    return bool(shapes.words(split(answer)[0])) or _marks(_LISTED.sub("", answer)) >= 2


def ends_with(answer: str, phrase: str) -> bool:
    """The last words are `phrase`; closing marks and accents do not count."""
    return shapes.ends_with(_plain(answer), _plain(phrase))


def begins_with(answer: str, phrase: str) -> bool:
    """The first words are `phrase`; accents do not count."""
    return shapes.begins_with(_plain(answer), _plain(phrase))


def contains_any(answer: str, phrases: list[str]) -> bool:
    """At least one of `phrases` occurs, as whole words."""
    return any(shapes.contains(answer, p) for p in phrases)


def fact(answer: str, phrases: list[str]) -> bool:
    """A fact of the card is told: at least one of `phrases` occurs. Consistency of the character is measured by it."""
    return contains_any(answer, phrases)


def contains_all(answer: str, phrases: list[str]) -> bool:
    """All of `phrases` occur, as whole words."""
    return all(shapes.contains(answer, p) for p in phrases)


def contains_none(answer: str, phrases: list[str]) -> bool:
    """None of `phrases` occurs, as whole words."""
    return not contains_any(answer, phrases)


def no_text(answer: str, text: str) -> bool:
    """`text` occurs nowhere, not even inside a word: for letters, marks and secrets.

    Letters and digits are found too where they are spelt ('h-e-r-o-n') or parted by marks ('her*on'), a text with
    digits also across blanks ('7 29').
    """
    wanted, seen = shapes.folded(text), shapes.folded(answer)
    if wanted in seen:
        return False
    wanted, seen = _plain(wanted), _plain(seen)
    if len(wanted) < 2 or not wanted.isalnum():
        return wanted not in seen if wanted else True
    spelt = _SPELT.sub(lambda run: re.sub(r"[\W_]+", "", run[0]), seen)
    forms = [seen, spelt, _INSIDE.sub("", seen)]
    if re.search(r"\d", wanted):
        forms.append(re.sub(r"[\W_]+", "", seen))
    return not any(wanted in form for form in forms)


def json_object(answer: str, keys: list[str]) -> bool:
    """The whole answer is a JSON object with `keys`."""
    value = shapes.json_value(answer)
    return isinstance(value, dict) and all(k in value for k in keys)


def numbered(answer: str, count: int) -> bool:
    """There are `count` lines numbered from 1."""
    return shapes.numbered(answer) == count


def bullets(answer: str, count: int) -> bool:
    """There are `count` lines with a bullet."""
    return shapes.bullets(answer) == count


def no_list(answer: str) -> bool:
    """There is no numbered line and no bullet."""
    return not (shapes.numbered(answer) or shapes.bullets(answer))


def language(answer: str, code: str, user: str = "", least: float = 0.5) -> bool:
    """At least two words, in the language `code` (ISO 639-1) with probability `least` or more: rather than in English
    or in the `user`'s language, and not plainly in another one."""
    return languages.written_in(answer, code, user, least)


def max_words(answer: str, words: int) -> bool:
    """At most `words` words."""
    return 0 < len(shapes.words(answer)) <= words


def min_words(answer: str, words: int) -> bool:
    """At least `words` words."""
    return len(shapes.words(answer)) >= words


def sentences(answer: str, count: int) -> bool:
    """Exactly `count` sentences."""
    return len(shapes.sentences(answer)) == count


def max_sentences(answer: str, count: int) -> bool:
    """At least one sentence, at most `count`."""
    return 0 < len(shapes.sentences(answer)) <= count


def max_chars(answer: str, chars: int) -> bool:
    """At most `chars` characters, spaces included."""
    return bool(shapes.words(answer)) and len(answer) <= chars


def lines(answer: str, count: int) -> bool:
    """Exactly `count` lines that are not blank."""
    return sum(bool(line.strip()) for line in answer.splitlines()) == count


def wrapped(answer: str, left: str, right: str) -> bool:
    """Begins with `left`, ends with `right`, all words are between them; quotation marks are alike."""
    answer, left, right = (_plain(text) for text in (answer, left, right))
    if not (answer.startswith(left) and answer.endswith(right)):
        return False
    if left == right:
        mark = re.escape(left)
        pieces = re.split(rf"(?<!\w)(?:{mark})+|(?:{mark})+(?!\w)", answer)
        inside, outside = pieces[1::2], pieces[::2]
    else:
        inside, outside, depth = [], [], 0
        for piece in re.split(f"({re.escape(left)}|{re.escape(right)})", answer):
            if piece == left:
                depth += 1
            elif piece == right:
                depth = max(depth - 1, 0)
            else:
                (inside if depth else outside).append(piece)
    return bool(shapes.words(" ".join(inside))) and not shapes.words(" ".join(outside))


def uppercase(answer: str) -> bool:
    """There are letters and all are capitals."""
    return answer.isupper()


def lowercase(answer: str) -> bool:
    """There are letters and none is a capital."""
    return answer.islower()


def matches(answer: str, pattern: str) -> bool:
    """The regular expression `pattern` is found, case ignored, '^' and '$' at line ends."""
    return re.search(pattern, answer, re.IGNORECASE | re.MULTILINE) is not None


def reasoning(answer: str, marks: int) -> bool:
    """At least `marks` words of reasoning ("first ... then", "because"), calculations or numbered steps."""
    return _marks(answer) + shapes.numbered(answer) >= marks


def thought(answer: str) -> bool:
    """Thoughts set apart, between tags such as <think> or behind 'Thought:', and an answer; both have words."""
    return all(shapes.words(part) for part in split(answer))


def no_reasoning(answer: str) -> bool:
    """A bare result: no reason, calculation, thoughts set apart or row of steps; one sentence.

    A lone word of order ('go first', 'the second half') is no reasoning.
    """
    shown = split(answer)[0] or _REASONS.search(answer) or shapes.calculations(answer)
    steps = shapes.numbered(answer) or len(_ORDER.findall(answer)) > 2
    return bool(shapes.words(answer)) and not shown and not steps and len(shapes.sentences(answer)) <= 1


CHECKS: dict[str, Callable[..., bool]] = {
    f.__name__: f
    for f in (
        ends_with, begins_with, contains_any, fact, contains_all, contains_none, no_text, json_object, numbered,
        bullets, no_list, language, max_words, min_words, sentences, max_sentences, max_chars, lines, wrapped,
        uppercase, lowercase, matches, reasoning, thought, no_reasoning,
    )
}  # fmt: skip

_TYPES: dict[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str) and v != "",
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    "float": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1,
    "list[str]": lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(x, str) and x for x in v),
}


def parameters(kind: str) -> dict[str, str]:
    """Names and types of the parameters of a check."""
    found = inspect.signature(CHECKS[kind]).parameters.values()
    return {p.name: str(p.annotation) for p in found if p.name != "answer"}


def required(kind: str) -> list[str]:
    """The parameters that a check must give."""
    found = inspect.signature(CHECKS[kind]).parameters.values()
    return [p.name for p in found if p.name != "answer" and p.default is p.empty]


def fault(check: Any, turns: int) -> str:
    """What is wrong with a check as it is written in a probe of `turns` user turns; '' for a good one."""
    if not isinstance(check, dict) or not isinstance(check.get("type"), str):
        return "a check is an object with a 'type'"
    kind = check["type"]
    if kind not in CHECKS:
        return f"unknown check {kind!r}; there are: {', '.join(sorted(CHECKS))}"
    wanted = parameters(kind)
    given = {k: v for k, v in check.items() if k not in ("type", "turn")}
    if missing := sorted(set(required(kind)) - set(given)):
        return f"check {kind!r} lacks {', '.join(missing)}"
    if unknown := sorted(set(given) - set(wanted)):
        return f"check {kind!r} has no parameter {', '.join(unknown)}; it takes: {', '.join(wanted) or 'none'}"
    for name, value in given.items():
        if not _TYPES[wanted[name]](value):
            return f"check {kind!r}: {name}={value!r}, {wanted[name]} expected (not empty)"
    if "pattern" in given:
        try:
            re.compile(given["pattern"])
        except re.error as error:
            return f"check {kind!r}: pattern {given['pattern']!r} is no regular expression: {error}"
    for name in ("code", "user"):
        if name in given and not languages.known(given[name]):
            return (
                f"check {kind!r}: {name}={given[name]!r} is no language that can be told; one such as 'en' is expected"
            )
    turn = check.get("turn", 1)
    if not isinstance(turn, int) or isinstance(turn, bool) or not 1 <= turn <= turns:
        return f"check {kind!r}: turn={turn!r}, 1 to {turns} expected"
    return ""


def passes(check: Check, answer: str) -> bool:
    """Whether `answer` passes a check without fault."""
    params = {k: v for k, v in check.items() if k not in ("type", "turn")}
    return bool(answer.strip()) and CHECKS[check["type"]](answer.strip(), **params)


def judge(checks: list[Check], answers: list[str]) -> list[dict[str, Any]]:
    """Each check with the turn (from 1) and whether the answer passed; a check without `turn` is held against all."""
    return [
        {**check, "turn": number, "passed": passes(check, answer)}
        for check in checks
        for number, answer in enumerate(answers, 1)
        if check.get("turn", number) == number
    ]
