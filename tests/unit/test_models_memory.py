"""Token surgery on a model of Llama-3-70B's size, within a few hundred megabytes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cathpc.models import weights
from cathpc.models.surgery import SPREAD
from tests.llama3 import CONFIG

ROWS, WIDTH, TRAINED = 128256, 8192, 512
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
LIMIT = 1.5 * 2**30
"""Bytes; Slurm's limit for the job would be 8 GB. Importing torch and transformers takes 0.5 GB of it."""


def sparse(file: Path, tensors: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """A safetensors file of bfloat16 zeros that takes no room on the disk; offset of each tensor's data."""
    entries, at = {}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + at)
    return {name: 8 + len(header) + entry["data_offsets"][0] for name, entry in entries.items()}


def llama3_70b(folder: Path) -> None:
    """Weights of the 70B's names and shapes: both tables in shards of their own, ten layers in each of eight others."""
    height, width, keys = CONFIG["intermediate_size"], CONFIG["hidden_size"], 1024
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (height, width),
        "mlp.up_proj": (height, width),
        "mlp.down_proj": (width, height),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shards = [{TABLES[0]: (ROWS, WIDTH)}, {TABLES[1]: (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}]
    shards += [
        {f"model.layers.{i}.{name}.weight": shape for i in range(first, first + 10) for name, shape in shapes.items()}
        for first in range(0, 80, 10)
    ]
    index = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        offsets = sparse(folder / name, tensors)
        index |= dict.fromkeys(tensors, name)
        for table in set(tensors) & set(TABLES):
            with open(folder / name, "r+b") as stream:
                stream.seek(offsets[table])
                stream.write(rows(table).tobytes())
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def rows(table: str) -> np.ndarray:
    """The first rows of a table, those that are not zero: bfloat16 bits [TRAINED, WIDTH]."""
    values = np.random.default_rng(TABLES.index(table)).normal(0.02, 0.1, (TRAINED, WIDTH)).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def floats(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float64."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.timeout(1800)  # 8 GB are read and written
def test_surgery_on_70b_takes_little_memory_and_patches_both_tables(tiny_llama: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    llama3_70b(source)
    assert sum(file.stat().st_size for file in weights.files(source)) > 140e9
    # A small vocabulary with Llama-3's ids for its special tokens.
    tokenizer = json.loads((tiny_llama / "tokenizer.json").read_text())
    old = {"<|im_start|>": "<|reserved_special_token_0|>", "<|im_end|>": "<|reserved_special_token_1|>"}
    for token in tokenizer["added_tokens"]:
        token |= {"id": token["id"] + 127_000, "content": old.get(token["content"], token["content"])}
    tokenizer["post_processor"] = None
    filler = {f"filler {i}": i for i in range(len(tokenizer["model"]["vocab"]), 128_000)}
    tokenizer["model"]["vocab"] |= filler
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin_of_text|>"}))
    (source / "config.json").write_text(json.dumps(CONFIG))

    code = (
        "import json, sys; from pathlib import Path;"
        "from cathpc.models.config import TemplateConfig; from cathpc.models.surgery import operate;"
        "template = TemplateConfig(pad='<|reserved_special_token_2|>', renames=json.loads(sys.argv[3]));"
        "facts = operate(Path(sys.argv[1]), Path(sys.argv[2]), template, link=True);"
        "from cathpc.train.metrics import resident_peak;"
        "print(json.dumps([resident_peak(), facts['rows']]))"
    )
    renames = json.dumps({v: k for k, v in old.items()})
    arguments = [sys.executable, "-c", code, str(source), str(target), renames]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    peak, report = json.loads(ended.stdout.splitlines()[-1])
    print(f"peak {peak / 2**20:.0f} MiB")
    assert peak < LIMIT, f"{peak / 2**20:.0f} MiB"

    for table, told in zip(TABLES, report, strict=True):
        assert (told["tensor"], told["trained_rows"]) == (table, TRAINED)
        tensor, before = weights.tensors(target)[table], weights.tensors(source)[table]
        data = np.memmap(tensor.file, np.uint16, "r", tensor.offset, shape=tensor.shape)
        trained = floats(rows(table))
        mean, spread = trained.mean(axis=0), np.linalg.norm(trained.std(axis=0))
        for number in (128_002, 128_003):
            off = np.linalg.norm(floats(data[number]) - mean) / spread
            assert off == pytest.approx(SPREAD, rel=0.1)
        assert (data[:TRAINED] == rows(table)).all() and not data[128_004:].any()
        assert not np.memmap(before.file, np.uint16, "r", before.offset, shape=before.shape)[TRAINED:][::97].any()
    others = [file for file in weights.files(target) if file.name not in {tensor.file.name for tensor in
              (weights.tensors(target)[table] for table in TABLES)}]  # fmt: skip
    assert len(others) == 8 and all(file.stat().st_nlink == 2 for file in others)
    for file in weights.files(target):
        file.unlink()  # 4 GB of copies
