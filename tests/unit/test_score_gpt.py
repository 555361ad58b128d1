"""The reference and pool GPTs: which records train them, and that they learn."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cathpc.errors import UserError
from cathpc.models import gpt
from cathpc.models.config import Dtype, GptConfig
from cathpc.models.gpt import Example, batches, choose, matches, tensors, token_nll
from cathpc.models.template import Template
from cathpc.models.watch import Watch
from cathpc.record import RECORD_SCHEMA, Record, heldout, record_id
from tests.unit.conftest import LLAMA_TEMPLATE

PATTERNS = ["gpt-4*", "gpt4*"]


def pulled(folder: Path, generators: dict[str, int], shard: int = 50) -> Path:
    """Answers of `generators` (name -> how many) to numbered prompts; the name is the answer's last word."""
    rows = []
    for name, count in generators.items():
        for i in range(count):
            messages = [
                {"role": "user", "content": f"Prompt {i}"},
                {"role": "assistant", "content": f"answer {i % 5} of {name or 'nobody'}"},
            ]
            key = record_id(f"s{name}{i}", messages)
            rows.append(Record(key, "s", "general", messages, generator=name).row())
    (folder / "records").mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), shard)):
        table = pa.Table.from_pylist(rows[start : start + shard], schema=RECORD_SCHEMA)
        pq.write_table(table, folder / "records" / f"records-{number:05d}.parquet")
    return folder


def chosen(pull: Path, config: GptConfig, *, reference: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shards = sorted((pull / "records").glob("*.parquet"))
    tables = [pq.read_table(s).to_pylist() for s in shards]
    train, held, _ = choose(shards, config, lambda name: matches(name, PATTERNS) is reference)
    return [tables[p.shard][p.row] for p in train], [tables[p.shard][p.row] for p in held]


def config(cache: Path, **settings: Any) -> Any:
    base = {"base": "random:llama", "template": LLAMA_TEMPLATE, "train_tokens": 3000, "lr": 3e-3, "batch_tokens": 256}
    return SimpleNamespace(gpt=GptConfig(**{**base, **settings}), paths=SimpleNamespace(cache=str(cache)))


def test_generators_match_patterns_whatever_their_case() -> None:
    assert matches("GPT-4-0613", PATTERNS) and matches("gpt4_1106_preview", PATTERNS)
    assert not matches("gpt-3.5-turbo", PATTERNS) and not matches("my-gpt-4", PATTERNS) and not matches("", PATTERNS)


@pytest.mark.parametrize("patterns", [GptConfig().reference_generators, ["!*NANO*", "!*mini*", "gpt4*", "GPT-4*"]])
def test_a_pattern_behind_an_exclamation_mark_takes_names_out_wherever_it_stands(patterns: list[str]) -> None:
    wild = ["gpt-4-1106-preview", "gpt-4o-2024-08-06", "gpt4_0613", "gpt-4.1-2025-04-14"]  # names as WildChat has them
    small = ["gpt-4o-mini-2024-07-18", "GPT-4.1-Mini-2025-04-14", "gpt-4.1-nano-2025-04-14"]
    assert [name for name in wild + small if matches(name, patterns)] == wild


def test_exclusions_alone_name_nobody() -> None:
    assert not matches("gpt-4o-mini", ["!*nano*"]) and not matches("claude", ["!gpt*"]) and not matches("x", [])


def test_the_reference_takes_the_named_generators_and_the_pool_all_other_named_ones(tmp_path: Path) -> None:
    pull = pulled(tmp_path, {"gpt-4-0613": 30, "vicuna": 30, "alpaca": 30, "": 30})
    for reference, names in ((True, {"gpt-4-0613"}), (False, {"vicuna", "alpaca"})):
        train, held = chosen(pull, GptConfig(), reference=reference)
        assert {r["generator"] for r in train} == {r["generator"] for r in held} == names


def test_no_heldout_prompt_is_trained_on(tmp_path: Path) -> None:
    pull = pulled(tmp_path, {"vicuna": 100, "alpaca": 100})
    train, held = chosen(pull, GptConfig(heldout_share=0.3), reference=False)
    assert len(train) + len(held) == 200 and 30 < len(held) < 90
    assert not {r["messages"][0]["content"] for r in train} & {r["messages"][0]["content"] for r in held}
    assert all(heldout(r["messages"], 0.3) for r in held)


def test_generators_of_the_pool_take_turns(tmp_path: Path) -> None:
    train, _ = chosen(pulled(tmp_path, {"vicuna": 200, "alpaca": 40}), GptConfig(heldout_share=0.0), reference=False)
    first = [r["generator"] for r in train[:60]]
    assert first.count("alpaca") == first.count("vicuna") == 30


def test_both_gpts_learn_from_the_same_prompts_and_from_each_once_before_any_twice(tmp_path: Path) -> None:
    pull = pulled(tmp_path, {"gpt-4": 60, "gpt4_0613": 60, "vicuna": 60, "alpaca": 60, "oasst": 60})
    prompts = [
        [r["messages"][0]["content"] for r in chosen(pull, GptConfig(heldout_share=0.3), reference=side)[0]]
        for side in (True, False)
    ]
    count = len(set(prompts[0]))
    assert 30 < count < 60
    assert prompts[0][:count] == prompts[1][:count] and len(set(prompts[0][:count])) == count
    assert set(prompts[0][count : 2 * count]) == set(prompts[0][:count])


def test_the_heldout_answers_are_named_for_the_report(tmp_path: Path, model_cache: Path) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 30, "vicuna": 30})
    out = tmp_path / "out"
    out.mkdir()
    gpt.pool(config(model_cache, train_tokens=100, heldout_share=0.4), {"pull": pull}, out)
    held = pq.read_table(out / gpt.HELDOUT).to_pylist()
    records = {r["id"]: r for shard in (pull / "records").iterdir() for r in pq.read_table(shard).to_pylist()}
    expected = {r["id"] for r in records.values() if r["generator"] == "vicuna" and heldout(r["messages"], 0.4)}
    assert {r["id"] for r in held} == expected and {r["generator"] for r in held} == {"vicuna"}


