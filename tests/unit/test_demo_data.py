"""The data that ships with cathpc has what real data has: every rule that needs no trained model drops rows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cathpc.config import compose, only
from cathpc.data import pull
from cathpc.data.reasoning import language, load_lexicon, measure
from cathpc.models.template import Template
from cathpc.record import answer

ENOUGH = 5


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pull")
    pull.run(only(compose(["+experiment=demo"]), ("paths", "dataset")), {}, out)
    return out


@pytest.mark.parametrize("reason", ["not_json", "no_answer", "bad_turns", "duplicate", "near_duplicate"])
def test_broken_and_repeated_rows_are_set_aside(pulled: Path, reason: str) -> None:
    rejects = [json.loads(line) for line in (pulled / "rejects.jsonl").read_text().splitlines()]
    assert sum(r["reason"] == reason for r in rejects) >= ENOUGH


def test_no_row_repeats_what_is_asked_of_the_tuned_model(pulled: Path) -> None:
    rejects = [json.loads(line) for line in (pulled / "rejects.jsonl").read_text().splitlines()]
    assert not [r["detail"] for r in rejects if r["reason"] == "contaminated"]


def test_some_four_hundred_records_of_four_components_and_labelled_refusals(pulled: Path) -> None:
    records = pq.read_table(pulled / "records" / "records-00000.parquet").to_pylist()
    assert 350 <= len(records) <= 450
    assert {r["component"] for r in records} == {"general", "reasoning", "health", "roleplay"}
    assert sum(len([m for m in r["messages"] if m["role"] == "user"]) > 1 for r in records) >= 20, "multi-turn"
    assert pq.read_metadata(pulled / "labels.parquet").num_rows >= 100


def test_every_measured_rule_of_select_drops_rows(pulled: Path, smollm2: Path) -> None:
    select = compose(["+experiment=demo"]).select
    template, lexicon = Template.load(smollm2), load_lexicon()
    dropped = dict.fromkeys(["language", "too_short", "too_long", "cot_short", "health_short", "correlative"], 0)
    for row in pq.read_table(pulled / "records" / "records-00000.parquet").to_pylist():
        rule = _first_rule(row, select, template, lexicon)
        if rule:
            dropped[rule] += 1
    assert all(count >= ENOUGH for count in dropped.values()), dropped


def _first_rule(row: dict[str, Any], select: Any, template: Template, lexicon: Any) -> str:
    text = answer(row["messages"])
    tokens = len(template.raw.encode(text, add_special_tokens=False).ids)
    single = sum(m["role"] == "user" for m in row["messages"]) == 1
    said = "\n".join(m["content"] for m in row["messages"] if m["role"] == "assistant")
    if language(text) not in [*select.languages, "und"]:
        return "language"
    if tokens < select.min_answer_tokens:
        return "too_short"
    if tokens > select.max_answer_tokens:
        return "too_long"
    if row["component"] == "reasoning" and single and tokens <= select.reasoning_min_tokens:
        return "cot_short"
    if row["component"] == "health" and tokens <= select.health_min_tokens:
        return "health_short"
    return "correlative" if measure(said, lexicon).correlatives < select.min_correlatives else ""
