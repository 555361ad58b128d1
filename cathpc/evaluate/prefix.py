"""Attention over a beginning that many rows of a batch share, kept once and not once a row.

In: a model and the tokens of a prefix. Out: its keys and values, and an attention for transformers in which the rows
of a batch attend to their prefix and to their own tokens under one softmax (Hydragen, arXiv:2402.05099). A step of
generation then reads each prefix once for all its rows; memory for keys and values grows with the rows' own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prefix"
"""The attention's name at transformers (`attn_implementation`)."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that were run once; `keys` and `values` are [heads, tokens, size] a layer."""

    ids: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


Spans = list[tuple[slice, Prefix]]
"""Which rows of a batch share which prefix."""


@torch.inference_mode()
def run(model: Any, ids: list[int]) -> Prefix:
    """The prefix `ids`, run by `model`."""
    cache = model(torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1).past_key_values
    return Prefix(ids, [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers])


def possible(model: Any) -> bool:
    """Whether `model` was loaded with this attention and looks at all tokens before one."""
    config = model.config
    return config._attn_implementation == ATTENTION and not getattr(config, "sliding_window", None)


def spans(prefixes: list[Prefix]) -> Spans:
    """The rows of each prefix; equal ones lie side by side."""
    found: Spans = []
    start = 0
    for _, group in groupby(prefixes, key=id):
        rows = list(group)
        found.append((slice(start, start + len(rows)), rows[0]))
        start += len(rows)
    return found


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared: Spans | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention's output [rows, tokens, heads, size]; without `shared` that of transformers' sdpa."""
    if shared is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return plain
    assert attention_mask is not None
    layer = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = _one if query.shape[2] == 1 else _many
    parts = [
        kind(query[r], key[r], value[r], attention_mask[r], prefix.keys[layer], prefix.values[layer], scale)
        for r, prefix in shared
    ]
    return torch.cat(parts).transpose(1, 2).contiguous(), None


def _many(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Several tokens a row: the prefix is put before each row's keys, for this call alone."""
    rows = len(query)
    whole = torch.cat([keys.expand(rows, -1, -1, -1), key], dim=2)
    contents = torch.cat([values.expand(rows, -1, -1, -1), value], dim=2)
    seen = torch.cat([mask.new_ones(*mask.shape[:3], keys.shape[1]), mask], dim=3)
    return scaled_dot_product_attention(query, whole, contents, attn_mask=seen, scale=scale, enable_gqa=True)


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One token a row: all rows look at the prefix in one product, and at their own tokens in another."""
    rows, heads, _, size = query.shape
    groups, length = keys.shape[0], keys.shape[1]
    asked = (query * scale).view(rows, groups, heads // groups, size)
    flat = asked.transpose(0, 1).reshape(groups, -1, size)
    before = (flat @ keys.transpose(1, 2)).view(groups, rows, -1, length).transpose(0, 1)
    own = (asked @ key.transpose(2, 3)).masked_fill(~mask, float("-inf"))
    weights = torch.cat([before, own], dim=3).float().softmax(-1).to(query.dtype)
    on_prefix = weights[..., :length].transpose(0, 1).reshape(groups, -1, length) @ values
    output = on_prefix.view(groups, rows, -1, size).transpose(0, 1) + weights[..., length:] @ value
    return output.reshape(rows, heads, 1, size)


def _mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
    """The mask of sdpa, always written out: `attend` looks at it."""
    found: torch.Tensor | None = sdpa_mask(*arguments, **{**options, "allow_is_causal_skip": False})
    return found


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _mask)
