"""Exact and near-duplicates among records.

Exact: equal text up to Unicode form, case and white space. Near: the prompt side (system and user turns) and the answer
side (assistant turns) each have a Jaccard similarity of word 5-grams of at least the threshold; both must, so that one
prompt answered by several models, or one curt answer to several prompts, is no duplicate. MinHash signatures and
locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3), by `rensa`,
find the candidates; similarity itself is then computed exactly. Memory: the index holds 1.7 KB a kept record.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from rensa import RMinHash, RMinHashLSH

from cathpc.record import Message

_PERMUTATIONS = 128
_SEED = 1
_NGRAM = 5
_RECALL = 0.99
"""Share of the pairs exactly at the threshold that the index must find."""


def normalise(text: str) -> str:
    """Text as duplicates are compared: NFKC, case-folded, runs of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_key(messages: list[Message]) -> bytes:
    """16 bytes that are equal for conversations with the same normalised turns."""
    digest = hashlib.sha256()
    for message in messages:
        part = f"{message['role']} {normalise(message['content'])}".encode()
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:16]


def grams(messages: list[Message]) -> tuple[frozenset[str], frozenset[str]]:
    """Word 5-grams of the prompt side and of the answer side; a shorter text is one gram."""
    sides = []
    for wanted in (False, True):
        texts = (m["content"] for m in messages if (m["role"] == "assistant") == wanted)
        words = normalise("\n".join(texts)).split()
        last = max(1, len(words) - _NGRAM + 1)
        sides.append(frozenset(" ".join(words[i : i + _NGRAM]) for i in range(last)))
    return sides[0], sides[1]


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / |a or b|."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if a or b else 1.0


def bands(threshold: float) -> int:
    """The fewest bands of the index (a power of 2) that find a pair at `threshold` with the probability `_RECALL`."""
    count = 1
    while count < _PERMUTATIONS and 1 - (1 - threshold ** (_PERMUTATIONS // count)) ** count < _RECALL:
        count *= 2
    return count


def near_duplicates(
    numbers: Iterable[int], messages: Callable[[int], list[Message]], threshold: float
) -> Iterator[tuple[int, int]]:
    """Pairs (record, the earlier kept record that it repeats), in one pass over `numbers` in their order.

    A record that repeats a kept one is not kept itself, so a chain of small changes does not swallow what differs.
    `messages(number)` fetches a conversation; candidates are fetched again rather than held.
    """
    index = RMinHashLSH(threshold, _PERMUTATIONS, bands(threshold))
    for number in numbers:
        prompt, answer = grams(messages(number))
        signature = RMinHash(_PERMUTATIONS, _SEED)
        signature.update([f"p {g}" for g in prompt] + [f"a {g}" for g in answer])
        for candidate in sorted(index.query(signature)):
            other_prompt, other_answer = grams(messages(candidate))
            if jaccard(answer, other_answer) >= threshold and jaccard(prompt, other_prompt) >= threshold:
                yield number, candidate
                break
        else:
            index.insert(number, signature)
