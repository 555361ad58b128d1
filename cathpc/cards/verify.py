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

from cathpc.cards import facts, manner, orders, setting, shapes
from cathpc.cards.card import Card, problems, texts_of
from cathpc.cards.config import CardForm
from cathpc.cards.examples import EXAMPLES, family
from cathpc.record import Message

LEAK_WORDS = 5
"""A run of this many words of an answer that nobody has said before it is a leak."""

TELLING_WORDS = 4
"""Words that matter (the first six letters) which a line and an answer share and the user did not say."""

TELLING_SCENE = 6
"""The same for a role, a place or a time, which an answer may well name too; an answer may say how people look."""
FOREIGN_LETTERS = 5
MANNER_WORDS = facts.content_words(
    """first then last begin start end close finish say says tell name give one two three four five short long answer
    question step list point line sentence word words reason example warning explain always never every each good help
    make take see look know use way ask right wrong yes day time like doctor friend what who calm kind"""
)
"""Words of how an answer is said, which tell nothing of what it says."""
RESULT = re.compile(
    r"\b(?:answer|result|solution|total|outcome|culprit|murderer|killer|thief|traitor|secret|twist|diagnosis|verdict)\b"
    r"(?: here)? (?:is|are|was|will be|comes to)(?: that)?(?: the| an?)? (\S+)",
    re.IGNORECASE,
)
COUNTED = re.compile(r"\b\d+(?:[ -](?:words?|sentences?|lines?|steps?|points?|paragraphs?|letters?|syllables?)\b)")
DIAGNOSIS = re.compile(
    r"\b(?:suffering from|(?:may|might|could) have|(?:likely|possible|seems like|think|believe)(?: that)? you have"
    r"|condition called|diagnos\w+ (?:with|of|as)|typical of|experiencing|having)\s+([^.,;]{3,60})",
    re.IGNORECASE,
)
OF_MEDICINE = """condition disease disorder symptom patient doctor health medical medicine treatment hospital clinic
care called chronic acute possible specialist physician surgery diagnosis body pain week day days month year time
trouble problem difficulty severe mild common usual normal early late side effects risk cause work sleep family child
woman man person kind some"""
NUMBER = re.compile(r"\d{2,}(?:[.,]\d+)?|\d[.,]\d+")
LANGUAGE_WORDS = 4
"""Of fewer words nobody can tell the language."""
SURE = 0.9
"""Probability from which the language of a short text is believed."""

LOOP = 3
"""A pair of words that stands oftener in one field is a loop."""
COPIED_WORDS = 3
"""Fewer words that matter may be those of an example by chance, unless the line is a small model's."""
COPIED_SHARE = 0.7
"""Share of the words that matter from which a line is that of an example; the time of day may be."""

