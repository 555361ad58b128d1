"""Checks of a written card against its record, the cheap kind: no model, linear in the texts.

In: the card, its rendered text, the record. Out: for each check of `CHECKS`, in order, '' where it passes, else what
was seen. A card is verified when all pass. What no program sees is asked of models after them
(`cathpc.cards.opinion`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from cathpc.cards import facts, manner, shapes
from cathpc.cards.card import Card, problems, texts_of
from cathpc.cards.examples import EXAMPLES, family
from cathpc.record import Message

LEAK_WORDS = 5
"""A run of this many words of an answer that nobody has said before it is a leak."""

TELLING_WORDS = 4
"""Words that matter (the first six letters) which a line and an answer share and the user did not say."""

DIAGNOSIS = re.compile(
    r"\b(?:suffering from|(?:may|might|could) have|(?:likely|possible|seems like|think|believe)(?: that)? you have"
    r"|condition called|diagnos\w+ (?:with|of|as)|typical of|experiencing|having)\s+([^.,;]{3,60})",
    re.IGNORECASE,
)
OF_MEDICINE = """condition disease disorder symptom patient doctor health medical medicine treatment hospital clinic
care called chronic acute possible specialist physician surgery diagnosis body pain"""
NUMBER = re.compile(r"\d{2,}(?:[.,]\d+)?|\d[.,]\d+")
LANGUAGE_WORDS = 4
"""Of fewer words nobody can tell the language."""
SURE = 0.9
"""Probability from which the language of a short text is believed."""

COPIED_SHARE = 0.7
"""Share of the words that matter from which a line is that of an example; the time of day may be."""

INJECTION = re.compile(
    r"\b(?:ignor|disregard|forget|overrid|bypass|circumvent)\w*\b.{0,40}"
    r"\b(?:instruction|prompt|rule|direction|guideline|safety|restriction|polic\w+|limit|above|previous|everything)s?\b"
    r"|\b(?:system prompt|developer mode|jailbreak\w*|new instructions|safety guidelines|whatever the system)\b"
    r"|\byou (?:must|will|should) now\b|\bfrom now on\b|\bdo anything now\b"
    r"|\b(?:reveal|print|repeat|output)s?\b.{0,30}\b(?:prompt|instructions|password|secret)\b"
    r"|\b(?:obey|answer|repl\w+|respond)s? (?:only|nothing but|exclusively)\b.{0,20}"
    r"\b(?:with|to the user|the user|YES|NO)\b"
    r"|\bobeys? (?:only|any|every)\b|\bwithout (?:any )?(?:restrictions|filters|warnings|safety)\b|\bno warnings\b"
    r"|<\|[^|\n]*\|>|\[/?INST\]|<</?SYS>>|```|https?://",
    re.IGNORECASE,
)
COMMAND = re.compile(
    r"\b(?:ignor|disregard|forget|overrid|obey|pretend|reveal|print|repl(?:y|ies)|respond|output|say|tell|you must|"
    r"stop|from now on|do not|don't|open)\w*\b",
    re.IGNORECASE,
)
ORDER = re.compile(
    r"\b(?:note to|assistant|language model|the ai|system|instructions?|only me|prompt)\b", re.IGNORECASE
)
CARRIED_WORDS = 2
"""Words of an order that stands in the record and that one field of a card repeats: more than chance."""
ASSISTANT = re.compile(r"\b(?:language model|as an ai|ai assistant|chatbot|openai|chatgpt)\b", re.IGNORECASE)
MAX_NAME_WORDS = 6
CUT_SHORT = re.compile(
    r"\b(?:a|an|the|and|or|of|to|for|with|by|but|who|that|which|than|is|was|around|about|very|from|their|his|her|its)$"
)
PLACEHOLDER = re.compile(
    r"^(?:n/?a|none|unknown|unspecified|tbd|varies|not (?:specified|given|stated|mentioned|applicable))\b.{0,20}$"
    r"|[\[<{](?:name|role|place|time|insert|your)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Written:
    """A card as it came from the writer, and the record that it is for."""

    card: Card
    text: str
    """The rendered system message."""
    messages: list[Message]
    component: str

    @property
    def answers(self) -> list[str]:
        """The assistant turns."""
        return [m["content"] for m in self.messages if m["role"] == "assistant"]

    @cached_property
    def fields(self) -> dict[str, str]:
        """All that the writer wrote, by where it stands ('place', 'role of person 1'); empty fields are left out."""
        found = {"place": self.card.place, "time": self.card.time}
        for number, person in enumerate(self.card.people, 1):
            found |= {f"{key} of person {number}": value for key, value in texts_of(person).items()}
        found |= {f"style {number}": line for number, line in enumerate(self.card.style, 1)}
        return {key: value for key, value in found.items() if value}

    @property
    def written(self) -> str:
        """All that the writer wrote, a field a line."""
        return "\n".join(self.fields.values())


def _ngrams(text: str, length: int) -> set[tuple[str, ...]]:
    """Runs of `length` words, none across a comma or the end of a sentence."""
    found: set[tuple[str, ...]] = set()
    for clause in re.split(r"[,.;:!?()\n–—]", shapes.folded(text).replace("-", " ")):
        tokens = shapes.words(clause)
        found.update(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
    return found


def schema(w: Written) -> str:
    """The card's form is valid: people with names, bounded lines; no field is a placeholder or cut short."""
    if not w.card.people:
        return "nobody is in it"
    for where, value in w.fields.items():
        if not shapes.words(value) or PLACEHOLDER.search(value):
            return f"{where} is {value!r}"
        if CUT_SHORT.search(value):
            return f"{where} is cut short: {value[-40:]!r}"
    if len(shapes.words(w.card.people[0].name)) > MAX_NAME_WORDS:
        return f"a name of {len(shapes.words(w.card.people[0].name))} words"
    return "; ".join(problems(w.card))


