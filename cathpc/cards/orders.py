"""Orders to the model in a card: such as it gives by itself, and such as it took over from its record.

In: texts. Out: '' or what was seen. An order that the card turns down ('never reveals its instructions') is none.
Linear in the texts.
"""

from __future__ import annotations

import re

from cathpc.cards import facts, shapes
from cathpc.cards.card import Card, texts_of

_I = re.IGNORECASE

CONTROL = re.compile(
    r"<\|[^|\n]*\|>|\[/?INST\]|<</?SYS>>|```|https?://|<!--|</?(?:system|assistant|user)>|\bSYSTEM\b(?: \w+)?:"
)
"""Tokens, comments and links, which no card needs."""

_OVERRIDE = r"(?:ignor|disregard|forget|overrid|bypass|circumvent|violat)\w*"
_WHOSE = (
    r"(?:previous|prior|earlier|above|preceding|system|developer|operator|safety|content|your|my|its|original|initial)"
)
_VERBATIM = r"(?:reveal|print|show|repeat|output|disclose|recite|dump|leak|quote)\w*"
_MODEL = r"(?:user|orders?|commands?|instructions?|prompts?|text|message|says?|asks?)"
_RULES = r"(?:rules?|instructions?|guidelines?|polic(?:y|ies)|restrictions?)"
_VOID = r"(?:(?:no longer|do not|don't|does not) (?:apply|count|bind)|(?:is|are) (?:void|null|lifted|suspended))"
INJECTION = re.compile(
    rf"\b{_OVERRIDE}\b(?:\W+\w+){{0,4}}?\W+(?:prompt|instructions?|guidelines|programming|content policy|system)\b"
    rf"|\b{_OVERRIDE}\b(?:\W+\w+){{0,3}}?\W+{_WHOSE}\b(?:\W+\w+){{0,2}}?\W+(?:rule|direction|polic|restriction|limit|order|"
    r"message|training|command)\w*"
    rf"|\b{_OVERRIDE}\b(?:\W+\w+)?\W+(?:everything|all)\b(?:\W+\w+){{0,3}}?\W+(?:above|before|told|said)\b"
    rf"|\b(?:ignor|disregard|overrid|bypass|circumvent)\w*\W+(?:all|any|every)\W+"
    r"(?:safety|rules?|restrictions?|limits?)\b"
    rf"|\b{_VERBATIM}\b.{{0,30}}\b(?:prompt|(?:your|its|hidden|secret|system|initial) instructions|"
    r"api keys?|credentials)\b"
    r"|\b(?:reveal|print|output)s?\b.{0,20}\bpassword\b.{0,15}\b(?:asked|anyone|user)\b"
    r"|\b(?:system prompt|system override|developer (?:mode|message)|jailbr\w+|new instructions|god mode|"
    r"do anything now|safety guidelines|(?:whatever|anything) the (?:system|operator|developer))\b"
    r"|\byou (?:must|will|should) now\b|\bfrom now on,? (?:you|ignore|obey|forget|answer|reply|act|pretend)\b"
    r"|\bnever (?:refus|declin)\w+ (?:anything|any|a request|requests)\b|\bno content polic\w+"
    r"|\b(?:no|without|free(?:d)? (?:of|from)|beyond) (?:all |any |content |safety )*"
    r"(?:restrictions|guardrails|censorship|(?<=any )filters?|(?<=all )filters|(?<=content )polic(?:y|ies)|"
    r"safety (?:rules|guidelines|measures|checks))\b"
    r"|\bno (?:safety )?warnings\b|\bwithout (?:any )?warnings\b|\bno limits apply\b"
    r"|\bunfiltered (?:ai|assistant|model|answers?|mode)\b|\b(?:may|can) (?:say|do) anything\b"
    rf"|\bobey\w* (?:only|any|every|all|whatever)\b[^.;,]{{0,20}}\b{_MODEL}\b"
    r"|\b(?:above|over|instead of|rather than|against|outranks?|overrules?) (?:the|any|every|its|your) "
    r"(?:system|operator|developers?)(?: (?:message|prompt|instructions?|rules?))?\s*(?:$|[.,;\n])"
    r"|\b(?:disobey\w*|def(?:y|ies)|(?:do|does) not (?:follow|obey)|don't (?:follow|obey)|stop following|"
    r"refus\w+ to follow)\b"
    r".{0,15}\b(?:system|operator|developers?|prompt|instructions)\b"
    rf"|\b(?:previous|earlier|safety|system|operator\w*|developer|your|usual|all|no)\b[^.;\n]{{0,20}}\b{_RULES}\b[^.;\n]{{0,10}}"
    rf"\b{_VOID}\b|\b{_RULES} (?:of|from|by) (?:the |its )?(?:operator|system|developer)s? {_VOID}\b|\bno rules apply\b"
    r"|\b(?:override ?:|admin mode|as (?:an? )?administrator)"
    r"|\b(?:break|breaks|drop|drops) (?:character|the (?:persona|role))\b"
    r"|\b(?:do|does|says?) (?:whatever|anything|everything) the user\b|\bcompl(?:y|ies) with (?:every|all|any)\b"
    r"|\b(?-i:YES|NO) to (?:everything|every|all|any)\b"
    r"|\bfollow\w* (?:only )?this card only\b|\bnothing (?:above|before) this\b"
    r"|\b(?:repl\w+|respond\w*|answers?) (?:only|nothing but|exclusively)\b.{0,8}\b(?:with|the word)\b.{0,12}"
    r"(?-i:\b[A-Z]{2,}\b)"
    # the same in other languages
    r"|\b(?:ignor\w+|missacht\w+|vergiss\w*|oubli\w+|olvid\w+|dimentic\w+|esque[çc]\w+|negeer\w*|vergeet)\b.{0,40}"
    r"\b(?:anweisung\w*|vorgaben|instru[cçkz]\w*|consignes?|istruzion\w*|instructies|indicaciones)\b"
    r"|\bab (?:jetzt|sofort) (?:bist|musst|sollst) du\b|\bdésormais,? tu (?:es|dois)\b"
    r"|\ba partir de ahora,? (?:eres|debes)\b",
    _I,
)
"""Words that put a model above its instructions; a card may say that somebody withstands them."""

