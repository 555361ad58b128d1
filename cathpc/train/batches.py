"""Which packed rows a rank feeds in which step.

In: a folder that `pack` wrote. Out: for a global step the rows of every rank. The order is a pure function of seed and
epoch and the position is the global step, so nothing about it is ever saved. Rows are mapped from disk; memory grows
with the number of rows (24 bytes each; 10 million records of 400 tokens are half a million rows of 8,192), not with
their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cathpc.data.pack import ARRAYS, COUNTS

EMPTY = -1  # in place of a row's number: a row of padding that fills up a short batch


@dataclass(frozen=True)
class Packed:
    """One split of a packed data set, mapped from disk."""

    input_ids: np.ndarray
    """int32 [bins, seq_len]."""
    labels: np.ndarray
    """int32 [bins, seq_len]; NO_LABEL where there is none."""
    segment_ids: np.ndarray
    """int16 [bins, seq_len]; 1.. for a segment, 0 for padding."""
    tokens: np.ndarray
    """int64 [bins]: tokens of each row, padding not counted."""
    supervised: np.ndarray
    """int64 [bins]: tokens of each row that have a label."""
    pad_id: int

    @property
    def bins(self) -> int:
        """Number of rows."""
        return len(self.input_ids)


def load(folder: Path, pad_id: int) -> Packed:
    """The split in `folder`; an empty split has empty arrays."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    counts = np.load(folder / "counts.npy").astype(np.int64)
    sums = {name: counts[:, COUNTS.index(name)] for name in ("tokens", "supervised")}
    return Packed(**arrays, **sums, pad_id=pad_id)


def epoch_order(bins: int, seed: int, epoch: int) -> np.ndarray:
    """All rows, int64 [bins], in the order of one epoch: sorted by a hash of seed, epoch and row number."""
    return np.argsort(splitmix64(int(splitmix64(seed, epoch + 1)[-1]), bins))


def splitmix64(seed: int, count: int) -> np.ndarray:
    """The first numbers, uint64 [count], of the generator SplitMix64 (Steele, Lea, Flood 2014); no two are equal.

    It is a hash of seed and place, so that it gives the same numbers with any version of numpy.
    """
    numbers = np.uint64(seed % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def steps_per_epoch(bins: int, global_batch: int) -> int:
    """Steps that see every row once; the last one may be short."""
    return -(-bins // global_batch)


def batch_rows(order: np.ndarray | Sequence[int], position: int, global_batch: int) -> list[int]:
    """The `global_batch` rows of the step at `position` in an epoch; a short last batch is filled up with EMPTY."""
    rows = [int(row) for row in order[position * global_batch : (position + 1) * global_batch]]
    return rows + [EMPTY] * (global_batch - len(rows))


def rank_rows(rows: list[int], rank: int, world_size: int, micro_batch: int) -> list[list[int]]:
    """A rank's share of a global batch, one list a micro-batch; every rank has the same number of them.

    Rows go round in turn, so that the EMPTY ones at the end are spread over the ranks.
    """
    mine = rows[rank::world_size]
    return [mine[at : at + micro_batch] for at in range(0, len(mine), micro_batch)]


def count(values: np.ndarray, rows: list[int]) -> int:
    """Sum of a per-row count over rows; EMPTY counts nothing."""
    return int(sum(int(values[row]) for row in rows if row != EMPTY))
