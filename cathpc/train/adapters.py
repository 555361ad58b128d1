"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) as they are saved: for PEFT, and added to the base model.

An adapted layer computes W x + (alpha / rank) B A x. Its tensors are named `<layer>.lora_A.default.weight` [rank, in]
and `<layer>.lora_B.default.weight` [out, rank]; all that is trained is theirs. Memory: the two factors of a layer and a
block of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from cathpc.models import weights
from cathpc.train import states
from cathpc.train.config import LoraConfig
from cathpc.train.partitions import Saved

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Adapters:
    """The trained tensors alone, under PEFT's names."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.names = {f"base_model.model.{name.replace('.default.', '.')}": name for name in saved.shapes}
        self.shapes = {name: saved.shapes[ours] for name, ours in self.names.items()}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor in flat blocks, float32."""
        return self.saved.blocks(self.names[name])


class Merged:
    """The base model in the folder `base` with the trained adapters in it: W + scale B A, in float32."""

    def __init__(self, saved: Saved, base: Path, scale: float) -> None:
        self.saved, self.scale = saved, scale
        self.stored = {
            name: states.Stored(t.file, t.offset, _DTYPES[t.dtype], t.shape)
            for name, t in weights.tensors(base).items()
        }
        self.shapes = {name: stored.shape for name, stored in self.stored.items()}
        unknown = {name.removesuffix(A) for name in saved.shapes if name.endswith(A)} - {_layer(n) for n in self.shapes}
        assert not unknown, sorted(unknown)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor in flat blocks."""
        stored, layer = self.stored[name], _layer(name)
        if f"{layer}{A}" not in self.saved.shapes:
            yield from stored.blocks(0, stored.numel())
            return
        down, up = self.saved.whole(f"{layer}{A}").float(), self.saved.whole(f"{layer}{B}").float()
        rows, width = stored.shape
        most = max(1, states.BLOCK // (4 * width))
        for at in range(0, rows, most):
            count = min(most, rows - at)
            block = stored.read(at * width, count * width).float().view(count, width)
            yield (block + self.scale * (up[at : at + count] @ down)).flatten()


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def write_config(folder: Path, lora: LoraConfig, base: Path) -> None:
    """Write PEFT's `adapter_config.json`."""
    weights.write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": sorted(lora.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )
