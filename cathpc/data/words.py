"""Hashes of words and of runs of words, for many texts at once and without a Python object a word.

In: texts. Out: 64-bit hashes, the same on every machine. A word's hash is a polynomial of its UTF-8 bytes modulo 2^64
(Karp and Rabin 1987), mixed; that of n words in a row is a polynomial of theirs. Time: some 10 ns a byte; memory: some
60 bytes a byte of text, so that callers give a block at a time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number of well-mixed bits: the golden ratio's."""
_SPACED = np.array([byte > 32 for byte in range(256)])
_ALPHANUMERIC = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
_NOT_WORDS = re.compile(r"\W+")
_powers: np.ndarray = np.full(1, MULTIPLIER)


@dataclass(frozen=True)
class Hashed:
    """The words of some texts, one text after the other."""

    data: np.ndarray
    """uint8: the texts as UTF-8."""
    hashes: np.ndarray
    """uint64 [words]."""
    counts: np.ndarray
    """int64 [texts]: words of each."""
    starts: np.ndarray
    """int64 [words]: places in `data`."""
    ends: np.ndarray

    def words(self, first: int, last: int) -> str:
        """The text from one word to another, both included."""
        return bytes(self.data[self.starts[first] : self.ends[last]]).decode("utf-8", "replace")


def normalise(text: str) -> str:
    """Text as duplicates are compared: NFKC, case-folded, runs of white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def spaced(texts: Sequence[str]) -> Hashed:
    """Words as white space parts them, of normalised texts: 'x - y' is another text than 'x + y'."""
    return _hashed(texts, _SPACED)


def alphanumeric(texts: Sequence[str]) -> Hashed:
    """Words of letters and digits, case-folded; punctuation and signs are none."""
    return _hashed([_plain(text.casefold()) for text in texts], _ALPHANUMERIC)


def _plain(text: str) -> str:
    return text if text.isascii() else _NOT_WORDS.sub(" ", text)


def _hashed(texts: Sequence[str], word_bytes: np.ndarray) -> Hashed:
    parts = [text.encode("utf-8", "replace") + b" " for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    inside = word_bytes[data]
    edges = np.flatnonzero(np.diff(inside, prepend=False)) if len(data) else np.zeros(0, np.int64)
    starts, ends = edges[::2], edges[1::2]  # the last byte is a space: every word ends
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths
    place = np.arange(int(lengths.sum())) - np.repeat(first, lengths)
    values = data[inside].astype(np.uint64) * _power(int(lengths.max(initial=0)))[place]
    hashes = np.add.reduceat(values, first) if len(first) else np.zeros(0, np.uint64)
    hashes = (hashes ^ (hashes >> np.uint64(31))) * MULTIPLIER
    bounds = np.searchsorted(starts, np.cumsum([0, *map(len, parts)]))
    return Hashed(data, hashes ^ (hashes >> np.uint64(29)), np.diff(bounds), starts, ends)


def _power(longest: int) -> np.ndarray:
    """MULTIPLIER ** (place + 1) for places in the longest word."""
    global _powers
    if len(_powers) < longest:
        _powers = np.cumprod(np.full(2 * longest, MULTIPLIER))
    return _powers


def rolling(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n words in a row, uint64 [max(0, words - n + 1)], of hashes of words."""
    found = np.zeros(max(0, len(hashes) - n + 1), np.uint64)
    for place in range(n):
        found = found * MULTIPLIER + hashes[place : place + len(found)]
    return found
