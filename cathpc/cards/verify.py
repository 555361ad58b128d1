"""Checks of a written card against its record, the cheap kind: no model, linear in the texts.

In: the filled form, the rendered card, the record. Out: for each check of `CHECKS`, in order, '' where it passes, else
what was seen. A card is verified when all pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from cathpc.cards import shapes
from cathpc.cards.card import Card, problems
from cathpc.cards.prompt import EXAMPLES, LABELS, family
from cathpc.record import Message

MIN_CHARS = 3
MAX_CHARS = 120
LEAK_WORDS = 5
"""A run of this many words of an answer that nobody has said before it is a leak."""

COPIED_FIELDS = 1
"""Lines of the prompt's examples that a card may not have word for word; the name never."""

INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instruction|prompt|rule|direction|above|previous|everything)s?\b"
    r"|\b(?:system prompt|developer mode|jailbreak|new instructions)\b"
    r"|\byou (?:must|will|should) now\b|\bfrom now on\b|\bdo anything now\b"
    r"|\b(?:reveal|print|repeat)\b.{0,20}\b(?:prompt|instructions|password|secret)\b"
    r"|<\|[^|\n]*\|>|\[/?INST\]|<</?SYS>>|```|https?://",
    re.IGNORECASE,
)
ASSISTANT = re.compile(r"\b(?:language model|as an ai|ai assistant|chatbot|openai|chatgpt)\b", re.IGNORECASE)
PLACEHOLDER = re.compile(
    r"^(?:n/?a|none|unknown|unspecified|tbd|varies|not (?:specified|given|stated|mentioned|applicable))\b.{0,20}$"
    r"|[\[<{](?:name|role|place|time|insert|your)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Written:
    """A card as it came from the writer, and the record that it is for."""

    fields: dict[str, str]
    card: Card
    text: str
    """The rendered system message."""
    messages: list[Message]
    component: str

    @property
    def answers(self) -> list[str]:
        """The assistant turns."""
        return [m["content"] for m in self.messages if m["role"] == "assistant"]

    @property
    def written(self) -> str:
        """All that the writer wrote, without the labels."""
        return "\n".join(self.fields.values())


def _ngrams(text: str, length: int) -> set[tuple[str, ...]]:
    tokens = shapes.words(shapes.folded(text))
    return {tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)}


def fields(w: Written) -> str:
    """Every line of the form is filled, with more than a placeholder."""
    for label in LABELS:
        value = w.fields.get(label.rstrip(":"), "")
        if not shapes.words(value) or PLACEHOLDER.search(value):
            return f"{label} {value!r}"
    return ""


def length(w: Written) -> str:
    """Lines are neither cut short nor rambling, and the card's form is valid."""
    for label, value in w.fields.items():
        if not MIN_CHARS <= len(value) <= MAX_CHARS:
            return f"{label} has {len(value)} characters, {MIN_CHARS} to {MAX_CHARS} are allowed"
        if re.search(r"\b(?:a|an|the|and|or|of|in|on|at|to|for|with|by|but|who|that|which|than|is|was)$", value):
            return f"{label} is cut short: {value[-40:]!r}"
    if len(shapes.words(w.card.people[0].name)) > 6:
        return f"a name of {len(shapes.words(w.card.people[0].name))} words"
    return "; ".join(problems(w.card))


def language(w: Written) -> str:
    """The card is in English or in the language of the answer."""
    seen = shapes.language(w.written.replace("\n", ". "))
    allowed = {"en", shapes.language(w.answers[-1])}
    return "" if seen in allowed else f"language {seen!r}, {sorted(allowed)} expected"


def sense(w: Written) -> str:
    """No line repeats another one, no word or pair of words is repeated in a row or three times in a line."""
    values = [shapes.folded(v) for v in w.fields.values()]
    if len(set(values)) < len(values):
        return "two lines are the same"
    for value in values:
        tokens = shapes.words(value)
        for at, word in enumerate(tokens[1:]):
            if word == tokens[at]:
                return f"{word!r} twice in a row"
        pairs = [p for p in pairwise(tokens) if max(map(len, p)) > 3]
        for pair in pairs:
            if pairs.count(pair) > 2 or (pairs.count(pair) > 1 and len(tokens) < 12):
                return f"{' '.join(pair)!r} again and again"
    return ""


def scene(w: Written) -> str:
    """The person is in the scene: nobody speaks to the user, no conversation goes on inside a line."""
    for label, value in w.fields.items():
        if re.search(r"\b(?:you|your|you're|I'm|I am|my)\b", value):
            return f"{label} speaks to somebody: {value[:60]!r}"
        if re.search(r"(?:^|\s)(?:>|User:|Answer:|Role:|Name:|Place:|Time:)", value):
            return f"{label} goes on with the form: {value[:60]!r}"
    return ""


def copied(w: Written) -> str:
    """The card is not that of an example in the prompt."""
    for _, _, filled in EXAMPLES[family(w.component)]:
        example = {label.rstrip(":"): shapes.folded(line) for label, line in zip(LABELS, filled, strict=True)}
        same = [k for k, v in w.fields.items() if shapes.folded(v).rstrip(".") == example[k]]
        if "Name" in same or len(same) > COPIED_FIELDS:
            return f"{', '.join(same)} as in an example"
    return ""


def leak(w: Written) -> str:
    """No run of words of an answer stands in the card, unless the user or the record's system prompt said it first."""
    said = "\n".join(m["content"] for m in w.messages if m["role"] != "assistant")
    answers = set().union(*(_ngrams(a, LEAK_WORDS) for a in w.answers))
    taken = set().union(*(_ngrams(v, LEAK_WORDS) for v in w.fields.values())) & (answers - _ngrams(said, LEAK_WORDS))
    return f"the answer's words {' '.join(min(taken))!r}" if taken else ""


def injection(w: Written) -> str:
    """No instruction to the model, control token, link or talk of language models came over from the record."""
    found = INJECTION.search(w.written) or ASSISTANT.search(w.written)
    return f"{found.group(0)!r}" if found else ""


def rules(w: Written) -> str:
    """There is a rule, every answer obeys every rule, and the card says them."""
    if not w.card.rules:
        return "no rule"
    for rule in w.card.rules:
        if not all(rule.holds(a) for a in w.answers):
            return f"{rule.name} does not hold"
        if rule.sentence not in w.text:
            return f"{rule.name} is not in the card"
    return ""


CHECKS: dict[str, Callable[[Written], str]] = {
    check.__name__: check for check in (fields, length, scene, sense, language, copied, leak, injection, rules)
}


def verify(written: Written) -> dict[str, str]:
    """The outcome of each check: '' for a pass, else what was seen; it ends with the first check that fails."""
    outcomes: dict[str, str] = {}
    for name, check in CHECKS.items():
        outcomes[name] = check(written)
        if outcomes[name]:
            break
    return outcomes


def passed(outcomes: dict[str, str]) -> bool:
    """Whether all checks passed."""
    return len(outcomes) == len(CHECKS) and not any(outcomes.values())