def test_the_choice_does_not_depend_on_shards_and_more_tokens_only_add(tmp_path: Path) -> None:
    generators = {"vicuna": 120, "alpaca": 120}
    settings = GptConfig(train_tokens=400, heldout_share=0.0)
    few, _ = chosen(pulled(tmp_path / "a", generators), settings, reference=False)
    other, _ = chosen(pulled(tmp_path / "b", generators, shard=17), settings, reference=False)
    more, _ = chosen(pulled(tmp_path / "c", generators), GptConfig(heldout_share=0.0), reference=False)
    assert [r["id"] for r in few] == [r["id"] for r in other] == [r["id"] for r in more[: len(few)]]
    assert len(few) == 400 // gpt.MIN_TOKENS, "no more is remembered than the tokens can call for"


def test_no_more_turns_are_taken_than_the_tokens_call_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    real = gpt.heapq.heappop
    monkeypatch.setattr(gpt.heapq, "heappop", lambda heap: turns.append(isinstance(heap[0], tuple)) or real(heap))
    settings = GptConfig(train_tokens=80, heldout_tokens=8, heldout_share=0.1)
    train, _ = chosen(pulled(tmp_path, {"vicuna": 60, "alpaca": 60, "oasst": 60}), settings, reference=False)
    assert len(train) == 10 and sum(turns) <= 10 + 2 + 1 + 2, "a round of the generators too many at most"
    assert not hasattr(gpt.Place(0.5, 0.5, 0, 0), "__dict__"), "millions of them are remembered"


