"""Records that share text with an evaluation set.

In: evaluation sets (files of rows, whatever their columns are called) and conversations. Out: which conversations have
a run of words in common with a text of a set, and with which one. Two texts share a run when 13 words in a row are
equal up to case and punctuation (Brown et al. 2020, Language Models are Few-Shot Learners, appendix C); of a shorter
text of 8 words or more all words count as its run, and what is still shorter says too little. A language that puts no
spaces between words has no runs. Time grows with the text; memory with the evaluation sets, by 12 bytes a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cathpc.data.files import blocks
from cathpc.data.formats import Reject
from cathpc.data.read import rows
from cathpc.data.words import MULTIPLIER, alphanumeric, rolling
from cathpc.errors import UserError
from cathpc.record import Message

LONGEST, SHORTEST = 13, 8
_BITS = np.uint64(42)
"""The 22 bits above are a place in a table that rules nearly all runs out at once."""
_LARGEST_ROW = 64_000_000


def build(sets: dict[str, Path], file: Path) -> int:
    """Write the runs of the evaluation sets (name -> file) to `file`, an .npz; their number.

    Raises `UserError` for a set that cannot be read or that holds no text of 8 words.
    """
    hashes: list[np.ndarray] = []
    places: list[np.ndarray] = []
    names: list[str] = []
    for name, path in sets.items():
        before = len(hashes)
        for block in blocks(path, path.name, _LARGEST_ROW, 100 * _LARGEST_ROW):
            for number, row in rows(block, _LARGEST_ROW):
                if isinstance(row, Reject):
                    raise UserError(f"dataset.decontaminate: {path}, row {number}: {row}")
                runs = [_runs(text) for text in _texts(row)]
                found = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]))
                if len(found):
                    hashes.append(found)
                    places.append(np.full(len(found), len(names), np.int32))
                    names.append(
                        f"{name}, {row.get('id', f'row {number}') if isinstance(row, dict) else f'row {number}'}"
                    )
        if len(hashes) == before:
            raise UserError(
                f"dataset.decontaminate: {path} holds no text of {SHORTEST} words or more: nothing to look for"
            )
    runs_, first = np.unique(np.concatenate(hashes), return_index=True)
    np.savez(file, runs=runs_, places=np.concatenate(places)[first], names=np.array(names))
    return len(runs_)


def _texts(value: Any) -> Iterator[str]:
    """All text in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _runs(text: str) -> np.ndarray:
    """Hashes of the runs of one text of an evaluation set."""
    words = alphanumeric([text]).hashes
    if len(words) < SHORTEST:
        return np.zeros(0, np.uint64)
    return rolling(words, min(len(words), LONGEST))


@cache
def _load(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with np.load(file) as held:
        runs, places, names = held["runs"], held["places"], held["names"]
    table = np.zeros(1 << (64 - int(_BITS)), bool)
    table[runs >> _BITS] = True
    return runs, places, names, table


def contaminated(conversations: Sequence[list[Message]], file: Path) -> dict[int, str]:
    """Place among `conversations` -> what it shares with which text, of those that share a run of `build`'s `file`."""
    runs, places, names, table = _load(file)
    texts = [m["content"] for c in conversations for m in c]
    hashed = alphanumeric(texts)
    hashes = hashed.hashes
    turn = np.repeat(np.arange(len(texts)), hashed.counts)
    record = np.repeat(np.arange(len(conversations)), [len(c) for c in conversations])
    found: dict[int, str] = {}
    grams = np.zeros(len(hashes) + 1, np.uint64)
    for n in range(1, min(LONGEST, len(hashes)) + 1):
        grams = grams[:-1] * MULTIPLIER + hashes[n - 1 :]
        if n < SHORTEST:
            continue
        starts = np.flatnonzero(table[grams >> _BITS])
        starts = starts[turn[starts] == turn[starts + n - 1]]
        at = np.minimum(np.searchsorted(runs, grams[starts]), len(runs) - 1)
        equal = runs[at] == grams[starts]
        for start, place in zip(starts[equal].tolist(), at[equal].tolist(), strict=True):
            shared = " ".join(hashed.words(start, start + n - 1).split())
            found.setdefault(int(record[turn[start]]), f"shares '{shared}' with {names[places[place]]}")
    return found
