"""Likelihoods beside what one would write without cathpc, in one run: `python -m tests.bench.score`.

The same model (SmolLM2-135M, or `--base`), the same texts (records as `pull` makes them under `+experiment=research`,
where `../shared/data` is there, else the demo's; by a hash, so in no order), the same token ids, the same threads. As
in a shard, ours makes its batches of all `--records`; of these batches every so many-th is timed, some `--tokens`
together, and `loop` has their texts. Tokens are those of the whole conversation, without padding. In each round
contenders alternate part by part; what is printed is the median of the rounds.

- `evaluate`: the algorithm of Hugging Face `evaluate`'s perplexity metric, stated anew: float32, batches of 16 texts as
  they come, padded, attention mask, all logits, cross entropy of all tokens. On the first `--few` of the records: whole
  batches, since a smaller one is faster.
- `loop`: bfloat16, a record at a time, logits of the answer alone.
- `forward`: the bare forward pass in bfloat16, all logits and no loss, on batches without padding whose sequences have
  the texts' mean length, at the batch size that is fastest.
- `ours`: what stage `score` does for each of its two models (`cathpc.data.likelihood`).

Then how far ours is off float32 on `--few` texts: |difference| in nats a token, averaged over their answer tokens and
over records (where an answer of three tokens, which any rounding in bfloat16 moves by 0.1, counts like a long one), and
Spearman's correlation. CPU seconds beside the clock: on a busy machine they compare better.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from cathpc.config import compose
from cathpc.data import pull
from cathpc.data.likelihood import in_batches, mean_nll
from cathpc.models.blocks import speed_up
from cathpc.models.gpt import Example, token_nll
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.record import unit_hash

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
WANTED = {"evaluate": 12.0, "loop": 1.1, "forward": 0.95}
"""Least tokens/s of ours over those of each contender."""
TURNS = 4
"""Parts that a round's work is dealt into; contenders alternate part by part: all feel a drifting machine alike."""

Part = Callable[[], int]
"""A part of a contender's work; gives its tokens."""


def texts(count: int) -> list[list[dict[str, str]]]:
    """`count` conversations, by a hash of their ids."""
    if SHARED.is_dir():
        config = compose(["+experiment=research", f"paths.research={SHARED}"])
    else:
        print("../shared/data is absent: the texts that ship with cathpc")
        config = compose(["+experiment=demo"])
    with tempfile.TemporaryDirectory() as folder:
        pull.run(config, {}, Path(folder))
        rows = [
            row for file in sorted(Path(folder).glob("records/*.parquet")) for row in pq.read_table(file).to_pylist()
        ]
    rows.sort(key=lambda row: unit_hash(row["id"], 0))
    return [row["messages"] for row in rows[:count]]


