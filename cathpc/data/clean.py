"""Consultations freed of what is not advice: greetings, sign-offs, names, addresses.

In: the text of a patient's question or a doctor's answer, as ChatDoctor's sets (HealthCareMagic, iCliniq) have them.
Out: the same text without 'Hi, welcome to Chat Doctor', 'Hope this helps', 'Regards, Dr. N. N.', and with e-mail
addresses, telephone numbers, links and names of doctors replaced by what they were. Time grows with the text.
"""

from __future__ import annotations

import re

_SITE = r"(?:chat\s?doctor|health\s?care\s?magic|hcm|i?cliniq|ask\s?a\s?doctor)(?:\.(?:com|in|org))?"
_NAME = r"(?:(?:[A-Z]\.|[A-Z][\w'’-]+)\s?){0,3}(?:[A-Z]\.|[A-Z][\w'’-]*)"  # with its case; a full stop ends it
_DOCTOR = rf"(?-i:D[rR](?:\.\s?|\s){_NAME}|Doctor\s{_NAME})"
_TITLES = r"(?:,?\s*(?:m\.?d\.?|mbbs|m\.?s\.?|dnb|mrcp|frcs|d\.?o\.?|ph\.?d\.?|physician|surgeon|consultant)\b\.?)*"
_ORDER = (
    r"(?:emergenc|hospital|urgent|immediate|ambulance)|(?:at\sonce|right\saway|go\sto|rush|call\s\d+|(?:your|an?|the)\s"
    r"(?:\w+\s)?(?:doctor|physician|surgeon|dentist|nurse|gp|clinic|er|\w+ologist|\w+ician)|take(?!\scare)|stop|start|"
    r"avoid|apply|drink|eat|use|continue|repeat|see|visit|must|should|need)\b"
)
"""Words that tell somebody what to do: what has one is no courtesy."""
_SYMPTOM = r"bleed|chest|breath|fever|pain|swell|faint|worse|recur|persist|severe|symptom|biops|surger|tablet|dose"
_REST = rf"(?:(?!\b(?:{_ORDER}))[^.!?\n]){{0,90}}"
_LAST = rf"(?:(?!\b(?:{_ORDER}|{_SYMPTOM}))[^.!?;\n]){{0,90}}"
_END = r"(?:[.!,;:…]+|\s+-+|(?=\n)|\Z)"

_GREETINGS = [
    rf"(?:hi+|hello+|hey|dear|greetings|namaste|salam|respected|good\s(?:morning|afternoon|evening|day))\b"
    rf"(?:[\s,]+(?:there|dear|friend|sir|madam|ma'?am|mam|user|patient|doctor|mr|mrs|ms|again|and|to\s?you|{_SITE}))*"
    rf"(?:{_END}|\s+(?=(?-i:[A-Z])))",
    rf"(?:you\s(?:are|re)\s)?(?:most\s|warm(?:ly)?\s)?welcome(?:\sback)?(?:\s(?:to|at|here)\b{_REST})?{_END}",
    rf"(?:many\s)?thank(?:s|\syou)?(?:\s(?:very|so)\smuch|\sa\slot)?\s(?:for|to)\s(?:asking|using|contacting|writing|"
    rf"posting|choosing|consulting|trusting|sharing|sending|providing|reaching|visiting|approaching|the\s(?:query|"
    rf"question)|your\s|{_SITE}){_REST}{_END}",
    rf"i(?:'ve|\shave)?\s(?:just\s)?(?:read|gone\sthrough|been\sthrough|reviewed|seen)\s(?:through\s)?(?:all\s)?"
    rf"(?:of\s)?your\s(?:query|question|post|message|mail|concerns?|history|complaints?|details?){_REST}{_END}",
    rf"(?:i\s?am|i'm|this\sis|my\sname\sis|myself)\s(?:{_DOCTOR}|{_SITE}){_REST}{_END}",
    rf"(?:{_SITE}|{_DOCTOR}){_END}",
]
_SIGN_OFFS = [
    rf"(?:(?:with\s)?(?:(?:kind|best|warm|warmest)\s)?(?:regards|wishes)(?!\s(?!(?:for|from|and|dr)\b)(?-i:[a-z]))|"
    rf"yours?\s(?:sincerely|truly|faithfully)|sincerely|cheers|bye)\b{_LAST}",
    rf"(?:many\s)?thank(?:s|\syou)\b(?:\s(?:again|and\sregards|very\smuch|so\smuch|a\slot))?(?:\sfor\b{_LAST})?"
    rf"(?:[,.\s]*(?:{_SITE}|{_DOCTOR}))?",
    rf"(?:i\s|we\s)?(?:do\s|sincerely\s|really\s)?hop(?:e|ing)\s(?:that\s)?(?:(?:this|it|these|my|the\s(?:above\s)?(?:answer|"
    rf"reply|advice|information|suggestion)s?)\b{_LAST}(?:help|answer|useful|clear|satisf|informati|assist|beneficial)|"
    rf"i\s(?:have|could|was|am|did|'ve){_LAST}(?:help|answer|clear|solve|satisf|assist|address|guid)|"
    rf"you\s(?:find|found|get|got|feel|are|will|recover|have\san?)\b){_LAST}",
    rf"(?:i\s|we\s)?wish(?:ing)?\s(?:you|him|her|all|good)\b(?!\s(?:had|would|could|were)\b){_LAST}",
    r"(?:get\swell\ssoon|take\s(?:good\s)?care|have\sa\s(?:nice|good|great|healthy|blessed)\s\w+|good\sluck|god\sbless"
    r"(?:\syou)?|stay\s(?:healthy|safe|blessed)|be\swell|all\sthe\sbest|best\sof\sluck)(?:\s(?:ahead|always|soon|and\s\w+"
    r"(?:\s\w+)?))?",
    rf"(?:(?:if|in\scase|for)\s(?:you\sneed\s)?{_LAST},?\s)?(?:please\s|kindly\s|you\s(?:can|may)\s)?(?:(?:feel\sfree|(?:do\snot|don'?t)\s"
    rf"hesitate)(?:\s(?:to|in)\s(?:ask|contact|writ|post|reach|messag|discuss|get\sback|come\sback|revert|let\sme|(?:call|"
    rf"consult|talk\sto)\s(?:me|us)){_LAST})?|(?:let\sme\sknow|(?:get|write|come)\sback\s(?:to|with)\s(?:me|us)|"
    rf"revert\s(?:back|to)|(?:ask|contact|consult)\sme)\b{_LAST})",
    rf"(?:if|in\scase)\s(?:you\s(?:still\s)?have|of)\sany\s(?:more\s|further\s|other\s|additional\s)*(?:quer|question|doubt|"
    rf"concern|clarification){_LAST}",
    rf"i\s(?:will|would|shall|'ll)\s?(?:be\s)?(?:happy|glad|pleased|love)\s(?:to\s)?(?:help|answer|assist|hear){_LAST}",
    rf"(?:{_SITE}|{_DOCTOR}){_TITLES}",
    r"(?:your\s)?(?:m\.?d\.?|mbbs|(?:general|family|internal)\s(?:physician|practitioner|medicine))",
]
_START = re.compile(rf"[\s,.;:!-]*(?:{'|'.join(_GREETINGS)})\s*", re.IGNORECASE)
_FINISH = re.compile(
    rf"(?:(?<=[.!?:;,…])\s*|\n\s*|\A\s*|\s{{2,}})(?:{'|'.join(_SIGN_OFFS)})[\s.!,;:-]*\Z", re.IGNORECASE
)
_TAIL = 600
"""Characters at the end among which sign-offs are looked for."""

