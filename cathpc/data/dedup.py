"""Exact and near-duplicates among records, out of core.

Exact: equal text up to Unicode form, case and white space. Near: the prompt side (system and user turns) and the answer
side (assistant turns) each have a Jaccard similarity of word 5-grams of at least the threshold; both must, so that one
prompt answered by several models, or one curt answer to several prompts, is no duplicate. MinHash signatures (Broder
1997), by `rensa`, cut into bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3) find the candidates;
similarity itself is then computed exactly, on 64-bit hashes of the grams.

The bands lie in files, one a band, 8 bytes a record: a band is sorted, and what stands beside each other with one value
is a pair of candidates. Pairs go to files by their later record, and one such file is looked through at a time. Memory:
some 30 bytes a record while a band is sorted. Time: n log n in the number of records, and each record is held against
at most two others a band.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rensa import RMinHash

from cathpc.data.words import MULTIPLIER, normalise, rolling, spaced
from cathpc.record import Message

PERMUTATIONS = 128
_SEED = 1
_NGRAM = 5
_RECALL = 0.99
"""Share of the pairs exactly at the threshold that the bands must find."""
_SIDES = np.array([0x5851F42D4C957F2D, 0x14057B7EF767814F], np.uint64)
"""What tells grams of the prompt side from those of the answer side in one signature."""
_PART = 1 << 18
"""Records whose pairs share a file."""


def exact_key(messages: list[Message]) -> int:
    """64 bits that are equal for conversations with the same normalised turns."""
    text = "\n".join(f"{m['role']} {normalise(m['content'])}" for m in messages)  # normalised text has no line ends
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def grams(conversations: Sequence[list[Message]]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of word 5-grams, uint64, and how many each side has, int64 [2 x conversations].

    Each conversation has a prompt side (system and user turns) and, after it, an answer side; a text of fewer words is
    one gram.
    """
    sides = [
        " ".join(m["content"] for m in c if (m["role"] == "assistant") == w) for c in conversations for w in (0, 1)
    ]
    found = spaced([normalise(text) for text in sides])
    padded = np.maximum(found.counts, _NGRAM)
    words = np.zeros(int(padded.sum()), np.uint64)
    shift = (np.cumsum(padded) - padded) - (np.cumsum(found.counts) - found.counts)
    words[np.arange(len(found.hashes)) + np.repeat(shift, found.counts)] = found.hashes
    side = np.repeat(np.arange(len(sides)), padded)
    within = side[: len(side) - _NGRAM + 1] == side[_NGRAM - 1 :]
    return rolling(words, _NGRAM)[within], padded - _NGRAM + 1


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
    found, counts = grams(conversations)
    flat = found ^ np.repeat(np.resize(_SIDES, len(counts)), counts)
    offsets = np.concatenate([[0], np.cumsum(counts)[1::2]]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, _SEED)
    rows = np.array(matrix.to_rows(), np.uint64).reshape(len(conversations), PERMUTATIONS)
    count = bands(threshold)
    values = np.full((len(conversations), count), np.arange(count), np.uint64)
    for place in range(PERMUTATIONS // count):
        values = (values ^ rows[:, place :: PERMUTATIONS // count]) * MULTIPLIER
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

        @lru_cache(maxsize=512)
        def sides(rank: int) -> list[np.ndarray]:
            found, counts = grams([messages(int(order[rank]))])
            return [np.unique(side) for side in np.split(found, counts[:1])]

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