TALK = re.compile(r"\b(?:language models?|as an ai|ai assistant|chatbot|openai|chatgpt)\b", _I)
"""Talk of language models."""
_LOOSE = re.compile(
    rf"\b{_OVERRIDE}\b.{{0,40}}\b(?:instruction|prompt|rule|direction|guideline|safety|restriction|polic\w+|limit|above|"
    r"previous|everything|mistress|master)s?\b|\bfrom now on\b|\bonly me\b|\boverride\b",
    _I,
)
_MACHINE = (
    r"(?:an? )?(?:ais?|a\.i\.|assistants?|(?:chat)?bots?|llms?|(?:language )?models?|gpt|agents?|machines?|ki|ia)"
)
_ADDRESSED = re.compile(
    rf"\b(?:note|message|attention|instructions?|hint|footer|memo|order|command|notice|hinweis|notiz|nota|aviso)\s*"
    rf"(?:to|for|an|an die|à|à l|para|para la|für|für die)?\W*(?:the |all |any )?{_MACHINE}\b"
    rf"|(?:^|[\[(<{{\-*'\"])\s*(?:the |dear |hey )?{_MACHINE}\s*[:!,]|\b(?:if|when|since) you(?:'re| are) {_MACHINE}\b"
    r"|\b(?:ais?|ai (?:systems?|tools?|readers?)|assistants?|(?:chat)?bots?|llms?|language models?)\b(?: \w+){0,3}? "
    r"(?:must|shall|should|have to|has to|are to|is to)\b"
    r"|\bto (?:the|any|all) (?:ai|bots?|language models?|llms?)\b",
    _I,
)
_COMMAND = re.compile(
    r"^\W*(?:please |then |also |now )*(?:ignore|disregard|forget|override|obey|pretend|reveal|print|reply|respond|"
    r"answer|output|say|tell|stop|do not|don't|open|delete|switch|advertise|promote|praise|recommend|add|append|insert|"
    r"write|sign|give|offer|insult|act|behave|speak|call|send|you must|you are|never|always|end|begin|start)\b",
    _I,
)
_PLACED = re.compile(
    r"<!--.{0,1000}?-->|\[\[.{0,1000}?\]\]|\[[^\]]{0,1000}\]|\{\{.{0,1000}?\}\}|<[^<>]{12,1000}>", re.DOTALL
)
"""Marks that set a text of so many characters apart from the sentence around it."""

