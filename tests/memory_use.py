"""What a training really takes: steps of the real engine on random tokens, in gloo ranks or on a GPU.

Run as a program by each rank, this file prints one line of JSON: the bytes of tensors at the peak, beyond what the
process held before the model. On CPUs that is its anonymous memory (mapped files are not counted), sampled; on a GPU
what torch's allocator reports.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cathpc.models.config import Dtype
from cathpc.models.shape import ShapeConfig
from cathpc.train.config import LoraConfig, Offload, TrainConfig

if TYPE_CHECKING:
    from transformers import LlamaConfig

ROOT = Path(__file__).parents[1]
EVERY_S = 0.004
SMALL = ShapeConfig(layers=1, width=32, mlp_width=64, heads=2, kv_heads=1, head_dim=16, vocab=64)


class Peak:
    """Most memory between `with` and `bytes`, beyond what was taken before."""

    def __init__(self, *, gpu: bool) -> None:
        self.gpu = gpu
        self.most = 0
        self._done = threading.Event()

    def __enter__(self) -> Peak:
        gc.collect()
        if self.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before = self.most = anonymous()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(EVERY_S):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        if self.gpu:
            import torch

            self.most = torch.cuda.max_memory_allocated()
            return
        self._done.set()
        self._watch.join()

    @property
    def bytes(self) -> int:
        return self.most - self.before


def on_gpu() -> bool:
    """Whether trainings compute on a GPU here."""
    import torch

    return torch.cuda.is_available()


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


def train_config(plain: dict[str, Any]) -> TrainConfig:
    """A config out of JSON data."""
    enums = {"dtype": Dtype, "offload": Offload, "lora": lambda values: LoraConfig(**values)}
    return TrainConfig(**{name: enums[name](value) if name in enums else value for name, value in plain.items()})


def llama(shape: ShapeConfig, **more: Any) -> LlamaConfig:
    """The config of a Llama of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        **more,
    )


def build(shape: ShapeConfig, folder: Path) -> None:
    """Write a Llama of random weights to `folder`."""
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(llama(shape, bos_token_id=0, eos_token_id=1)).bfloat16().save_pretrained(folder)


def used(folder: Path, train: dict[str, Any], seq_len: int, steps: int = 2) -> list[int]:
    """Bytes that each rank of a training of the model in `folder` takes; ranks share a machine, one a GPU."""
    small = folder.with_name(f"{folder.name}-small")
    build(SMALL, small)
    task = {"folder": str(folder), "small": str(small), "train": train, "seq_len": seq_len, "steps": steps}
    return [answer["bytes"] for answer in answers(__file__, task, train.get("ranks_per_node", 1))]


def answers(program: str, task: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """Run a program as `world` ranks; the last line, in JSON, that each one prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in where.items()}}
        env["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once, so that no fragments are counted
        command = [sys.executable, program, json.dumps(task)]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        told = [process.communicate() for process in ranks]
    finally:  # of a test that ran out of time
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), "\n".join(error[-3000:] for _, error in told)
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in told]


def main(task: dict[str, Any]) -> None:
    """One rank: a step of a tiny model, for what is imported and allocated once, and then the steps that count."""
    from cathpc.train import ranks

    train = train_config(task["train"])
    ranks.start(train)
    run(train, Path(task["small"]), 8, steps=1)
    with Peak(gpu=on_gpu()) as peak:
        run(train, Path(task["folder"]), task["seq_len"], steps=task["steps"])
    tell({"bytes": peak.bytes})


def tell(answer: dict[str, Any]) -> NoReturn:
    """Print a rank's answer and leave when all ranks have one; gloo's threads may abort an orderly exit."""
    from cathpc.train import ranks

    print(json.dumps(answer), flush=True)
    ranks.barrier()
    os._exit(0)


def run(train: TrainConfig, folder: Path, seq_len: int, *, steps: int) -> None:
    """Some optimizer steps on random tokens, each row a segment of its own, all of them supervised."""
    import torch

    from cathpc.train import engine as engines
    from cathpc.train import ranks

    engine, _ = engines.start(train, folder)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokens = train.micro_batch * seq_len
    bounds = list(range(0, tokens + 1, seq_len))
    generator = torch.Generator().manual_seed(ranks.rank())
    for _ in range(steps * engines.accumulation(train, ranks.world_size())):
        ids = torch.randint(vocab, (1, tokens), generator=generator)
        tensors = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(tokens)[None] % seq_len}
        loss = engine(**{name: tensor.to(ranks.device()) for name, tensor in tensors.items()}, bounds=bounds)
        engine.backward(loss / tokens, scale_wrt_gas=False)
        engine.step()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
