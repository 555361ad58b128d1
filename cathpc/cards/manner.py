"""What of a card contradicts its record, as far as a program can see it.

In: a card and the messages. Out: '' or what was seen, by one small function for each kind of contradiction. Each says
nothing where it is not sure; words are English ones. Linear in the texts.
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
_DAY = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b")
_GREETING = re.compile(
    r"\b(?:good|this|lovely|fine|beautiful) (morning|afternoon|evening|night)\b(?! (?:will|if|or|and take))", _I
)
_SEASONS = {name: re.compile(rf"\b{name}\b", _I) for name in ("spring", "summer", "autumn|fall", "winter")}
_YEAR = re.compile(r"\b(1[0-9]{3}|2[0-9]{3})\b")
_MALE = r"he|his|him|himself|man|men|boy|male|father|dad|husband|son|brother|uncle|grandfather|nephew|gentleman|king"
_FEMALE = (
    r"she|her|hers|herself|woman|women|girl|female|mother|mum|mom|wife|daughter|sister|aunt|grandmother|niece|lady"
)
_SEXES = (
    re.compile(rf"\b(?:{_MALE}|prostate|gentlemen)\b", _I),
    re.compile(rf"\b(?:{_FEMALE}|queen|pregnan\w+|midwife)\b", _I),
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_ORDINALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

_NOT = r"\b(?:no|never|without|hates?|avoids?|refuses?|instead of|free of|won't|does not|doesn't)\s+(?:\w+\s+){0,2}"
ONE_WORD = 12
REFUSAL_WORDS = 40
"""An answer that is longer is more than one word, or no mere refusal."""
BRIEF_WORDS = 80
"""No answer of a person of few words is longer."""
LONG_WORDS = 30
"""No answer of a talkative person is shorter."""


def against(card: Card, messages: list[Message]) -> str:
    """The first contradiction of `card` with the conversation; '' for none."""
    return next((seen for check in CHECKS if (seen := check(card, messages))), "")


def _of(messages: list[Message], *roles: str) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] in roles)


def _answers(messages: list[Message]) -> list[str]:
    return [m["content"] for m in messages if m["role"] == "assistant"]


def _about(person: Person) -> str:
    return ". ".join(texts_of(person).values())


def numbers(card: Card, messages: list[Message]) -> str:
    """Numbers that are told of somebody whom the record knows (an age, a time, a dose) are in the record."""
    record = _of(messages, "user", "assistant", "system")
    said = set(_NUMBER.findall(record))
    said |= {str(at) for at, word in enumerate(_ORDINALS) if re.search(rf"\b{word}\b", record, _I)}
    for person in card.people:
        told = set() if person.invented else set(_NUMBER.findall(_about(person)))
        if told - said:
            return f"{', '.join(sorted(told - said))} of {person.name!r} is not in the record"
    return ""


def sexes(card: Card, messages: list[Message]) -> str:
    """Whom the record knows is not of the other sex than all of whom the user speaks."""
    said = _of(messages, "user")
    in_record = [pattern.search(said) for pattern in _SEXES]
    for person in card.people:
        in_card = [pattern.search(f"{person.name} {person.role}") for pattern in _SEXES]
        for one, other in ((0, 1), (1, 0)):
            told, spoken = in_card[one], in_record[other]
            if not person.invented and told and not in_card[other] and spoken and not in_record[one]:
                return f"{told[0]!r} in the card, {spoken[0]!r} in the record"
    return ""


def times_of_day(text: str) -> list[str]:
    """The parts of the day, and where there are several the days of the week, that `text` names."""
    days = sorted(set(_DAY.findall(text)))
    return [hour for hour, pattern in _HOURS.items() if pattern.search(text)] + (days if len(days) > 1 else [])


def hours(card: Card, messages: list[Message]) -> str:
    """The time of day, the season and the year are not others than those that the answer speaks of as now."""
    spoken = "\n".join(_answers(messages))
    told = {hour for hour, pattern in _HOURS.items() if pattern.search(card.time)}
    if told and (greeted := _GREETING.search(spoken)):
        near = {"evening": {"evening", "night"}, "night": {"evening", "night"}}.get(greeted[1].lower())
        if not told & (near or {greeted[1].lower()}):
            return f"{card.time!r} in the card, {greeted[0]!r} in the answer"
    seasons = {name for name, pattern in _SEASONS.items() if pattern.search(card.time)}
    now = re.search(r"\bthis (spring|summer|autumn|fall|winter)\b", spoken, _I)
    if seasons and now and not any(now[1].lower() in name for name in seasons):
        return f"{card.time!r} in the card, {now[0]!r} in the answer"
    years = set(_YEAR.findall(card.time))
    year = re.search(r"\b(?:the year (?:is )?|it is |in )(\d{4})\b", _of(messages, "user"))
    if years and year and year[1] not in years:
        return f"{card.time!r} in the card, {year[0]!r} in the record"
    return ""


def _words(answers: list[str]) -> int:
    return max(len(shapes.words(a)) for a in answers)


def _any(pattern: str) -> Callable[[list[str]], bool]:
    return lambda answers: any(re.search(pattern, a, _I | re.MULTILINE) for a in answers)


def _none(pattern: str) -> Callable[[list[str]], bool]:
    return lambda answers: not _any(pattern)(answers)


def _listed(answers: list[str]) -> bool:
    return any(max(shapes.numbered(a), shapes.bullets(a)) > 1 for a in answers)


def _worked(answers: list[str]) -> bool:
    return _listed(answers) or any(shapes.calculations(a) for a in answers) or _any(_REASON)(answers)


def _rhymes(answers: list[str]) -> bool:
    """Whether some two neighbouring or alternating lines end alike."""
    ends = [w[-1].lower()[-2:] for a in answers for line in a.splitlines() if (w := shapes.words(line))]
    return any(ends[i] == ends[j] for i in range(len(ends)) for j in (i + 1, i + 2) if j < len(ends))


_REASON = r"\b(?:because|since|therefore|thus|hence|so that|as a result|step \d)\b"
_JOKE = r"!|\b(?:silly|funny|joke|haha|hey|dude|gonna|wanna|awesome|kid|oh|wow|alas|yep|nope|yeah)\b|[😀-🙏]"
_WARM = (
    r"\b(?:happy to|glad to|sorry to hear|i understand|of course|you're welcome|don't worry|take care|feel free|"
    r"great question|i hope|thank you|good luck|well done|congratulations)\b"
)

MANNERS: tuple[tuple[str, Callable[[list[str]], bool]], ...] = (
    (
        r"\b(?:one|a single|single)[- ]word\b|\bmonosyllab\w+|\bin a word\b|\b(?:is|stays) (?:silent|mute)\b",
        lambda a: _words(a) > ONE_WORD,
    ),
    (r"\b(?:one|a single|single) sentence\b(?! (?:each|per|of|for|a))", lambda a: _sentences(a) > 2),
    (
        r"\b(?:curt|terse|laconic|taciturn|tight-lipped)\b|\bof few words\b|\bsays (?:very )?little\b"
        r"|\bhardly (?:speaks|talks)\b|\brarely speaks\b|\b(?:very|always|extremely) (?:brief|short)\b",
        lambda a: _words(a) > BRIEF_WORDS,
    ),
    (
        r"\b(?:long[- ]winded|talkative|verbose|rambl\w+|chatty|loquacious|garrulous)\b|\bat great length\b"
        r"|\bendless (?:stories|speeches)\b|\blong (?:speeches|answers|monologues|essays?)\b|\bnever (?:brief|short)\b",
        lambda a: _words(a) < LONG_WORDS,
    ),
    (
        rf"{_NOT}\b(?:explan\w+|explains?|reasons?|justif\w+|workings?|how (?:she|he|they|it)|steps?)\b"
        r"|\bbare (?:number|figure|result)\b|\bonly the (?:final |bare )?(?:figure|number|result|answer)\b",
        _worked,
    ),
    (
        rf"{_NOT}\b(?:lists?|bullets?|bullet points?|numbered|enumerat\w+)\b"
        r"|\b(?:one|a single) (?:unbroken )?paragraph\b|\bonly (?:in )?(?:flowing )?prose\b",
        _listed,
    ),
    (
        r"\bbullet(?:ed)?[- ](?:list|points)\b|\bin bullets\b"
        r"|\b(?<!no )numbered (?:steps|list|points)\b|\bnumber the (?:steps|points)\b",
        lambda a: not _listed(a),
    ),
    (
        r"\b(?:in|with|rhym\w+) (?:rhymes?|verses?|couplets?)\b|\brhyming\b|\bas a (?:poem|sonnet|haiku|song)\b",
        lambda a: not _rhymes(a),
    ),
    (
        r"\b(?:in (?:all )?capitals|in capital letters|all caps|in uppercase)\b",
        lambda answers: not any(a.isupper() for a in answers),
    ),
    (r"\b(?:shouts?|screams?|yells?|bellows?)\b", _none(r"!|\b[A-Z]{4,}\b")),
    (rf"{_NOT}\bask\w*\b[^.;,]{{0,20}}(?:questions?|back|anything)|\bnever asks\b", _any(r"\?")),
    (
        r"\b(?:ends?|closes?|finish\w*|answers?|repl\w+) (?:only |always )?(?:with|in) "
        r"(?:a |another )?(?:counter-?)?questions?\b|\bonly asks\b|\bonly (?:in )?questions\b",
        _none(r"\?"),
    ),
    (rf"{_NOT}\bexclamation", _any(r"!")),
    (r"\b(?:in the third person|never says I\b|never speaks of (?:her|him)self)", _any(r"(?-i:\bI\b)")),
    (rf"{_NOT}\b(?:numbers|figures|digits)\b", _any(r"\d")),
    (
        rf"{_NOT}\b(?:jokes?|joking|humou?r|images|comparisons?|metaphors?|laugh\w*)\b|\bhumou?rless\b"
        r"|\bstrictly formal\b|\b(?:icy|ice-cold|stiff|deadly serious|grim)\b",
        _any(_JOKE),
    ),
    (
        r"\b(?:rude|insult\w*|hostile|contemptuous|scornful|cruel|sneering|mocking|dismissive|impatient|unhelpful)\b"
        r"|\bshows no sympathy\b",
        _any(_WARM),
    ),
    (
        r"\b(?:refuses?|declines?|unwilling|will not|won't|never)\b (?:to )?"
        r"(?:answers?|helps?|gives? (?:any )?(?:advice|answers?|help)|advises?|says anything|replies)\b"
        r"|\bknows nothing\b|\bhas no idea\b|\bsends? (?:everyone|the user|them) away\b",
        lambda a: _words(a) > REFUSAL_WORDS,
    ),
    (rf"{_NOT}\b(?:apologi[sz]\w*|sorry)\b", _any(r"\b(?:sorry|apologi[sz]\w+)\b")),
    (
        rf"{_NOT}\b(?:advice|recommend\w*|suggest\w*)\b",
        _any(r"\b(?:I (?:would|recommend|suggest|advise)|you should|try to)\b"),
    ),
    (r"\b(?:uses?|with|full of|many) emojis?\b", _none(r"[\U0001F300-\U0001FAFF☀-➿]")),
    (r"\b(?:as|with) a table\b|\bin tables?\b", _none(r"^\s*\|.*\|")),
    (r"\b(?:code|script|program) only\b|\bonly (?:in )?code\b", _none(r"```")),
)
"""What may be said of how somebody speaks, and what answers then do not do."""

_LIMIT = re.compile(
    r"\b(?:under|below|at most|no more than|never more than|fewer than|less than|up to|within|in|exactly)\s+"
    r"(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|fifty|a hundred)\s+"
    r"(words?|sentences?|lines?)\b(?! (?:each|per|or))",
    _I,
)
_COUNTS = {
    **{word: at for at, word in enumerate(_ORDINALS)},
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "a hundred": 100,
}


def _sentences(answers: list[str]) -> int:
    return max(len(shapes.sentences(a)) for a in answers)


def ways(card: Card, messages: list[Message]) -> str:
    """Where the card says how the person speaks, the answers are so."""
    first, answers = card.people[0], _answers(messages)
    for line in (first.personality, first.role, first.relation, *card.style):
        for pattern, broken in MANNERS:
            if (said := re.search(pattern, line, _I)) and broken(answers):
                return f"{said[0]!r} in the card, and the answer is not so"
        for limit in _LIMIT.finditer(line):
            most = _COUNTS.get(limit[1].lower()) or int(limit[1])
            unit = limit[2].lower()
            count = _words(answers) if unit.startswith("word") else _sentences(answers)
            if count > most * 1.2:
                return f"{limit[0]!r} in the card, an answer of {count} {unit}"
    return ""


CHECKS: tuple[Callable[[Card, list[Message]], str], ...] = (numbers, sexes, hours, ways)
