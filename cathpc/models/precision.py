"""In which floating-point type models compute where they are: on the GPU, or on CPUs with or without bfloat16."""

from __future__ import annotations

import torch

from cathpc.models.config import Dtype


def usable(dtype: Dtype) -> torch.dtype:
    """The type that `dtype` stands for here: bfloat16 is float32 on a CPU without instructions for it, which would
    emulate it, many times slower."""
    if dtype is Dtype.float32:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_available() else fast_dtype()


def fast_dtype() -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def name(dtype: torch.dtype) -> str:
    """'bfloat16', 'float32'."""
    return str(dtype).removeprefix("torch.")


def fallback(wanted: Dtype, used: str) -> str:
    """What a summary adds where `used` is not the type that was `wanted`: '' where it is."""
    return "" if used == wanted.value else f", in {used}: the CPU has no {wanted.value}"
