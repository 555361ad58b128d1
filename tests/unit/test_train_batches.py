"""What a rank feeds when, and the tensors that keep packed segments apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cathpc.train import batches
from cathpc.train.engine import PackedLM

SEQ_LEN = 48


def rows(segments: list[list[int]]) -> torch.Tensor:
    return torch.tensor(segments)


def test_positions_restart_at_each_segment() -> None:
    assert batches.position_ids(rows([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3]])).tolist() == [
        [0, 1, 2, 0, 1, 0, 1],
        [0, 0, 0, 1, 2, 3, 4],
    ]


def test_a_query_looks_at_its_own_segment_and_not_ahead() -> None:
    mask = batches.attention_mask(rows([[1, 1, 2, 0]]))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


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


def packed(seed: int = 0) -> batches.Packed:
    """Two rows of three segments each and padding."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, 90, (2, SEQ_LEN)).astype(np.int32)
    segments = np.zeros((2, SEQ_LEN), np.int16)
    for segment, (start, end) in enumerate(((0, 17), (17, 30), (30, 43)), 1):
        segments[:, start:end] = segment
    labels = np.where((segments > 0) & (ids % 2 == 0), ids, -100).astype(np.int32)
    labels[:, [0, 17, 30]] = -100
    tokens, supervised = (segments > 0).sum(1), (labels != -100).sum(1)
    return batches.Packed(ids, labels, segments, tokens, supervised, pad_id=1)


def tiny(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_segments_do_not_see_each_other_bit_for_bit(dtype: torch.dtype, checkpointing: bool) -> None:
    model = tiny(dtype)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": True})
        model.train()
    data, changed = packed(), packed()
    changed.input_ids[:, :17] = 50  # the first segment
    hidden, gradients = [], []
    for one in (data, changed):
        batch = batches.micro_batch(one, [0, 1], torch.device("cpu"), masked=True)
        labels = batch.pop("labels")
        labels[:, :17] = -100
        model.zero_grad()
        states = model.model(**batch, use_cache=False).last_hidden_state
        model.lm_head(states[:, 17:]).float().square().sum().backward()
        hidden.append(states.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if "embed" not in name})
    assert hidden[0][:, 17:].equal(hidden[1][:, 17:])
    assert not hidden[0][:, :17].equal(hidden[1][:, :17])
    for name, gradient in gradients[0].items():
        assert gradient.equal(gradients[1][name]), name


def test_a_packed_segment_has_the_logits_that_it_has_alone() -> None:
    model = tiny()
    data = packed()
    batch = batches.micro_batch(data, [0], torch.device("cpu"), masked=True)
    batch.pop("labels")
    together = model(**batch).logits[:, 17:30]
    alone = model(torch.from_numpy(data.input_ids[:1, 17:30].astype(np.int64))).logits
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_without_a_mask_segments_are_found_by_their_positions_and_give_the_same_loss() -> None:
    model = PackedLM(tiny(), loss_chunk=7)
    masked, flat = (batches.micro_batch(packed(), [0, 1], torch.device("cpu"), masked=m) for m in (True, False))
    assert flat["attention_mask"] is None
    assert flat["input_ids"].shape == (1, 2 * SEQ_LEN)
    assert model(**flat).item() == pytest.approx(model(**masked).item(), rel=1e-5)


def test_an_empty_row_has_no_loss_but_a_backward_pass_with_zero_gradients() -> None:
    model = PackedLM(tiny(), loss_chunk=7)
    batch = batches.micro_batch(packed(), [batches.EMPTY], torch.device("cpu"), masked=True)
    assert batch["input_ids"].shape == (1, 2), "it costs next to nothing"
    loss = model(**batch)
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_parameters_keep_their_names_and_a_tied_output_layer_stays_tied() -> None:
    model = tiny()
    assert dict(PackedLM(model, 8).named_parameters()).keys() == dict(model.named_parameters()).keys()
    tied = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True}))
    wrapped = PackedLM(tied, 8)
    assert wrapped.lm_head.weight is wrapped.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(wrapped.named_parameters())
