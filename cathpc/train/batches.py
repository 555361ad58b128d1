"""Which packed rows a rank feeds in which step, and the tensors that the model takes.

In: a folder that `pack` wrote. Out: for a global step the rows of every rank, and for a micro-batch its tensors. The
order is a pure function of seed and epoch and the position is the global step, so nothing about it is ever saved. Rows
are mapped from disk; memory grows with the number of rows (16 bytes each), not with their tokens, and with the square
of the sequence length for the attention mask of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from cathpc.data.pack import NO_LABEL
from cathpc.record import unit_hash

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
    arrays = {}
    for name in ("input_ids", "labels", "segment_ids"):
        path = folder / f"{name}.npy"
        arrays[name] = np.load(path, mmap_mode="r")
    segments = pq.read_table(folder / "segments.parquet", columns=["bin", "tokens", "supervised"])
    rows = segments["bin"].to_numpy()
    bins = len(arrays["input_ids"])
    counts = {
        name: np.bincount(rows, weights=segments[name].to_numpy(), minlength=bins).astype(np.int64)
        for name in ("tokens", "supervised")
    }
    return Packed(**arrays, **counts, pad_id=pad_id)


def epoch_order(bins: int, seed: int, epoch: int) -> list[int]:
    """All rows in the order of one epoch: sorted by a hash of seed, epoch and row number."""
    return sorted(range(bins), key=lambda i: (unit_hash(f"{epoch}:{i}", seed), i))


def steps_per_epoch(bins: int, global_batch: int) -> int:
    """Steps that see every row once; the last one may be short."""
    return -(-bins // global_batch)


def batch_rows(order: list[int], position: int, global_batch: int) -> list[int]:
    """The `global_batch` rows of the step at `position` in an epoch; a short last batch is filled up with EMPTY."""
    rows = order[position * global_batch : (position + 1) * global_batch]
    return rows + [EMPTY] * (global_batch - len(rows))


def rank_rows(rows: list[int], rank: int, world_size: int, micro_batch: int) -> list[list[int]]:
    """A rank's share of a global batch, one list a micro-batch; every rank has the same number of them.

    Rows go round in turn, so that the EMPTY ones at the end are spread over the ranks.
    """
    mine = rows[rank::world_size]
    return [mine[at : at + micro_batch] for at in range(0, len(mine), micro_batch)]


def position_ids(segment_ids: torch.Tensor) -> torch.Tensor:
    """Positions [batch, seq_len] that restart at 0 where `segment_ids` [batch, seq_len] change."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def attention_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Boolean [batch, 1, seq_len, seq_len]: True where a query may look at a key: same segment, not later.

    Padding is a segment too: it looks at itself, as a row of nothing but False would make the softmax NaN.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same.tril().unsqueeze(1)


def micro_batch(
    packed: Packed, rows: list[int], device: torch.device, *, masked: bool
) -> dict[str, torch.Tensor | None]:
    """Tensors of some rows: input_ids, labels, position_ids int64 [rows, seq_len] and the boolean attention_mask.

    Without `masked` the rows become one of [1, rows x seq_len] and attention_mask is None: attention kernels for
    variable lengths find the segments by the position ids that restart, which transformers looks for in batches of one.
    """
    seq_len = packed.input_ids.shape[1] if any(row != EMPTY for row in rows) else 2  # ranks take part, at no cost

    def take(array: np.ndarray, filler: int) -> torch.Tensor:
        parts = [np.full(seq_len, filler, array.dtype) if row == EMPTY else array[row] for row in rows]
        return torch.from_numpy(np.stack(parts).astype(np.int64)).to(device)

    segments = take(packed.segment_ids, 0)
    tensors = {
        "input_ids": take(packed.input_ids, packed.pad_id),
        "labels": take(packed.labels, NO_LABEL),
        "position_ids": position_ids(segments),
    }
    if masked:
        return {**tensors, "attention_mask": attention_mask(segments)}
    return {name: tensor.reshape(1, -1) for name, tensor in tensors.items()} | {"attention_mask": None}


def count(values: np.ndarray, rows: list[int]) -> int:
    """Sum of a per-row count over rows; EMPTY counts nothing."""
    return int(sum(int(values[row]) for row in rows if row != EMPTY))


def record_names(folder: Path) -> list[list[str]]:
    """Ids of the records in each row of the split in `folder`."""
    segments = pq.read_table(folder / "segments.parquet", columns=["bin", "id"])
    names: list[list[str]] = []
    for row, name in zip(segments["bin"].to_pylist(), segments["id"].to_pylist(), strict=True):
        while len(names) <= row:
            names.append([])
        names[row].append(name)
    return names
