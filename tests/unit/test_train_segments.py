"""Packed conversations as the model sees them: tensors of a micro-batch, and attention that keeps segments apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from cathpc.errors import UserError
from cathpc.train import attention, batches, flops, microbatch
from cathpc.train.config import Attention, TrainConfig
from cathpc.train.engine import PackedLM
from cathpc.train.loss import sum_cross_entropy

SEQ_LEN = 48
CPU = torch.device("cpu")


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


def tiny(dtype: torch.dtype = torch.float32, *, implementation: str = attention.SEGMENTS) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    attention.implementation(Attention.sdpa, config)  # registers it
    config._attn_implementation = implementation
    return LlamaForCausalLM(config).to(dtype)


def block_diagonal(bounds: list[int]) -> torch.Tensor:
    """The reference: one boolean mask [1, 1, tokens, tokens] in which a token sees its own segment up to itself."""
    lengths = torch.tensor(bounds).diff()
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)
    return (segment[:, None] == segment[None]).tril()[None, None]


# --- tensors --------------------------------------------------------------------------------------------------------


def test_rows_lie_end_to_end_and_positions_restart_at_each_segment() -> None:
    data = packed()
    batch = microbatch.tensors(data, [1, 0], CPU)
    assert batch["bounds"] == [0, 17, 30, 43, 48, 65, 78, 91, 96]
    assert batch["input_ids"].tolist() == [data.input_ids[1].tolist() + data.input_ids[0].tolist()]
    assert batch["labels"].tolist() == [data.labels[1].tolist() + data.labels[0].tolist()]
    row = [*range(17), *range(13), *range(13), *range(5)]
    assert batch["position_ids"].tolist() == [row + row]


def test_an_empty_row_is_two_tokens_of_padding_in_a_segment_of_their_own() -> None:
    data = packed()
    batch = microbatch.tensors(data, [0, batches.EMPTY], CPU)
    assert batch["bounds"] == [0, 17, 30, 43, 48, 50]
    assert batch["input_ids"][0, -2:].tolist() == [1, 1] and batch["labels"][0, -2:].tolist() == [-100, -100]
    assert microbatch.tensors(data, [batches.EMPTY], CPU)["bounds"] == [0, 2]


def test_flash_attention_gets_the_bounds_as_cumulated_lengths() -> None:
    given = attention.arguments(Attention.flash, [0, 3, 10], CPU)
    assert given["cu_seq_lens_q"].tolist() == given["cu_seq_lens_k"].tolist() == [0, 3, 10]
    assert given["cu_seq_lens_q"].dtype == torch.int32
    assert given["max_length_q"] == given["max_length_k"] == 7


# --- trap 6: nothing of a segment reaches another -------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", [attention.SEGMENTS, "sdpa"])
def test_trap_6_a_changed_segment_leaves_the_others_as_they_were_bit_for_bit(
    implementation: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    model = tiny(dtype, implementation=implementation)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": True})
    data, changed = packed(), packed()
    changed.input_ids[0, :17] = 50  # the first segment
    hidden, gradients = [], []
    for one in (data, changed):
        batch = microbatch.tensors(one, [0, 1], CPU)
        del batch["labels"]
        bounds = batch.pop("bounds")
        seen = {"bounds": bounds} if implementation != "sdpa" else {"attention_mask": block_diagonal(bounds)}
        model.zero_grad()
        states = model.model(**batch, **seen, use_cache=False).last_hidden_state
        model.lm_head(states[:, 17:]).float().square().sum().backward()
        hidden.append(states.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if "embed" not in name})
    assert hidden[0][:, 17:].equal(hidden[1][:, 17:])
    assert not hidden[0][:, :17].equal(hidden[1][:, :17])
    for name, gradient in gradients[0].items():
        assert gradient.equal(gradients[1][name]), name


def test_trap_6_both_ways_of_attention_give_the_same_hidden_states_and_gradients() -> None:
    results = []
    for implementation in (attention.SEGMENTS, "sdpa"):
        model = tiny(implementation=implementation)
        batch = microbatch.tensors(packed(), [0, 1], CPU)
        del batch["labels"]
        bounds = batch.pop("bounds")
        seen: dict[str, Any] = {"bounds": bounds}
        if implementation == "sdpa":
            seen = {"attention_mask": block_diagonal(bounds)}
        states = model.model(**batch, **seen, use_cache=False).last_hidden_state
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        results.append([states.detach(), *(p.grad for p in model.model.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_trap_6_a_packed_segment_has_the_logits_that_it_has_alone() -> None:
    model = tiny()
    data = packed()
    batch = microbatch.tensors(data, [0], CPU)
    del batch["labels"]
    together = model(**batch).logits[:, 17:30]
    ids = torch.from_numpy(data.input_ids[:1, 17:30].astype(np.int64))
    alone = model(ids, bounds=[0, 13]).logits
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    plain = tiny(implementation="sdpa")(ids).logits
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)


def test_trap_6_the_first_token_of_a_segment_is_predicted_by_nobody() -> None:
    batch = microbatch.tensors(packed(), [0, 1], CPU)
    assert (batch["labels"][0, batch["bounds"][:-1]] == -100).all()


# --- traps 7, 8 and 9: the loss -------------------------------------------------------------------------------------


def test_trap_8_an_empty_row_has_no_loss_but_a_backward_pass_with_zero_gradients() -> None:
    model = PackedLM(tiny(), TrainConfig(loss_chunk=7))
    batch = microbatch.tensors(packed(), [batches.EMPTY], CPU)
    loss = model(**batch)
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_trap_9_no_tensor_is_as_large_as_the_logits_of_the_sequence() -> None:
    tokens, width, vocabulary, chunk = 512, 8, 4096, 32
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    with Watch():
        sum_cross_entropy(hidden, weight, labels, chunk).backward()
    assert largest == chunk * vocabulary < tokens * vocabulary


# --- the model ------------------------------------------------------------------------------------------------------


def test_parameters_keep_their_names_and_a_tied_output_layer_stays_tied() -> None:
    model = tiny()
    assert dict(PackedLM(model, TrainConfig()).named_parameters()).keys() == dict(model.named_parameters()).keys()
    tied = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True}))
    wrapped = PackedLM(tied, TrainConfig())
    assert wrapped.lm_head.weight is wrapped.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(wrapped.named_parameters())


def test_flash_attention_is_never_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.attention=flash needs the package flash-attn"):
        attention.implementation(Attention.flash, LlamaConfig())


def test_a_model_that_attends_to_a_window_is_refused_where_the_window_would_be_ignored() -> None:
    with pytest.raises(UserError, match="the last 128 tokens only"):
        attention.implementation(Attention.sdpa, MistralConfig(sliding_window=128))


def test_operations_are_those_of_the_matrix_products_of_forward_and_backward_pass() -> None:
    """Counted by torch for one segment; its own count takes the whole square of attention, ours the causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny(implementation="sdpa")
    work = flops.work(model)
    ids = torch.randint(3, 90, (1, 40))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ids).logits.sum().backward()
    ours = work.flops(40, 40, 40 * 40)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.02)
    assert flops.attended([0, 3, 10]) == 3 * 4 // 2 + 7 * 8 // 2
