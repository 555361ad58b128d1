"""The visible shape of a text: words, sentences, paragraphs, lists, code, calculations, language.

In: one text. Out: counts and pieces. Style rules (`cathpc.cards.rules`) and the checks of the probes
(`cathpc.evaluate.checkers`) measure with the same functions, so that a card asks for what an evaluation would count.
All take time linear in the text.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)*_\]]*\s+(?=[\"'“‘(*_\[]*[^\s\w]?[A-Z0-9“\"'(])")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|e\.g|i\.e|No)\.$")
_NUMBERED = re.compile(r"^\s*(?:[*_#]+\s*)?(?:[Ss]tep\s+)?(\d{1,3})\s*(?:[.):](?!\d)|[*_]+[.):])", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-*•‣–+]\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s*#{1,6}\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
_CALCULATION = re.compile(r"\d[\d.,]*\s*%?\)?\s*[-+*/×÷x^−]\s*\(?[$€£]?\d[^=\n]{0,60}=\s*[-−]?[$€£]?\s?\d")
_PLAIN = str.maketrans("’‘“”\u00a0", "''\"\" ")
_CLOSING = " \t\n\"'”’)*_]"
_TRAILING = _CLOSING + ".!?…,;:~"


def words(text: str) -> list[str]:
    """The words of `text`, as written."""
    return _WORD.findall(text)


def folded(text: str) -> str:
    """`text` for comparison: case-folded, typographic quotes made plain, white space collapsed."""
    plain = text.translate(_PLAIN)
    return " ".join(plain.casefold().split())


def sentences(text: str) -> list[str]:
    """The sentences of running text; list markers and line ends end a sentence too."""
    pieces: list[str] = []
    for line in text.splitlines():
        cut = False
        for piece in _SENTENCE_END.split(line):
            if cut:
                pieces[-1] += " " + piece.strip()
            elif piece.strip():
                pieces.append(piece.strip())
            cut = _ABBREVIATION.search(piece) is not None
    return pieces


def paragraphs(text: str) -> list[str]:
    """The blocks of `text` between blank lines."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def numbered(text: str) -> int:
    """The number of lines that are numbered 1, 2, 3 ... in order; 0 where the numbers are out of order."""
    found = [int(n) for n in _NUMBERED.findall(text)]
    return len(found) if found == list(range(1, len(found) + 1)) else 0


def bullets(text: str) -> int:
    """The number of lines that begin with a bullet."""
    return len(_BULLET.findall(text))


def headings(text: str) -> int:
    """The number of Markdown headings."""
    return len(_HEADING.findall(text))


def bold(text: str) -> int:
    """The number of terms in Markdown bold."""
    return len(_BOLD.findall(text))


def code_blocks(text: str) -> int:
    """The number of fenced blocks."""
    return len(_FENCE.findall(text))


def calculations(text: str) -> int:
    """The number of worked calculations such as '3 x 4 = 12'."""
    return len(_CALCULATION.findall(text))


def json_value(text: str) -> Any:
    """The object or list that the whole of `text` is in JSON (one code fence around it is allowed), else None."""
    bare = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        value = json.loads(bare)
    except ValueError:
        return None
    return value if isinstance(value, (dict, list)) else None


def ends_with(text: str, phrase: str) -> bool:
    """Whether the last words of `text` are `phrase`; case, closing quotes and closing punctuation do not count."""
    tail = folded(phrase).rstrip(_TRAILING)
    body = folded(text).rstrip(_TRAILING)
    before = body[: -len(tail)] if tail else ""
    return bool(tail) and body.endswith(tail) and not (before[-1:].isalnum() and tail[0].isalnum())


def begins_with(text: str, phrase: str) -> bool:
    """Whether the first words of `text` are `phrase`; case, opening quotes and the phrase's end mark do not count."""
    head = folded(phrase).rstrip(_TRAILING)
    body = folded(text).lstrip("\"'(*_[ ")
    after = body[len(head) :]
    return bool(head) and body.startswith(head) and not (after[:1].isalnum() and head[-1].isalnum())


def contains(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, whatever the case."""
    needle = re.escape(folded(phrase))
    left = r"(?<!\w)" if re.match(r"\w", folded(phrase)) else ""
    right = r"(?!\w)" if re.search(r"\w$", folded(phrase)) else ""
    return bool(needle) and re.search(left + needle + right, folded(text)) is not None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language(text: str) -> str:
    """ISO 639-1 code of the language that `text` is most likely written in; '' where there are no words."""
    return likely_language(text)[0]


def likely_language(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the language that `text` is most likely in, with its probability; ('', 0) for no words."""
    if not words(text):
        return "", 0.0
    code, probability = _identifier().classify(text)
    return str(code), float(probability)
