"""Measures of reasoning in a text: correlatives, thought steps, detail of a diagnosis, language.

In: plain text of an answer and a `Lexicon` (YAML, `cathpc/assets/lexicon.yaml` by default). Out: counts, a share
and an ISO 639-1 code. Matching is by whole words within one sentence ('so' is not in 'also', nor 'if' in 'wife'),
outside fenced code. Time grows with the length of the text, memory with nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cathpc.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# fmt: off
LANGUAGES = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "lt", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sv", "ta", "th", "tr", "uk", "vi", "zh",
)
# fmt: on
"""Languages that `language` tells apart; rarer ones only draw short texts away from the right answer."""
UNDETERMINED = "und"

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?:;…。！？])[\"'”’)\]*]*\s+|\n+")
_NOT_PROSE = re.compile(r"https?://\S+|www\.\S+|\S+@\S+\.\S+|`[^`\n]*`|<[^>\n]{1,80}>|[\d_*#|~=+\\/\[\](){}<>\"-]+")
_MIN_LETTERS = 80
_MAX_CHARS = 2000

ENOUGH = {"steps": 4, "causal": 3, "differential": 2, "tests": 2, "treatment": 2, "words": 150}
"""What a detailed diagnosis has of each; more of it counts no further."""


@dataclass(frozen=True)
class Lexicon:
    """The compiled markers of a lexicon file."""

    words: re.Pattern[str]
    pairs: tuple[re.Pattern[str], ...]
    openers: re.Pattern[str]
    lines: re.Pattern[str]
    diagnosis: dict[str, re.Pattern[str]]
    """'causal': the correlatives of that group, of all groups where there is none; and the markers of `_DIAGNOSIS`."""


@dataclass(frozen=True)
class Reasoning:
    """What was counted in a text."""

    correlatives: int
    steps: int
    diagnosis: float
    """How much the text looks like a detailed diagnosis, 0..1."""


def load_lexicon(path: str = "") -> Lexicon:
    """The lexicon in the YAML file `path`, '' for the one that ships with cathpc.

    A file without the section `diagnosis` takes that one's. Raises UserError naming the file, the key and the entry
    that is wrong.
    """
    where = path or "cathpc/assets/lexicon.yaml"
    shipped = (files("cathpc") / "assets" / "lexicon.yaml").read_text("utf-8")
    try:
        text = Path(path).read_text("utf-8") if path else shipped
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"score.lexicon: cannot read {where}: {error}. Give a UTF-8 YAML file or leave it empty."
        ) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"score.lexicon: {where} is not valid YAML: {error}") from error
    if isinstance(data, dict) and "diagnosis" not in data:
        data["diagnosis"] = yaml.safe_load(shipped)["diagnosis"]
    correlatives, steps, diagnosis = (_section(data, key, keys, where) for key, keys in _KEYS.items())
    groups = dict(_groups(correlatives["words"], "correlatives.words", where))
    words = [word for entries in groups.values() for word in entries]
    marked = {key: _strings(diagnosis[key], f"diagnosis.{key}", where) for key in _DIAGNOSIS}
    pairs = [
        _pair(entry, f"correlatives.pairs.{group}", where)
        for group, entries in _groups(correlatives["pairs"], "correlatives.pairs", where)
        for entry in entries
    ]
    openers = _strings(steps["openers"], "steps.openers", where)
    lines = _strings(steps["lines"], "steps.lines", where)
    for line in lines:
        try:
            re.compile(line)
        except re.error as error:
            raise UserError(f"{where}: steps.lines: '{line}' is not a regular expression: {error}") from error
    return Lexicon(
        words=re.compile(_alternatives(words), re.IGNORECASE),
        pairs=tuple(pairs),
        openers=re.compile(rf"[\W_]*{_alternatives(openers)}", re.IGNORECASE),
        lines=re.compile(r"\s*(?:" + "|".join(f"(?:{line})" for line in lines) + ")", re.IGNORECASE),
        diagnosis={
            key: re.compile(_alternatives(markers), re.IGNORECASE)
            for key, markers in {"causal": groups.get("causal", words), **marked}.items()
        },
    )


def sentences(text: str) -> list[str]:
    """The sentences and lines of `text` in order, fenced code left out."""
    return [part for part in _SENTENCE.split(_FENCE.sub("\n", text)) if part.strip()]


def measure(text: str, lexicon: Lexicon) -> Reasoning:
    """What `text` holds; a sentence or line is one step at most, however many markers it has.

    `diagnosis` is the mean of six shares: of thought steps, of causal correlatives, of different words that weigh one
    cause against another, that name a test and that name a treatment, and of words at all, each of what `ENOUGH` says
    and at most 1. It measures the form alone: that an answer goes from findings by way of causes and tests to what is
    to be done, not whether it is right.
    """
    correlatives = steps = 0
    for sentence in sentences(text):
        rest = sentence
        for pair in lexicon.pairs:  # the words of a pair do not count again by themselves
            found = pair.search(rest)
            while found:
                correlatives += 1
                for group in (2, 1):
                    start, end = found.span(group)
                    rest = rest[:start] + " " * (end - start) + rest[end:]
                found = pair.search(rest)
        correlatives += sum(1 for _ in lexicon.words.finditer(rest))
    for line in _FENCE.sub("\n", text).splitlines():
        if lexicon.lines.match(line):
            steps += 1
        else:
            steps += sum(1 for sentence in sentences(line) if lexicon.openers.match(sentence))
    prose = _FENCE.sub(" ", text)
    seen = {key: pattern.findall(prose) for key, pattern in lexicon.diagnosis.items()}
    counts = {key: len({" ".join(marker.casefold().split()) for marker in seen[key]}) for key in _DIAGNOSIS}
    counts |= {"steps": steps, "causal": len(seen["causal"]), "words": len(prose.split())}
    shares = [min(counts[key] / enough, 1.0) for key, enough in ENOUGH.items()]
    return Reasoning(correlatives, steps, sum(shares) / len(shares))


def language(text: str, context: str = "") -> str:
    """ISO 639-1 code of `text`, one of `LANGUAGES`, 'und' where it holds next to no letters.

    `context` (the prompt) is read along where the text alone is too short to tell ('Yes.'). Code, addresses, digits and
    markup are left out first. The method is Lui and Baldwin's langid.py (2012) as maintained in py3langid.
    """
    prose = _prose(text)
    if sum(map(str.isalpha, prose)) < _MIN_LETTERS:
        prose = f"{prose} {_prose(context)}"
    if sum(map(str.isalpha, prose)) < 3:
        return UNDETERMINED
    return str(_identifier().classify(prose)[0])


def _prose(text: str) -> str:
    return _NOT_PROSE.sub(" ", _FENCE.sub(" ", text[: 2 * _MAX_CHARS]))[:_MAX_CHARS]


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)  # one of our own: the module's is shared state
    identifier.set_languages(LANGUAGES)
    return identifier


_DIAGNOSIS = ("differential", "tests", "treatment")
_KEYS = {"correlatives": ("words", "pairs"), "steps": ("openers", "lines"), "diagnosis": _DIAGNOSIS}


def _section(data: Any, key: str, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != set(_KEYS):
        seen = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{where}: expected exactly the keys {sorted(_KEYS)} at the top, found {seen}.")
    section = data[key]
    if not isinstance(section, dict) or set(section) != set(keys):
        seen = sorted(map(str, section)) if isinstance(section, dict) else type(section).__name__
        raise UserError(f"{where}: '{key}' must have exactly the keys {list(keys)}, found {seen}.")
    return section


def _groups(value: Any, key: str, where: str) -> list[tuple[str, list[str]]]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: '{key}' must map group names to lists of markers, found {value!r}.")
    return [(str(group), _strings(entries, f"{key}.{group}", where)) for group, entries in value.items()]


def _strings(value: Any, key: str, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: '{key}' must be a list of strings that is not empty, found {value!r}.")
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(
                f"{where}: '{key}' holds {entry!r}, not a text; put it in quotes (YAML reads on, yes and no as truth)."
            )
    return [entry.strip() for entry in value]


def _pair(entry: str, key: str, where: str) -> re.Pattern[str]:
    parts = [part.strip() for part in entry.split("...")]
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{where}: '{key}' holds {entry!r}; a pair is written 'either ... or'.")
    return re.compile(rf"({_alternatives(parts[:1])}).*?({_alternatives(parts[1:])})", re.IGNORECASE | re.DOTALL)


def _alternatives(markers: list[str]) -> str:
    """A pattern of any of `markers` as whole words, the longest first; 'so-called' and 'if's' are other words."""
    ordered = sorted(set(markers), key=lambda m: (-len(m), m))
    inner = "|".join(r"\s+".join(re.escape(word) for word in marker.split()) for marker in ordered)
    return rf"(?<!\w)(?<!\w['’-])(?:{inner})(?!['’-]?\w)"
