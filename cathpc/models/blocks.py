"""Causal attention on CPUs, a block of queries at a time, and the memory allocator's part in its speed.

In: queries, keys and values of whole sequences, in transformers' calling convention. Out: what scaled dot product
attention gives, within the rounding of the dtype. torch's own kernel for CPUs computes all L^2 pairs of a sequence of
up to 512 tokens and multiplies them in small tiles; here a block of `BLOCK` queries meets the keys up to its own end
alone, all heads that share a key at once, as one matrix product each way: 60% of the time at 256 tokens, half at 512
(SmolLM2-135M, bfloat16). Time grows with L^2 / 2, memory with `BLOCK` x L x heads. On GPUs torch's kernels are left
alone.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

NAME = "cathpc_blocks"
BLOCK = 64
"""Queries a block: of 32, 64 and 128 the fastest from 128 to 512 tokens."""
LARGEST_KEPT = 2**25
"""Bytes of the largest piece of memory that glibc's allocator can be told to keep (HEAP_MAX_SIZE / 2)."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [rows, heads, L, width], `key` [rows, kv_heads, L, width] and `value` [rows, kv_heads, L, out] ->
    [rows, L, heads, out]; in most models `out` is `width`.

    Anything but plain causal attention over whole sequences goes to transformers' `sdpa`.
    """
    rows, heads, length, width = query.shape
    plain = attention_mask is None and not dropout and key.shape[2] == length and getattr(module, "is_causal", True)
    if not plain or query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return out
    shared = key.shape[1]
    group = heads // shared
    # In float32: rounded to bfloat16, logits of 16 are 0.03 off, and the NLL twice as far as with torch's kernel.
    grouped = (query.float() * (width**-0.5 if scaling is None else scaling)).view(rows, shared, group, length, width)
    keys = key.float().transpose(2, 3)
    later = torch.full((BLOCK, BLOCK), float("-inf")).triu(1)
    parts = []
    for start in range(0, length, BLOCK):
        end = min(length, start + BLOCK)
        size = end - start
        logits = grouped[:, :, :, start:end].reshape(rows, shared, group * size, width) @ keys[..., :end]
        logits.view(rows, shared, group, size, end)[..., start:] += later[:size, :size]
        mixed = torch.softmax(logits, -1).to(value.dtype) @ value[:, :, :end]
        parts.append(mixed.view(rows, heads, size, value.shape[-1]).transpose(1, 2))
    return torch.cat(parts, 1), None


def speed_up(model: Any) -> Any:
    """The same model, whose attention is `attention` where it is on a CPU and dispatches to torch's own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)  # none where attention is plainly causal
        model.set_attn_implementation(NAME)
        keep_memory()
    return model


@cache
def keep_memory() -> None:
    """Let glibc keep the memory of freed tensors of up to `LARGEST_KEPT` bytes, instead of giving it back.

    Otherwise each large result of an operation is mapped anew and its pages are zeroed one fault at a time, which takes
    as long as computing it. The process then holds the most that it used at once. Elsewhere than on glibc: nothing.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(mmap, LARGEST_KEPT)
    mallopt(trim, 2**30)
