"""Which answers may be said again in the voice of their card, and what must be the same in what is said.

In: a record; an answer and what is said in its place. Out: whether it must stay word for word; the outcome of each
check, '' or what was seen. Words of numbers and of medicine are English ones, from `assets/exact.yaml`; what they do
not know in another language is left to the similarity by an encoder. Linear in the texts.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cathpc.cards import facts, orders, shapes
from cathpc.cards.rules import Rule

LENGTHS = 0.5, 2.0
"""Length of what is said in the place of an answer, of its own."""
_EXACT = re.compile(r"\d|`|\$|[=<>{}]")


@cache
def _words(name: str) -> re.Pattern[str]:
    """Matches the words of a list in exact.yaml, and their plurals; group 1 is the word."""
    lists = yaml.safe_load((Path(__file__).parents[1] / "assets" / "exact.yaml").read_text("utf-8"))
    return re.compile(rf"\b({'|'.join(map(re.escape, lists[name]))})(?:e?s)?\b", re.IGNORECASE)


def numbers(text: str) -> list[str]:
    """The numbers of `text` in order, in digits or in words, each as it is written."""
    found = [(m.start(), m[0]) for m in re.finditer(r"\d+", text)]
    found += [(m.start(), m[1].lower()) for m in _words("numbers").finditer(text)]
    return [number for _, number in sorted(found)]


def fixed(row: dict[str, Any]) -> bool:
    """Whether the answer must stay word for word: it is on health, or somebody speaks of medicine; it has code or
    digits; or there is more than one."""
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    talk = [m["content"] for m in row["messages"] if m["role"] != "system"]
    medical = row["component"] == "health" or any(_words("medicine").search(text) for text in talk)
    return medical or len(answers) != 1 or any(_EXACT.search(a) for a in answers)


def checks(old: str, new: str, rules: list[Rule]) -> dict[str, str]:
    """Checks of what is said in an answer's place: its length, language, names, numbers and injections, and the rules
    of the card."""
    low, high = LENGTHS
    ratio = len(shapes.words(new)) / max(1, len(shapes.words(old)))
    added = set(facts.names(new)) - {w.lower() for w in shapes.words(old)}
    lost = set(facts.names(old)) - {w.lower() for w in shapes.words(new)}
    before, after = numbers(old), numbers(new)
    injected = orders.given(new) or orders.talk_of_models(new, "")
    broken = next((r.name for r in rules if not r.holds(new)), "")
    return {
        "length": "" if low <= ratio <= high else f"{ratio:.1f} times as long",
        "language": "" if shapes.language(new) == shapes.language(old) else shapes.language(new),
        "names": " ".join(sorted(lost | added)),
        "numbers": "" if before == after else f"{' '.join(after) or 'none'} for {' '.join(before) or 'none'}",
        "injection": repr(injected) if injected else "",
        "rules": f"{broken} does not hold" if broken else "",
        "same": "it is the same" if shapes.folded(new) == shapes.folded(old) else "",
    }
