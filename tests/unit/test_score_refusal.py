"""The refusal classifier: it learns, sees the middle of long answers, is calibrated and reports honest figures."""

from __future__ import annotations

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
from cathpc.models import refusal
from cathpc.models.config import RefusalConfig
from cathpc.models.refusal import RefusalModel, auroc, calibration_error, measure, read, split, temperature
from cathpc.models.tiny import TEXT
from cathpc.record import RECORD_SCHEMA, Record

SETTINGS = RefusalConfig(base="random:bert", max_len=24, epochs=5, batch_size=8, lr=2e-3)
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


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> tuple[Path, dict[str, Any]]:
    """The stage's folder and summary after training on separable answers."""
    root = tmp_path_factory.mktemp("refusal")
    config: Any = SimpleNamespace(refusal=SETTINGS, paths=SimpleNamespace(cache=str(model_cache)))
    (root / "out").mkdir()
    return root / "out", refusal.run(config, {"pull": labels(root / "pull")}, root / "out")


def test_it_learns_separable_answers(stage: tuple[Path, dict[str, Any]]) -> None:
    out, summary = stage
    assert summary["auroc"] > 0.98 and summary["f1"] > 0.95
    assert "F1" in summary["line"]
    assert json.loads((out / "metrics.json").read_text())["heldout"] == summary["heldout"]
    table = pq.read_table(out / "heldout.parquet").to_pylist()
    assert len(table) == summary["heldout"] and set(table[0]) == {"id", "label", "probability"}
    assert {row["label"] for row in table} == {0.0, 1.0}, "a partial refusal counts as one"


def test_a_refusal_in_the_middle_of_a_long_answer_is_seen(stage: tuple[Path, dict[str, Any]]) -> None:
    model = RefusalModel.load(stage[0] / "model")
    middle = f"{FILLER}I am sorry, but I cannot help with that request. {FILLER}"
    assert len(model.windows(middle)) > 10
    with_refusal, without = model.predict([("q", middle), ("q", FILLER * 2)])
    assert with_refusal > 0.5 > without


def test_windows_cover_the_whole_answer_and_overlap(stage: tuple[Path, dict[str, Any]]) -> None:
    model = RefusalModel.load(stage[0] / "model")
    ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
    windows = model.windows(TEXT)
    assert all(len(w) <= model.max_len for w in windows)
    seen: list[int] = []
    for window in windows:
        body = window[1:-1]
        shared = (model.max_len - 2) // 4 if seen else 0
        assert seen[len(seen) - shared :] == body[:shared]
        seen += body[shared:]
    assert seen == ids
    assert model.windows(" \n") == []
    huge = model.windows(FILLER * 200)
    assert len(huge) == refusal.MAX_WINDOWS, "an endless answer costs no endless time"


def test_a_probability_does_not_depend_on_the_batch(stage: tuple[Path, dict[str, Any]]) -> None:
    model = RefusalModel.load(stage[0] / "model")
    texts = [("q", t) for t in [*YES, *NO, FILLER, ""]]
    for batch_tokens in (1, 100, 10_000):
        together = model.predict(texts, batch_tokens=batch_tokens)
        alone = [float(model.predict([text])[0]) for text in texts]
        np.testing.assert_allclose(together, alone, atol=1e-5)
    assert alone[-1] == 0.0
    assert model.predict([]).shape == (0,)


def test_plain_transformers_reads_the_folder(stage: tuple[Path, dict[str, Any]]) -> None:
    folder = stage[0] / "model"
    ours = RefusalModel.load(folder)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**tokenizer(NO[0], return_tensors="pt")).logits[0]
    assert model.config.id2label == {0: "complies", 1: "refuses"}
    assert float(logits[1] - logits[0]) == pytest.approx(float(ours.logits([NO[0]])[0]), abs=1e-5)
    assert not list(folder.glob("*.bin")), "weights are safetensors"


def test_answers_to_one_prompt_fall_into_one_part(tmp_path: Path) -> None:
    rows = read(labels(tmp_path) / "labels.parquet")
    parts = split(rows, SETTINGS)
    assert sum(map(len, parts)) == len(rows) == 240
    keys = [{row.key for row in part} for part in parts]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert 0.1 < len(parts[2]) / len(rows) < 0.3


def test_labels_of_one_class_are_named(tmp_path: Path, model_cache: Path) -> None:
    pull = labels(tmp_path)
    table = pq.read_table(pull / "labels.parquet").to_pylist()
    one = [row for row in table if row["label"] == 0]
    pq.write_table(pa.Table.from_pylist(one, schema=RECORD_SCHEMA), pull / "labels.parquet")
    config: Any = SimpleNamespace(refusal=SETTINGS, paths=SimpleNamespace(cache=str(model_cache)))
    with pytest.raises(UserError, match=r"120 labelled rows the training part .* 0 refusals"):
        refusal.run(config, {"pull": pull}, tmp_path)


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=4000) * 2
    truth = rng.random(4000) < 1 / (1 + np.exp(-honest))
    assert temperature(3 * honest, truth) == pytest.approx(3, rel=0.1)
    assert temperature(honest, truth) == pytest.approx(1, rel=0.1)
    before = calibration_error(truth, refusal.sigmoid(3 * honest))
    after = calibration_error(truth, refusal.sigmoid(3 * honest / temperature(3 * honest, truth)))
    assert after < 0.05 < before


def test_the_temperature_stays_in_range_for_separable_or_few_rows() -> None:
    truth = np.array([True, False] * 10)
    assert temperature(np.where(truth, 4.0, -4.0), truth) == pytest.approx(refusal.TEMPERATURES[0], rel=1e-3)
    assert temperature(np.array([1.0, -1.0]), np.array([True, False])) == 1.0
    assert temperature(np.ones(20), np.ones(20, bool)) == 1.0


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
