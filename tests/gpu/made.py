"""Models of random weights and packed rows of random tokens, of any size: what is trained where nothing is at hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cathpc.models.config import TemplateConfig
from cathpc.models.shape import ShapeConfig
from tests.memory_use import llama

if TYPE_CHECKING:
    import torch

TEMPLATE = TemplateConfig(
    bos="<|begin_of_text|>",
    pad="<|reserved_special_token_2|>",
    renames={"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"},
)
BLOCK = 2**24
"""Random numbers that are drawn; large tensors take them again and again."""
MEDIAN, SIGMA = 450.0, 0.8
"""Of the lognormal lengths of records, in tokens: about what instruction data has; shorter where rows are short."""
MLP = ("gate_proj", "up_proj", "down_proj")
SUPERVISED = 0.75
"""Share of each record, its end, that has labels."""


class Random:
    """Weights of a Llama, drawn block by block: matrices with the deviation 0.02, norms of ones."""

    def __init__(self, shape: ShapeConfig) -> None:
        h = shape.width
        self.shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, h)}
        for number in range(shape.layers):
            layer = f"model.layers.{number}"
            for name, (inputs, outputs) in shape.matrices.items():
                part = "mlp" if name in MLP else "self_attn"
                self.shapes[f"{layer}.{part}.{name}.weight"] = (outputs, inputs)
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.shapes[f"{layer}.{name}.weight"] = (h,)
        self.shapes["model.norm.weight"] = (h,)
        if not shape.tied:
            self.shapes["lm_head.weight"] = (shape.vocab, h)

    @cached_property
    def _drawn(self) -> torch.Tensor:
        import torch

        return torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor's elements, in order."""
        import torch

        left = math.prod(self.shapes[name])
        while left:
            size = min(left, BLOCK)
            yield torch.ones(size, dtype=torch.bfloat16) if len(self.shapes[name]) == 1 else self._drawn[:size]
            left -= size


def base(shape: ShapeConfig, folder: Path, cache: Path) -> Path:
    """Make `folder` what stage `base` leaves: `model/` of this shape, with the tokenizer of random:llama."""
    from cathpc.models.source import prepare
    from cathpc.models.template import Template
    from cathpc.train.export import write_shard

    model = folder / "model"
    model.mkdir(parents=True)
    Template.load(prepare("random:llama", TEMPLATE, cache)).copy(model)
    more = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131_072, "dtype": "bfloat16"}
    llama(shape, **more).save_pretrained(model)
    write_shard(model / "model.safetensors", Random(shape))
    return folder


def pack(folder: Path, base: Path, vocab: int, seq_len: int, rows: int) -> Path:
    """Make `folder` what stage `pack` leaves: `rows` rows at least of records of random tokens and of real lengths."""
    from cathpc.data import pack as stage
    from cathpc.data.encode import RECORD, SPLITS
    from cathpc.models.template import Template

    draws = np.random.default_rng(0)
    median = min(MEDIAN, seq_len / 4)
    count = 2 * math.ceil(rows * seq_len / median)
    lengths = np.clip(draws.lognormal(np.log(median), SIGMA, count), 2, seq_len).astype(np.int64)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), rows * seq_len)) + 1]
    records = np.zeros(len(lengths), RECORD)
    records["row"], records["tokens"] = np.arange(len(lengths)), lengths
    records["supervised"] = np.maximum(1, lengths * SUPERVISED)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    labelled = place >= np.repeat(lengths - records["supervised"], lengths)
    tokens = draws.integers(0, vocab, len(place), dtype=np.int32)
    flat = folder / "scratch" / "flat"
    flat.parent.mkdir(parents=True)
    np.where(labelled, tokens, ~tokens).tofile(flat)
    ids = pa.array(f"{number:08d}" for number in range(len(lengths)))
    template = Template.load(base / "model")
    chosen = {"train": np.arange(len(records)), "eval": np.arange(0)}
    counts, files = {}, {}
    for split in SPLITS:
        counts[split], digests = stage.write(
            flat, records[: len(chosen[split])], chosen[split], ids, seq_len, template.pad_id, folder / split
        )
        files |= {f"{split}/{name}": digest for name, digest in digests.items()}
    summary = {"seq_len": seq_len, "pad_id": template.pad_id, "template_hash": template.hash, **counts, "files": files}
    summary["digest"] = hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(summary))
    return folder
