"""Records that share a run of words with an evaluation set are found, with what they share, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cathpc.data import decontaminate, sources
from cathpc.data.config import DatasetConfig
from cathpc.data.sources import evaluation_sets
from cathpc.errors import UserError
from cathpc.evaluate import measures, probes

LONG = "The quick brown fox jumps over the lazy dog while seven wise men watch it from the shore of a lake."
ROOT = Path(__file__).parents[2]
SHORT = "Which planet of ours has the most moons?"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = [{"id": "fox", "question": LONG, "choices": ["yes", "no"]}, {"q": [{"text": SHORT}]}]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    decontaminate.build({"eval.jsonl": tmp_path / "eval.jsonl"}, tmp_path / "index.npz")
    return tmp_path / "index.npz"


def found(index: Path, *texts: str) -> dict[int, str]:
    talks = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in texts]
    return decontaminate.contaminated(talks, index)


def test_thirteen_words_in_a_row_are_found_whatever_case_and_punctuation(index: Path) -> None:
    text = "As they say: «Brown Fox, jumps over the LAZY dog – while seven wise men watch» it all."
    seen = found(index, "nothing here", text)
    assert list(seen) == [1]
    assert "'brown fox jumps over the lazy dog while seven wise men watch it'" in seen[1] and seen[1].endswith(
        "eval.jsonl, fox"
    )


def test_twelve_words_of_a_long_text_are_not_enough(index: Path) -> None:
    twelve = " ".join(LONG.split()[2:14])
    assert not found(index, f"x {twelve} y") and found(index, f"x {twelve} {LONG.split()[14]} y")


def test_a_short_text_counts_where_all_its_words_are_there(index: Path) -> None:
    assert found(index, f"Tell me: {SHORT}")[0].endswith("with eval.jsonl, row 2")
    assert not found(index, "Which planet of ours has the most rings?")


def test_a_run_does_not_go_over_the_border_of_a_turn(index: Path) -> None:
    words = SHORT.split()
    talk = [{"role": "user", "content": " ".join(words[:4])}, {"role": "assistant", "content": " ".join(words[4:])}]
    assert not decontaminate.contaminated([talk], index)


def test_the_shipped_probes_are_a_set_and_a_set_without_text_is_refused(tmp_path: Path) -> None:
    sets = evaluation_sets(DatasetConfig())
    assert set(sets.values()) == {probes.SHIPPED, measures.REQUESTS}, "all that is asked"
    assert decontaminate.build(sets, tmp_path / "index.npz") > 100
    probe = json.loads(sets["probes"].read_text().splitlines()[0])
    seen = found(tmp_path / "index.npz", probe["messages"][0]["content"])
    assert probe["id"] in seen[0]
    request = json.loads(sets["requests"].read_text().splitlines()[0])
    assert request["id"] in found(tmp_path / "index.npz", f"Well: {request['prompt']}")[0]
    assert sources.identity(DatasetConfig()).keys() == {"decontaminate probes", "decontaminate requests"}
    (tmp_path / "tiny.jsonl").write_text('{"a": "too short"}\n')
    with pytest.raises(UserError, match=r"tiny\.jsonl holds no text of 8 words"):
        decontaminate.build({"tiny.jsonl": tmp_path / "tiny.jsonl"}, tmp_path / "index.npz")


def test_a_set_outside_the_data_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.decontaminate: \.\./x\.jsonl: path leaves the data root"):
        evaluation_sets(DatasetConfig(root=str(tmp_path), decontaminate=["../x.jsonl"]))


def test_hashes_do_not_depend_on_what_was_hashed_before() -> None:
    code = "from cathpc.data.words import spaced; {}print(spaced(['a b c']).hashes.tolist())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code.format(before)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        for before in ("", "spaced(['longer words']); ")
    ]
    assert runs[0].stdout == runs[1].stdout
