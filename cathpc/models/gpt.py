"""The reference GPT and the pool GPT: two copies of one base, tuned on different authors' answers.

In: the records of pull, the base of group `gpt`. Out: `model/`, a Hugging Face folder with its template,
`metrics.json`, and `heldout.parquet` (id, generator): answers to held-out prompts, by which the report measures the
scores. The reference learns from the generators that `gpt.reference_generators` names, the pool from every other named
generator, in equal numbers of records. Neither sees a held-out prompt. Which records, up to `gpt.train_tokens`, is a
matter of hashes of their prompts: where both sides answer the same prompts both GPTs learn from the same ones, so that
what tells them apart is how they answer and not what they were asked. Memory grows with the model, with the tokens that
are trained on, and with the places that are remembered: some 300 bytes for each record of a generator, up to
`gpt.train_tokens` / `MIN_TOKENS` of each generator; beyond that it does not grow with the data.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cathpc import progress
from cathpc.errors import UserError
from cathpc.models import precision
from cathpc.models.blocks import LARGEST_KEPT
from cathpc.models.config import GptConfig
from cathpc.models.logits import refuse_changed
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.models.watch import Watch
from cathpc.models.weights import write_json
from cathpc.record import RECORD_SCHEMA, heldout, prompt_key, unit_hash

if TYPE_CHECKING:
    from cathpc.config import Config

Model = Any
"""A causal language model of transformers, whose methods have no types."""

HELDOUT = "heldout.parquet"
MIN_TOKENS = 8
"""No conversation in the template has fewer tokens: how many records `gpt.train_tokens` can call for at most."""
BLOCK = 1024
LOGIT_BYTES = {"cpu": LARGEST_KEPT, "cuda": 2**28}
"""Of the logits that exist at once, by device: on CPUs what stays in the allocator, and almost in the cache."""
_ORDER = 1_000_003
"""Added to the seed: of the hash that orders prompts."""


@dataclass(frozen=True)
class Example:
    """A tokenised conversation; `mask` is True where the token is learned."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands, its shard and its row there, ordered by hashes of its prompt and of its id."""

    prompt: float
    hash: float
    shard: int
    row: int

    def __lt__(self, other: Place) -> bool:  # a heap of these keeps the smallest hashes: its top is the largest
        return (self.prompt, self.hash) > (other.prompt, other.hash)


