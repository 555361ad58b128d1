"""Floating-point operations of a training step, and how much of the hardware they use (MFU).

Source: Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B. A token costs 6 operations for each parameter that a
matrix product takes (2 forward, 4 backward), and 12 x layers x heads x head_dim for each token that it attends to.
Counted is the least that the result needs: attention is causal and within a segment, (length + 1) / 2 tokens on
average, and only supervised tokens go through the output layer. What activation checkpointing computes twice does not
count: it is no progress.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PEAK = {"A100": 312e12, "H100": 989.4e12, "H200": 989.4e12, "B200": 2250e12, "L40S": 362e12, "V100": 125e12}
"""Dense bfloat16 (V100: float16) operations a second by a part of the card's name, from NVIDIA's data sheets (SXM)."""


@dataclass(frozen=True)
class Work:
    """What a token costs in one model."""

    body: int
    """Parameters of the matrix products but for the output layer's."""
    head: int
    """Parameters of the output layer."""
    attention: int
    """layers x heads x head_dim."""

    def flops(self, tokens: int, supervised: int, attended: int) -> int:
        """Operations of forward and backward pass over `tokens`, of which `supervised` are predicted and that make
        `attended` (query, key) pairs."""
        return 6 * (self.body * tokens + self.head * supervised) + 12 * self.attention * attended


def attended(bounds: list[int]) -> int:
    """(Query, key) pairs of causal attention within segments at `bounds`: length x (length + 1) / 2 each."""
    return sum((last - first) * (last - first + 1) // 2 for first, last in pairwise(bounds))


def work(model: Any) -> Work:
    """The work of a Hugging Face model on the meta device or before it is partitioned: its parameters have shapes."""
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    outer = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in outer)
    return Work(body, model.get_output_embeddings().weight.numel(), config.num_hidden_layers * heads * width)


def peak() -> float | None:
    """Operations a second that this GPU could do; None where there is none or its card is not known."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAK.items() if part in name), None)
