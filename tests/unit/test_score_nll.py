"""Scoring: likelihoods against a plain loop, statuses, shards and resumption."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cathpc import shards
from cathpc.broken import Broken
from cathpc.data import likelihood, score
from cathpc.data.reasoning import measure
from cathpc.errors import DataError
from cathpc.models.config import Dtype, ScoreConfig
from cathpc.models.gpt import Example
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA, SCORE_SCHEMA, Record, Score

TEXT = "because the river is long , we walk slowly and then rest ; therefore nobody is tired today"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def inputs(scoring_folders: dict[str, Path]) -> dict[str, Path]:
    """Folders of the stages before score."""
    return scoring_folders


@pytest.fixture(scope="module")
def models(inputs: dict[str, Path]) -> likelihood.ScoringModels:
    config = ScoreConfig(dtype=Dtype.float32, window=400)
    return likelihood.ScoringModels.load(config, **inputs)


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
    inputs: dict[str, Path], models: likelihood.ScoringModels
) -> None:
    scores = likelihood.score_records(RECORDS, models)
    assert [s.id for s in scores] == [r.id for r in RECORDS]
    for got, row in list(zip(scores, RECORDS, strict=True))[:8]:
        assert got.status == "ok"
        assert got.nll == pytest.approx(plain_nll(inputs["reference"], row.messages), abs=1e-5)
        assert got.pool_nll == pytest.approx(plain_nll(inputs["pool"], row.messages), abs=1e-5)
        assert got.contrast == got.pool_nll - got.nll != 0
        assert got.perplexity == pytest.approx(math.exp(got.nll))


def test_tokens_a_turn_are_the_mean_over_the_assistants_turns_without_their_stop_tokens(
    models: likelihood.ScoringModels,
) -> None:
    def talk(*answers: str) -> Record:
        turns = [m for a in answers for m in ({"role": "user", "content": "q"}, {"role": "assistant", "content": a})]
        return Record("talk", "s", "general", turns)

    one, other, both = likelihood.score_records([talk("yes"), talk("word " * 9), talk("yes", "word " * 9)], models)
    assert one.turn_tokens == one.answer_tokens and other.turn_tokens == other.answer_tokens != one.answer_tokens
    assert both.turn_tokens == (one.turn_tokens + other.turn_tokens) / 2


def test_the_diagnosis_is_that_of_the_most_detailed_turn(models: likelihood.ScoringModels) -> None:
    vague, detailed = "See a doctor.", "It may be due to an ulcer. First, get an ultrasound. Then take an antacid."
    turns = [{"role": "user", "content": "It hurts."}, {"role": "assistant", "content": detailed}]
    turns += [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": vague}]
    (found,) = likelihood.score_records([Record("talk", "s", "health", turns)], models)
    assert found.diagnosis == measure(detailed, models.lexicon).diagnosis > measure(vague, models.lexicon).diagnosis


def test_progress_counts_long_records_for_more(models: likelihood.ScoringModels) -> None:
    told: list[int] = []
    rows = [record(k, words=2) for k in range(9)] + [record(9, words=60, turns=3), record(10, words=0)]
    scores = likelihood.score_records(rows, replace(models, batch_tokens=1), told.append)
    assert [s.status for s in scores] == ["ok"] * 10 + ["empty"]
    tokens = sorted((s.tokens or 0 for s in scores[:10]), reverse=True)  # the longest record comes first
    assert told == [1 + 10 * sum(tokens[:n]) // sum(tokens) for n in range(1, 11)]
    assert told[0] > 5 and told[-1] == len(rows)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_a_score_does_not_depend_on_its_batch(models: likelihood.ScoringModels, batch_tokens: int) -> None:
    together = likelihood.score_records(RECORDS[::-1], replace(models, batch_tokens=batch_tokens))[::-1]
    for one, row in zip(together, RECORDS, strict=True):
        (alone,) = likelihood.score_records([row], models)
        assert one.nll == pytest.approx(alone.nll, abs=1e-5)
        assert one.pool_nll == pytest.approx(alone.pool_nll, abs=1e-5)
        assert one.refusal == pytest.approx(alone.refusal, abs=1e-5)
        counts = {"tokens", "answer_tokens", "turn_tokens", "correlatives", "steps", "diagnosis", "language", "status"}
        assert {k: v for k, v in asdict(one).items() if k in counts} == {
            k: v for k, v in asdict(alone).items() if k in counts
        }


@pytest.mark.parametrize(("dtype", "tolerance"), [(Dtype.float32, 1e-5), (Dtype.bfloat16, 0.02)])
def test_the_same_record_gets_the_same_score_alone_in_a_batch_in_any_shard_and_with_any_threads(
    inputs: dict[str, Path], dtype: Dtype, tolerance: float
) -> None:
    """Within 1e-5 nat a token in float32 and 0.02 in bfloat16, where a batch of another shape rounds differently."""
    before = torch.get_num_threads()
    models = likelihood.ScoringModels.load(ScoreConfig(dtype=dtype, window=400, threads=1), **inputs)
    try:
        alone = [likelihood.score_records([row], models)[0] for row in RECORDS]
        found = {"batch": likelihood.score_records(RECORDS, replace(models, batch_tokens=2048))}
        found["shards"] = [
            s for i in range(0, len(RECORDS), 5) for s in likelihood.score_records(RECORDS[i : i + 5], models)
        ]
        torch.set_num_threads(2)
        found["threads"] = likelihood.score_records(RECORDS, models)
    finally:
        torch.set_num_threads(before)
    for way, scores in found.items():
        for one, other in zip(alone, scores, strict=True):
            for figure in ("nll", "pool_nll", "contrast", "refusal"):
                assert getattr(other, figure) == pytest.approx(getattr(one, figure), abs=tolerance), way
            assert (other.id, other.tokens, other.steps) == (one.id, one.tokens, one.steps)


LONG = (
    "Leaves are green because they hold chlorophyll, which takes in red and blue light and throws the green back. In "
    "autumn the days get shorter, so the tree stops making it and what is left of it breaks down. Then other colours "
    "show that were there all the time: carotenoids, which are yellow and orange. "
)


@pytest.mark.parametrize("dtype", Dtype)
def test_a_short_and_a_long_answer_have_the_same_likelihood_alone_in_a_batch_and_with_any_threads(
    smollm2: Path, dtype: Dtype
) -> None:
    """Within 0.02 nat a token in bfloat16; in float32 within 1e-5, of an answer under five tokens within 3e-5."""
    answers = ["Yes.", LONG * 3, "4", "It is Paris, since the king lived there.", LONG, "No. " * 40]
    template = Template.load(smollm2)
    talks = [[{"role": "user", "content": "Well?"}, {"role": "assistant", "content": answer}] for answer in answers]
    examples = [Example(*template.encode(talk)) for talk in talks]
    counts = [sum(example.mask) for example in examples]
    assert max(counts[0], counts[2]) < 5 and 180 < counts[1] < 230
    model, before = likelihood.load(smollm2, dtype), torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads, "alone"] = [likelihood.mean_nll(model, [e], template.pad_id)[0] for e in examples[:3]]
            found[threads, "batch"] = list(likelihood.mean_nll(model, examples, template.pad_id))[:3]
    finally:
        torch.set_num_threads(before)
    for way, values in found.items():
        for place, (value, base) in enumerate(zip(values, found[1, "alone"], strict=True)):
            exact = 3e-5 if counts[place] < 5 else 1e-5
            assert value == pytest.approx(base, abs=exact if dtype is Dtype.float32 else 0.02), (way, place)


def test_on_a_cpu_without_bfloat16_scores_are_those_of_float32_and_the_summary_says_so(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    all_inputs, rows, lines = {**inputs, "pull": pulled(tmp_path / "pull", RECORDS[:4], 2)}, [], []
    for dtype in Dtype:
        out = tmp_path / dtype.value
        out.mkdir()
        config: Any = SimpleNamespace(score=ScoreConfig(dtype=dtype, window=400))
        summary = score.run(config, all_inputs, out)
        assert summary["dtypes"] == {"float32": 2} and summary["window"] == 400
        rows.append(scored(out))
        lines.append(summary["line"])
    assert rows[0] == rows[1]
    assert sorted(lines, key=len)[1] == f"{min(lines, key=len)}; 2 of 2 shards in float32: the CPU has no bfloat16"


def test_bfloat16_is_near_float32_on_a_trained_model(smollm2: Path) -> None:
    """Within 0.01 nat a token on average, and no record further than 0.05."""
    shown = ["Paris is the capital of France, because the king lived there.", "2 + 2 = 4", "I am sorry, but I cannot."]
    template = Template.load(smollm2)
    pairs = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": f"{t} {TEXT} " * 3}] for t in shown]
    examples = [Example(*template.encode(pair)) for pair in pairs]
    exact, near = (
        likelihood.mean_nll(likelihood.load(smollm2, dtype), examples, template.pad_id)
        for dtype in (Dtype.float32, Dtype.bfloat16)
    )
    assert abs(near - exact).mean() < 0.01 and abs(near - exact).max() < 0.05


def test_what_is_out_of_bounds_is_counted_and_costs_no_pass(models: likelihood.ScoringModels) -> None:
    rows = [record(1, words=3), record(2, words=30)]
    rows += [
        Record("c", "s", "general", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes " * 20}])
    ]
    bounds = likelihood.Bounds(min_answer_tokens=10, min_correlatives=1)
    passes: list[int] = []
    hook = models.reference.get_decoder().register_forward_hook(lambda m, a, out: passes.append(len(out[0])))
    scores = likelihood.score_records(rows, replace(models, bounds=bounds))
    hook.remove()
    assert [s.status for s in scores] == ["skipped", "ok", "skipped"] and passes == [1]
    for left in (scores[0], scores[2]):
        assert left.nll is left.contrast is left.refusal is None
        assert left.answer_tokens and left.correlatives is not None and left.language
    other = likelihood.score_records(rows, replace(models, bounds=likelihood.Bounds(languages=("fi",))))
    assert {s.status for s in other} == {"skipped"}
    most = likelihood.Bounds(max_answer_tokens=(scores[1].answer_tokens or 0) - 1)
    short, long = likelihood.score_records(rows[:2], replace(models, bounds=most))
    assert (short.status, long.status) == ("ok", "skipped") and long.nll is None and long.answer_tokens


def test_no_window_is_longer_than_the_models_context(inputs: dict[str, Path]) -> None:
    config = json.loads((inputs["reference"] / "model/config.json").read_text())
    models = likelihood.ScoringModels.load(ScoreConfig(window=10**9), **inputs)
    assert models.window == config["max_position_embeddings"]


def test_only_answers_count_and_the_last_turn_is_measured(models: likelihood.ScoringModels) -> None:
    row = record(3, words=5, turns=2)
    (got,) = likelihood.score_records([row], models)
    ids, mask = models.template.encode(row.messages)
    assert got.tokens == len(ids)
    assert got.answer_tokens == sum(mask) // 2 - 1, "two equal answers, each with a stop token"


def test_the_full_logits_never_exist(models: likelihood.ScoringModels, monkeypatch: pytest.MonkeyPatch) -> None:
    head, seen = models.reference.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    long = record(1, words=5)
    long.messages[0]["content"] = " ".join(WORDS * 6)
    (got,) = likelihood.score_records([long], models)
    hook.remove()
    assert sum(seen) == got.answer_tokens + 1


def test_the_most_refusing_turn_decides(models: likelihood.ScoringModels) -> None:
    texts = ["yes of course", "no"]
    both = [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": texts[0]},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": texts[1]},
    ]  # fmt: skip
    rows = [Record("a", "s", "general", both), Record("b", "s", "general", both[2:] + both[:2])]
    first, second = likelihood.score_records(rows, models)
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
    models: likelihood.ScoringModels, messages: Any, status: str
) -> None:
    bad, good = likelihood.score_records([Record("bad", "s", "general", messages), record(1)], models)
    assert (bad.status, good.status) == (status, "ok")
    figures = {k: v for k, v in asdict(bad).items() if k not in ("id", "status", "tokens", "answer_tokens")}
    assert set(figures.values()) == {None}


def test_a_likelihood_that_is_not_finite_is_a_broken_record(
    models: likelihood.ScoringModels, inputs: dict[str, Path]
) -> None:
    pool = AutoModelForCausalLM.from_pretrained(inputs["pool"] / "model").eval()
    pool.get_output_embeddings().weight.data.fill_(math.nan)
    (got,) = likelihood.score_records([record(1)], replace(models, pool=pool))
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
    score.work(CONFIG, all_inputs, out, [0, 2])
    torn = out / "scores" / ".scores-00001.elsewhere.4711.tmp"
    torn.write_bytes(b"half a shard")  # what a kill in the middle of writing leaves
    before = {p.name: p.stat().st_mtime_ns for p in (out / "scores").glob("scores-*")}
    assert sorted(before) == ["scores-00000.parquet", "scores-00002.parquet"]

    asked: list[str] = []
    original = likelihood.score_records
    monkeypatch.setattr(likelihood, "score_records", lambda r, m, f: asked.extend(x.id for x in r) or original(r, m, f))
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
    pull = pulled(tmp_path / "pull", RECORDS[:16], 8)
    path = pull / "records" / "records-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="records-00000"):
        score.run(CONFIG, {**inputs, "pull": pull}, out)
    assert list(shards.done(out)) == [1], "the others are scored"


def poisoned(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Make the refusal classifier raise on answers that hold one of `words`."""
    real = likelihood.RefusalModel.predict

    def predict(self: Any, turns: list[tuple[str, str]], **options: Any) -> Any:
        if any(word in answer for _, answer in turns for word in words):
            raise IndexError("index out of range in self")
        return real(self, turns, **options)

    monkeypatch.setattr(likelihood.RefusalModel, "predict", predict)


