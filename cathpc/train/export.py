"""Stage `export`: the last checkpoint becomes a Hugging Face folder that plain transformers, vLLM and llama.cpp read.

In: the checkpoint, the base model's config, tokenizer and template. Out: `model/` with bfloat16 safetensors shards,
config, generation config, tokenizer, chat template, `template.json` and a model card. The fp32 partitions of ZeRO-3
are mapped from disk and put together tensor by tensor, so memory grows with one shard (`SHARD_BYTES`) and one tensor,
not with the model.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cathpc import progress
from cathpc.errors import DataError
from cathpc.models import weights
from cathpc.models.template import Template
from cathpc.train import checkpoint

if TYPE_CHECKING:
    from cathpc.config import Config

SHARD_BYTES = 5_000_000_000
DTYPE = torch.bfloat16


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Export the newest checkpoint of `train`; raises DataError where it is not as it was saved."""
    base = inputs["base"] / "model"
    found = checkpoint.committed(inputs["train"] / "checkpoints")
    if not found:
        raise DataError(f"{inputs['train'] / 'checkpoints'} holds no committed checkpoint: run the training again.")
    problem = checkpoint.verify(found[0])
    if problem:
        raise DataError(f"{problem}. Move {inputs['train']} away and run the same command to train again.")
    model = out / "model"
    if model.exists():
        shutil.rmtree(model)  # of an attempt that was killed
    model.mkdir()
    parameters, shards = write_weights(found[0] / checkpoint.TAG, model, out)
    settings = weights.read_json(base / "config.json")
    weights.write_json(model / "config.json", {**settings, "dtype": str(DTYPE).removeprefix("torch.")})
    template = Template.load(base)
    template.copy(model)
    final = weights.read_json(inputs["train"] / "final.json")
    pack = weights.read_json(inputs["pack"] / "pack.json")
    weights.write_text(model / "README.md", card(config.name, template, pack, final))
    line = f"{parameters:,} parameters of {found[0].name} in {shards} shard{'s' * (shards > 1)}"
    return {"line": line, "parameters": parameters, "shards": shards, "checkpoint": found[0].name}


def write_weights(states: Path, model: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> tuple[int, int]:
    """Write the weights of DeepSpeed's folder `states` into `model` as safetensors; numbers of parameters and of
    shards."""
    from safetensors.torch import save_file

    plan: list[list[str]] = [[]]
    shapes = _shapes(states)
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPE.itemsize
        if plan[-1] and filled + size > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += size
    index: dict[str, str] = {}
    stream = tensors(states)
    for number, names in enumerate(plan, 1):
        shard = {}
        for name in names:
            found, tensor = next(stream)
            assert found == name, (found, name)
            shard[name] = tensor.to(DTYPE).contiguous()
        file = weights.SINGLE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        temporary = model / f".{file}"
        save_file(shard, temporary, metadata={"format": "pt"})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, model / file)
        index |= dict.fromkeys(names, file)
        progress.report(out, number, len(plan), "shards")
    parameters = sum(math.prod(shape) for shape in shapes.values())
    if len(plan) > 1:
        metadata = {"total_size": parameters * DTYPE.itemsize, "total_parameters": parameters}
        weights.write_json(model / weights.INDEX, {"metadata": metadata, "weight_map": index})
    return parameters, len(plan)


def _model_states(states: Path) -> dict[str, Any]:
    """Rank 0's file of the module: shapes, and under ZeRO 1 and 2 the weights too."""
    (path,) = [*states.glob("zero_pp_rank_0_mp_rank_00_model_states.pt"), *states.glob("mp_rank_00_model_states.pt")]
    return checkpoint.read_states(path)


def _shapes(states: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each trained tensor by name, in the order of DeepSpeed's partitions; a tied tensor is there once."""
    return {name: tuple(shape) for group in _model_states(states)["param_shapes"] for name, shape in group.items()}


def tensors(states: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained tensors in DeepSpeed's folder `states`, whole, one at a time, in the order of their partitions.

    ZeRO-3 cuts each tensor into as many equal pieces as there are ranks (the last one padded) and lays a rank's
    pieces of all tensors end to end, in groups of bounded size that hold whole pieces.
    """
    shapes = _shapes(states)
    module = _model_states(states)["module"]
    if all(module[name].numel() for name in shapes):
        for name in shapes:
            yield name, module[name]
        return
    ranks = len(list(states.glob("*optim_states.pt")))
    groups = []
    for rank in range(ranks):
        (path,) = states.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        groups.append(checkpoint.read_states(path)["optimizer_state_dict"]["fp32_flat_groups"])
    group = offset = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        piece = -(-count // ranks)
        if offset + piece > groups[0][group].numel():
            group, offset = group + 1, 0
        pieces = [rank[group].narrow(0, offset, piece) for rank in groups]
        yield name, torch.cat(pieces)[:count].view(shape)
        offset += piece


def card(name: str, template: Template, pack: dict[str, Any], final: dict[str, Any]) -> str:
    """The model card: what it was trained on and how it is prompted."""
    facts = template.facts
    bos, start, stop = (facts[role]["token"] for role in ("bos", "start", "stop"))
    train, held_out = pack["train"], final.get("eval_loss")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [cathpc, chat]
---
# {name}

Fine-tuned with cathpc on {train["records"]:,} conversations ({final["tokens"]:,} tokens in {final["epochs"]} epochs,
packed to {pack["seq_len"]:,} tokens a row, loss on the assistant's turns alone).
Final training loss {final["loss"]:.4f} nats a token{f", held-out loss {held_out:.4f}" if held_out is not None else ""}.

## Prompt
ChatML with a BOS, `{bos}`, once at the very start. The system message is a card that says who the model is.
Generation ends at `{stop}`.

```
{bos}{start}system
You are a helpful assistant.{stop}
{start}user
Hello!{stop}
{start}assistant
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH", dtype="bfloat16")
messages = [
    {json.dumps({"role": "system", "content": "You are a helpful assistant."})},
    {json.dumps({"role": "user", "content": "Hello!"})},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

The chat template adds the BOS: do not let the tokenizer add a second one to templated text
(`add_special_tokens=False`).

Template hash `{template.hash}`.
"""