@pytest.mark.parametrize("key", ["final_logit_softcapping", "logits_scaling", "logit_scale"])
def test_a_base_that_changes_its_logits_behind_the_output_layer_is_refused(
    tmp_path: Path, model_cache: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_llama, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, key: 30.0}))
    monkeypatch.setattr(gpt, "prepare", lambda *_: folder)
    pull = pulled(tmp_path / "pull", {"gpt-4": 30, "vicuna": 30})
    with pytest.raises(UserError, match=rf"config\.json: '{key}' .*changes its logits"):
        gpt.reference(config(model_cache), {"pull": pull}, tmp_path)


def test_on_a_cpu_without_bfloat16_it_means_float32_and_the_summary_says_so(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    pull = pulled(tmp_path / "pull", {"gpt-4": 30, "vicuna": 30})
    found = {}
    for dtype in Dtype:
        out = tmp_path / dtype.value
        out.mkdir()
        found[dtype] = gpt.pool(config(model_cache, train_tokens=200, dtype=dtype), {"pull": pull}, out)
    assert found[Dtype.bfloat16]["line"] == found[Dtype.float32]["line"] + ", in float32: the CPU has no bfloat16"
    weights = [(tmp_path / dtype.value / "model" / "model.safetensors").read_bytes() for dtype in Dtype]
    assert weights[0] == weights[1] and found[Dtype.bfloat16]["dtype"] == "float32"


def test_training_lowers_the_heldout_perplexity_and_writes_a_model_folder(tmp_path: Path, model_cache: Path) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 150, "vicuna": 150})
    out = tmp_path / "out"
    out.mkdir()
    summary = gpt.reference(config(model_cache), {"pull": pull}, out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["heldout_ppl_after"] < 0.2 * metrics["heldout_ppl_before"]
    assert metrics["curve"][-1]["loss"] < metrics["curve"][0]["loss"]
    assert 3000 <= metrics["train_tokens"] < 3100 and metrics["records"] == summary["records"] < 150
    assert metrics["generators"] == {"gpt-4": 150}
    assert "perplexity" in summary["line"]
    template = Template.load(out / "model")
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    ids, mask = template.encode(
        [{"role": "user", "content": "Prompt 1"}, {"role": "assistant", "content": "answer 1 of gpt-4"}]
    )
    nll, _ = token_nll(model, *tensors([Example(ids, mask)], template.pad_id, torch.device("cpu")))
    assert float(nll.mean().detach()) == pytest.approx(math.log(metrics["heldout_ppl_after"]), abs=0.5)


def test_the_same_seed_trains_the_same_model(tmp_path: Path, model_cache: Path) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 60, "vicuna": 60})
    curves = []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        gpt.pool(config(model_cache, train_tokens=600, dtype=Dtype.bfloat16), {"pull": pull}, out)
        curves.append(json.loads((out / "metrics.json").read_text())["curve"])
    assert curves[0] == curves[1]


def test_looking_at_heldout_answers_changes_no_bit_of_a_training_that_only_gets_better(
    tmp_path: Path, model_cache: Path
) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 60, "vicuna": 60})
    weights, metrics = [], []
    for every in (0, 200):
        out = tmp_path / str(every)
        out.mkdir()
        gpt.pool(config(model_cache, train_tokens=1000, eval_every_tokens=every), {"pull": pull}, out)
        weights.append((out / "model" / "model.safetensors").read_bytes())
        metrics.append(json.loads((out / "metrics.json").read_text()))
    seen = [row["perplexity"] for row in metrics[1]["heldout_curve"]]
    assert len(seen) >= 4 and seen == sorted(seen, reverse=True), "of a training that gets worse this says nothing"
    assert weights[0] == weights[1] and metrics[0]["heldout_curve"] == []
    assert metrics[1]["best_step"] == metrics[1]["heldout_curve"][-1]["step"] == len(metrics[1]["curve"])


