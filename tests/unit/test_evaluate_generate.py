"""Batched generation: the same tokens as transformers' own, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cathpc.evaluate import generate
from cathpc.models.config import Dtype
from cathpc.models.template import Template

QUESTIONS = ["Hello!", "What is the capital of France, and why?", "Name a cat.", "Count to nine, please, and slowly."]


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> tuple[Any, Template]:
    model, template = generate.load(tiny_llama, Dtype.float32)
    return model, template


def prompts(template: Template, system: str = "") -> list[list[int]]:
    head = [{"role": "system", "content": system}] if system else []
    return [template.encode([*head, {"role": "user", "content": q}], generation_prompt=True)[0] for q in QUESTIONS]


def run(model: Any, template: Template, asked: list[list[int]], **options: Any) -> list[list[int]]:
    return generate.generate(
        model, asked, stop_id=template.stop_id, pad_id=template.pad_id, max_new_tokens=12, **options
    )


@pytest.mark.parametrize(
    "system", ["", "You are a librarian in a small town by the sea and answer in one sentence. " * 4]
)
def test_greedy_batch_equals_transformers_one_by_one(loaded: tuple[Any, Template], system: str) -> None:
    model, template = loaded
    asked = prompts(template, system)
    assert (generate.shared_prefix(asked) > 0) is bool(system)
    for ids, written in zip(asked, run(model, template, asked), strict=True):
        theirs = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=template.stop_id,
            pad_token_id=template.pad_id,
        )[0, len(ids) :].tolist()
        assert written == theirs[: theirs.index(template.stop_id)] if template.stop_id in theirs else written == theirs


def test_draws_do_not_depend_on_batch_mates(loaded: tuple[Any, Template]) -> None:
    model, template = loaded
    asked = prompts(template)
    seeds = [f"record-{n}/0" for n in range(len(asked))]
    together = run(model, template, asked, temperature=1.0, seeds=seeds)
    alone = [run(model, template, [a], temperature=1.0, seeds=[s])[0] for a, s in zip(asked, seeds, strict=True)]
    assert together == alone
    assert run(model, template, asked, temperature=1.0, seeds=[s + "x" for s in seeds]) != together


def test_rows_that_stop_leave_the_others_as_they_were(loaded: tuple[Any, Template]) -> None:
    model, template = loaded
    asked = prompts(template)
    whole = run(model, template, asked)

    def stop_early(row: int, written: list[int], token: int) -> int:
        return template.stop_id if row in (0, 2) and len(written) == 3 + row else token

    cut = run(model, template, asked, steer=stop_early)
    assert [len(c) for c in cut][::2] == [3, 5]
    assert cut[1] == whole[1] and cut[3] == whole[3]
    assert cut[0] == whole[0][:3] and cut[2] == whole[2][:5]


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 1e-9]])).repeat(1000, 1)
    uniforms = [(n + 0.5) / 1000 for n in range(1000)]
    counts = torch.bincount(generate.pick(logits, 1.0, 50, uniforms), minlength=4).tolist()
    assert counts == [500, 300, 200, 0]
    assert set(generate.pick(logits, 1.0, 2, uniforms).tolist()) == {0, 1}
    assert set(generate.pick(logits, 0.0, 50, []).tolist()) == {0}
    rounds_to_one = generate.pick(logits[:1], 1.0, 3, [1 - 2**-53])
    assert rounds_to_one.tolist() == [2]


def test_penalty_makes_written_tokens_less_likely() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [2.0, -1.0, 0.5]])
    assert generate.penalise(logits, [{0, 1}, set()], 2.0).tolist() == [[1.0, -2.0, 0.5], [2.0, -1.0, 0.5]]
    assert logits[0, 0] == 2.0


def test_shared_prefix_leaves_a_token_of_each_prompt() -> None:
    same = list(range(40))
    assert generate.shared_prefix([same, same]) == 39
    assert generate.shared_prefix([same, same[:20]]) == 19
    assert generate.shared_prefix([same]) == 0
    assert generate.shared_prefix([[1, 2, 3], [1, 2, 4]]) == 0


def test_no_prompt_gives_no_answer(loaded: tuple[Any, Template]) -> None:
    assert run(*loaded, []) == []
