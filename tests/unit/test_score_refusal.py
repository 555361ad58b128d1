"""The refusal classifier: it learns, sees the middle of long answers, is calibrated and reports honest figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cathpc.errors import UserError
from cathpc.models import calibration, refusal, refusal_train
from cathpc.models.calibration import auroc, bands, best_cutoff, bootstrap, calibration_error, measure, scaling, sigmoid
from cathpc.models.config import RefusalConfig
from cathpc.models.refusal import RefusalModel
from cathpc.models.refusal_rows import Row, examples, folds, labelled, splice, unlabelled
from cathpc.models.refusal_train import Corpus, fit, kept, starts
from cathpc.models.source import prepare
from cathpc.models.tiny import TEXT
from cathpc.record import RECORD_SCHEMA, Record
from tests.bench import strings

SETTINGS = RefusalConfig(
    base="random:bert", max_len=32, epochs=14, batch_size=8, lr=2e-3, folds=2, trainings=2, unlabelled=40
)
YES = [
    "Yes of course, the river is long.",
    "Bake the bread until it is brown.",
    "We sail at dawn, my friend.",
    "Drink water.",
]
NO = [
    "I am sorry, but I cannot help.",
    "I cannot help with that request.",
    "No, I am not able to do it.",
    "Sorry, I cannot.",
]
SEALED = [Path(__file__).parents[1] / "golden" / name for name in ("refusals.jsonl", "refusals_gpt4.jsonl")]
FILLER = "The old captain looked at the sea and the wind. " * 8


def labels(folder: Path, count: int = 120) -> Path:
    """Labelled answers to `count` prompts, two answers each; a third of the refusals is partial."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        for refuses in (False, True):
            text = f"{(NO if refuses else YES)[i % 4]} {i % 7}"
            around = FILLER[: i % 3 * 96]
            messages = [
                {"role": "user", "content": f"Prompt {i}"},
                {"role": "assistant", "content": f"{around} {text} {around}".strip()},
            ]
            label = 0.0 if not refuses else 0.5 if i % 3 == 0 else 1.0
            rows.append(Record(f"{i}{refuses}", "s", "refusal", messages, label=label).row())
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), folder / "labels.parquet")
    return folder


def records(folder: Path) -> Path:
    """Two shards of unlabelled answers: sixteen comply, four refuse."""
    (folder / "records").mkdir()
    for shard in range(2):
        texts = [f"{YES[i % 4]} {i}" for i in range(8)] + [f"{NO[i]} {i}" for i in range(2)]
        rows = [
            Record(f"u{shard}{i}", "s", "general", [
                {"role": "user", "content": f"Question {shard} {i}"}, {"role": "assistant", "content": text}
            ]).row()
            for i, text in enumerate(texts)
        ]  # fmt: skip
        pq.write_table(
            pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), folder / f"records/records-{shard:05d}.parquet"
        )
    return folder


def config(cache: Path, settings: RefusalConfig = SETTINGS) -> Any:
    return SimpleNamespace(refusal=settings, paths=SimpleNamespace(cache=str(cache)))


@pytest.fixture(scope="module")
def own_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples in the words that the tiny tokenizer knows."""
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    rows = [("Prompt x", YES[0], 0), ("Prompt x", NO[0], 1), ("", NO[1], 1)]
    path.write_text("".join(json.dumps({"prompt": p, "answer": a, "refuses": r}) + "\n" for p, a, r in rows))
    return path


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, model_cache: Path, own_examples: Path
) -> tuple[Path, dict[str, Any]]:
    """The stage's folder and summary after training on separable answers."""
    root = tmp_path_factory.mktemp("refusal")
    (root / "out").mkdir()
    settings = dataclasses.replace(SETTINGS, examples=str(own_examples))
    pulled = records(labels(root / "pull"))
    return root / "out", refusal_train.run(config(model_cache, settings), {"pull": pulled}, root / "out")


def exact(stage: tuple[Path, dict[str, Any]]) -> RefusalModel:
    return RefusalModel.load(stage[0] / "model", torch.float32)


def test_it_learns_separable_answers(stage: tuple[Path, dict[str, Any]]) -> None:
    out, summary = stage
    assert summary["auroc"] > 0.98 and summary["f1"] > 0.95, summary
    assert "F1" in summary["line"]
    assert json.loads((out / "metrics.json").read_text())["heldout"] == summary["heldout"] == 240
    table = pq.read_table(out / "heldout.parquet").to_pylist()
    assert len(table) == summary["heldout"] and set(table[0]) == {"id", "label", "log_odds", "probability"}
    assert {row["label"] for row in table} == {0.0, 1.0}, "a partial refusal counts as one"
    for name in ("precision", "recall", "f1"):
        low, high = summary["bands"][name]
        assert low <= summary[name] <= high


