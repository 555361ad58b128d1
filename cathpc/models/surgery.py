"""Token surgery: give a base model the control tokens of the chat template, on its files, before any engine loads it.

In goes a model folder (safetensors, `tokenizer.json`), out comes another one: reserved tokens renamed to control
tokens, their rows in the embedding and in an untied output layer set to the mean of the trained rows, tokenizer, chat
template, config and generation config edited. Weight files are copied or linked as they are and a few rows are
patched in place, so memory stays at one block of rows (64 MiB) whatever the size of the model; time grows with the
bytes that are copied.

An untrained row of a reserved token is near zero and its logits mean nothing; the mean of the trained rows is the usual
remedy (Hewitt, "Initializing new word embeddings for pretrained language models", 2021).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError
from cathpc.models import template as chat
from cathpc.models import weights
from cathpc.models.config import TemplateConfig
from cathpc.models.weights import read_json, write_json, write_text

if TYPE_CHECKING:
    import torch

_BLOCK = 64 * 2**20  # bytes of rows that are held at once
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def operate(source: Path, target: Path, config: TemplateConfig, *, link: bool) -> dict[str, Any]:
    """Write the model in `source` with the chat template of `config` to the folder `target`; returns `template.json`.

    `link`: weight files that stay as they are may be hard links to those of `source`. Raises a `UserError` where a
    token is missing or a file cannot be used.
    """
    if config.name not in chat.NAMES:
        raise UserError(f"template.name={config.name!r} is not known; known templates: {', '.join(chat.NAMES)}")
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer_json(source, config.renames)
    facts = _markers(source, tokenizer, config)
    added = {t["id"] for t in tokenizer["added_tokens"]}

    config_json = clean_config(source)
    tables = _tables(source, config_json)
    patched = {t.file for t in tables.values()} if config.renames else set()
    for file in weights.files(source):
        weights.place(file, target / file.name, link=link and file not in patched)
    if (source / weights.INDEX).is_file() and not (source / weights.SINGLE).is_file():
        weights.place(source / weights.INDEX, target / weights.INDEX, link=False)
    renamed = {t["content"]: int(t["id"]) for t in tokenizer["added_tokens"] if t["content"] in config.renames.values()}
    facts["rows"] = [
        _initialise(tensor, target / tensor.file.name, name, facts, renamed, added) for name, tensor in tables.items()
    ]

    ids = {"bos_token_id": facts["bos"]["id"], "eos_token_id": facts["stop"]["id"], "pad_token_id": facts["pad"]["id"]}
    write_json(target / "config.json", config_json | ids)
    write_json(target / "generation_config.json", read_json(source / "generation_config.json") | ids)
    write_text(target / chat.TOKENIZER, json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n")
    write_json(target / "tokenizer_config.json", _tokenizer_config(source, config.renames, facts))
    write_text(target / chat.CHAT_TEMPLATE, chat.jinja())
    facts["hash"] = chat.template_hash(tokenizer, facts)
    write_json(target / chat.FILE, facts)
    return facts


def clean_config(source: Path) -> dict[str, Any]:
    """`config.json` without the entries that point to code of the repository or to where the model came from."""
    config = read_json(source / "config.json")
    if not config:
        raise UserError(f"{source} has no config.json: it is not a Hugging Face model folder")
    return {k: v for k, v in config.items() if k not in ("auto_map", "_name_or_path")}


def _added(tokenizer: dict[str, Any], token: str) -> dict[str, Any] | None:
    """The added token with this text."""
    return next((t for t in tokenizer["added_tokens"] if t["content"] == token), None)


def _tokenizer_json(source: Path, renames: dict[str, str]) -> dict[str, Any]:
    """`tokenizer.json` with its tokens renamed."""
    tokenizer = read_json(source / chat.TOKENIZER)
    if not tokenizer:
        raise UserError(
            f"{source} has no {chat.TOKENIZER}; save one where the model comes from, with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    tokenizer |= {"truncation": None, "padding": None}
    vocabulary = tokenizer["model"].get("vocab")
    for old, new in renames.items():
        entry = _added(tokenizer, old)
        if entry is None:
            reserved = [t["content"] for t in tokenizer["added_tokens"] if "reserved" in t["content"]]
            have = f"reserved tokens: {', '.join(reserved[:4])}..." if reserved else "it has no reserved tokens"
            raise UserError(f"template.renames: the tokenizer of {source} has no special token {old!r}; {have}")
        if _added(tokenizer, new) is not None or (isinstance(vocabulary, dict) and new in vocabulary):
            raise UserError(
                f"template.renames: the tokenizer of {source} has a token {new!r} already; leave out '{old}: {new}'"
            )
        entry |= {"content": new, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        if isinstance(vocabulary, dict) and old in vocabulary:
            tokenizer["model"]["vocab"] = vocabulary = {new if k == old else k: v for k, v in vocabulary.items()}
        if tokenizer.get("post_processor"):
            tokenizer["post_processor"] = _replace(tokenizer["post_processor"], old, new)
    return tokenizer


def _replace(value: Any, old: str, new: str) -> Any:
    """`value` (JSON) with every string and key that equals `old` replaced."""
    if isinstance(value, dict):
        return {(new if k == old else k): _replace(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replace(v, old, new) for v in value]
    return new if value == old else value


def _text(entry: Any) -> str:
    """The text of a special token as tokenizer_config.json writes it: a string, or an object with `content`."""
    return str(entry.get("content", "")) if isinstance(entry, dict) else str(entry or "")


def _markers(source: Path, tokenizer: dict[str, Any], config: TemplateConfig) -> dict[str, Any]:
    """Tokens and ids of the template's markers; each must be one special token of the (renamed) tokenizer."""
    own = read_json(source / "tokenizer_config.json")
    own_bos, own_pad = (config.renames.get(t, t) for t in (_text(own.get("bos_token")), _text(own.get("pad_token"))))
    wanted = {
        "bos": (config.bos or own_bos, "set template.bos to the token that starts a conversation"),
        "start": (chat.START, "rename a reserved token to it with template.renames"),
        "stop": (chat.STOP, "rename a reserved token to it with template.renames"),
        "pad": (config.pad or own_pad, "set template.pad to a reserved token that nothing else uses"),
    }
    facts: dict[str, Any] = {"name": config.name, "asked": asdict(config)}
    for role, (token, remedy) in wanted.items():
        entry = _added(tokenizer, token)
        if entry is None:
            have = ", ".join(t["content"] for t in tokenizer["added_tokens"][:6])
            seen = f"{token!r} is no special token of it" if token else "it names none"
            raise UserError(f"the tokenizer of {source} has no {role} token: {seen} (it has {have}...); {remedy}")
        entry["special"] = True
        facts[role] = {"token": token, "id": int(entry["id"])}
    if facts["bos"]["id"] == facts["start"]["id"]:
        raise UserError(
            f"the BOS of {source} is {chat.START!r}, which starts every message too; set template.bos to another token"
        )
    if facts["pad"]["id"] == facts["stop"]["id"]:
        raise UserError(
            f"the padding token of {source} is the stop token {chat.STOP!r}, so the model would never learn to stop; "
            "set template.pad to another token"
        )
    return facts