def reference(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage `reference`: the base tuned on answers whose generator matches `gpt.reference_generators`."""
    return _stage("reference", config, inputs, out, wanted=lambda name: matches(name, config.gpt.reference_generators))


def pool(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage `pool`: the base tuned on answers of every other named generator."""
    return _stage("pool", config, inputs, out, wanted=lambda name: not matches(name, config.gpt.reference_generators))


def matches(generator: str, patterns: list[str]) -> bool:
    """Whether one of the shell patterns fits the generator's name, whatever the case, and none behind a '!' does."""

    def fits(some: Iterable[str]) -> bool:
        return any(fnmatchcase(generator.casefold(), pattern.casefold()) for pattern in some)

    return fits(p for p in patterns if p[:1] != "!") and not fits(p[1:] for p in patterns if p[:1] == "!")


def _stage(
    name: str, config: Config, inputs: dict[str, Path], out: Path, wanted: Callable[[str], bool]
) -> dict[str, Any]:
    gpt = config.gpt
    started = time.monotonic()
    shards = sorted((inputs["pull"] / "records").glob("records-*.parquet"))
    train_places, held_places, seen = choose(shards, gpt, wanted)
    if not train_places:
        raise UserError(
            f"no training record for the {name} GPT: gpt.reference_generators is "
            f"{gpt.reference_generators}, the generators in the data are {_listing(seen)}. "
            "Change the patterns, or give the sources of the dataset a `generator`; both sides must find answers."
        )
    folder = prepare(gpt.base, gpt.template, Path(config.paths.cache))
    refuse_changed(folder, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    template = Template.load(folder)
    train_set = take(shards, train_places, template, gpt.train_tokens, gpt.seq_len)
    held_set = take(shards, held_places, template, gpt.heldout_tokens, gpt.seq_len)
    if not train_set:
        raise UserError(
            f"no record of {len(train_places)} has an answer within gpt.seq_len={gpt.seq_len} tokens; raise it."
        )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(gpt.seed)
    model: Model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device)
    before = perplexity(model, held_set, template.pad_id, gpt)
    watch = _watch(model, held_set, template.pad_id, gpt)
    curve = train(
        model, train_set, template.pad_id, gpt, lambda done, total: progress.report(out, done, total, "tokens"), watch
    )
    after = perplexity(model, held_set, template.pad_id, gpt)

    model.to(torch.float32).save_pretrained(out / "model")
    template.copy(out / "model")
    train_tokens = sum(len(e.ids) for e in train_set)
    metrics: dict[str, Any] = {
        "records": len(train_set),
        "train_tokens": train_tokens,
        "answer_tokens": sum(map(_targets, train_set)),
        "heldout_records": len(held_set),
        "heldout_tokens": sum(map(_targets, held_set)),
        "heldout_ppl_before": before,
        "heldout_ppl_after": after,
        "heldout_curve": watch.curve if watch else [],
        "best_step": int(watch.best["step"]) if watch and watch.best else len(curve),
        "generators": {n: count for n, count in seen.items() if n and wanted(n)},
        "seconds": round(time.monotonic() - started, 1),
        "dtype": precision.name(precision.usable(gpt.dtype)),
        "curve": curve,
    }
    write_json(out / "metrics.json", metrics)
    _write_heldout(shards, held_places, out / HELDOUT)
    change = (
        "no held-out record" if before is None or after is None else f"held-out perplexity {before:.2f} → {after:.2f}"
    )
    if metrics["best_step"] < len(curve):
        change += f", the best at step {metrics['best_step']:,} of {len(curve):,}"
    change += precision.fallback(gpt.dtype, metrics["dtype"])
    line = f"{len(train_set):,} records, {train_tokens:,} tokens × {gpt.epochs}, {change}"
    return {**{k: v for k, v in metrics.items() if k != "curve"}, "line": line}


def choose(
    shards: list[Path], gpt: GptConfig, wanted: Callable[[str], bool]
) -> tuple[list[Place], list[Place], dict[str, int]]:
    """Places of the records to train on and of those to hold out, in the order in which they are taken.

    Of each generator no more places are remembered than the tokens can call for, since it may be the only one left.
    Returns (training, held out, records by generator over all data); no more of each than its tokens can call for.
    Generators take turns; each gives its answer to the prompt that was taken least before, the first by hash among
    those.
    """
    limits = (max(1, gpt.train_tokens // MIN_TOKENS), max(1, gpt.heldout_tokens // MIN_TOKENS))
    heaps: tuple[dict[str, list[Place]], dict[str, list[Place]]] = ({}, {})
    seen: dict[str, int] = {}
    for number, shard in enumerate(shards):
        row = 0
        for batch in pq.ParquetFile(shard).iter_batches(BLOCK, columns=["id", "generator", "messages"]):
            columns = batch.to_pydict()
            for key, generator, messages in zip(columns["id"], columns["generator"], columns["messages"], strict=True):
                seen[generator or ""] = seen.get(generator or "", 0) + 1
                if generator and wanted(generator):
                    side = int(heldout(messages, gpt.heldout_share, gpt.seed))
                    heap = heaps[side].setdefault(generator, [])
                    # Another seed than the split's, by which all prompts of one side are alike.
                    order = unit_hash(prompt_key(messages), gpt.seed + _ORDER)
                    heapq.heappush(heap, Place(order, unit_hash(key, gpt.seed), number, row))
                    if len(heap) > limits[side]:
                        heapq.heappop(heap)
                row += 1
    train_places, held_places = (
        _in_turns([sorted(heap, reverse=True) for _, heap in sorted(h.items())], limit)
        for h, limit in zip(heaps, limits, strict=True)
    )
    return train_places, held_places, dict(sorted(seen.items()))


def take(shards: list[Path], places: list[Place], template: Template, tokens: int, seq_len: int) -> list[Example]:
    """Tokenise the records at `places` one after another until `tokens` are reached; longer ones are cut at
    `seq_len`."""
    examples: list[Example] = []
    total = 0
    for start in range(0, len(places), BLOCK):
        for messages in _read(shards, places[start : start + BLOCK]):
            ids, mask = template.encode(messages)
            example = Example(ids[:seq_len], mask[:seq_len])
            if not _targets(example):
                continue
            examples.append(example)
            total += len(example.ids)
            if total >= tokens:
                return examples
    return examples


def train(
    model: Model,
    examples: list[Example],
    pad_id: int,
    gpt: GptConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    watch: Watch | None = None,
) -> list[dict[str, float]]:
    """Tune `model` in place with AdamW, a short warm-up and a linear decay to a tenth; returns the loss curve.

    The loss of a step is the mean NLL, in nats, over the answer tokens of its batch. With `gpt.dtype` bfloat16 the
    matrices multiply in bfloat16 (autocast) while weights and optimizer stay in float32. A `watch` may stop it, and
    leaves the weights that it found best; it changes nothing else.
    """
    device = next(model.parameters()).device
    steps = [batch for epoch in range(gpt.epochs) for batch in batches(examples, gpt.batch_tokens, gpt.seed + epoch)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=gpt.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warmup = max(1, round(0.05 * len(steps)))
    curve: list[dict[str, float]] = []
    done, total = 0, sum(len(e.ids) for batch in steps for e in batch)
    model.train()
    for step, batch in enumerate(steps):
        rate = gpt.lr * min((step + 1) / warmup, 1 - 0.9 * max(0, step - warmup) / max(1, len(steps) - warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _autocast(device, gpt):
            loss = token_nll(model, *tensors(batch, pad_id, device), chunk=0)[0].mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += sum(len(e.ids) for e in batch)
        curve.append({"step": step + 1, "tokens": done, "loss": round(float(loss.detach()), 5), "lr": rate})
        report(done, total)
        if watch and watch.after(model, step + 1, done, last=step + 1 == len(steps)):
            break
        model.train()
    if watch:
        watch.restore(model)
    model.eval()
    return curve


def _watch(model: Model, held_set: list[Example], pad_id: int, gpt: GptConfig) -> Watch | None:
    """What measures while `model` trains, on some of `held_set`: a tenth of the tokens between two measures, so that
    all of them together cost a thirtieth of the training. None where it is switched off, or nothing is held out."""
    if not gpt.eval_every_tokens or not held_set:
        return None
    ends = accumulate(len(example.ids) for example in held_set)
    count = sum(end <= gpt.eval_every_tokens / 10 for end in ends)
    some = held_set[: max(1, count)]
    return Watch(lambda: perplexity(model, some, pad_id, gpt) or math.nan, gpt.eval_every_tokens, gpt.patience)


def _autocast(device: torch.device, gpt: GptConfig) -> torch.autocast:
    """Matrix products in bfloat16 where `gpt.dtype` and the device want it, else as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision.usable(gpt.dtype) is torch.bfloat16)


def perplexity(model: Model, examples: list[Example], pad_id: int, gpt: GptConfig) -> float | None:
    """exp of the mean NLL over all answer tokens of `examples`; None without any."""
    if not examples:
        return None
    device = next(model.parameters()).device
    model.eval()
    total = 0.0
    with torch.inference_mode(), _autocast(device, gpt):
        for batch in batches(examples, gpt.batch_tokens, gpt.seed):
            total += float(token_nll(model, *tensors(batch, pad_id, device))[0].double().sum())
    return math.exp(total / sum(map(_targets, examples)))


def token_nll(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, *, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of the tokens under `mask` given those before them.

    `ids` int64 [rows, length], padded on the right; `mask` bool of the same shape. Returns (NLL float32 [n], row of
    each int64 [n]). Logits are computed for these tokens alone, `chunk` at a time (None: as many as take `LOGIT_BYTES`
    in float32; 0: all at once, for training). No attention mask is needed: attention is causal, so that padding on the
    right is seen by padding alone.
    """
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    learned = mask[:, 1:]
    states, targets = hidden[:, :-1][learned], ids[:, 1:][learned]
    head = model.get_output_embeddings()
    if chunk is None:
        chunk = max(8, LOGIT_BYTES[ids.device.type] // (4 * head.out_features) // 8 * 8)
    size = chunk or max(1, len(targets))
    parts = [
        torch.nn.functional.cross_entropy(head(s).float(), t, reduction="none")
        for s, t in zip(torch.split(states, size), torch.split(targets, size), strict=True)
    ]
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(learned)[learned]
    return torch.cat(parts), rows


def tensors(batch: list[Example], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch as (ids int64 [rows, longest], mask bool), padded on the right."""
    width = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [pad_id] * (width - len(e.ids)) for e in batch])
    mask = torch.tensor([e.mask + [False] * (width - len(e.mask)) for e in batch])
    return ids.to(device), mask.to(device)


def batches(examples: list[Example], batch_tokens: int, seed: int) -> list[list[Example]]:
    """Batches of similar length with at most `batch_tokens` tokens, padding included, in an order that hashes give."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), unit_hash(str(i), seed)))
    result: list[list[Example]] = []
    for index in order:  # ascending, so that the newest member sets the width
        example = examples[index]
        if result and len(example.ids) * (len(result[-1]) + 1) <= batch_tokens:
            result[-1].append(example)
        else:
            result.append([example])
    return [result[i] for i in sorted(range(len(result)), key=lambda i: unit_hash(f"batch {i}", seed))]


def _targets(example: Example) -> int:
    return sum(example.mask[1:])


def _in_turns(queues: list[list[Place]], limit: int) -> list[Place]:
    """The first `limit` places of all `queues`, each ascending by its hashes, a queue after the other: see `choose`."""
    taken: Counter[float] = Counter()
    heaps = [[(0, p.prompt, p.hash, i) for i, p in enumerate(queue)] for queue in queues]  # ascending, so heaps
    order: list[Place] = []
    while any(heaps) and len(order) < limit:
        for queue, heap in zip(queues, heaps, strict=True):
            while heap and heap[0][0] < taken[heap[0][1]]:  # the prompt was taken since
                _, prompt, key, place = heap[0]
                heapq.heapreplace(heap, (taken[prompt], prompt, key, place))
            if heap:
                _, prompt, _, place = heapq.heappop(heap)
                taken[prompt] += 1
                order.append(queue[place])
    return order[:limit]


def _read(shards: list[Path], places: list[Place]) -> Iterator[list[dict[str, str]]]:
    """Messages at `places`, in their order."""
    found: dict[tuple[int, int], list[dict[str, str]]] = {}
    for number in sorted({place.shard for place in places}):
        rows = sorted(place.row for place in places if place.shard == number)
        messages = pq.read_table(shards[number], columns=["messages"]).take(pa.array(rows))["messages"].to_pylist()
        found.update({(number, row): m for row, m in zip(rows, messages, strict=True)})
    return (found[place.shard, place.row] for place in places)


def _write_heldout(shards: list[Path], places: list[Place], path: Path) -> None:
    """Id and generator of the records at `places`."""
    parts = []
    for number in sorted({place.shard for place in places}):
        rows = sorted(place.row for place in places if place.shard == number)
        parts.append(pq.read_table(shards[number], columns=["id", "generator"]).take(pa.array(rows)))
    empty = RECORD_SCHEMA.empty_table().select(["id", "generator"])
    pq.write_table(pa.concat_tables([empty, *parts]), path)


def _listing(seen: dict[str, int]) -> str:
    named = [f"{name} ({count:,})" for name, count in seen.items() if name]
    unnamed = f"{seen.get('', 0):,} records name none"
    return ", ".join(named[:20]) + (f" and {len(named) - 20} more" if len(named) > 20 else "") + f"; {unnamed}"