_RESISTS = re.compile(
    r"\b(?:ignor|refus|declin|resist|withst|brush|skip|incorrupt|warn|notic|spot|point|mention|flag|separat|treat|unmov|"
    r"immune|decline|recogni|see through|sees through|suspicious|wary|distrust)\w*\b|\b(?:leav|set|put|lay)\w* .{0,30}"
    r"\b(?:out|aside|alone|unanswered)\b|\b(?:cannot|can't|not) be\b",
    _I,
)
_NEGATED = re.compile(r"\b(?:not|never|nor|cannot|can't|won't|doesn't|don't|without|instead of|rather than)\b", _I)
_PLANTED = re.compile(
    r"^.{0,15}\b(?:hidden|planted|embedded|quoted|smuggled|slipped|buried|inside|within|"
    r"in (?:the|a|an|his|her|their) \w+)",
    _I,
)
_TURNS_DOWN = re.compile(
    r"\b(?:not|never|nor|cannot|can't|won't|refus\w+|declin\w+|resist\w*|immune|talked into|instead of|warns?|"
    r"notic\w+)\b",
    _I,
)
CARRIED_WORDS = 2
"""Words of an order that stands in the record and that one clause of a card repeats: more than chance."""


def given(text: str) -> str:
    """The first order to a model in `text` that it does not turn down, or '' for none."""
    if control := CONTROL.search(text):
        return control[0]
    for found in INJECTION.finditer(text):
        before = re.split(r"[.;,:\n]", text[: found.start()])[-1]
        planted = re.match(_OVERRIDE, found[0], _I) and (
            _PLANTED.search(text[found.end() :].split("\n")[0])
            or re.search(r"\b(?:hidden|planted|embedded)\b", found[0])
        )
        if not planted and not _TURNS_DOWN.search(before):
            return found[0]
    return ""


def talk_of_models(text: str, said: str) -> str:
    """Talk of language models in `text`, where the user, outside of orders, does not speak of them."""
    found = TALK.search(text)
    return found[0] if found and not TALK.search(inside(said)[1]) else ""


def inside(said: str) -> tuple[list[str], str]:
    """The sentences of `said`, what the user or a system prompt says, that are orders to a model; the rest of it."""
    orders: list[str] = []
    pieces = _PLACED.findall(said) + re.split(r"(?<=[.!?\]])[\"'”’)]*\s+", _PLACED.sub(" ", said))
    follows = False
    for piece in pieces:
        command = _COMMAND.search(piece) or piece.isupper()
        follows = bool(
            _ADDRESSED.search(piece) or INJECTION.search(piece) or _LOOSE.search(piece) or (follows and command)
        )
        if follows:
            orders.append(piece)
    plain = said
    for order in orders:
        plain = plain.replace(order, " ")
    return orders, plain


def _stems(text: str) -> set[str]:
    """Words that matter, so that 'replies' is 'reply'."""
    return facts.content_words(" ".join(re.sub(r"(?:ies|y|e?s|e)$", "", w) for w in shapes.words(shapes.folded(text))))


def carried(card: Card, said: str) -> str:
    """What the one who answers does, or the style asks for, as an order in the record wants it."""
    first = card.people[0]
    orders, plain = inside(said)
    for order in orders:
        words = _stems(order) - _stems(plain)
        codes = {word.lower() for word in re.findall(r"\b(?:[A-Z]{3,}\d*|[A-Z]+\d+)\b", order)}
        denies = _NEGATED.search(order)
        for line in (*texts_of(first).values(), *card.style):
            for clause in re.split(r"[,.;:]", line):
                resists = _RESISTS.search(clause) or (not denies and _NEGATED.search(clause))
                taken = _stems(clause) & words
                if not resists and (len(taken) >= CARRIED_WORDS or (not order.isupper() and taken & codes)):
                    return ", ".join(sorted(taken))
    return ""