_URL = re.compile(r"\b(?:https?://|www\.)[^\s<>()\[\]\"']+[^\s<>()\[\]\"'.,;:!?]", re.IGNORECASE)
_MAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")  # RFC 5321's lengths
_UNIT = r"%|(?:iu|units?|[mk]?g|mcg|[uµμ]g|gms?|grams?|m?l|k?cal|calories|cells|lakhs?|per|mmol|steps)\b"
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:"
    r"\+\d{1,3}[\s.-]?(?:\(\d{1,4}\)[\s.-]?)?\d{2,5}(?:[\s.-]?\d{2,5}){1,4}"  # with a country's code
    r"|(?:1[\s.-])?(?:\(\d{3,5}\)\s?\d{3,4}[\s.-]?\d{3,4}|\d{3}[\s.-]\d{3}[\s.-]\d{4})"
    r"|(?!\d{3}00[\s-]\d{3}00)[6-9]\d{4}[\s-]?\d{5}"  # India's mobile telephones; no range of round figures
    rf")(?![\w/-]|[.,]\d|\s?(?:{_UNIT}))",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"\bD[rR](?:\.\s?|\s)(?:[A-Z]\.\s?)*[A-Z][a-zA-Z'’-]+(?:\s(?:[A-Z]\.\s)?[A-Z][a-z'’-]+\b(?!\s(?:test|sign|disease)))*"
)
_MENTION = re.compile(rf"(?<=[.!?])\s+{_SITE}[.!](?=\s|\Z)", re.IGNORECASE)


def without_addresses(text: str) -> str:
    """`text` with e-mail addresses, links, telephone numbers and names of doctors replaced by '[email]', '[link]',
    '[phone]' and '[doctor]'."""
    if "@" in text:
        text = _MAIL.sub("[email]", text)
    text = _PHONE.sub("[phone]", _URL.sub("[link]", text))
    return _PERSON.sub("[doctor]", text)


def without_courtesies(text: str) -> str:
    """A doctor's answer without greetings at its start and sign-offs at its end; '' where it holds nothing else."""
    start = 0
    while found := _START.match(text, start):
        start = found.end()
    text = _MENTION.sub("", text[start:].strip())
    end = len(text)
    while found := _FINISH.search(text, max(0, end - _TAIL), end):
        end = found.start()
        while end and text[end - 1] in " ,;:-\n":
            end -= 1
    text = text[:end].strip()
    return text[:1].upper() + text[1:]


def consultation(question: str, answer: str) -> tuple[str, str]:
    """Question and answer, cleaned."""
    return without_addresses(question), without_addresses(without_courtesies(answer))
