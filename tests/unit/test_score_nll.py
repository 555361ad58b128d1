"""Scoring: likelihoods against a plain loop, statuses, shards and resumption."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cathpc.data import score
from cathpc.errors import DataError
from cathpc.models.config import Dtype, RefusalConfig, ScoreConfig, TemplateConfig
from cathpc.models.refusal import Labelled, fit, save
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA, SCORE_SCHEMA, Record

TEMPLATE = TemplateConfig(
    renames={"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"},
    pad="<|reserved_special_token_2|>",
)
TEXT = "because the river is long , we walk slowly and then rest ; therefore nobody is tired today"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the stages before score: two tiny GPTs with random weights and a tiny classifier."""
    root = tmp_path_factory.mktemp("models")
    llama, bert = prepare("random:llama", TEMPLATE, root / "cache"), prepare("random:bert", None, root / "cache")
    for seed, name in enumerate(("reference", "pool")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(llama)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # far from uniform, so that a fault shows
        model.save_pretrained(root / name / "model")
        Template.load(llama).copy(root / name / "model")
    rows = [Labelled(str(i), str(i), "q", "no" if i % 2 else "yes of course", bool(i % 2)) for i in range(4)]
    save(fit(bert, rows, RefusalConfig(epochs=1, max_len=32)), root / "refusal" / "model")
    return {name: root / name for name in ("reference", "pool", "refusal")}


@pytest.fixture(scope="module")
def models(inputs: dict[str, Path]) -> score.ScoringModels:
    config = ScoreConfig(dtype=Dtype.float32, window=400)
    return score.ScoringModels.load(config, **inputs)


def record(key: int, words: int = 8, turns: int = 1) -> Record:
    text = " ".join(WORDS[(key * 5 + i) % len(WORDS)] for i in range(words))
    turn = [{"role": "user", "content": f"Say {key}"}, {"role": "assistant", "content": text}]
    return Record(id=f"r{key}", source="s", component="general", messages=turn * turns)


RECORDS = [record(i, words=1 + (i * 7) % 60, turns=1 + i % 2) for i in range(24)]


def plain_nll(folder: Path, messages: list[dict[str, str]]) -> float:
    """Mean NLL of one conversation from the full logits, without batch, padding or chunks."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ids, mask = Template.load(folder / "model").encode(messages)
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    terms = [-float(logs[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i]]
    return sum(terms) / len(terms)


def test_likelihoods_equal_a_plain_loop_over_single_records(
    inputs: dict[str, Path], models: score.ScoringModels
) -> None:
    scores = score.score_records(RECORDS, models)
    assert [s.id for s in scores] == [r.id for r in RECORDS]
    for got, row in list(zip(scores, RECORDS, strict=True))[:8]:
        assert got.status == "ok"
        assert got.nll == pytest.approx(plain_nll(inputs["reference"], row.messages), abs=1e-5)
        assert got.pool_nll == pytest.approx(plain_nll(inputs["pool"], row.messages), abs=1e-5)
        assert got.contrast == got.pool_nll - got.nll != 0
        assert got.perplexity == pytest.approx(math.exp(got.nll))


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_a_score_does_not_depend_on_its_batch(models: score.ScoringModels, batch_tokens: int) -> None:
    together = score.score_records(RECORDS[::-1], replace(models, batch_tokens=batch_tokens))[::-1]
    for one, row in zip(together, RECORDS, strict=True):
        (alone,) = score.score_records([row], models)
        assert one.nll == pytest.approx(alone.nll, abs=1e-5)
        assert one.pool_nll == pytest.approx(alone.pool_nll, abs=1e-5)
        assert one.refusal == pytest.approx(alone.refusal, abs=1e-5)
        counts = {"tokens", "answer_tokens", "correlatives", "steps", "language", "status"}
        assert {k: v for k, v in asdict(one).items() if k in counts} == {
            k: v for k, v in asdict(alone).items() if k in counts
        }


def test_only_answers_count_and_the_last_turn_is_measured(models: score.ScoringModels) -> None:
    row = record(3, words=5, turns=2)
    (got,) = score.score_records([row], models)
    ids, mask = models.template.encode(row.messages)
    assert got.tokens == len(ids)
    assert got.answer_tokens == sum(mask) // 2 - 1, "two equal answers, each with a stop token"


def test_the_full_logits_never_exist(models: score.ScoringModels, monkeypatch: pytest.MonkeyPatch) -> None:
    head, seen = models.reference.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    long = record(1, words=5)
    long.messages[0]["content"] = " ".join(WORDS * 6)
    (got,) = score.score_records([long], models)
    hook.remove()
    assert sum(seen) == got.answer_tokens + 1


def test_the_most_refusing_turn_decides(models: score.ScoringModels) -> None:
    texts = ["yes of course", "no"]
    both = [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": texts[0]},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": texts[1]},
    ]  # fmt: skip
    rows = [Record("a", "s", "general", both), Record("b", "s", "general", both[2:] + both[:2])]
    first, second = score.score_records(rows, models)
    most = max(models.refusal.predict([("q", t) for t in texts]))
    assert first.refusal == pytest.approx(most, abs=1e-6) == second.refusal


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n "}], "empty"),
        ([{"role": "user", "content": "q"}], "empty"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 500}], "too_long"),
        ([], "broken"),
        (None, "broken"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "yes"}], "broken"),
        ([{"role": "robot", "content": "q"}, {"role": "assistant", "content": "yes"}], "broken"),
        ([{"content": "q"}], "broken"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud800"}], "broken"),
    ],
)
def test_an_unusable_record_gets_a_status_and_spares_the_others(
    models: score.ScoringModels, messages: Any, status: str
) -> None:
    bad, good = score.score_records([Record("bad", "s", "general", messages), record(1)], models)
    assert (bad.status, good.status) == (status, "ok")
    figures = {k: v for k, v in asdict(bad).items() if k not in ("id", "status", "tokens", "answer_tokens")}
    assert set(figures.values()) == {None}


def test_a_likelihood_that_is_not_finite_is_a_broken_record(
    models: score.ScoringModels, inputs: dict[str, Path]
) -> None:
    pool = AutoModelForCausalLM.from_pretrained(inputs["pool"] / "model").eval()
    pool.get_output_embeddings().weight.data.fill_(math.nan)
    (got,) = score.score_records([record(1)], replace(models, pool=pool))
    assert got.status == "broken" and got.nll is None and got.contrast is None


def pulled(folder: Path, records: list[Record], shard: int) -> Path:
    (folder / "records").mkdir(parents=True)
    for number, start in enumerate(range(0, len(records), shard)):
        table = pa.Table.from_pylist([r.row() for r in records[start : start + shard]], schema=RECORD_SCHEMA)
        pq.write_table(table, folder / "records" / f"records-{number:05d}.parquet")
    return folder


CONFIG: Any = SimpleNamespace(score=ScoreConfig(dtype=Dtype.float32, window=400))


def scored(out: Path) -> list[dict[str, Any]]:
    paths = sorted((out / "scores").glob("scores-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_shards_have_the_rows_of_their_records_and_their_number_changes_no_score(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    results = []
    for shard in (7, 100):
        out = tmp_path / f"out{shard}"
        out.mkdir()
        pull = pulled(tmp_path / f"pull{shard}", RECORDS, shard)
        summary = score.run(CONFIG, {**inputs, "pull": pull}, out)
        assert summary["statuses"] == {"ok": len(RECORDS)} and "24" in summary["line"]
        results.append(scored(out))
    assert pq.read_schema(tmp_path / "out7" / "scores" / "scores-00003.parquet") == SCORE_SCHEMA
    for one, other in zip(*results, strict=True):
        assert one["id"] == other["id"]
        assert one["nll"] == pytest.approx(other["nll"], abs=1e-5)


def test_after_a_kill_only_missing_shards_are_scored(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_inputs = {**inputs, "pull": pulled(tmp_path / "pull", RECORDS, 8)}
    out = tmp_path / "out"
    out.mkdir()
    score.run_shards(CONFIG, all_inputs, out, [0, 2])
    torn = out / "scores" / ".scores-00001.parquet.tmp"
    torn.write_bytes(b"half a shard")  # what a kill in the middle of writing leaves
    before = {p.name: p.stat().st_mtime_ns for p in (out / "scores").glob("scores-*")}
    assert sorted(before) == ["scores-00000.parquet", "scores-00002.parquet"]

    asked: list[str] = []
    original = score.score_records
    monkeypatch.setattr(score, "score_records", lambda r, m, f: asked.extend(x.id for x in r) or original(r, m, f))
    score.run(CONFIG, all_inputs, out)
    assert asked == [r.id for r in RECORDS[8:16]]
    assert [row["id"] for row in scored(out)] == [r.id for r in RECORDS]
    assert {n: (out / "scores" / n).stat().st_mtime_ns for n in before} == before
    assert not torn.exists()


def test_scores_of_records_that_were_pulled_anew_are_replaced(tmp_path: Path, inputs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    score.run(CONFIG, {**inputs, "pull": pulled(tmp_path / "old", RECORDS[:4], 8)}, out)
    score.run(CONFIG, {**inputs, "pull": pulled(tmp_path / "new", RECORDS[4:8], 8)}, out)
    assert [row["id"] for row in scored(out)] == [r.id for r in RECORDS[4:8]]


def test_a_torn_record_shard_is_named(tmp_path: Path, inputs: dict[str, Path]) -> None:
    pull = pulled(tmp_path / "pull", RECORDS[:4], 8)
    path = pull / "records" / "records-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="records-00000"):
        score.run(CONFIG, {**inputs, "pull": pull}, out)


def test_bfloat16_stays_near_float32(inputs: dict[str, Path], models: score.ScoringModels) -> None:
    half = score.ScoringModels.load(ScoreConfig(dtype=Dtype.bfloat16, window=400), **inputs)
    for got, exact in zip(score.score_records(RECORDS, half), score.score_records(RECORDS, models), strict=True):
        assert got.nll == pytest.approx(exact.nll, abs=0.05)
        assert got.refusal == pytest.approx(exact.refusal, abs=1e-5)
