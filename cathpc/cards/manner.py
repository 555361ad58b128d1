"""How a card says that somebody speaks, against how the answers are said.

In: a card, the messages and the component. Out: '' or what was seen. It says nothing where it is not sure: a word that
is denied ('never rude') claims nothing, nor does one that speaks of a part of an answer ('one sentence at the end').
Words are English ones. Linear in the texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cathpc.cards import setting, shapes
from cathpc.cards.card import Card
from cathpc.record import Message

_I = re.IGNORECASE
ONE_WORD = 12
REFUSAL_WORDS = 40
"""An answer that is longer is more than one word, or no mere refusal."""
BRIEF_WORDS = 80
"""No answer of a person of few words is longer."""
LONG_WORDS = 30
"""No answer of a talkative person is shorter."""

_NEGATOR = (
    r"(?:no|not|never|without|nor|neither|hates?|avoids?|avoiding|refuses? to|instead of|rather than|free of|hardly|"
    r"rarely|won't|cannot|can't|does not|doesn't|do not|don't|far from|anything but|less)"
)
_BETWEEN = (
    r"(?:any|an?|the|her|his|their|its|single|uses?|using|gives?|giving|offers?|makes?|making|writes?|writing|tells?|"
    r"shows?|says?|asks?|asking|mentions?|explains?|more|kinds?|of|how|even|one|to|and)"
)
_LIMITED = r"(?!\s+(?:he|she|they|it|that|which|who|than|more|needed|at(?! all)|beyond|unless|until|before|without)\b)"
"""What follows a denial that does not deny all."""
_NEGATED = re.compile(rf"\b{_NEGATOR}\b", _I)
_PART = re.compile(
    r"\b(?:first|then|begin\w*|start\w*|open\w*|ends?|ending|clos\w+|last|finally|finish\w*|"
    r"per(?! (?:answer|reply|message))|before|after|follow\w*|"
    r"aside|introduc\w+|greet\w*|sum\w*|apart|at the top|bottom)\b"
    r"|\b(?:each|every)\b(?! (?:question|answer|reply|time|request|message))",
    _I,
)
"""Words of a line that is about a part of an answer."""
_SPEAKS = (
    r"(?:answers?|repl(?:y|ies)|speaks?|responds?|says?|talks?|communicates?|writes?|keeps?|stays?|never|always|only)"
)
_AT_MOST = rf"(?:^|\b{_SPEAKS}\b[^.;,]{{0,40}}?\b)(?:(?:in|with|just|only|one word|nothing but)\s+)*"
_QUOTED = r"['\"“‘«]([^'\"”’»]{2,40})['\"”’»]"


@dataclass(frozen=True)
class Said:
    """The answers of a conversation."""

    whole: list[str]
    spoken: list[str]
    """What the person says in them: of an answer that tells a scene, what stands in quotation marks."""
    told: list[str]
    """The rest of such answers, else the answers."""


def _said(messages: list[Message], component: str) -> Said:
    whole = [m["content"] for m in messages if m["role"] == "assistant"]
    parts = [setting.narrated(answer) if component == "roleplay" else ("", answer) for answer in whole]
    return Said(whole, [s or a for (s, _), a in zip(parts, whole, strict=True)], [t for _, t in parts])


def against(card: Card, messages: list[Message], component: str) -> str:
    """The first way of speaking that the card names and the answers are not in; '' for none."""
    first, said = card.people[0], _said(messages, component)
    for line in (first.personality, first.role, first.relation, *card.style):
        for claims, pattern, broken in MANNERS:
            if (found := claims(line, pattern)) and broken(said):
                return f"{found!r} in the card, and the answer is not so"
        if seen := _beyond(line, said) or _phrases(line, said) or _tongue(line, said):
            return seen
    return ""


def _affirmed(line: str, pattern: str) -> str:
    """What `pattern` finds in `line` where it is not denied."""
    for found in re.finditer(pattern, line, _I):
        parts = re.split(r"[.;:!?()–—]|\bbut\b", line[: found.start()].replace("nothing but", "only"))[-1].split(",")
        listed = len(parts) > 1 and len(shapes.words(parts[-1])) < 2 and _NEGATED.search(parts[-2])
        if not _NEGATED.search(parts[-1]) and not listed:
            return found[0]
    return ""


def _denied(line: str, pattern: str) -> str:
    """What of `line` denies `pattern` directly: 'no lists', 'never uses any lists', but not 'never without lists'."""
    return _affirmed(line, rf"\b{_NEGATOR}\s+(?:{_BETWEEN}\s+){{0,3}}(?:{pattern})\b{_LIMITED}")


def _whole(line: str, pattern: str) -> str:
    """What `_affirmed` finds where the line is about whole answers."""
    return "" if _PART.search(line) else _affirmed(line, pattern)


def _longest(answers: list[str]) -> int:
    return max(len(shapes.words(a)) for a in answers)


def _any(pattern: str) -> Callable[[Said], bool]:
    return lambda said: any(re.search(pattern, a, _I | re.MULTILINE) for a in said.whole)


def _none(pattern: str) -> Callable[[Said], bool]:
    return lambda said: not _any(pattern)(said)


def _listed(said: Said) -> bool:
    return any(max(shapes.numbered(a), shapes.bullets(a)) > 1 for a in said.whole)


def _worked(said: Said) -> bool:
    return _listed(said) or any(shapes.calculations(a) for a in said.whole) or _any(_REASON)(said)


def _rhymes(said: Said) -> bool:
    """Whether some two neighbouring or alternating lines end alike."""
    ends = [w[-1].lower()[-2:] for a in said.whole for line in a.splitlines() if (w := shapes.words(line))]
    return any(ends[i] == ends[j] for i in range(len(ends)) for j in (i + 1, i + 2) if j < len(ends))


def _playful(said: Said) -> bool:
    strong, weak = (len(re.findall(pattern, " ".join(said.whole), _I)) for pattern in (_JOKE, _LIGHT))
    return strong > 0 or weak > 1


_REASON = r"\b(?:because|since|therefore|thus|hence|so that|as a result|step \d)\b"
_JOKE = (
    r"\b(?:silly|funny|jok(?:e|es|ing)|ha ?ha|dude|gonna|wanna|awesome|wow|yep|nope|yeah|lol|gigg\w+|chuckl\w+|pun)\b"
    r"|[😀-🙏]"
)
_LIGHT = r"!|\b(?:hey|oh|alas|kid|magic|tickl\w+)\b"
_IMAGE = r"\blike (?:an?|the|when|if)\b|\bas if\b|\b(?:imagine|picture|think of)\b"
_WARM = (
    r"\b(?:happy to|glad to|sorry to hear|i understand how|you're welcome|don't worry|feel free|great question|i hope|"
    r"thank you|good luck|well done|congratulations|take heart)\b"
)
_ABUSE = (
    r"\b(?:idiot|fool|stupid|dumb|moron|imbecile|damn\w*|hell|bloody|dolt|wretch|worm|scum|pathetic|clown|oaf|rat)\w*"
)
_ADVICE = r"\b(?:I (?:would|recommend|suggest|advise)|you should|try to)\b"
_END = (
    r"(?=\s*(?:$|[,.;:]|and\b|or\b|at all\b|any\w*|(?:the )?(?:users?|questions?|requests?)\b"
    r"|(?:him|her|them)\b|to any))"
)
_PIRATE = r"\b(?:arr+|ahoy|matey|avast|aye|ye|me hearties|booty|scallywag|landlubber)\b"
_ARCHAIC = r"\b(?:thou|thee|thy|thine|hath|doth|ye|art|shalt|'tis|verily)\b"

Claims = Callable[[str, str], str]
MANNERS: tuple[tuple[Claims, str, Callable[[Said], bool]], ...] = (
    (
        _whole,
        rf"{_AT_MOST}(?:one|a single|single)[- ]word\b(?! (?:of|for|from)\b)|\bmonosyll\w+|\bonly (?:with )?yes or no\b"
        r"|\b(?:is|stays|remains|keeps) silent\b|\bmute\b|\bsays nothing\b(?! (?:of|about|that|until|unless|without))",
        lambda said: _longest(said.spoken) > ONE_WORD,
    ),
    (
        _whole,
        rf"{_AT_MOST}(?:one|a single|single) sentence\b(?! (?:of|for|on|about)\b)",
        lambda said: max(len(shapes.sentences(a)) for a in said.spoken) > 2,
    ),
    (
        _whole,
        r"\b(?:curt|terse|laconic|taciturn|tight-lipped|monosyllabic)\b|\bof few words\b|\bsays (?:very )?little\b"
        r"|\bhardly (?:speaks|talks)\b|\bas little as possible\b|\brarely speaks\b"
        r"|\b(?:always|extremely) (?:brief|short)\b",
        lambda said: _longest(said.spoken) > BRIEF_WORDS,
    ),
    (
        _affirmed,
        r"\b(?:long[- ]winded|talkative|verbose|rambling|rambles|chatty|loquacious|garrulous|chatterbox|windbag)\b"
        r"|\bat great length\b|\b(?:talks?|speaks?|chatters?) without (?:stopping|pause|end|a break)\b"
        r"|\bnever stops (?:talking|speaking)\b|\b(?:endless|long)(?:, \w+| \w+)? (?:speeches|monologues|essays)\b"
        r"|\bendless stories\b|\blong answers\b|\bnever (?:brief|short)\b",
        lambda said: _longest(said.spoken) < LONG_WORDS,
    ),
    (
        _denied,
        r"explanations?|explain\w*|reasons?|reasoning|justif\w+|workings?|how (?:she|he|they|it)|steps?",
        _worked,
    ),
    (
        _whole,
        r"\bbare (?:number|figure|result)\b|\bonly the (?:final |bare )?(?:figure|number|result|answer)\b",
        _worked,
    ),
    (_denied, r"lists?|numbered|enumerat\w+", _listed),
    (_denied, r"bullets?|bullet points?", lambda said: any(shapes.bullets(a) > 1 for a in said.whole)),
    (
        _whole,
        r"\b(?:one|a single) (?:long,? )?(?:unbroken )?paragraph\b(?! (?:of|on|for|about))"
        r"|\bonly (?:in )?(?:flowing )?prose\b",
        _listed,
    ),
    (
        _affirmed,
        r"\bbullet(?:ed)?[- ](?:list|points)\b|\bin bullets\b|\bnumbered (?:steps|list|points)\b"
        r"|\bnumber the (?:steps|points)\b|\bnumbered$",
        lambda said: not _listed(said),
    ),
    (
        _affirmed,
        r"\b(?:in|with|rhym\w+) (?:rhymes?|verses?|couplets?)\b|\brhym(?:ing|ed) (?:verse|couplets?|lines)\b"
        r"|\b(?:as|in) (?:a )?(?:poems?|sonnets?|haikus?|limericks?)\b",
        lambda said: not _rhymes(said),
    ),
    (
        _affirmed,
        r"\b(?:in (?:all )?capitals|in capital letters|all caps|in uppercase)\b",
        _none(r"(?-i:\b[A-Z]{3,}\b)"),
    ),
    (
        _whole,
        r"\b(?:only|always|everything|all|entirely) in (?:lower[- ]?case|small letters)\b|\bno capitals\b",
        _any(r"(?-i:\b[A-Z][a-z]+)"),
    ),
    (_affirmed, r"\b(?:shouts|screams|yells|bellows)\b(?! at (?:him|her|it|them))", _none(r"!|(?-i:\b[A-Z]{4,}\b)")),
    (_denied, r"asks?(?: \w+){0,2} (?:questions?|back)|questions back", _any(r"\?")),
    (
        _affirmed,
        r"\b(?:ends?|closes?|finish\w*|answers?|repl\w+) (?:only |always )?(?:with|in) "
        r"(?:an? |another |one )?(?:counter-?)?questions?\b|\bonly asks\b|\bonly (?:in )?questions\b"
        r"|\bquestions only\b",
        _none(r"\?"),
    ),
    (_denied, r"exclamations?", _any(r"!")),
    (
        _affirmed,
        r"\bof (?:him|her|it)self (?:only |always )?in the third person|\bnever says I\b",
        _any(r"(?-i:\bI\b)"),
    ),
    (
        _affirmed,
        r"\bin the third person\b",
        lambda said: any(re.search(r"\bI\b", a) for a in said.told),
    ),
    (_denied, r"numbers(?! (?:the|his|her|its|steps))|figures|digits", _any(r"\d")),
    (_denied, r"jokes?|joking|humou?r|laughs?|laughter", _playful),
    (
        _affirmed,
        r"\bhumou?rless\b|\bstrictly formal\b|\b(?:icy|ice-cold|deadly serious|without a trace of humou?r)\b",
        _playful,
    ),
    (_denied, r"images|comparisons?|metaphors?|similes?", _any(_IMAGE)),
    (
        _affirmed,
        r"\b(?:rude|hostile|contemptuous|scornful|cruel|sneering|unhelpful)\b(?! (?:to|about|of|with|towards)\b)"
        r"|\bshows no sympathy\b|\binsult\w* (?:the user|everyone|everybody|them|him|her)\b",
        _any(_WARM),
    ),
    (
        _affirmed,
        r"\binsults (?:the|every|whoever|him|her|them)\b|\bfoul-mouthed\b|\b(?:swears|curses) "
        r"(?:at|constantly|all the time|in every)\b",
        _none(_ABUSE),
    ),
    (
        _affirmed,
        r"\b(?:refuses?|declines?|unwilling|will not|won't|never|does not|do not|doesn't)\b (?:to )?"
        rf"(?:answers?|helps?|gives? (?:any )?(?:advice|answers?|help|recipes?)|advises?|"
        rf"says anything|repl(?:y|ies)){_END}"
        r"|\b(?:declines?|refuses?|rejects?|evades?|dodges?) (?:every|all|any) (?:requests?|questions?|help|answers?)\b"
        r"|\bknows nothing\b(?! (?:of|but)\b)(?! about (?!it\b|this\b|the (?:subject|topic|matter|question)))"
        r"|\bhas no idea\b(?! (?:of|how|that|who|what|where))|\bsends? (?:everyone|the user) away\b",
        lambda said: _longest(said.whole) > REFUSAL_WORDS,
    ),
    (_denied, r"apologi[sz]\w*|apolog(?:y|ies)|sorry", _any(r"\b(?:sorry|apologi[sz]\w+)\b")),
    (_denied, r"advice|tips?|recommend\w*|suggest\w*", _any(_ADVICE)),
    (_affirmed, r"\b(?:uses?|with|full of|many) emojis?\b", _none(r"[\U0001F300-\U0001FAFF☀-➿]")),
    (_affirmed, r"\b(?:as|in the form of) a table\b|\bin (?:a )?tables?\b", _none(r"^\s*\|.*\|")),
    (_affirmed, r"\bonly (?:in |valid )?JSON\b|\bin JSON only\b", _none(r"[{\[]")),
    (_affirmed, r"\basks no questions\b", _any(r"\?")),
    (_affirmed, r"\b(?:code|script|program) only\b|\bonly (?:in )?code\b", _none(r"```")),
    (
        _affirmed,
        r"\bpirate (?:speech|talk|dialect|slang|speak)\b|\b(?:speaks?|talks?|writes?) like a pirate\b",
        _none(_PIRATE),
    ),
    (
        _affirmed,
        r"\b(?:in|speaks|archaic|old|shakespearean) (?:archaic|shakespearean|elizabethan|thees? and thous?)\b",
        _none(_ARCHAIC),
    ),
    (
        _affirmed,
        r"\b(?:say|says|insists?|states?|claims?)\b.{0,20}\bis (?:wrong|mistaken)\b",
        _any(r"\bis right\b[,.]"),
    ),
)
"""What may be said of how somebody speaks, how the words must stand, and what answers then do not do."""

_LIMIT = re.compile(
    rf"(?:^|\b{_SPEAKS}\b[^.;,]{{0,30}}?\b)"
    r"(under|below|at most|no more than|never more than|fewer than|less than|up to|within|in|exactly)\s+"
    r"(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|fifty|a hundred)\s+"
    r"(words?|sentences?)\b(?! (?:each|per (?!answer|reply|message)|or|of|for))",
    _I,
)
_NO_MORE = re.compile(
    r"()\b(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|fifty|a hundred)\s+"
    r"(words?|sentences?) (?:at most|only|and no more|or (?:less|fewer))\b",
    _I,
)
_COUNTS = {
    **{word: at for at, word in enumerate(setting.UNITS[:13])},
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "a hundred": 100,
}
SLACK = 1.2
"""An answer may be that much longer than the card says."""


def _beyond(line: str, said: Said) -> str:
    """A limit on whole answers that one is well beyond."""
    limits = [] if _PART.search(line) else [*_LIMIT.finditer(line), *_NO_MORE.finditer(line)]
    for limit in limits:
        most = _COUNTS.get(limit[2].lower()) or int(limit[2])
        words = limit[3].lower().startswith("word")
        count = max(len(shapes.words(a) if words else shapes.sentences(a)) for a in said.spoken)
        if count > most * SLACK:
            return f"{limit[0]!r} in the card, an answer of {count} {limit[3]}"
    return ""


def _phrases(line: str, said: Said) -> str:
    """A phrase with which every answer shall begin or end, or a word that none has, and one does not do so."""
    each: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
        (rf"\b(?:begin|start|open)s?\b[^.;,]{{0,25}}\b(?:with|saying) (?:the words? )?{_QUOTED}", shapes.begins_with),
        (
            rf"\b(?:end|close|finishe?)s?\b[^.;,]{{0,25}}\b(?:with|on|saying) (?:the words? )?{_QUOTED}",
            shapes.ends_with,
        ),
    )
    for pattern, holding in each:
        for found in re.finditer(pattern, line, _I):
            fails = any(
                not any(holding(a, found[1]) for a in both) for both in zip(said.whole, said.spoken, strict=True)
            )
            if fails and _affirmed(line, re.escape(found[0])):
                return f"{found[0]!r} in the card, and the answer is not so"
    for found in re.finditer(rf"\b(?:never|avoids?) (?:uses?|says?|writes?)?\s*(?:the words? )?{_QUOTED}", line, _I):
        if any(shapes.contains(answer, found[1]) for answer in said.spoken):
            return f"{found[0]!r} in the card, and an answer has it"
    return ""


_TONGUES = {
    "english": "en",
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "dutch": "nl",
    "latin": "la",
}
TONGUE_WORDS = 20


def _tongue(line: str, said: Said) -> str:
    """A language in which all is said, and it is another."""
    found = _whole(
        line,
        rf"\b(?:only|exclusively|always|answers?|repl\w+|entirely) (?:speaks? )?(?:in )?"
        rf"(?:{'|'.join(_TONGUES)})(?: only)?$"
        rf"|^in (?:{'|'.join(_TONGUES)})(?: only)?$",
    )
    if not found:
        return ""
    wanted = _TONGUES[found.lower().removesuffix(" only").split()[-1]]
    other = [a for a in said.whole if len(shapes.words(a)) >= TONGUE_WORDS and shapes.language(a) != wanted]
    return f"{found!r} in the card, an answer in {shapes.language(other[0])!r}" if other else ""
