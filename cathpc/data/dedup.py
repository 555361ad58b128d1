"""Exact and near-duplicates among records, out of core.

Exact: equal text up to Unicode form, case and white space. Near: the prompt side (system and user turns) and the answer
side (assistant turns) each have a Jaccard similarity of word 5-grams of at least the threshold; both must, so that one
prompt answered by several models, or one curt answer to several prompts, is no duplicate. MinHash signatures (Broder
1997), by `rensa`, cut into bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3) find the candidates;
similarity itself is then computed exactly, on 64-bit hashes of the grams.

The bands lie in files, one a band, 8 bytes a record: a band is sorted, and what stands beside each other with one value
is a pair of candidates. Pairs go to files by their later record, and one such file is looked through at a time. Memory:
some 30 bytes a record while a band is sorted. Time: n log n in the number of records, and each record is held against
at most two others a band."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rensa import RMinHash

from cathpc.record import Message

PERMUTATIONS = 128
_SEED = 1
_NGRAM = 5
_RECALL = 0.99
"""Share of the pairs exactly at the threshold that the bands must find."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number of well-mixed bits (the golden ratio's) for polynomial hashes modulo 2^64."""
_SIDES = (np.uint64(0x5851F42D4C957F2D), np.uint64(0x14057B7EF767814F))
"""What tells grams of the prompt side from those of the answer side in one signature."""
_PART = 1 << 18
"""Records whose pairs share a file."""
_MOST_WORDS = 1 << 19


class Words(dict[str, int]):
    """Word -> 64-bit hash, the same in every process; it forgets all when it is full."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = value
        return value

    def hashes(self, words: Sequence[str]) -> np.ndarray:
        """uint64 [words]."""
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


_words = Words()


def normalise(text: str) -> str:
    """Text as duplicates are compared: NFKC, case-folded, runs of white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def exact_key(messages: list[Message]) -> int:
    """64 bits that are equal for conversations with the same normalised turns."""
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        part = f"{message['role']} {normalise(message['content'])}".encode()
        digest.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(digest.digest(), "little")