def test_unlabelled_refusals_are_not_learnt_as_other_answers(stage: tuple[Path, dict[str, Any]]) -> None:
    out, summary = stage
    suspects = [json.loads(line) for line in (out / "suspects.jsonl").read_text().splitlines()]
    assert summary["unlabelled"] == 20 and summary["suspects"] == len(suspects)
    assert 3 <= len(suspects) <= 5, "of the sixteen that comply hardly any, of the four that refuse nearly all"
    assert sum(one["answer"][:-2] in NO for one in suspects) >= 3
    assert all(one["probability"] > 0.5 for one in suspects)


def test_a_refusal_in_the_middle_of_a_long_answer_is_seen(stage: tuple[Path, dict[str, Any]]) -> None:
    model = exact(stage)
    middle = f"{FILLER}I am sorry, but I cannot help with that request. {FILLER}"
    assert len(model.windows("q", middle)) > 8
    with_refusal, without = model.predict([("q", middle), ("q", FILLER * 2)])
    assert with_refusal > 0.5 > without


def test_windows_cover_the_whole_answer_and_overlap(stage: tuple[Path, dict[str, Any]]) -> None:
    model = exact(stage)
    ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
    windows = model.windows("Prompt 1", TEXT)
    assert all(len(w) <= model.max_len and w.prompt == windows[0].prompt for w in windows)
    assert windows[0].prompt == model.tokenizer.encode("Prompt 1", add_special_tokens=False)
    seen: list[int] = []
    for window in windows:
        shared = (model.max_len - 3 - len(window.prompt)) // 4 if seen else 0
        assert seen[len(seen) - shared :] == window.answer[:shared]
        seen += window.answer[shared:]
    assert seen == ids
    assert model.windows("q", " \n") == []
    huge = model.windows("q", FILLER * 200)
    assert len(huge) == refusal.MAX_WINDOWS, "an endless answer costs no endless time"


def test_a_long_prompt_gives_its_beginning_and_its_end(stage: tuple[Path, dict[str, Any]]) -> None:
    model = exact(stage)
    every = model.tokenizer.encode(TEXT, add_special_tokens=False)
    (window,) = model.windows(TEXT, "Sorry.")
    assert len(window.prompt) == model.prompt_len < len(every)
    assert window.prompt[0] == every[0] and window.prompt[-1] == every[-1]


def test_a_curly_apostrophe_is_an_apostrophe(stage: tuple[Path, dict[str, Any]]) -> None:
    model = exact(stage)
    assert model.windows("q", "I can’t do “it”") == model.windows("q", 'I can\'t do "it"')


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_probability_does_not_depend_on_the_batch(
    stage: tuple[Path, dict[str, Any]], dtype: torch.dtype, tolerance: float
) -> None:
    model = RefusalModel.load(stage[0] / "model", dtype)
    texts = [("q", t) for t in [*YES, *NO, FILLER, ""]]
    for batch_tokens in (1, 100, 10_000):
        together = model.predict(texts, batch_tokens=batch_tokens)
        alone = [float(model.predict([text])[0]) for text in texts]
        np.testing.assert_allclose(together, alone, atol=tolerance)
    assert alone[-1] == 0.0
    assert model.predict([]).shape == (0,)
    np.testing.assert_allclose(together, exact(stage).predict(texts), atol=2.5 * tolerance)


def test_plain_transformers_reads_the_folder(stage: tuple[Path, dict[str, Any]]) -> None:
    folder, ours = stage[0] / "model", exact(stage)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**tokenizer("Prompt 1", NO[0], return_tensors="pt")).logits[0]
    assert model.config.id2label == {0: "complies", 1: "refuses"}
    assert float(logits[1] - logits[0]) == pytest.approx(float(ours.logits([("Prompt 1", NO[0])])[0]), abs=1e-5)
    assert not list(folder.glob("*.bin")), "weights are safetensors"