def _tokenizer_config(source: Path, renames: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    """A plain `tokenizer_config.json`: tokenizer.json decides the ids, no class or code of the repository does."""
    own = read_json(source / "tokenizer_config.json")
    fresh: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": facts["bos"]["token"],
        "eos_token": facts["stop"]["token"],
        "pad_token": facts["pad"]["token"],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if unknown := _text(own.get("unk_token")):
        fresh["unk_token"] = renames.get(unknown, unknown)
    if isinstance(own.get("model_max_length"), int):
        fresh["model_max_length"] = own["model_max_length"]
    return fresh


def _tables(source: Path, config: dict[str, Any]) -> dict[str, weights.Tensor]:
    """The embedding and, where it is not tied to it, the output layer: stored name -> tensor [rows, width]."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {k: v for k, v in config.items() if k != "model_type"}
    try:
        architecture = AutoConfig.for_model(config.get("model_type", ""), **fields)
    except ValueError:
        code = " and code of a repository is never run" if read_json(source / "config.json").get("auto_map") else ""
        raise UserError(
            f"{source}: the architecture {config.get('model_type')!r} is not built into transformers{code}; "
            "choose a model that transformers knows"
        ) from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)  # type: ignore[no-untyped-call]
    stored = weights.tensors(source)
    found: dict[str, weights.Tensor] = {}
    layers = [model.get_input_embeddings()]
    if (head := model.get_output_embeddings()) is not None and head.weight is not layers[0].weight:
        layers.append(head)
    for layer in layers:
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
        # A checkpoint saved without its head leaves out the outer module's name.
        hits = [s for s in stored if any(n == s or n.endswith(f".{s}") for n in names)]
        if not hits:
            raise UserError(f"{source} has no weights called {names[0]!r}; its files do not belong to its config.json")
        found[hits[0]] = stored[hits[0]]
    return found


def _blocks(tensor: weights.Tensor, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(index of the first row, rows in float64) of a table, block by block."""
    import torch
    from safetensors import safe_open

    step = max(1, _BLOCK // (8 * tensor.shape[1]))
    with safe_open(tensor.file, framework="pt") as stream:
        rows = stream.get_slice(name)
        for first in range(0, tensor.shape[0], step):
            yield first, rows[first : first + step].to(torch.float64)


def _initialise(
    tensor: weights.Tensor,
    patched: Path,
    name: str,
    facts: dict[str, Any],
    renamed: dict[str, int],
    added: set[int],
) -> dict[str, Any]:
    """Set the rows of the renamed tokens in the file `patched` to the mean of the trained rows; report norms.

    Trained rows are those of ordinary tokens: neither added tokens (`added`) nor rows that are zero throughout, such as
    the padding of a table beyond its vocabulary.
    """
    import torch

    if tensor.dtype not in _DTYPES or len(tensor.shape) != 2:
        raise UserError(
            f"{tensor.file}: {name} is {tensor.dtype} {list(tensor.shape)}; a table in {', '.join(_DTYPES)} "
            "was expected. A quantised model cannot be fine-tuned: use the original one"
        )
    if (highest := max(added, default=0)) >= tensor.shape[0]:
        raise UserError(f"{tensor.file}: {name} has {tensor.shape[0]} rows, but the tokenizer has a token {highest}")
    markers = {facts[role]["token"]: facts[role]["id"] for role in ("bos", "start", "stop", "pad")} | renamed
    total = torch.zeros(tensor.shape[1], dtype=torch.float64)
    norms: list[torch.Tensor] = []
    before: dict[str, float] = {}
    for first, rows in _blocks(tensor, name):
        length = rows.norm(dim=1)
        before |= {t: float(length[i - first]) for t, i in markers.items() if first <= i < first + len(rows)}
        trained = length > 0
        for i in added:
            if first <= i < first + len(rows):
                trained[i - first] = False
        total += rows[trained].sum(dim=0)
        norms.append(length[trained])
    lengths = torch.cat(norms)
    if not len(lengths):
        raise UserError(f"{tensor.file}: {name} has no trained row")
    mean = (total / len(lengths)).to(getattr(torch, _DTYPES[tensor.dtype]))
    width = weights.ITEM_BYTES[tensor.dtype] * tensor.shape[1]
    if renamed:
        with open(patched, "r+b") as stream:
            for number in renamed.values():
                stream.seek(tensor.offset + number * width)
                stream.write(mean.view(torch.uint8).numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
    after = {t: float(mean.to(torch.float64).norm()) if t in renamed else before[t] for t in markers}
    return {
        "tensor": name,
        "trained_rows": len(lengths),
        "trained_norm_mean": float(lengths.mean()),
        "trained_norm_median": float(lengths.median()),
        "tokens": [
            {"token": t, "id": i, "norm_before": before[t], "norm": after[t], "initialised": t in renamed}
            for t, i in markers.items()
        ],
    }
