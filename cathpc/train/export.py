"""Stage `export`: a checkpoint becomes a Hugging Face folder that plain transformers, vLLM and llama.cpp read.

In: a checkpoint (the newest, or that of a given step), the base model's config, tokenizer and template. Out: `model/`
with bfloat16 safetensors shards, config, generation config, tokenizer, chat template, `template.json` and the cards of
model and data (README.md, data_card.md; the inputs beyond these three are for the cards alone); of a training of
adapters also `adapter/` for PEFT, and `model/` is the base model with the adapters added. The ranks' float32 partitions
are read, converted and written block by block: memory stays at a few blocks (`states.BLOCK`) whatever the model's size;
time is one read of the weights (a third of the checkpoint) after one read of all of it, which proves that it is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cathpc import progress
from cathpc.errors import DataError, UserError
from cathpc.models import weights
from cathpc.models.template import Template
from cathpc.report import data_card, model_card
from cathpc.train import adapters, history, metrics, states
from cathpc.train.config import LoraConfig
from cathpc.train.partitions import Saved
from cathpc.train.writing import TAG

if TYPE_CHECKING:
    from cathpc.config import Config

SHARD_BYTES = 5_000_000_000
DTYPE = torch.bfloat16
_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


class Weights(Protocol):
    """What can be written: tensors with a name and a shape, each given in flat blocks."""

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Shape of each tensor."""

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor's elements, in order."""


def run(config: Config, inputs: dict[str, Path], out: Path, *, step: int | None = None) -> dict[str, Any]:
    """Export the newest checkpoint of `train`, or that of `step`.

    Raises UserError where there is none of that step and DataError where it is not as it was saved.
    """
    base = inputs["base"] / "model"
    checkpoint = checkpoint_of(inputs["train"], step)
    if problem := _problem(checkpoint):
        raise DataError(f"{problem}. Move {inputs['train']} away and run the same command to train again.")
    saved = Saved(checkpoint / TAG)
    lora = LoraConfig(**history.manifest(checkpoint)["identity"].get("config", {}).get("lora", {}))
    model = _emptied(out / "model")
    whole: Weights = saved
    if lora.rank:
        whole = adapters.Merged(saved, base, lora.alpha / lora.rank)
        adapter = _emptied(out / "adapter")
        write_shard(adapter / "adapter_model.safetensors", adapters.Adapters(saved), dtype=torch.float32)
        adapters.write_config(adapter, lora, base)
    parameters, shards = write_weights(whole, model, out)
    settings = weights.read_json(base / "config.json")
    weights.write_json(model / "config.json", {**settings, "dtype": str(DTYPE).removeprefix("torch.")})
    template = Template.load(base)
    template.copy(model)
    pack = weights.read_json(inputs["pack"] / "pack.json")
    facts = model_card.trained(inputs["train"] / metrics.METRICS, history.step_of(checkpoint))
    weights.write_text(model / "README.md", model_card.model_card(config.name, template, pack, facts, inputs))
    weights.write_text(model / data_card.NAME, data_card.data_card(config.name, inputs))
    line = f"{parameters:,} parameters of {checkpoint.name} in {shards} shard{'s' * (shards > 1)}"
    return {"line": line, "parameters": parameters, "shards": shards, "checkpoint": checkpoint.name}


def _problem(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, '' if nothing is; all cores of this process read it."""
    shares = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(shares) as threads:
        verify = partial(history.verify, checkpoint, shares=shares)
        return next(filter(None, threads.map(lambda share: verify(share=share), range(shares))), "")


def checkpoint_of(stage_folder: Path, step: int | None) -> Path:
    """The newest checkpoint of a training, or that of `step`; UserError where there is none."""
    folder = stage_folder / "checkpoints"
    found = history.committed(folder)
    if not found:
        raise UserError(f"{folder} holds no committed checkpoint: the training has to run first")
    chosen = found[0] if step is None else folder / history.folder_name(step)
    if chosen not in found:
        there = ", ".join(str(history.step_of(c)) for c in reversed(found))
        raise UserError(
            f"there is no checkpoint of step {step} in {folder}. There are: {there}. A training keeps those of its "
            f"epochs' ends with train.save_milestones=true, and the newest train.keep_checkpoints"
        )
    return chosen


def _emptied(folder: Path) -> Path:
    """An empty folder; what an attempt that was killed left in it goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained tensors in a folder of DeepSpeed files, whole, one at a time."""
    saved = Saved(folder)
    for name in saved.shapes:
        yield name, saved.whole(name)


# --- safetensors, streamed --------------------------------------------------------------------------------------------


def write_weights(whole: Weights, model: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> tuple[int, int]:
    """Write weights into the folder `model` as shards of `shard_bytes` at most, with progress in `out`; numbers of
    parameters and of shards."""
    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in whole.shapes.items():
        size = math.prod(shape) * DTYPE.itemsize
        if plan[-1] and filled + size > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += size
    index: dict[str, str] = {}
    for number, names in enumerate(plan, 1):
        file = weights.SINGLE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        write_shard(model / file, whole, names)
        index |= dict.fromkeys(names, file)
        progress.report(out, number, len(plan), "shards")
    parameters = sum(math.prod(shape) for shape in whole.shapes.values())
    if len(plan) > 1:
        metadata = {"total_size": parameters * DTYPE.itemsize, "total_parameters": parameters}
        weights.write_json(model / weights.INDEX, {"metadata": metadata, "weight_map": index})
    return parameters, len(plan)


def write_shard(path: Path, whole: Weights, names: Sequence[str] | None = None, *, dtype: torch.dtype = DTYPE) -> None:
    """Write the tensors `names` (all by default) as one safetensors file, block by block."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names or whole.shapes:
        end = at + math.prod(whole.shapes[name]) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(whole.shapes[name]), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names or whole.shapes:
            for block in whole.blocks(name):
                file.write(block.to(dtype).contiguous().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + at, (path, file.tell(), at)
        states.fsync(file)
    temporary.replace(path)
