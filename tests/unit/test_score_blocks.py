"""Attention in blocks gives what torch's own gives, and leaves to it what it does not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cathpc.models import blocks


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("shared", [1, 3, 9])
def test_blocks_equal_one_causal_attention(length: int, shared: int) -> None:
    torch.manual_seed(length)
    query = torch.randn(2, 9, length, 16)
    key, value = torch.randn(2, 2, shared, length, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    found, _ = blocks.attention(torch.nn.Module(), query, key, value, None)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("shared", [2, 4])
def test_values_may_have_another_width_than_keys(shared: int) -> None:
    """As in multi-head latent attention, whose keys carry the rotary part beside."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 130, 24), torch.randn(2, shared, 130, 24), torch.randn(2, shared, 130, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    found, _ = blocks.attention(torch.nn.Module(), query, key, value, None)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=2e-6, rtol=0)


def test_gradients_are_those_of_one_causal_attention() -> None:
    query, key, value = (torch.randn(1, 4, 130, 8, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    found, _ = blocks.attention(torch.nn.Module(), query, key, value, None)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_rounding_in_bfloat16_is_about_that_of_torchs_own() -> None:
    """With logits of some 16, where bfloat16 itself would be 0.06 off."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 6, 300, 64)
    query *= 4
    halves = [x.bfloat16() for x in (query, key, value)]
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.float() for x in halves), is_causal=True)
    theirs = torch.nn.functional.scaled_dot_product_attention(*halves, is_causal=True)
    ours, _ = blocks.attention(torch.nn.Module(), halves[0], halves[1], halves[2], None)
    ours_off, theirs_off = ((x - exact).abs().mean().item() for x in (ours.transpose(1, 2), theirs))
    assert ours_off < 1.5 * theirs_off


def test_a_mask_is_obeyed() -> None:
    query = torch.randn(1, 2, 80, 8)
    mask = torch.ones(80, 80, dtype=torch.bool).tril()
    mask[:, :10] = False
    mask[:10] = True
    expected = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    module = torch.nn.Module()
    found, _ = blocks.attention(module, query, query, query, mask[None, None])
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=2e-6, rtol=0)


def test_a_model_computes_the_same_before_and_after(tiny_llama: Path) -> None:
    ids = torch.arange(5, 205)[None] % 900
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    fast = blocks.speed_up(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval())
    assert fast.config._attn_implementation == blocks.NAME
    with torch.inference_mode():
        expected, found = plain(ids).logits, fast(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        padded = torch.ones_like(ids)
        padded[0, :50] = 0
        masked = [m(ids, attention_mask=padded).logits[0, 60:] for m in (plain, fast)]
    torch.testing.assert_close(masked[1], masked[0], atol=1e-5, rtol=0)
    assert not torch.allclose(masked[0], expected[0, 60:], atol=1e-3), "the mask hides something"


def test_a_sliding_window_is_obeyed(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(100)[None] % 50
    plain = MistralForCausalLM.from_pretrained(tmp_path).eval()
    fast = blocks.speed_up(MistralForCausalLM.from_pretrained(tmp_path).eval())
    with torch.inference_mode():
        torch.testing.assert_close(fast(ids).logits, plain(ids).logits, atol=1e-6, rtol=0)