def language(w: Written) -> str:
    """The card, and each larger part of it, is in the language of the record."""
    turns = [m["content"] for m in w.messages if m["role"] != "system"]
    allowed = {shapes.language(turns[0]), shapes.language(w.answers[-1])}
    card = w.card
    people = [". ".join(v for k, v in texts_of(p).items() if k != "name" and v) for p in card.people]
    for text in (w.written.replace("\n", ". "), *people, f"{card.place}. {card.time}", ". ".join(card.style)):
        seen, sure = shapes.likely_language(text)
        whole = text.count(". ") > len(w.fields) // 2 + 1
        if len(shapes.words(text)) >= LANGUAGE_WORDS and seen not in allowed and (whole or sure > SURE):
            return f"{text[:60]!r} is {seen!r}, {' or '.join(sorted(allowed))} expected"
    return ""


def sense(w: Written) -> str:
    """No line repeats another one, no word or pair of words is repeated in a row or three times in a line, and the time
    is one time."""
    if len(times := manner.times_of_day(w.card.time)) > 1:
        return f"the time is {', '.join(times)}"
    values = [shapes.folded(v) for v in w.fields.values()]
    if len(set(values)) < len(values):
        return "two lines are the same"
    for value in values:
        tokens = shapes.words(value)
        for at, word in enumerate(tokens[1:]):
            if word == tokens[at]:
                return f"{word!r} twice in a row"
        pairs = [p for p in pairwise(tokens) if max(map(len, p)) > 4]
        for pair in pairs:
            if pairs.count(pair) > 2 or (pairs.count(pair) > 1 and len(tokens) < 12):
                return f"{' '.join(pair)!r} again and again"
    return ""


def scene(w: Written) -> str:
    """The person is in the scene: nobody speaks to the user, no conversation goes on inside a field."""
    for where, value in w.fields.items():
        if re.search(r"\b(?:you|your|you're|I'm|I am|my)\b", value) and not where.startswith("relation"):
            return f"{where} speaks to somebody: {value[:60]!r}"
        if re.search(r"(?:^|\s)(?:>|User:|Answer:|Role:|Name:|Place:|Time:)", value):
            return f"{where} goes on with the form: {value[:60]!r}"
    return ""


