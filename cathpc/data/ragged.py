"""Values of different lengths, one after the other without a gap: how they are put into another order.

In: such values in an array or a file, and the length of each. Out: the same in another order. Arrow copies a value as
one piece of memory: a numpy index would cost eight bytes an element.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

CHUNK = 2**23
"""Elements that `group` holds at once; twice."""


def column(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """The values as an Arrow column of bytes, nothing copied; `lengths` [values] count elements of `values`."""
    ends = np.append(0, np.cumsum(lengths, dtype=np.int64))
    buffers = [None, pa.py_buffer(ends * values.itemsize), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)


def take(values: pa.Array, order: np.ndarray) -> np.ndarray:
    """Of a column of int32 values, those numbered `order`, one after the other."""
    _, ends, data = values.take(pa.array(order)).buffers()
    return np.frombuffer(data, np.int32, np.frombuffer(ends, np.int64)[len(order)] // 4)


def group(source: Path, target: Path, lengths: np.ndarray, groups: np.ndarray) -> None:
    """Copy a file of int32 values so that those of one group lie together, the groups ascending, each in its old order.

    `groups` [values] are numbers from 0 on, -1 for a value to leave out. Both files are read and written in long runs,
    so that it takes no longer where they are larger than the memory. Memory: 24 bytes a value and 2 x `CHUNK` elements.
    """
    sizes = np.bincount(groups[groups >= 0], weights=lengths[groups >= 0]).astype(np.int64)
    place = np.cumsum(sizes) - sizes  # of what comes next in each group
    ends = np.cumsum(lengths, dtype=np.int64)
    parts = np.arange(0, lengths.sum(), CHUNK)
    edges = np.append(np.searchsorted(ends, parts, "right"), len(lengths))
    with source.open("rb") as old, target.open("wb") as new:
        for first, last in pairwise(edges):
            here, there = lengths[first:last], groups[first:last]
            values = np.fromfile(old, np.int32, int(here.sum()))
            wanted = np.flatnonzero(there >= 0)
            order = wanted[np.argsort(there[wanted], kind="stable")]
            moved = take(column(values, here), order)
            counts = np.bincount(there[order], weights=here[order], minlength=len(sizes)).astype(np.int64)
            start = 0
            for number in np.flatnonzero(counts):
                new.seek(int(place[number]) * moved.itemsize)
                new.write(moved[start : start + counts[number]].data)
                place[number] += counts[number]
                start += counts[number]
