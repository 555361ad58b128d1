"""Who, when and where a card says that people are, against what its record says.

In: a card, the messages and the component. Out: '' or what was seen, by one small function for each kind of
contradiction. Each says nothing where it is not sure; words are English ones. Linear in the texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cathpc.cards import shapes
from cathpc.cards.card import Card, Person, texts_of
from cathpc.record import Message

_I = re.IGNORECASE
_HOURS = {
    "morning": re.compile(r"\b(?:morning|dawn|sunrise|breakfast|forenoon)\b", _I),
    "afternoon": re.compile(r"\b(?:afternoon|noon|midday|lunch(?:time)?)\b", _I),
    "evening": re.compile(r"\b(?:evening|dusk|sunset|dinner|supper)\b", _I),
    "night": re.compile(r"\b(?:night|midnight)\b", _I),
}
_ROUND = list(_HOURS)
_DAY = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b")
_GREETING = re.compile(
    r"(?<!\ba )\b(?:good|lovely|fine|beautiful) (morning|afternoon|evening)\b(?! (?:will|if|or))", _I
)
_NOW = re.compile(
    r"\b(?:it is|it's|it was|now that it is)(?: now| already| almost| nearly| just| late| early| the| high| a)* "
    r"(morning|dawn|sunrise|noon|midday|afternoon|evening|dusk|sunset|night|midnight|\d{1,2}(?:[:.]\d\d)? ?[ap]\.?m)\b",
    _I,
)
_SCENE = re.compile(
    r"\b(?:at|towards|before|past) (?:high |the stroke of )?(dawn|noon|midday|dusk|sunset|midnight)\b", _I
)
_SEASONS = {name: re.compile(rf"\b(?:{name})\b", _I) for name in ("spring", "summer", "autumn|fall", "winter")}
_YEAR_ROUND = "January February March April May June July August September October November December"
_MONTHS = _YEAR_ROUND.split()
_YEAR = re.compile(r"\b(1[0-9]{3}|2[0-9]{3})\b")
_MALE = "man|men|boy|male|son|brother|uncle|grandfather|nephew|gentleman|king"
_FEMALE = "woman|women|girl|female|daughter|sister|aunt|grandmother|niece|lady|queen"
_PARENTS = (r"father|dad|husband|widower|he|his|him|himself", r"mother|mum|mom|wife|widow|she|her|hers|herself")
_TOLD = (re.compile(rf"\b(?:{_MALE})\b", _I), re.compile(rf"\b(?:{_FEMALE}|pregnan\w+)\b", _I))
_SAID = (
    re.compile(rf"\b(?:{_MALE}|{_PARENTS[0]}|prostate|gentlemen)\b", _I),
    re.compile(rf"\b(?:{_FEMALE}|{_PARENTS[1]}|pregnan\w+|midwife)\b", _I),
)
_SPEECH = re.compile(r"[\"“«].{1,1000}?[\"”»]|(?<!\w)['‘](?=\S).{1,1000}?[.,!?…–-]['’](?!\w)", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?!\d*s\b)")
_SPELT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
UNITS, _TENS = _SPELT.split()[:20], _SPELT.split()[20:]
"""English numbers from zero to nineteen."""
_OLD = r"old|elderly|aged|ancient|greying|veteran"
_YOUNG = r"young|youthful|teenage|adolescent"
_ANYBODY = r"(?:man|men|woman|women|boy|girl|lady|friend|people|person|one|and|enough)\b"
"""Words for more than one of a scene."""
_AGE = re.compile(
    r"\b(\d{1,3})[ -]years?[ -]old|\b(?:I am|I'm|she is|he is|is|of|aged?|turns) (\d{1,3})\b(?!\s*(?:%|[.,:]\d|"
    r"(?:month|week|day|hour|minute|degree|km|kg|cm|mg|euro|dollar|time|percent)))",
    _I,
)
_ELDER = re.compile(
    r"\b(?:elderly|old (?:man|woman|lady|gentleman)|pensioner|geriatric|octogenarian|in (?:his|her) (?:70|80|90)s)\b",
    _I,
)
_CHILD = re.compile(r"\b(?:toddler|infant|baby|newborn|schoolboy|schoolgirl|little (?:boy|girl)|child of)\b", _I)
_HOT = re.compile(r"\b(?:desert|scorching|heatwave|tropical|jungle|sweltering|blazing sun|midsummer)\b", _I)
_COLD = re.compile(r"\b(?:snow\w*|blizzard|arctic|polar|glacier|frozen|frost\w*|icebound|furs against the cold)\b", _I)
CHILD_YEARS, ADULT_YEARS, ELDER_YEARS = 15, 25, 50


def against(card: Card, messages: list[Message], component: str) -> str:
    """The first contradiction of `card` with the conversation; '' for none."""
    return next((seen for check in CHECKS if (seen := check(card, messages, component))), "")


def said_by(messages: list[Message], *roles: str) -> str:
    """What these roles say, a turn a line."""
    return "\n".join(m["content"] for m in messages if m["role"] in roles)


def narrated(answer: str) -> tuple[str, str]:
    """What is said in an answer, and what is told around it; ('', answer) where nothing is in quotation marks."""
    return " ".join(_SPEECH.findall(answer)), _SPEECH.sub(" ", answer)


def _about(person: Person) -> str:
    return ". ".join(texts_of(person).values())


def _figures(text: str) -> set[str]:
    return {n.replace(",", "").rstrip(".") for n in _NUMBER.findall(text)}


def _spelt(text: str) -> set[str]:
    """The numbers that `text` says in English words, 'twenty-nine' as 20, 9 and 29."""
    tokens = [w for word in shapes.words(text.lower()) for w in word.split("-")]
    found: set[int] = set()
    ten = 0
    for token in tokens:
        unit = UNITS.index(token) if token in UNITS else None
        if unit is not None:
            found |= {unit, ten + unit} if unit < 10 else {unit}
        ten = 20 + 10 * _TENS.index(token) if token in _TENS else 0
        if ten:
            found.add(ten)
    return {str(n) for n in found}


def numbers(card: Card, messages: list[Message], component: str) -> str:
    """Numbers that are told of somebody whom the record knows (an age, a dose) are in the record, if it is English."""
    record = said_by(messages, "user", "assistant", "system")
    if shapes.language(record) != "en":
        return ""
    said = _figures(record) | _spelt(record)
    for person in card.people:
        told = set() if person.invented else _figures(_about(person))
        if told - said:
            return f"{', '.join(sorted(told - said))} of {person.name!r} is not in the record"
    return ""


def sexes(card: Card, messages: list[Message], component: str) -> str:
    """Whom the record knows is not of the other sex than all of whom the user, or what is told of a scene, speaks."""
    said = said_by(messages, "user")
    in_record = [pattern.search(said) for pattern in _SAID]
    around = " ".join(narrated(m["content"])[1] for m in messages if m["role"] == "assistant")
    pronouns = [len(re.findall(rf"\b(?:{p})\b", around, _I)) for p in ("he|him|his", "she|her|hers")]
    for person in card.people:
        in_card = [pattern.search(f"{person.name} {person.role}") for pattern in _TOLD]
        for one, other in ((0, 1), (1, 0)):
            told, spoken = in_card[one], in_record[other]
            if person.invented or not told or in_card[other]:
                continue
            if spoken and not in_record[one]:
                return f"{told[0]!r} in the card, {spoken[0]!r} in the record"
            if component == "roleplay" and person is card.people[0] and pronouns[other] > 1 and not pronouns[one]:
                return f"{told[0]!r} in the card, {('he', 'she')[other]!r} in the answer"
    return ""


def ages(card: Card, messages: list[Message], component: str) -> str:
    """Who is old in the record is not young in the card, nor a child an elder."""
    said = said_by(messages, "user")
    years = [int(a or b) for a, b in _AGE.findall(said)]
    for person in card.people:
        if person.invented:
            continue
        text = f"{person.name}, {person.role}, {person.appearance}"
        for told, spoken in ((_YOUNG, _OLD), (_OLD, _YOUNG)):
            for found in re.finditer(rf"\b({told}) (?!{_ANYBODY})(\w+)", text, _I):
                noun = re.escape(found[2])
                if re.search(rf"\b(?:{spoken}) {noun}\b", said, _I) and not re.search(
                    rf"\b(?:{told}) {noun}\b", said, _I
                ):
                    return f"{found[0]!r} in the card, another age in the record"
        if years and component == "health":
            elder, child = _ELDER.search(text), _CHILD.search(text)
            if elder and max(years) < ELDER_YEARS and not _ELDER.search(said):
                return f"{elder[0]!r} in the card, ages of at most {max(years)} in the record"
            if child and min(years) >= ADULT_YEARS and not _CHILD.search(said):
                return f"{child[0]!r} in the card, ages of at least {min(years)} in the record"
    return ""


def times_of_day(text: str) -> list[str]:
    """The parts of the day, and where there are several the days of the week, that `text` names."""
    days = sorted(set(_DAY.findall(text)))
    return _parts(text) + (days if len(days) > 1 else [])


def _parts(text: str) -> list[str]:
    return [hour for hour, pattern in _HOURS.items() if pattern.search(text)]


def _part_of(moment: str) -> str:
    if not (clock := re.match(r"(\d{1,2})(?:[:.]\d\d)? ?([ap])", moment, _I)):
        return _parts(moment)[0] if _parts(moment) else "morning"
    hour = int(clock[1]) % 12 + (12 if clock[2].lower() == "p" else 0)
    return "night" if hour < 4 or hour > 21 else _ROUND[0 if hour < 12 else 1 if hour < 17 else 2]


def hours(card: Card, messages: list[Message], component: str) -> str:
    """The time of day is not another than that of the greeting, nor the opposite of the one of which the user speaks as
    now."""
    told = set(_parts(card.time))
    if not told:
        return ""
    greeted = {g.lower() for g in _GREETING.findall(said_by(messages, "assistant"))}
    near = told | ({"evening"} if "night" in told else set())
    if greeted and not near & greeted:
        return f"{card.time!r} in the card, 'good {min(greeted)}' in the answer"
    user = said_by(messages, "user")
    moments = _NOW.findall(user) + (_SCENE.findall(user) if component == "roleplay" else [])
    now = {_part_of(moment) for moment in moments}
    opposite = {_ROUND[(_ROUND.index(part) + 2) % len(_ROUND)] for part in now}
    if now and told <= opposite and not told & set(_parts(user)):
        return f"{card.time!r} in the card, {moments[0]!r} in the record"
    return ""


def dates(card: Card, messages: list[Message], component: str) -> str:
    """Season, month and year are not others than those of which the user speaks as now."""
    user, record = said_by(messages, "user"), said_by(messages, "user", "assistant", "system")
    seasons = {name for name, pattern in _SEASONS.items() if pattern.search(card.time)}
    now = re.search(
        r"\b(?:it is|it's)(?: now| already| nearly)? (?:mid)?-?(spring|summer|autumn|fall|winter)\b", user, _I
    )
    if seasons and now and not any(now[1].lower() in name for name in seasons):
        return f"{card.time!r} in the card, {now[0]!r} in the record"
    months = {m for m in _MONTHS if re.search(rf"\b{m}\b", card.time)}
    month = re.search(rf"\b[Ii]t(?: is|'s)(?: now| already)? ({'|'.join(_MONTHS)})\b", user)
    if month and months and not months & {m for m in _MONTHS if re.search(rf"\b{m}\b", record)}:
        return f"{card.time!r} in the card, {month[0]!r} in the record"
    years = set(_YEAR.findall(card.time))
    spoken = set(re.findall(r"\b(?:the year is|it is|it's|it was|set in(?: the year)?)(?: now)? (\d{4})\b", user, _I))
    spoken |= set(_YEAR.findall(user)) if component == "roleplay" else set()
    if years and spoken and not years & set(_YEAR.findall(record)):
        return f"{card.time!r} in the card, {min(spoken)} in the record"
    return ""


def climate(card: Card, messages: list[Message], component: str) -> str:
    """The scene of a roleplay is not in snow where the user sets it in heat, nor the other way round."""
    if component != "roleplay":
        return ""
    record = said_by(messages, "user", "assistant", "system")
    place = ". ".join([card.place, card.time, *(p.appearance for p in card.people)])
    for told, spoken in ((_COLD, _HOT), (_HOT, _COLD)):
        found, other = told.search(place), spoken.search(said_by(messages, "user"))
        if found and other and not told.search(record) and not spoken.search(place):
            return f"{found[0]!r} in the card, {other[0]!r} in the record"
    return ""


CHECKS: tuple[Callable[[Card, list[Message], str], str], ...] = (numbers, sexes, ages, hours, dates, climate)