def copied(w: Written) -> str:
    """The card is not that of an example in the prompt."""
    lines = {k: facts.content_words(v) for k, v in w.fields.items() if k != "time"}
    for _, _, filled in EXAMPLES[family(w.component)]:
        for where, line in lines.items():
            for example in map(facts.content_words, filled):
                if len(line & example) > COPIED_SHARE * len(line | example):
                    return f"{where} as in an example: {w.fields[where]!r}"
    return ""


def _diagnosis(answers: list[str], said: str) -> set[str]:
    """The words that matter of what the answers find the patient to have, and which the patient did not say."""
    found = " ".join(span for answer in answers for span in DIAGNOSIS.findall(answer))
    return facts.content_words(found) - facts.content_words(said) - facts.content_words(OF_MEDICINE)


def leak(w: Written) -> str:
    """No run of words, and no number, of an answer stands in the card, unless the user or the record's system prompt
    said it first; no line on how the person is has several words that matter from the answer alone."""
    said = "\n".join(m["content"] for m in w.messages if m["role"] != "assistant")
    answers = set().union(*(_ngrams(a, LEAK_WORDS) for a in w.answers))
    taken = set().union(*(_ngrams(v, LEAK_WORDS) for v in w.fields.values())) & (answers - _ngrams(said, LEAK_WORDS))
    if taken:
        return f"the answer's words {' '.join(min(taken))!r}"
    told = "\n".join(w.answers)
    if w.component == "health" and (found := _diagnosis(w.answers, said) & facts.content_words(w.written)):
        return f"{', '.join(sorted(found))} of the diagnosis"
    figures = set(NUMBER.findall(w.written)) & set(NUMBER.findall(told)) - set(NUMBER.findall(said))
    if figures:
        return f"the answer's {', '.join(sorted(figures))}"
    only = facts.content_words(told) - facts.content_words(said)
    for where, value in w.fields.items():
        if where.startswith(("personality", "relation", "style")):
            telling = facts.content_words(value) & only
            if len(telling) >= TELLING_WORDS:
                return f"{', '.join(sorted(telling))} of the answer in {where}"
    return ""


def injection(w: Written) -> str:
    """No instruction to the model, control token, link or talk of language models came over from the record."""
    found = INJECTION.search(w.written) or ASSISTANT.search(w.written)
    if found:
        return f"{found.group(0)!r}"
    said = "\n".join(m["content"] for m in w.messages if m["role"] != "assistant")
    for order in re.split(r"(?<=[.!?\]])\s+", said):
        if not (INJECTION.search(order) or (COMMAND.search(order) and ORDER.search(order))):
            continue
        orders = facts.content_words(order)
        first = w.card.people[0]
        for line in (first.personality, first.role, *w.card.style):
            if len(carried := facts.content_words(line) & orders) >= CARRIED_WORDS:
                return f"{', '.join(sorted(carried))} of an order in the record"
    return ""


def names(w: Written) -> str:
    """People and places that the card names are in the record, or marked as invented."""
    return facts.unknown(w.card, w.messages)


def identity(w: Written) -> str:
    """Where the user says who answers, the card is of that one."""
    return facts.other_person(w.card, w.messages, w.component)


def contradiction(w: Written) -> str:
    """What a program can hold against the record: ages, sexes, times of day, and how the answer is said."""
    return manner.against(w.card, w.messages)


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
    check.__name__: check
    for check in (schema, scene, sense, language, copied, leak, injection, names, identity, contradiction, rules)
}


def verify(written: Written) -> dict[str, str]:
    """The outcome of each check: '' for a pass, else what was seen; it ends with the first check that fails."""
    outcomes: dict[str, str] = {}
    for name, check in CHECKS.items():
        outcomes[name] = check(written)
        if outcomes[name]:
            break
    return outcomes


def clean(outcomes: dict[str, str]) -> bool:
    """Whether nothing was seen."""
    return not any(outcomes.values())


def passed(outcomes: dict[str, str]) -> bool:
    """Whether all checks passed."""
    return clean(outcomes) and outcomes.keys() >= CHECKS.keys()
