"""Who and what a card names, held against its record.

In: a card and the messages. Out: '' or what was seen. Names are found by their capitals, so that languages without
capitals pass; linear in the texts.
"""

from __future__ import annotations

import re

from cathpc.cards import prompt, shapes
from cathpc.cards.card import Card, Person, texts_of
from cathpc.record import Message

_TOKEN = re.compile(r"[^\W\d_][\w'’-]*\.?")
_CAPITALS = """
monday tuesday wednesday thursday friday saturday sunday january february march april may june july august september
october november december christmas easter eve ramadan diwali hanukkah halloween thanksgiving midsummer
dr mr mrs ms prof professor doctor nurse sir madam captain king queen saint st father mother uncle aunt old young
english german french spanish italian dutch polish portuguese russian turkish arabic hindi chinese japanese korean
greek roman latin european african asian american british scottish irish welsh indian mexican victorian medieval
renaissance bc ad am pm i ok tv usb pc ai dna er icu gp phd bsc msc md it
north south east west earth sun moon god the a an in at on of and
swiss austrian norwegian swedish danish finnish icelandic brazilian canadian australian persian egyptian celtic norse
catholic christian protestant jewish muslim buddhist hindu gothic baroque edwardian elizabethan georgian roman
new year day bank holiday boxing bronze stone iron ice age world war first second advent lent passover valentine
"""
_COMMON = frozenset(_CAPITALS.split())
"""Words that have capitals and name nobody and no place in particular."""
_OPENING = """
between near outside inside beside along across behind around toward towards past above below beyond over under every
one late early mid by for from with to about during after before since until former retired owner head chief
"""
_BEFORE = frozenset(_OPENING.split())
"""Words that begin a phrase with a capital and belong to no name."""
_DETERMINER = re.compile(
    r"^(?:the|an?|my|your|his|her|their|der|die|das|ein|eine|de[nmrs]|mein|meine|le|la|les|un|une|el|los|las|una|il|lo|i|gli|"
    r"het|een|o|os|as|um|uma)\s|^l['’]",
    re.IGNORECASE,
)
_ASKING = re.compile(
    r"\b(?:user|ask\w*|patient|writes?|question\w*|caller|frag\w*|benutzer\w*|demand\w*|utilisat\w*|pregunt\w*|usuari\w*|"
    r"chied\w*|utent\w*|vraa?g\w*|gebruiker)\b",
    re.IGNORECASE,
)
"""What is said of the one who asks."""


def names(text: str) -> list[str]:
    """The capitalised words of `text` that name somebody or something, without titles, days, months and peoples.

    The first word of a text or a sentence counts only where another name follows it and it is no preposition.
    """
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])(?<!Dr\. )(?<!Mr\. )(?<!Mrs\. )", text):
        tokens = _TOKEN.findall(sentence)
        capital = [t[:1].isupper() and shapes.folded(t).strip(".'").removesuffix("'s") not in _COMMON for t in tokens]
        for at, token in enumerate(tokens):
            first = at == 0 and (not any(capital[1:2]) or _bare(token) in _BEFORE)
            if capital[at] and not first:
                found.append(_bare(token))
    return found


def _bare(token: str) -> str:
    return shapes.folded(token).strip(".'").removesuffix("'s")


def _known(text: str) -> set[str]:
    return {_bare(w) for w in _TOKEN.findall(text)}


def _name_words(name: str) -> set[str]:
    """The words of a name that are capitalised, its first one too; none of 'the user', 'a passer-by'."""
    return {_bare(t) for t in _TOKEN.findall(name) if t[:1].isupper()} - _COMMON


def unknown(card: Card, messages: list[Message], *, small: bool = True) -> str:
    """What the card names that is neither in the record nor marked as invented.

    What is told of somebody who is marked is marked with them, unless a program marked them (`small`, see `mark`). A
    time cannot be marked: what it names is no fault but in such a card.
    """
    whole = "\n".join(m["content"] for m in messages)
    record = _known(whole)
    nouns = shapes.language(whole) == "de"  # every noun has a capital
    invented: set[str] = set()
    for number, person in enumerate(card.people):
        if person.invented:
            invented |= _name_words(person.name)
        elif (missing := _strange(person, record, nouns)) and (small or number or missing & _name_words(person.name)):
            return f"{' '.join(sorted(missing))}: {person.name!r} is neither in the record nor marked as invented"
    if not card.place_invented and (missing := _strange_place(card.place, record, invented)):
        return f"{' '.join(sorted(missing))}: {card.place!r} is neither in the record nor marked as invented"
    if nouns:
        return ""
    known = record | invented | _known(card.place)
    fields = [("time", card.time)] if small else []
    for number, person in enumerate(card.people, 1):
        if small or not person.invented:
            fields += [(f"{key} of person {number}", v) for key, v in texts_of(person).items() if key != "name"]
    for where, value in fields:
        if missing := {n for n in names(value) if n not in known}:
            return f"{' '.join(sorted(missing))} in {where}: neither in the record nor a person or place of the card"
    return ""


