"""The card by itself: its matrix peak, and whether attention computes what it should. Prints one line of JSON.

Run as a process of its own, so that its memory is free again for what comes next.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cathpc.train import attention, flops
from cathpc.train.config import Attention

TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-5}
"""Largest ||ours - reference|| / ||reference|| that passes, the reference in float64. bfloat16 keeps 8 bits (2^-9 =
0.2% a rounding) of inputs, probabilities and outputs; a kernel that saw another segment is off by tens of percent."""
CASES = {
    "many segments": [1, 700, 1, 33, 900, 413],
    "one segment": [2048],
    "equal segments": [256] * 8,
}
"""Lengths of segments."""
TINY = {"many segments": [1, 40, 1, 3, 51], "one segment": [96]}


def peak(device: torch.device, size: int, rounds: int = 20) -> dict[str, float]:
    """Operations a second of a square bfloat16 product of random matrices, in 10^12: median of the rounds, and most."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for number in range(rounds + 5):  # five to warm up
        _wait(device)
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        _wait(device)
        if number >= 5:
            seconds.append((time.perf_counter() - began) / 5)
    return {
        "size": size,
        "tflops": 2 * size**3 / statistics.median(seconds) / 1e12,
        "most_tflops": 2 * size**3 / min(seconds) / 1e12,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def errors(kind: str, lengths: list[int], device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> Any:
    """Relative errors of the outputs and of the gradients of queries, keys and values, against SDPA's math in float64
    under one block-diagonal causal mask."""
    query_heads, kv_heads, width = heads
    tokens = sum(lengths)
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    draw = torch.Generator().manual_seed(len(lengths))
    plain = [torch.randn(1, n, tokens, width, generator=draw) for n in (query_heads, kv_heads, kv_heads, query_heads)]
    *inputs, slope = [tensor.to(device, dtype) for tensor in plain]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    out = KINDS[kind](*inputs, bounds)  # [1, tokens, heads, width]
    found = [out.transpose(1, 2), *torch.autograd.grad(out, inputs, slope.transpose(1, 2))]

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    mask = (segment[:, None] == segment) & torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    shared = query_heads // kv_heads
    with sdpa_kernel(SDPBackend.MATH):
        whole = torch.nn.functional.scaled_dot_product_attention(
            exact[0], *(tensor.repeat_interleave(shared, dim=1) for tensor in exact[1:]), attn_mask=mask
        )
    right = [whole, *torch.autograd.grad(whole, exact, slope.double())]
    apart = {}
    for name, ours, theirs in zip(("output", "d query", "d key", "d value"), found, right, strict=True):
        reference = theirs.detach()
        apart[name] = float((ours.detach().double() - reference).norm() / reference.norm())
    return apart


def _segments(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    module = torch.nn.Module()
    return attention.segments_attention(module, query, key, value, None, bounds=bounds)[0]


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    settings = attention.arguments(Attention.flash, bounds, query.device)
    flat = (tensor.transpose(1, 2)[0] for tensor in (query, key, value))
    out: torch.Tensor = flash_attn_varlen_func(
        *flat,
        cu_seqlens_q=settings["cu_seq_lens_q"],
        cu_seqlens_k=settings["cu_seq_lens_k"],
        max_seqlen_q=settings["max_length_q"],
        max_seqlen_k=settings["max_length_k"],
        causal=True,
    )
    return out[None]


KINDS = {"sdpa": _segments, "flash": _flash}


def compare(device: torch.device) -> list[dict[str, Any]]:
    """All cases of all kinds of attention that are here."""
    tiny = device.type == "cpu"
    heads, dtype = ((4, 2, 16), torch.float32) if tiny else ((32, 8, 128), torch.bfloat16)
    found = []
    for kind in KINDS:
        if kind == "flash" and (tiny or importlib.util.find_spec("flash_attn") is None):
            continue
        for case, lengths in (TINY if tiny else CASES).items():
            apart = errors(kind, lengths, device, dtype, heads)
            name = str(dtype).removeprefix("torch.")
            equal = max(apart.values()) <= TOLERANCE[name]
            found.append({"kind": kind, "case": case, "dtype": name, "errors": apart, "equal": equal})
    return found


def main() -> None:
    """Measure and print."""
    tiny = "--tiny" in sys.argv
    device = torch.device("cpu" if tiny else "cuda")
    card: dict[str, Any] = {"name": "cpu"}
    if not tiny:
        free, total = torch.cuda.mem_get_info()
        card = {"name": torch.cuda.get_device_name(), "memory": total, "free": free, "sheet_flops": flops.peak()}
        card |= {"capability": ".".join(map(str, torch.cuda.get_device_capability())), "cuda": torch.version.cuda}
    card["peak"] = peak(device, 256 if tiny else 8192)
    print(json.dumps({"card": card, "attention": compare(device), "tolerance": TOLERANCE}))


if __name__ == "__main__":
    main()
