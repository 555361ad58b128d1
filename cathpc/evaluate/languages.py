"""The language of an answer, however short: told among the few that are in question.

In: a text, the language wanted, the user's. Out: whether it is written in the one wanted. Among all languages that
py3langid knows a greeting of two words may be in any; among three it is not. A text that is plainly in another one of
`COMMON` is in none of the three. Linear in the text; the model is loaded once.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from cathpc.cards import shapes

COMMON = frozenset({"da", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "ru", "sv", "tr"})
SPOKEN = frozenset({"de", "en", "es", "fr"})
"""What an answer is likely to be in where English is wanted and nothing is said of the user's language."""
PLAIN = 0.8
"""From this probability among `COMMON` a text is plainly in that language."""
SHORT = {2: 0.92, 3: 0.6, 4: 0.6, 5: 0.6}
"""The least probability of a text of so few words."""


@cache
def _whole() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _among(codes: frozenset[str]) -> Any:
    identifier = copy.copy(_whole())  # shares the tables; `set_languages` replaces those that it cuts
    identifier.set_languages(sorted(codes))
    return identifier


def known(code: str) -> bool:
    """Whether the identifier knows a language."""
    return code in COMMON or code in _whole().labels


def written_in(text: str, code: str, user: str, least: float) -> bool:
    """Whether `text`, of two words or more, is in `code` rather than in English or in `user` ('' for none)."""
    count = len(shapes.words(text))
    if count < 2:
        return False
    rivals = {user} if user else SPOKEN if code == "en" else set()
    found, probability = _among(frozenset({code, "en", *rivals})).classify(text)
    if found != code or probability < max(least, SHORT.get(count, 0.0)):
        return False
    other, plainly = _among(COMMON | {code}).classify(text)
    return bool(other == code or plainly < PLAIN)