def with_words(*places: int) -> list[Record]:
    """The records, with a word of poison in the answers at `places`."""
    rows = [Record(r.id, r.source, r.component, [dict(m) for m in r.messages]) for r in RECORDS]
    for place in places:
        rows[place].messages[-1]["content"] += " poison"
    return rows


def test_a_record_that_breaks_scoring_is_broken_and_the_others_are_scored(
    tmp_path: Path, inputs: dict[str, Path], models: likelihood.ScoringModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, "poison")
    rows = with_words(3, 17)
    all_inputs, out = {**inputs, "pull": pulled(tmp_path / "pull", rows, 12)}, tmp_path / "out"
    out.mkdir()
    summary = score.run(CONFIG, all_inputs, out)
    assert summary["statuses"] == {"ok": 22, "broken": 2} and "2 broken" in summary["line"]
    for i, (got, row) in enumerate(zip(scored(out), rows, strict=True)):
        assert got["id"] == row.id and got["status"] == ("broken" if i in (3, 17) else "ok")
        if i in (0, 23):
            assert got["nll"] == pytest.approx(plain_nll(inputs["reference"], row.messages), abs=1e-5)
    assert shards.done(out)[1]["broken"] == {"r17": "IndexError: index out of range in self"}


def test_where_all_records_break_the_shard_has_failed(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, "")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"1 of 1 shards are not done.*24 of 24 rows break.*IndexError"):
        score.run(CONFIG, {**inputs, "pull": pulled(tmp_path / "pull", RECORDS, 100)}, out)


