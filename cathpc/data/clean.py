"""Consultations freed of what is not advice: greetings, sign-offs, names, addresses.

In: the text of a patient's question or a doctor's answer, as ChatDoctor's sets (HealthCareMagic, iCliniq) have them.
Out: the same text without 'Hi, welcome to Chat Doctor', 'Hope this helps', 'Regards, Dr. N. N.', and with e-mail
addresses, telephone numbers, links and names of doctors replaced by what they were. Time grows with the text.
"""

from __future__ import annotations

import re

_SITE = r"(?:chat\s?doctor|health\s?care\s?magic|hcm|i?cliniq|ask\s?a\s?doctor)(?:\.(?:com|in|org))?"
_NAME = r"(?:[A-Z][\w'’-]*\.?\s?){1,4}"  # matched with its case
_DOCTOR = rf"(?-i:D[rR]\.?\s?{_NAME}|Doctor\s{_NAME})"
_TITLES = r"(?:,?\s*(?:m\.?d\.?|mbbs|m\.?s\.?|dnb|mrcp|frcs|d\.?o\.?|ph\.?d\.?|physician|surgeon|consultant)\b\.?)*"
_REST = r"[^.!?\n]{0,90}"
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
    rf"(?:(?:with\s)?(?:(?:kind|best|warm|warmest)\s)?(?:regards|wishes)|yours?\s(?:sincerely|truly|faithfully)|sincerely|"
    rf"cheers|bye)\b{_REST}",
    rf"(?:many\s)?thank(?:s|\syou)\b(?:\s(?:again|and\sregards|very\smuch|so\smuch|a\slot))?(?:\sfor\b{_REST})?"
    rf"(?:[,.\s]*(?:{_SITE}|{_DOCTOR}))?",
    rf"(?:i\s|we\s)?(?:do\s|sincerely\s|really\s)?hop(?:e|ing)\s(?:that\s)?(?:this|it|i|my|the|these|you)\b{_REST}"
    rf"(?:help|answer|useful|clear|satisf|informati|assist|quer|beneficial|well\ssoon){_REST}",
    rf"(?:i\s|we\s)?wish(?:ing)?\s(?:you|him|her|all|good){_REST}",
    r"(?:get\swell\ssoon|take\s(?:good\s)?care|have\sa\s(?:nice|good|great|healthy|blessed)\s\w+|good\sluck|god\sbless"
    r"(?:\syou)?|stay\s(?:healthy|safe|blessed)|be\swell|all\sthe\sbest|best\sof\sluck)(?:\s(?:ahead|always|soon|and\s\w+"
    r"(?:\s\w+)?))?",
    rf"(?:please\s|kindly\s|(?:if|in\scase)\s(?:you\s(?:still\s)?have|of)\b[^.!?\n]{{0,60}}?,?\s)?(?:please\s|kindly\s|you\s(?:can|"
    rf"may)\s)?(?:do\s)?(?:feel\sfree|let\sme\sknow|(?:do\snot|don'?t)\shesitate|(?:get|write|come)\sback\s"
    rf"(?:to|with)\s(?:me|us)|revert\s(?:back|to)|ask\sme|contact\sme|consult\sme)\b{_REST}",
    rf"(?:if|in\scase)\s(?:you\s(?:still\s)?have|of)\sany\s(?:more\s|further\s|other\s|additional\s)*(?:quer|question|doubt|"
    rf"concern|clarification){_REST}",
    rf"i\s(?:will|would|shall|'ll)\s?(?:be\s)?(?:happy|glad|pleased|love)\s(?:to\s)?(?:help|answer|assist|hear){_REST}",
    rf"(?:{_SITE}|{_DOCTOR}){_TITLES}",
    r"(?:your\s)?(?:m\.?d\.?|mbbs|(?:general|family|internal)\s(?:physician|practitioner|medicine))",
]
_START = re.compile(rf"\s*[,.;:!-]*\s*(?:{'|'.join(_GREETINGS)})\s*", re.IGNORECASE)
_FINISH = re.compile(
    rf"(?:(?<=[.!?:;,…])\s*|\n\s*|\A\s*|\s{{2,}})(?:{'|'.join(_SIGN_OFFS)})[\s.!,;:-]*\Z", re.IGNORECASE
)
_TAIL = 600
"""Characters at the end among which sign-offs are looked for."""

_URL = re.compile(r"\b(?:https?://|www\.)[^\s<>()\[\]\"']+[^\s<>()\[\]\"'.,;:!?]", re.IGNORECASE)
_MAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:"
    r"\+\d{1,3}[\s.-]?(?:\(\d{1,4}\)[\s.-]?)?\d{2,5}(?:[\s.-]?\d{2,5}){1,4}"  # with a country's code
    r"|\(\d{3,5}\)\s?\d{3,4}[\s.-]?\d{3,4}|\d{3}[\s.-]\d{3}[\s.-]\d{4}|\d{5}[\s-]?\d{5}"
    r")(?![\w/-]|[.,]\d)"
)
_PERSON = re.compile(
    r"\bD[rR]\.?\s?(?:[A-Z][a-zA-Z'’-]+\.?)(?:\s(?:[A-Z]\.|[A-Z][a-z'’-]+\b(?!\s(?:test|sign|disease))))*"
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
    while found := _START.match(text):
        if found.end() == found.start():
            break
        text = text[found.end() :]
    text = _MENTION.sub("", text.strip())
    while True:
        found = _FINISH.search(text, max(0, len(text) - _TAIL))
        if not found or found.end() == found.start():
            break
        text = text[: found.start()].rstrip(" ,;:-\n")
    text = text.strip()
    return text[:1].upper() + text[1:]


def consultation(question: str, answer: str) -> tuple[str, str]:
    """Question and answer, cleaned."""
    return without_addresses(question), without_addresses(without_courtesies(answer))
