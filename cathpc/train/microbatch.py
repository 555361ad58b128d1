"""The tensors of a micro-batch: packed rows laid end to end as one flat row of segments.

In: numbers of rows of a packed split. Out: `input_ids`, `labels` and `position_ids` [1, rows x seq_len], and the bounds
of the segments. Host memory: 24 bytes a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cathpc.data.pack import NO_LABEL
from cathpc.train.batches import EMPTY, Packed


def tensors(packed: Packed, rows: list[int], device: torch.device) -> dict[str, Any]:
    """input_ids, labels and position_ids int64 [1, tokens] on `device`, and `bounds` [0, ..., tokens] on the host.

    Positions restart at each segment and padding is a segment of its own. A row EMPTY is two tokens of padding without
    a label: its rank takes part in every collective, at no cost.
    """
    full = [row for row in rows if row != EMPTY]
    filler = 2 * (len(rows) - len(full))
    ids = np.concatenate([*(packed.input_ids[r] for r in full), np.full(filler, packed.pad_id)]).astype(np.int64)
    labels = np.concatenate([*(packed.labels[r] for r in full), np.full(filler, NO_LABEL)]).astype(np.int64)
    segments = np.concatenate([*(packed.segment_ids[r] for r in full), np.zeros(filler)])
    row_starts = np.concatenate([np.arange(len(full)) * packed.input_ids.shape[1], [len(ids) - filler] * bool(filler)])
    changes = np.flatnonzero(segments[1:] != segments[:-1]) + 1
    starts = np.union1d(row_starts, changes).astype(np.int64)
    bounds = [*starts.tolist(), len(ids)]
    positions = np.arange(len(ids)) - np.repeat(starts, np.diff(bounds))
    arrays = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: _to(torch.from_numpy(array)[None], device) for name, array in arrays.items()} | {"bounds": bounds}


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for what it computes."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
