"""A model behind an endpoint that speaks OpenAI's protocol, as `chat` talks to it; needs no torch.

In: a base URL, a model's name, a key. Out: answers, a piece at a time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cathpc.errors import UserError

if TYPE_CHECKING:
    pass


def secret(variable: str) -> str:
    """The key in an environment variable; '' where it is not set. Raises `UserError` for one that no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} holds a key with characters that no key has")
    return key


def beside(url: str) -> bool:
    """Whether the endpoint is on this machine, where no proxy is in between."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
