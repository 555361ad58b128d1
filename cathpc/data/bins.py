"""Best-fit decreasing (Johnson 1973): which values share a bin.

In: lengths and the capacity of a bin. Out: the values of each bin. The longest value goes first, each into the fullest
bin that has room for it. All values of one length and all bins of one room are placed at once, since nothing else
counts: a bin of room r takes r // length of them in a row, as it stays the fullest one that has room. Time grows with
the values (array operations) and with the pairs of a length and a room that meet (a step in Python each): at most one
a value and at most capacity^2 / 2, however many values there are. Memory: 40 bytes a value.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """`order`, int64 [values], and `starts`, int64 [bins + 1]: bin b holds the values order[starts[b] : starts[b + 1]].

    `lengths`: int [values], each in 1..capacity. Bins come in the order in which they were opened, the values of one
    from the longest on. Ties: of equal lengths the lower index goes first, of equally full bins the one that has been
    so for the longest time.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    assert not counts[0] and len(counts) == capacity + 1, f"a length is not in 1..{capacity}"
    shortness = (capacity - lengths).astype(np.min_scalar_type(capacity))  # numpy sorts 16 bits by radix
    longest_first = np.argsort(shortness, kind="stable")
    bin_of = np.empty(len(lengths), np.int32)  # of the values, from the longest on
    opened = 0
    rooms: list[int] = []  # that bins have, ascending
    bins_of_room: dict[int, list[np.ndarray]] = {}  # in runs, from the one that has had this room for longest on

    def keep(bins: np.ndarray, room: int) -> None:
        if not room or not len(bins):
            return
        if room not in bins_of_room:
            bins_of_room[room] = []
            insort(rooms, room)
        bins_of_room[room].append(bins)

    at = end = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        end += int(counts[length])
        while at < end:
            fullest = bisect_left(rooms, length)
            if fullest < len(rooms):
                room = rooms.pop(fullest)
                runs = bins_of_room.pop(room)
                bins = runs[0] if len(runs) == 1 else np.concatenate(runs)
                each = room // length
            else:
                room, each = capacity, capacity // length
                bins = np.arange(opened, opened - (at - end) // each, dtype=np.int32)
                opened += len(bins)
            filled = min(len(bins), (end - at) // each)
            bin_of[at : at + filled * each] = np.repeat(bins[:filled], each)
            at += filled * each
            keep(bins[:filled], room - each * length)
            if at < end and filled < len(bins):  # the last values of this length leave room for more of them
                bin_of[at:end] = bins[filled]
                keep(bins[filled : filled + 1], room - (end - at) * length)
                filled += 1
                at = end
            keep(bins[filled:], room)
    starts = np.zeros(opened + 1, np.int64)
    np.cumsum(np.bincount(bin_of, minlength=opened), out=starts[1:])
    return longest_first[np.argsort(bin_of, kind="stable")], starts
