"""Which rows a rank feeds in which step."""

from __future__ import annotations

import numpy as np
import pytest

from cathpc.train import batches


def test_every_epoch_has_all_rows_in_an_order_that_depends_on_seed_and_epoch_alone() -> None:
    orders = [batches.epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    assert orders[0] == batches.epoch_order(50, 0, 0).tolist()
    assert len(batches.epoch_order(0, 0, 0)) == 0


def test_the_order_never_changes_from_one_version_to_the_next() -> None:
    assert batches.splitmix64(1234567, 3).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ], "the first numbers of the reference implementation"
    assert batches.epoch_order(12, 17, 3).tolist() == [8, 6, 10, 4, 2, 1, 7, 0, 11, 5, 3, 9]
    assert batches.epoch_order(5, -1, 0).tolist() == [0, 2, 4, 1, 3]


def test_half_a_million_rows_are_ordered_in_a_moment() -> None:
    order = batches.epoch_order(500_000, 0, 3)
    assert np.array_equal(np.sort(order), np.arange(500_000))
    assert abs(np.corrcoef(order, np.arange(500_000))[0, 1]) < 0.01


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_all_ranks_take_equally_many_micro_batches_and_together_each_row_once(world_size: int) -> None:
    order = batches.epoch_order(21, 0, 0)
    assert batches.steps_per_epoch(21, 8) == 3
    seen = []
    for position in range(3):
        step = batches.batch_rows(order, position, 8)
        assert len(step) == 8
        shares = [batches.rank_rows(step, rank, world_size, 1) for rank in range(world_size)]
        assert {len(share) for share in shares} == {8 // world_size}
        seen += [row for share in shares for micro in share for row in micro if row != batches.EMPTY]
    assert sorted(seen) == list(range(21))