def test_training_stops_where_heldout_answers_get_no_likelier_and_keeps_the_best_weights(
    tmp_path: Path, model_cache: Path
) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 12, "vicuna": 12})
    shard = pull / "records" / "records-00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    for row in rows:  # what is right for the prompts of the training is wrong for the others
        row["messages"][1]["content"] = "red blue red blue" if heldout(row["messages"], 0.5) else "red red red red"
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), shard)
    found = {}
    for every in (0, 150):
        out = tmp_path / str(every)
        out.mkdir()
        settings = config(
            model_cache, train_tokens=150, epochs=30, heldout_share=0.5, eval_every_tokens=every, patience=3
        )
        summary = gpt.pool(settings, {"pull": pull}, out)
        found[every] = json.loads((out / "metrics.json").read_text())
    stopped, whole = found[150], found[0]
    seen = [row["perplexity"] for row in stopped["heldout_curve"]]
    best = min(range(len(seen)), key=seen.__getitem__)
    assert len(seen) == best + 4 and len(stopped["curve"]) < len(whole["curve"])
    assert stopped["best_step"] == stopped["heldout_curve"][best]["step"]
    assert stopped["heldout_ppl_after"] < whole["heldout_ppl_after"]
    assert summary["heldout_curve"] == stopped["heldout_curve"] and "the best at step" in summary["line"]


def test_the_weights_of_the_lowest_perplexity_come_back() -> None:
    model = torch.nn.Linear(1, 1)
    measured = iter([5.0, math.nan, 4.0, 4.0, 4.5])
    watch = Watch(lambda: next(measured), every=10, patience=2)
    for step in range(1, 10):
        with torch.no_grad():
            model.weight.fill_(step)
        if watch.after(model, step, 8 * step, last=False):  # looks at 16, 24, 32, 40, 56 tokens
            break
    assert [row["tokens"] for row in watch.curve] == [16, 24, 32, 40, 56]
    assert watch.best == {"step": 4, "tokens": 32, "perplexity": 4.0}
    watch.restore(model)
    assert float(model.weight.detach()) == 4.0


def test_no_matching_record_names_patterns_and_generators(tmp_path: Path, model_cache: Path) -> None:
    pull = pulled(tmp_path / "pull", {"vicuna": 3, "": 2})
    with pytest.raises(UserError, match=r"reference GPT.*gpt-4\*.*vicuna \(3\); 2 records name none"):
        gpt.reference(config(model_cache), {"pull": pull}, tmp_path)
    with pytest.raises(UserError, match="pool GPT"):
        gpt.pool(config(model_cache), {"pull": pulled(tmp_path / "p", {"gpt-4": 3})}, tmp_path)


def test_answers_that_do_not_fit_teach_nothing_and_are_named(tmp_path: Path, model_cache: Path) -> None:
    pull = pulled(tmp_path / "pull", {"gpt-4": 20})
    with pytest.raises(UserError, match=r"gpt.seq_len=4"):
        gpt.reference(config(model_cache, seq_len=4), {"pull": pull}, tmp_path)


def test_padding_and_chunks_change_no_likelihood(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    examples = [Example([5, 6, 7, 8 + i] * (1 + 3 * i), [False, True, False, True] * (1 + 3 * i)) for i in range(4)]
    with torch.inference_mode():
        padded, rows = token_nll(model, *tensors(examples, 0, torch.device("cpu")), chunk=3)
        for i, example in enumerate(examples):
            alone, _ = token_nll(model, *tensors([example], 0, torch.device("cpu")), chunk=0)
            torch.testing.assert_close(padded[rows == i], alone, atol=1e-5, rtol=0)


def test_batches_hold_every_example_once_within_the_limit() -> None:
    examples = [Example([1] * (1 + i * 37 % 90), [True] * (1 + i * 37 % 90)) for i in range(60)]
    found = batches(examples, 200, seed=0)
    assert sorted(len(e.ids) for b in found for e in b) == sorted(len(e.ids) for e in examples)
    assert all(max(len(e.ids) for e in b) * len(b) <= 200 for b in found)
    assert [len(b) for b in found] != [len(b) for b in batches(examples, 200, seed=1)], "another order in another epoch"
