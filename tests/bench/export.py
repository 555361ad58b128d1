"""Memory and time of the export of a ZeRO-3 checkpoint: `python -m tests.bench.export [--gb 8] [--ranks 4]`.

Makes a checkpoint on disk as DeepSpeed lays it out, for a Llama of the size that is asked for and as many ranks as are
pretended; exports it in a process of its own (verification of every byte included) and prints one JSON line: bytes,
seconds, and the most memory of that process. `anonymous` is what it allocated; `resident` adds pages of files that are
mapped (its libraries; the checkpoint is read, not mapped). The page cache, which the kernel gives up when memory is
wanted, belongs to no process and is not counted. Contents are random: no file system can make holes of them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cathpc.models.config import TemplateConfig
from cathpc.models.source import prepare
from cathpc.models.weights import read_json, write_json
from cathpc.train import export, history, metrics
from cathpc.train.writing import TAG

STEP = 100
GROUP = 50_000_000  # elements of a rank's flat buffer after which the next one begins


def shapes(parameters: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama with 2,048 wide layers, as many as make up so many parameters."""
    width, mlp, vocabulary = 2048, 8192, 128_256
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 4, width),
        "self_attn.v_proj": (width // 4, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    size = sum(map(math.prod, layer.values()))
    layers = max(1, round((parameters - vocabulary * width) / size))
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for number in range(layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (width,)}


def make(folder: Path, tensors: dict[str, tuple[int, ...]], ranks: int) -> None:
    """Write a committed checkpoint of these tensors."""
    groups: list[OrderedDict[str, torch.Size]] = [OrderedDict()]
    sizes = [0]
    for name, shape in tensors.items():
        groups[-1][name] = torch.Size(shape)
        sizes[-1] += -(-math.prod(shape) // ranks)
        if sizes[-1] >= GROUP:
            groups.append(OrderedDict())
            sizes.append(0)
    if not groups[-1]:
        groups.pop()
        sizes.pop()
    states = folder / TAG
    states.mkdir(parents=True)
    module = {"module": {name: torch.empty(0) for name in tensors}, "param_shapes": groups, "global_steps": STEP}
    for rank in range(ranks):
        torch.save(module, states / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        moments = {
            number: {"step": torch.tensor(float(STEP)), "exp_avg": torch.randn(size), "exp_avg_sq": torch.rand(size)}
            for number, size in enumerate(sizes)
        }
        flat = [torch.randn(size) for size in sizes]
        inner = {"state": moments, "param_groups": [{"lr": 1e-5, "params": list(moments)}]}
        optimizer = {"zero_stage": 3, "optimizer_state_dict": inner, "fp32_flat_groups": flat}
        torch.save({"optimizer_state_dict": optimizer}, states / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    files = {}
    for path in sorted(states.iterdir()):
        digest, size = history.sha256(path)
        files[f"{TAG}/{path.name}"] = {"sha256": digest, "bytes": size}
    write_json(folder / history.MANIFEST, {"step": STEP, "world_size": ranks, "identity": {}, "files": files})


def world(top: Path, tensors: dict[str, tuple[int, ...]], ranks: int) -> dict[str, Path]:
    """The folders that an export stands on."""
    inputs = {name: top / name for name in ("train", "base", "pack")}
    renames = {"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"}
    template = TemplateConfig(bos="<|begin_of_text|>", pad="<|reserved_special_token_2|>", renames=renames)
    inputs["base"].mkdir()
    (inputs["base"] / "model").symlink_to(prepare("random:llama", template, top / "cache"))
    inputs["pack"].mkdir()
    write_json(inputs["pack"] / "pack.json", {"train": {"records": 1}, "seq_len": 8192})
    make(inputs["train"] / "checkpoints" / history.folder_name(STEP), tensors, ranks)
    row = {"attempt": 1, "global_step": STEP, "epoch": 0, "loss": 1.0, "tokens_seen": 1}
    (inputs["train"] / metrics.METRICS).write_text(json.dumps(row) + "\n")
    return inputs


def child(top: Path) -> dict[str, float]:
    """Export in this process; seconds, and its most memory in GB of 1e9 bytes, sampled every 5 ms."""
    most = {"anonymous_gb": 0.0, "resident_gb": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            for name, key in (("anonymous_gb", "RssAnon"), ("resident_gb", "VmRSS")):
                most[name] = max(most[name], int(found[key].split()[0]) * 1024 / 1e9)

    looking = threading.Thread(target=look)
    looking.start()
    inputs = {name: top / name for name in ("train", "base", "pack")}
    began = time.perf_counter()
    config: Any = SimpleNamespace(name="bench")
    summary = export.run(config, inputs, top / "export")
    seconds = time.perf_counter() - began
    over.set()
    looking.join()
    return {"seconds": seconds, "parameters": summary["parameters"], "shards": summary["shards"], **most}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=8.0, help="size of the checkpoint, in GB of 1e9 bytes")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    tensors = shapes(arguments.gb * 1e9 / 12)
    with tempfile.TemporaryDirectory(prefix="cathpc-bench-") as folder:
        top = Path(folder)
        inputs = world(top, tensors, arguments.ranks)
        saved = sum(path.stat().st_size for path in inputs["train"].rglob("*.pt"))
        command = [sys.executable, "-m", "tests.bench.export", "--child", str(top)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        settings = read_json(top / "export/model/config.json")
        assert settings["dtype"] == "bfloat16"
        written = sum(path.stat().st_size for path in (top / "export/model").glob("*.safetensors"))
    row = {"checkpoint_gb": saved / 1e9, "ranks": arguments.ranks, "written_gb": written / 1e9, **found}
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}))


if __name__ == "__main__":
    main()