def sample(batches: list[list[int]], lengths: list[int], tokens: int) -> list[list[int]]:
    """Every so many-th of the batches, so that their sequences have about `tokens` tokens together."""
    step = max(1, round(sum(lengths) / tokens))
    return batches[step // 2 :: step]


def by_evaluate(model: Any, examples: list[Example], pad: int) -> None:
    """`evaluate`'s perplexity of one batch of texts."""
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    rows = [e.ids for e in examples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(ids, attention_mask=attention).logits
    shifted, labels, counted = logits[..., :-1, :].contiguous(), ids[..., 1:].contiguous(), attention[..., 1:]
    torch.exp((loss(shifted.transpose(1, 2), labels) * counted).sum(1) / counted.sum(1)).tolist()


def by_loop(model: Any, examples: list[Example]) -> None:
    """One record at a time."""
    with torch.inference_mode():
        for example in examples:
            ids, mask = torch.tensor([example.ids]), torch.tensor([example.mask])
            token_nll(model, ids, mask, chunk=0)[0].mean().item()


def dealt(work: Callable[[list[Example]], object], batches: list[list[Example]]) -> list[Part]:
    """The batches in `TURNS` parts."""

    def part(mine: list[list[Example]]) -> int:
        for batch in mine:
            work(batch)
        return sum(len(e.ids) for batch in mine for e in batch)

    return [partial(part, batches[turn::TURNS]) for turn in range(TURNS)]


def forward(model: Any, length: int, shape: int, vocabulary: int, tokens: int) -> list[Part]:
    """`TURNS` parts of bare forward passes over about `shape` tokens each, which take about `tokens`."""
    ids = torch.randint(vocabulary, (max(1, shape // length), length))
    passes = max(1, round(tokens / TURNS / ids.numel()))

    def part() -> int:
        with torch.inference_mode():
            for _ in range(passes):
                model(ids, use_cache=False).logits  # noqa: B018  (that it is computed is the point)
        return passes * ids.numel()

    return [part] * TURNS


def race(contenders: dict[str, list[Part]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median over the rounds of (tokens/s, tokens a CPU second); a first part of each warms up."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for parts in contenders.values():
        parts[0]()
    for _ in range(rounds):
        sums = {name: np.zeros(3) for name in contenders}
        for turn in range(TURNS):
            for name, parts in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                tokens = parts[turn]()
                sums[name] += (tokens, time.perf_counter() - wall, time.process_time() - cpu)
        for name, (tokens, wall, cpu) in sums.items():
            rates[name].append((tokens / wall, tokens / cpu))
            print(f"  {name:<14}{tokens / wall:>10,.0f} tokens/s{tokens / cpu:>10,.0f} a CPU second", flush=True)
    return {name: tuple(statistics.median(v) for v in zip(*seen, strict=True)) for name, seen in rates.items()}


def nlls(model: Any, examples: list[Example], pad: int, batch_tokens: int) -> np.ndarray:
    """NLL of each example, in their order."""
    found = np.zeros(len(examples))
    for batch in in_batches([len(e.ids) for e in examples], batch_tokens):
        found[batch] = mean_nll(model, [examples[i] for i in batch], pad)
    return found


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="another model than SmolLM2-135M")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--few", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--batch-tokens", type=int, nargs="+", default=[compose(["+experiment=demo"]).score.batch_tokens]
    )
    parser.add_argument(
        "--shapes", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="tokens of a pass of `forward`"
    )
    parser.add_argument("--skip-slow", action="store_true", help="without `evaluate`")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gpt = compose(["+experiment=demo"]).gpt
    folder = prepare(arguments.base or gpt.base, gpt.template, arguments.cache)
    template = Template.load(folder)
    examples = [Example(*template.encode(messages)) for messages in texts(arguments.records)]
    few = examples[: arguments.few]
    lengths = [len(e.ids) for e in examples]
    sampled = {size: sample(in_batches(lengths, size), lengths, arguments.tokens) for size in arguments.batch_tokens}
    timed = [examples[i] for batch in sampled[arguments.batch_tokens[0]] for i in batch]
    tokens = sum(len(e.ids) for e in timed)
    mean = round(tokens / len(timed))
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}; {len(timed)} of the "
        f"{len(examples)} records, {tokens:,} tokens, {sum(sum(e.mask) for e in timed) / tokens:.0%} supervised; mean "
        f"length {mean}"
    )

    full = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    vocabulary = plain.config.vocab_size

    contenders = {"loop": dealt(lambda batch: by_loop(plain, batch), [[e] for e in timed])}
    if not arguments.skip_slow:
        batches = [few[start : start + 16] for start in range(0, len(few), 16)]
        contenders["evaluate"] = dealt(lambda batch: by_evaluate(full, batch, template.pad_id), batches)
    medians = race(contenders, arguments.rounds)
    # What ours tells the allocator holds for the process: the two above had their turns before, `forward` gains by it.
    fast = speed_up(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval())
    contenders = {
        f"ours {size}": dealt(
            lambda batch: mean_nll(fast, batch, template.pad_id), [[examples[i] for i in batch] for batch in batches]
        )
        for size, batches in sampled.items()
    }
    for shape in arguments.shapes:
        contenders[f"forward {shape}"] = forward(plain, mean, shape, vocabulary, tokens // 2)
    medians |= race(contenders, arguments.rounds)

    print("medians")
    for name, (wall, cpu) in medians.items():
        print(f"{name:<14}{wall:>10,.0f} tokens/s{cpu:>10,.0f} a CPU second")
    ours = max((name for name in medians if name.startswith("ours")), key=lambda n: medians[n])
    for against, least in WANTED.items():
        rivals = [name for name in medians if name.startswith(against)]
        if rivals:
            best = max(rivals, key=lambda n: medians[n])
            ratio, cpu = (medians[ours][i] / medians[best][i] for i in (0, 1))
            verdict = "ok" if ratio >= least else "MISSED"
            print(f"{ours} / {best}: {ratio:.2f} (by CPU time {cpu:.2f}), wanted {least}: {verdict}")
    half, exact = (nlls(model, few, template.pad_id, arguments.batch_tokens[0]) for model in (fast, full))
    off, weights = np.abs(half - exact), np.array([sum(e.mask) for e in few])
    print(
        f"off float32 on {len(few)} records, in nats a token: mean {np.average(off, weights=weights):.4f} over tokens, "
        f"{off.mean():.4f} over records, largest {off.max():.4f}; "
        f"Spearman {rank_correlation(half, exact):.5f}"
    )


if __name__ == "__main__":
    main()
