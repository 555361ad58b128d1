"""Attention in which packed conversations cannot see each other.

In: queries, keys and values of a flat row of segments, [1, heads, tokens, head_dim], and the segments' bounds. Out:
[1, tokens, heads, head_dim]. Two ways, chosen by `train.attention`: flash-attention's kernel for variable lengths on
GPUs, or torch's scaled dot product attention, causal, one segment at a time (`sdpa`), which is the same computation as
one block-diagonal mask without its tokens^2 memory. Both go by transformers' interface, so that every architecture
that dispatches its attention takes them. Time grows with the sum of the squared segment lengths.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import torch

from cathpc.errors import UserError
from cathpc.train.config import Attention

SEGMENTS = "cathpc_segments"


def segments_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bounds: list[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment `bounds[i]:bounds[i + 1]`, in transformers' calling convention.

    `query` [1, heads, tokens, head_dim], `key` and `value` [1, kv_heads, tokens, head_dim].
    """
    grouped = query.shape[1] != key.shape[1]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, first:last],
            key[:, :, first:last],
            value[:, :, first:last],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for first, last in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def implementation(attention: Attention, config: Any) -> str:
    """Name of the implementation that transformers shall load a model of `config` with.

    Raises UserError where flash-attn is asked for and missing, never falling back, and where the architecture asks of
    its attention what `sdpa` does not do.
    """
    from transformers import AttentionInterface

    if attention is Attention.flash:
        if importlib.util.find_spec("flash_attn") is None:
            raise UserError(
                "train.attention=flash needs the package flash-attn, which is missing: install the extra "
                "'cathpc[flash]' as the README says, or take train.attention=sdpa, which is slower"
            )
        return "flash_attention_2"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        raise UserError(f"this model attends to the last {window} tokens only: take train.attention=flash for it")
    if getattr(config, "attn_logit_softcapping", None):
        raise UserError("this model caps its attention logits: take train.attention=flash for it")
    AttentionInterface.register(SEGMENTS, segments_attention)
    return SEGMENTS


def arguments(attention: Attention, bounds: list[int], device: torch.device) -> dict[str, Any]:
    """What the model's forward pass takes for segments at `bounds` ([0, ..., tokens])."""
    if attention is Attention.sdpa:
        return {"bounds": bounds}
    starts = torch.tensor(bounds, dtype=torch.int32)
    if device.type != "cpu":
        starts = starts.pin_memory().to(device, non_blocking=True)
    longest = max(last - first for first, last in pairwise(bounds))
    # Given, so that no layer looks for them in the position ids, which waits for the GPU.
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