def _strange(person: Person, record: set[str], nouns: bool = False) -> set[str]:
    """The words of a person's name that the record does not have; one who is named by what they are may be the user, or
    somebody of whom the card says what the record does. `nouns`: the record's language writes nouns with capitals."""
    described = nouns and _DETERMINER.match(person.name)
    named = set() if described else _name_words(person.name)
    if named:
        return {n for n in named if not _alike(n, record)}
    what = content_words(person.name)
    told = content_words(f"{person.role} {person.relation} {person.personality}")
    in_record = [word for word in told if _alike(word, record)]
    if not what or _ASKING.search(f"{person.name} {person.relation}") or len(in_record) * 2 > len(told):
        return set()
    kin = [family for family in _KIN if what & family]
    if any(_alike(w, record) for w in what) or any(family & record for family in kin):
        return set()
    return what


_KIN = tuple(
    frozenset(family.split())
    for family in (
        "child kid boy girl son daughter toddler baby infant children kids teenager teen",
        "parent parents mother father mum mom dad mama papa",
        "partner husband wife spouse fiancé fiancée boyfriend girlfriend",
        "sibling siblings brother sister twin",
        "grandparent grandmother grandfather grandma grandpa granny gran",
        "teacher pupil pupils student students school class teach",
        "boss manager employer work office colleague",
    )
)
"""Words for the same people."""


def _strange_place(place: str, record: set[str], invented: set[str]) -> set[str]:
    """The names of a place that the record does not have; all that the place is where the record has none of it."""
    missing = {n for n in map(_bare, names(place)) if len(n) > 2 and n not in invented and not _alike(n, record)}
    what = {w for w in map(_bare, _TOKEN.findall(place)) if len(w) > 3 and w not in _SMALL}
    return missing or (set() if not what or any(_alike(w, record) for w in what) else what)


def _alike(word: str, record: set[str]) -> bool:
    """Whether the record has the word, or another form of it."""
    stem = word[: max(3, len(word) - 2)]
    return word in record or any(w.startswith(stem) for w in record)


def mark(card: Card, messages: list[Message]) -> None:
    """Mark as invented whom and what the record does not know: for forms in which the writer cannot say it."""
    record = _known("\n".join(m["content"] for m in messages))
    for person in card.people:
        person.invented = bool(_strange(person, record))
    card.place_invented = bool(_strange_place(card.place, record, set()))


def other_person(card: Card, messages: list[Message], component: str) -> str:
    """That the card is of another one than whom the user addresses."""
    given = prompt.given(messages, component)
    first = card.people[0]
    called = _known(" ".join(texts_of(first).values()))
    if given.name and not any(_alike(word, called) for word in _known(given.name) - _COMMON or _known(given.name)):
        return f"the user talks to {given.name!r}, the card is of {first.name!r}"
    wanted = content_words(given.role)
    if wanted and not wanted & content_words(" ".join(texts_of(first).values())):
        return f"the user talks to {given.role!r}, the card is of {first.role!r}"
    return ""


_FUNCTION = """
about after again against also because been before being between both could does doing down during each from further
have having here himself herself into itself just more most once only over other same should some such than that their
theirs them then there these they this those through under until very were what when where which while will with would
your yours and the for are was who how not but you she him her his its our out has had can user patient person somebody
someone asks wants
"""
_SMALL = frozenset(_FUNCTION.split())


def content_words(text: str) -> set[str]:
    """The words of `text` that carry its meaning, without their endings (the first six letters)."""
    return {w[:6] for w in shapes.words(shapes.folded(text)) if len(w) > 2 and w not in _SMALL}


_COMPLAINT = re.compile(
    r"\b(?:I(?:'ve|'m| have| am| had| feel| get| can't| cannot| suffer| noticed| think)\b[^.!?]{8,}|my \w+[^.!?]{8,})"
)
_THEIRS = (
    (r"\bI've\b|\bI have\b", "has"),
    (r"\bI'm\b|\bI am\b", "is"),
    (r"\bI was\b", "they were"),
    (r"\bI (feel|get|think|suffer)\b", r"\1s"),
    (r"\bI\b", "they"),
    (r"\b[Mm]y\b", "their"),
    (r"\bme\b", "them"),
    (r"\bmyself\b", "themselves"),
    (r"\b(has|is) (.*?)\bI(?:'ve| have)\b", r"\1 \2they have"),
)
MAX_SITUATION_CHARS = 140


def situation(messages: list[Message]) -> str:
    """A patient's situation in the third person, as their first turn tells it; '' where it does not."""
    first = next((m["content"] for m in messages if m["role"] == "user"), "")
    found = _COMPLAINT.search(" ".join(first.split()))
    if not found:
        return ""
    said = found[0]
    said = re.split(r",? (?:what|could|can|should|is it|why)\b", said)[0]
    starts = said.startswith("I")
    for pattern, theirs in _THEIRS:
        said = re.sub(pattern, theirs, said)
    if len(said) > MAX_SITUATION_CHARS:
        said = said[:MAX_SITUATION_CHARS].rsplit(",", 1)[0].rsplit(" ", 1)[0]
    said = said.rstrip(" ,;:-")
    return f"a patient who {said.removeprefix('they ')}" if starts else f"a patient: {said}"


def grounded(text: str, messages: list[Message]) -> bool:
    """Whether most of what `text` says is in the user's words."""
    said = content_words(" ".join(m["content"] for m in messages if m["role"] == "user"))
    words = content_words(text)
    return bool(words) and len(words & said) * 2 >= len(words)