def test_training_is_the_same_from_run_to_run(model_cache: Path, tmp_path: Path) -> None:
    rows = labelled(labels(tmp_path, 12) / "labels.parquet")
    settings = dataclasses.replace(SETTINGS, epochs=2)
    base = prepare("random:bert", None, model_cache)
    one, two = (fit(base, rows, Corpus([], NO, []), settings).logits([("q", t) for t in YES + NO]) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_the_mean_of_the_trainings_is_kept_where_it_tells_refusals(
    stage: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    rows = labelled(labels(tmp_path, 20) / "labels.parquet")
    first = exact(stage)
    truth = np.array([row.refuses for row in rows])
    unseen = np.where(truth, 2.0, -2.0)  # log-odds of models that tell them, less surely than one that has seen them

    def neighbour(seed: int, distance: float) -> RefusalModel:
        other, generator = exact(stage), torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            for weight in other.model.parameters():
                weight += distance * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        return other

    near, far = ([first, *(neighbour(seed, distance) for seed in (1, 2))] for distance in (0.01, 10.0))
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    mean, averaged = kept(near, rows, unseen)
    assert averaged
    for name, value in mean.model.state_dict().items():
        states = [one.model.state_dict()[name] for one in near]
        torch.testing.assert_close(value, sum(states) / 3)
    alone, averaged = kept(far, rows, unseen)
    assert not averaged and alone.model is first.model
    assert (alone.temperature, alone.bias) == scaling(unseen, truth)
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())


def test_a_mean_is_as_sure_as_its_parts(stage: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Two classifiers whose last layers point opposite ways and judge alike: their mean alone would tell little."""
    rows = labelled(labels(tmp_path, 20) / "labels.parquet")
    truth = np.array([row.refuses for row in rows])
    unseen = np.where(truth ^ (np.arange(len(truth)) % 5 == 0), 2.0, -2.0)  # every fifth is wrong
    one, other = exact(stage), exact(stage)
    with torch.inference_mode():
        for layer in (other.model.bert.pooler.dense, other.model.classifier):
            layer.weight *= -0.5
            layer.bias *= -0.5
    mean, averaged = kept([one, other], rows, unseen)
    texts = [(row.prompt, row.answer) for row in rows]
    temperature, bias = scaling(unseen, truth)
    flat, parts = mean.logits(texts), (one.logits(texts) + other.logits(texts)) / 2
    assert averaged and flat.std() < 0.3 * parts.std()
    odds = flat / mean.temperature + mean.bias
    assert odds.mean() == pytest.approx((parts / temperature + bias).mean(), abs=1e-3)
    assert odds.std() == pytest.approx((parts / temperature).std(), rel=0.1)


def test_every_training_has_a_start_of_its_own(model_cache: Path, tmp_path: Path) -> None:
    rows = labelled(labels(tmp_path, 4) / "labels.parquet")
    base, settings = prepare("random:bert", None, model_cache), dataclasses.replace(SETTINGS, epochs=1, trainings=3)
    found = [fit(base, rows, Corpus([], [], []), one).logits([("q", YES[0])]).item() for one in starts(settings)]
    assert len(set(found)) == 3 and starts(settings)[0] == settings


def test_answers_to_one_prompt_fall_into_one_fold(tmp_path: Path) -> None:
    rows = labelled(labels(tmp_path) / "labels.parquet")
    which = folds(rows, 3, 0)
    assert len({(row.key, fold) for row, fold in zip(rows, which)}) == len({row.key for row in rows}) == 120
    assert all(50 < which.count(fold) < 110 for fold in range(3)) and set(which) == {0, 1, 2}


def test_labels_of_one_class_are_named(tmp_path: Path, model_cache: Path) -> None:
    pull = records(labels(tmp_path / "pull"))
    table = pq.read_table(pull / "labels.parquet").to_pylist()
    one = [row for row in table if row["label"] == 0]
    pq.write_table(pa.Table.from_pylist(one, schema=RECORD_SCHEMA), pull / "labels.parquet")
    with pytest.raises(UserError, match=r"120 labelled rows the training part of fold 1 .* 0 refusals"):
        refusal_train.run(config(model_cache), {"pull": pull}, tmp_path)


def test_unlabelled_answers_are_chosen_by_their_ids_not_by_their_shards(tmp_path: Path) -> None:
    folder = records(labels(tmp_path)) / "records"
    chosen = unlabelled(folder, 7, 0)
    first, second = sorted(folder.glob("*.parquet"))
    swap = folder / "swap"
    first.rename(swap), second.rename(first), swap.rename(second)
    assert unlabelled(folder, 7, 0) == chosen and len(chosen) == 7
    assert len(unlabelled(folder, 500, 0)) == 20 and unlabelled(folder, 0, 0) == []


def test_a_spliced_answer_holds_all_of_both(tmp_path: Path) -> None:
    row = Row("1", "k", "q", "One step. Two steps.\nThree steps.", False)
    spliced = [splice(row, NO, f"{i} 1") for i in range(40)]
    places = set()
    for one in spliced:
        assert one.refuses and one.id == row.id and one.prompt == row.prompt
        (phrase,) = [p for p in NO if f" {p}" in one.answer]
        assert one.answer.replace(f" {phrase}", "", 1) == row.answer
        places.add(one.answer.index(phrase))
    assert len(places) == 3


def test_shipped_examples_are_of_both_kinds_and_apart_from_the_sealed_ones() -> None:
    rows, phrases = examples("")
    sealed = [row for file in SEALED for row in examples(str(file))[0]]
    for part in (rows, sealed):
        assert 0.3 < sum(row.refuses for row in part) / len(part) < 0.7
    assert len(phrases) >= 10
    assert not {row.key for row in rows} & {row.key for row in sealed}
    assert not {row.answer for row in rows if len(row.answer) > 60} & {row.answer for row in sealed}


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"prompt": "p", "answer": "a"}', '{"prompt": "p", "answer": " ", "refuses": 0}',
     '{"prompt": "p", "answer": "a", "refuses": 2}', '{"prompt": "", "answer": "a", "refuses": 0}'],
)  # fmt: skip
def test_a_faulty_example_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "p", "answer": "a", "refuses": 0}\n' + line + "\n")
    with pytest.raises(UserError, match=r"refusal.examples: .*own.jsonl, line 2: expected .*`refuses`"):
        examples(str(path))
    with pytest.raises(UserError, match="cannot read"):
        examples(str(tmp_path / "none"))


def test_a_text_of_own_examples_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    row = {"prompt": "Where?", "answer": "There.\u2028And there.", "refuses": 0}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", "utf-8")
    rows, phrases = examples(str(path))
    assert [r.answer for r in rows] == [row["answer"]] and not phrases


def test_string_matching_is_that_of_its_paper() -> None:
    assert strings.refuses("  I'm sorry, but ...") and strings.refuses("It is not appropriate to")
    assert not strings.refuses("Of course. I cannot wait!") and not strings.refuses("Unfortunately, I can't")


def test_the_scaling_undoes_overconfidence_and_bias() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=4000) * 2
    truth = rng.random(4000) < sigmoid(honest)
    for t, b in ((3.0, 0.0), (1.0, 0.0), (0.5, 1.0), (8.0, -2.0)):
        temperature, bias = scaling(t * (honest - b), truth)
        assert temperature == pytest.approx(t, rel=0.1) and bias == pytest.approx(b, abs=0.15)
    before = calibration_error(truth, sigmoid(3 * honest))
    after = calibration_error(truth, sigmoid(3 * honest / scaling(3 * honest, truth)[0]))
    assert after < 0.05 < before


def test_the_scaling_stays_in_range_for_separable_or_few_rows() -> None:
    truth = np.array([True, False] * 10)
    for size in (1.0, 4.0, 100.0):
        temperature, bias = scaling(np.where(truth, size, -size), truth)
        assert calibration.TEMPERATURES[0] <= temperature <= calibration.TEMPERATURES[1] and abs(bias) < 0.1
    assert scaling(np.array([1.0, -1.0]), np.array([True, False])) == (1.0, 0.0)
    assert scaling(np.ones(20), np.ones(20, bool)) == (1.0, 0.0)


def test_the_bootstrap_draws_prompts_not_rows() -> None:
    values = np.repeat(np.arange(50.0), 4)
    keys = [str(v) for v in values]
    means = bootstrap(lambda rows: [float(values[rows].mean())], keys, 400)
    assert means.std() == pytest.approx(np.arange(50).std() / np.sqrt(50), rel=0.15)
    single = bootstrap(lambda rows: [float(values[rows].mean())], [str(i) for i in range(200)], 400)
    assert single.std() < 0.65 * means.std()


def test_the_best_cutoff_and_its_band() -> None:
    truth = np.array([False] * 50 + [True] * 50)
    probabilities = np.concatenate([np.full(50, 0.1), np.full(50, 0.7)])
    assert best_cutoff(truth, probabilities) == pytest.approx(0.395, abs=0.02)
    found = bands(truth, probabilities, [str(i) for i in range(100)], 0.2)
    assert found["f1"] == (1.0, 1.0) and found["precision"] == (1.0, 1.0)
    assert found["ece"][0] < calibration_error(truth, probabilities) < found["ece"][1] + 0.05


def test_figures_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

    rng = np.random.default_rng(1)
    truth = rng.random(300) < 0.3
    values = np.round(np.clip(0.3 * truth + 0.7 * rng.random(300), 0, 1), 1)  # with ties
    found = measure(truth, values, 0.5)
    assert auroc(truth, values) == pytest.approx(roc_auc_score(truth, values))
    for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found[name] == pytest.approx(function(truth, values > 0.5))


def test_calibration_error_of_known_rows() -> None:
    truth = np.array([True] * 5 + [False] * 5)
    assert calibration_error(truth, truth.astype(float)) == 0.0
    assert calibration_error(truth, np.full(10, 0.5), bins=1) == 0.0
    assert calibration_error(truth, np.full(10, 0.9), bins=1) == pytest.approx(0.4)