def rolling(hashes: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hashes of all n-grams, uint64 [len - n + 1], of word hashes, uint64 [len >= n]."""
    found = np.zeros(len(hashes) - n + 1, np.uint64)
    for place in range(n):
        found = found * _MULTIPLIER + hashes[place : place + len(found)]
    return found


def grams(messages: list[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the word 5-grams of the prompt side and of the answer side; a shorter text is one gram."""
    sides = []
    for wanted in (False, True):
        texts = (m["content"] for m in messages if (m["role"] == "assistant") == wanted)
        words = _words.hashes(normalise("\n".join(texts)).split())
        if len(words) < _NGRAM:
            words = np.concatenate([words, np.zeros(_NGRAM - len(words), np.uint64)])
        sides.append(rolling(words, _NGRAM))
    return sides[0], sides[1]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two sorted arrays without repetition."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both) if len(a) or len(b) else 1.0


def bands(threshold: float) -> int:
    """The fewest bands (a power of 2) that find a pair at `threshold` with the probability `_RECALL`."""
    count = 1
    while count < PERMUTATIONS // 2 and 1 - (1 - threshold ** (PERMUTATIONS // count)) ** count < _RECALL:
        count *= 2
    return count


def signatures(conversations: Sequence[list[Message]], threshold: float) -> np.ndarray:
    """Band values, uint64 [records, bands], of the union of both sides' grams.

    Two sides that are each similar at a threshold are so together; equal values in any band make two records
    candidates.
    """
    sets = [[side ^ salt for side, salt in zip(grams(c), _SIDES, strict=True)] for c in conversations]
    lengths = [sum(map(len, sides)) for sides in sets]
    flat = np.concatenate([side for sides in sets for side in sides]) if sets else np.zeros(0, np.uint64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, _SEED)
    rows = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), PERMUTATIONS)
    count = bands(threshold)
    values = np.full((len(sets), count), np.arange(count), np.uint64)
    for place in range(PERMUTATIONS // count):
        values = (values ^ rows[:, place :: PERMUTATIONS // count]) * _MULTIPLIER
        values ^= values >> np.uint64(29)
    return values


class Bands:
    """Files of band values, one a band, to which batches of records are appended."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self._paths = [folder / f"band-{number:03d}" for number in range(bands(threshold))]
        self._files: list[BinaryIO] = [path.open("wb", buffering=1 << 16) for path in self._paths]

    def add(self, values: np.ndarray) -> None:
        """Append the values, uint64 [records, bands], of the next records."""
        for file, column in zip(self._files, np.ascontiguousarray(values.T), strict=True):
            file.write(column.data)

    def close(self) -> None:
        """End the writing."""
        for file in self._files:
            file.close()

    def near_duplicates(
        self, order: np.ndarray, messages: Callable[[int], list[Message]], threshold: float
    ) -> Iterator[tuple[int, int]]:
        """Pairs (record, the kept record that it repeats); `order` holds the numbers of records, the preferred first.

        A record that repeats a kept one is not kept itself, so a chain of small changes does not swallow what differs.
        `messages(number)` fetches a conversation.
        """
        paths = self._pairs(order)

        @lru_cache(maxsize=4096)
        def sides(rank: int) -> list[np.ndarray]:
            return [np.unique(side) for side in grams(messages(int(order[rank])))]

        kept_for = np.full(len(order), -1, np.int32)  # of a dropped record: the rank of what it repeats
        for path in paths:
            for rank, candidates in _grouped(np.unique(np.fromfile(path, np.uint64))):
                earlier = {c if kept_for[c] < 0 else int(kept_for[c]) for c in candidates}
                for other in sorted(earlier):
                    pairs = zip(sides(rank)[::-1], sides(other)[::-1], strict=True)
                    if all(_may_reach(a, b, threshold) and jaccard(a, b) >= threshold for a, b in pairs):
                        kept_for[rank] = other
                        yield int(order[rank]), int(order[other])
                        break
            path.unlink()

    def _pairs(self, order: np.ndarray) -> list[Path]:
        """Files of candidate pairs, (later rank << 32 | earlier rank), in the order of the later one: each record with
        the first of its value and with the one right before it, in every band."""
        folder = self._paths[0].parent
        paths = [folder / f"pairs-{number:03d}" for number in range(-(-len(order) // _PART))]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb", buffering=1 << 16)) for path in paths]
            for path in self._paths:
                values = np.fromfile(path, np.uint64)[order]
                path.unlink()
                ranks = np.argsort(values, kind="stable")
                values = values[ranks]
                same = values[1:] == values[:-1]
                place = np.flatnonzero(same) + 1
                if not len(place):
                    continue
                starts = np.flatnonzero(np.concatenate([[True], ~same]))
                first = ranks[starts[np.searchsorted(starts, place, side="right") - 1]]
                later = ranks[place].astype(np.uint64) << np.uint64(32)
                for earlier in (first, ranks[place - 1]):
                    pairs = np.unique(later | earlier.astype(np.uint64))
                    bounds = np.searchsorted(pairs, np.arange(len(files) + 1, dtype=np.uint64) * np.uint64(_PART << 32))
                    for file, low, high in zip(files, bounds, bounds[1:], strict=False):
                        file.write(pairs[low:high].data)
        return paths


def _grouped(pairs: np.ndarray) -> Iterable[tuple[int, list[int]]]:
    """(later, [earlier ...]) of sorted pairs."""
    later, earlier = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    starts = np.flatnonzero(np.diff(later, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(later)]):
        yield int(later[start]), earlier[start:end].tolist()


def _may_reach(a: np.ndarray, b: np.ndarray, threshold: float) -> bool:
    """Whether sets of these sizes can be that similar."""
    return min(len(a), len(b)) >= threshold * max(len(a), len(b))
