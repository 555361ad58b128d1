"""Batched generation from a Hugging Face folder, for the cards and for the probes.

In: prompts as token ids. Out: the tokens written after each prompt, without the stop token. One forward pass a token
for the whole batch: left-padded, with a KV cache; what the prompts of a batch begin with (a few-shot prompt) is run and
kept once (`cathpc.evaluate.prefix`), and rows that have stopped leave the batch. Memory grows with batch size x longest
prompt; time with the longest answer of each batch, so that callers sort by length.

Greedy by default. Sampling draws one uniform number a token from a hash of the row's own seed, so a row's draws never
depend on its batch mates; the logits may still differ in their last bits with the shape of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cathpc.evaluate import prefix
from cathpc.models.config import Dtype
from cathpc.models.precision import usable
from cathpc.record import unit_hash

if TYPE_CHECKING:
    from cathpc.models.template import Template

MIN_SHARED = 16
"""A shorter common prefix is not worth a forward pass of its own."""

Steer = Callable[[int, list[int], int], int]
"""(row, tokens written so far, token chosen) -> the token to write: how a form is forced onto an answer."""


def load(folder: Path, dtype: Dtype) -> tuple[Any, Template]:
    """The causal model in `folder`, ready to generate, and its chat template; on GPUs where there are any."""
    from transformers import AutoModelForCausalLM

    from cathpc.models.template import Template

    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=usable(dtype),
        use_safetensors=True,
        attn_implementation=prefix.ATTENTION,
        **placement,
    )
    model.train(False)
    return model, Template.load(folder)


def window(config: Any) -> int:
    """The longest sequence that a model with this Hugging Face config takes, in tokens."""
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)


def pick(logits: torch.Tensor, temperature: float, top_k: int, uniforms: list[float]) -> torch.Tensor:
    """One token a row of `logits` [rows, vocabulary]: the best at temperature 0, else drawn from the `top_k` best.

    The draw inverts the cumulative distribution at the row's number in `uniforms`, each in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    values, tokens = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values / temperature, dim=-1).cumsum(dim=-1)
    draws = torch.tensor(uniforms, dtype=cumulative.dtype, device=cumulative.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, draws, right=True).clamp(max=cumulative.shape[-1] - 1)
    return tokens.gather(1, index)[:, 0]


def penalise(logits: torch.Tensor, written: list[set[int]], penalty: float) -> torch.Tensor:
    """`logits` [rows, vocabulary], the tokens that each row has `written` made less likely (CTRL, arXiv:1909.05858)."""
    logits = logits.float().clone()
    for row, tokens in enumerate(written):
        seen = torch.tensor(sorted(tokens), dtype=torch.long, device=logits.device)
        values = logits[row, seen]
        logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def shared_prefix(prompts: list[list[int]]) -> int:
    """How many tokens all `prompts` begin with, at least one token of each left out; 0 where that is not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    length = 0
    while length < min(len(p) for p in prompts) - 1 and first[length] == last[length]:
        length += 1
    return length if length >= MIN_SHARED else 0


@torch.inference_mode()
def generate(
    model: Any,
    prompts: list[list[int]],
    *,
    stop_id: int | Set[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 50,
    repetition_penalty: float = 1.0,
    unpenalised: Set[int] = frozenset(),
    seeds: list[str] | None = None,
    steer: Steer | None = None,
    prefixes: list[prefix.Prefix] | None = None,
) -> list[list[int]]:
    """The tokens that `model` writes after each of `prompts` (one batch), up to `stop_id` (or one of several), which is
    left out.

    `seeds` (one string a prompt) is needed where `temperature` > 0. Tokens already written get less likely by
    `repetition_penalty` (1 is off), except those in `unpenalised`. `steer` may replace each chosen token.
    `prefixes` says what each prompt begins with where that was run before, equal ones side by side.
    """
    assert temperature == 0 or seeds is not None
    if not prompts:
        return []
    stops = stop_id if isinstance(stop_id, Set) else {stop_id}
    device = model.device
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))

    if prefixes is None and prefix.possible(model) and (length := shared_prefix(prompts)):
        prefixes = [prefix.run(model, prompts[0][:length])] * len(prompts)
    before = [len(p.ids) for p in prefixes] if prefixes else [0] * len(prompts)
    cache, shared = None, {"shared": prefix.spans(prefixes)} if prefixes else {}
    rests = [p[done:] for p, done in zip(prompts, before, strict=True)]
    longest = max(map(len, rests))
    ids = torch.tensor([[pad_id] * (longest - len(r)) + r for r in rests], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rests], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + torch.tensor(before, device=device)[:, None]

    for step in range(max_new_tokens):
        output = model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **shared,
        )
        cache = output.past_key_values
        uniforms = [unit_hash(f"{seeds[row]}/{step}", 0) for row in rows] if seeds is not None else []
        logits = output.logits[:, -1]
        if repetition_penalty != 1:
            logits = penalise(logits, [set(written[row]) - unpenalised for row in rows], repetition_penalty)
        chosen = pick(logits, temperature, top_k, uniforms).tolist()
        live = []
        for at, row in enumerate(rows):
            token = steer(row, written[row], chosen[at]) if steer is not None else chosen[at]
            chosen[at] = token
            if token not in stops:
                written[row].append(token)
                live.append(at)
        if not live:
            break
        if len(live) < len(rows):
            rows = [rows[at] for at in live]
            chosen = [chosen[at] for at in live]
            keep = torch.tensor(live, device=device)
            cache.batch_select_indices(keep)
            if prefixes:
                shared = {"shared": prefix.spans([prefixes[row] for row in rows])}
            mask, positions = mask[keep], positions[keep]
        ids = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return written