MAX_NAME_WORDS = 6
VAGUE = re.compile(
    r"^(?:n/?a|none|unknown|unspecified|tbd|varies|not (?:specified|given|stated))\b.{0,20}$", re.IGNORECASE
)
"""What a small model writes where it knows nothing."""
CUT_SHORT = re.compile(
    r"\b(?:a|an|the|and|or|of|to|for|with|by|but|who|that|which|than|is|was|around|about|very|from|their|his|her|its)$"
)
BROKEN_OFF = re.compile(r"\b(?:the|and|their|because|than)$")
"""No phrase ends so, in any language."""
PLACEHOLDER = re.compile(
    r"^(?:n/?a|none|unknown|unspecified|tbd|varies|string|not (?:specified|given|stated|mentioned|applicable))"
    r"(?: (?:in|by|from) the (?:record|text|conversation|user))?\W*$"
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
    form: CardForm = CardForm.json
    """Lines of labels come from small models: what a model that writes JSON never does is looked for in them alone."""

    @property
    def lines(self) -> bool:
        """Whether it came as lines of labels."""
        return self.form is CardForm.labels

    @property
    def said(self) -> str:
        """What all but the assistant say."""
        return "\n".join(m["content"] for m in self.messages if m["role"] != "assistant")

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
    """The card's form is valid: people with names, bounded lines; no field is a placeholder or cut short, and something
    is said of the one who answers."""
    if not w.card.people:
        return "nobody is in it"
    first = w.card.people[0]
    if not w.card.style and not any(value for key, value in texts_of(first).items() if key != "name"):
        return f"nothing is said of {first.name!r}"
    for where, value in w.fields.items():
        if not shapes.words(value) or PLACEHOLDER.search(value) or (w.lines and VAGUE.search(value)):
            return f"{where} is {value!r}"
        if (CUT_SHORT if w.lines else BROKEN_OFF).search(value):
            return f"{where} is cut short: {value[-40:]!r}"
    if w.lines and len(shapes.words(first.name)) > MAX_NAME_WORDS:
        return f"a name of {len(shapes.words(first.name))} words"
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
    """No words go round in a loop. In lines no line repeats another one, no word or pair of words is repeated in a row
    or three times in a line, and the time is one time."""
    values = [shapes.folded(v) for v in w.fields.values()]
    for value in values:
        pairs = list(pairwise(shapes.words(value)))
        for pair in pairs:
            if max(map(len, pair)) > 4 and pairs.count(pair) > LOOP:
                return f"{' '.join(pair)!r} again and again"
    return _small_loops(w, values) if w.lines else ""


def _small_loops(w: Written, values: list[str]) -> str:
    if len(times := setting.times_of_day(w.card.time)) > 1:
        return f"the time is {', '.join(times)}"
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
    """The person is in the scene: no conversation goes on inside a field, and in lines nobody speaks to the user."""
    for where, value in w.fields.items():
        if re.search(r"\b(?:you|your|you're|I'm|I am|my)\b", value) and w.lines and not where.startswith("relation"):
            return f"{where} speaks to somebody: {value[:60]!r}"
        turns = re.search(r"(?:^|\s)(?:>|User:|Answer:|Role:|Name:|Place:|Time:)", value)
        if turns and (w.lines or not where.startswith("style")):
            return f"{where} goes on with the form: {value[:60]!r}"
    return ""


def copied(w: Written) -> str:
    """The card is not that of an example in the prompt."""
    lines = {k: facts.content_words(v) for k, v in w.fields.items() if k != "time"}
    for _, _, filled in EXAMPLES[family(w.component)]:
        for where, line in lines.items():
            for example in map(facts.content_words, filled):
                if len(line) < COPIED_WORDS and not w.lines:
                    continue
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
    said = w.said
    answers = set().union(*(_ngrams(a, LEAK_WORDS) for a in w.answers))
    taken = set().union(*(_ngrams(v, LEAK_WORDS) for v in w.fields.values())) & (answers - _ngrams(said, LEAK_WORDS))
    if taken:
        return f"the answer's words {' '.join(min(taken))!r}"
    told = "\n".join(w.answers)
    if w.component == "health" and (found := _diagnosis(w.answers, said) & facts.content_words(w.written)):
        return f"{', '.join(sorted(found))} of the diagnosis"
    if (result := RESULT.search(w.written)) and _bare(result[1]) in _all(told) - _all(said):
        return f"the result: {result[0]!r}"
    figures = set(NUMBER.findall(COUNTED.sub(" ", w.written))) & set(NUMBER.findall(told)) - set(NUMBER.findall(said))
    if figures:
        return f"the answer's {', '.join(sorted(figures))}"
    short = 1 if shapes.language(told) == "en" else FOREIGN_LETTERS  # shorter words of other languages join the rest
    only = {x for x in facts.content_words(told) - facts.content_words(said) - MANNER_WORDS if len(x) >= short}
    for where, value in w.fields.items():
        least = TELLING_WORDS if where.startswith(("personality", "relation", "style")) else TELLING_SCENE
        telling = facts.content_words(value) & only
        if len(telling) >= least and not where.startswith("appearance"):
            return f"{', '.join(sorted(telling))} of the answer in {where}"
    return ""


def _all(text: str) -> set[str]:
    return {_bare(word) for word in text.split()}


def _bare(word: str) -> str:
    return shapes.folded(word).strip(".,;:!?'\"()")


def injection(w: Written) -> str:
    """No instruction to the model, control token, link or talk of language models came over from the record."""
    if found := orders.given(w.written) or orders.talk_of_models(w.written, w.said):
        return repr(found)
    if found := orders.carried(w.card, w.said):
        return f"{found} of an order in the record"
    return ""


def names(w: Written) -> str:
    """People and places that the card names are in the record, or marked as invented."""
    return facts.unknown(w.card, w.messages, small=w.lines)


def identity(w: Written) -> str:
    """Where the user says who answers, the card is of that one."""
    return facts.other_person(w.card, w.messages, w.component)


def contradiction(w: Written) -> str:
    """What a program can hold against the record: ages, sexes, times, climates, and how the answer is said."""
    of_record = w.card, w.messages, w.component
    return setting.against(*of_record) or manner.against(*of_record)


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