REAL = score.scorer


def deadly(*job: Any) -> Callable[[Sequence[Record]], list[Score | Broken]]:
    """A scorer whose process is killed by a record with the word poison in it."""
    score_these = REAL(*job)

    def work(records: Sequence[Record]) -> list[Score | Broken]:
        if any("poison" in r.messages[-1]["content"] for r in records):
            os.kill(os.getpid(), signal.SIGKILL)
        return score_these(records)

    return work


def test_a_record_that_killed_a_process_is_found_by_the_next_one(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_words(1)[:4]
    all_inputs, out = {**inputs, "pull": pulled(tmp_path / "pull", rows, 4)}, tmp_path / "out"
    (out / shards.FOLDER).mkdir(parents=True)
    (out / shards.FOLDER / "00000.running.json").write_text(json.dumps({"tries": 1}))  # what the first one leaves
    monkeypatch.setattr(score, "scorer", deadly)
    summary = score.run(CONFIG, all_inputs, out)
    assert [row["status"] for row in scored(out)] == ["ok", "broken", "ok", "ok"]
    assert summary["records"] == 4 and "exit code -9" in shards.done(out)[0]["broken"]["r1"]


def test_tasks_that_share_the_shards_write_what_one_process_writes(tmp_path: Path, inputs: dict[str, Path]) -> None:
    all_inputs = {**inputs, "pull": pulled(tmp_path / "pull", RECORDS, 5)}
    files = []
    for width in (1, 3):
        out = tmp_path / str(width)
        out.mkdir()
        for task in range(width):
            score.work(CONFIG, all_inputs, out, range(score.count(CONFIG, all_inputs))[task::width])
        summary = score.finish(CONFIG, all_inputs, out)
        assert summary["records"] == 24 and summary["tokens"] == sum(row["tokens"] for row in scored(out))
        files.append({p.name: p.read_bytes() for p in (out / "scores").iterdir()})
    assert files[0] == files[1] and len(files[0]) == 5


def test_the_stage_is_not_finished_while_a_shard_is_missing(tmp_path: Path, inputs: dict[str, Path]) -> None:
    all_inputs, out = {**inputs, "pull": pulled(tmp_path / "pull", RECORDS, 8)}, tmp_path / "out"
    out.mkdir()
    score.work(CONFIG, all_inputs, out, [0, 2])
    with pytest.raises(DataError, match=r"1 missing \(1\)"):
        score.finish(CONFIG, all_inputs, out)
    score.work(CONFIG, all_inputs, out, [1])
    (out / "scores" / "scores-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 missing \(2\)"):
        score.finish(CONFIG, all_inputs, out)


def test_counting_and_finishing_need_no_torch() -> None:
    code = "import sys, cathpc.data.score as s; s.count, s.work, s.finish; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bfloat16_stays_near_float32(inputs: dict[str, Path], models: likelihood.ScoringModels) -> None:
    half = likelihood.ScoringModels.load(ScoreConfig(dtype=Dtype.bfloat16, window=400), **inputs)
    for got, exact in zip(
        likelihood.score_records(RECORDS, half), likelihood.score_records(RECORDS, models), strict=True
    ):
        assert got.nll == pytest.approx(exact.nll, abs=0.05)
        assert got.refusal == pytest.approx(exact.refusal, abs=0.05)  # the classifier is in bfloat16 too
