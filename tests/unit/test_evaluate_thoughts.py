"""Thoughts are told from the answer, whole and piece by piece."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cathpc.evaluate import showcase
from cathpc.evaluate.checkers import fault, judge
from cathpc.evaluate.config import EvaluateConfig
from cathpc.evaluate.sessions import ask
from cathpc.evaluate.thoughts import Splitter, split
from cathpc.report import records_part

CASES = [
    ("Hello! Nyan", "", "Hello! Nyan"),
    ("<think>3 x 14 = 42, less 5 is 37.</think>\n\n37 fish. Nyan", "3 x 14 = 42, less 5 is 37.", "37 fish. Nyan"),
    ("<THINKING>a</thinking>b", "a", "b"),
    ("First this. <think>then a < b > c</think>So.", "then a < b > c", "First this. So."),
    ("<think>one</think>A<think>two</think>B", "onetwo", "AB"),
    ("<think>never closed", "never closed", ""),
    ("<think>a</thought>b", "a</thought>b", ""),
    ("Thoughts: 6 times 4.\nSo 24.\nAnswer: 24", "6 times 4.\nSo 24.", "24"),
    ("**Reasoning:**\n6 x 4\n\n**Final answer:** 24", "6 x 4", "24"),
    ("Thought: no end", "no end", ""),
    ("The answer: 24", "", "The answer: 24"),
    ("Thoughtful cats sleep.\nAnswer: yes", "", "Thoughtful cats sleep.\nAnswer: yes"),
    ("I said 'think' and 1 < 2.", "", "I said 'think' and 1 < 2."),
    ("ends in <thi", "", "ends in <thi"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
def test_a_text_is_thought_and_answer(text: str, thought: str, answer: str) -> None:
    assert split(text) == (thought, answer)


@pytest.mark.parametrize(("text", "thought", "answer"), CASES)
def test_pieces_give_what_the_whole_gives(text: str, thought: str, answer: str) -> None:
    whole = Splitter().feed(text, last=True)
    for seed in range(20):
        draw = random.Random(seed)
        splitter, parts, at = Splitter(), [], 0
        while at < len(text):
            step = draw.choice((1, 1, 2, 3, 7))
            parts += splitter.feed(text[at : at + step])
            at += step
        parts += splitter.feed("", last=True)
        for kind in ("thought", "answer"):
            assert "".join(t for k, t in parts if k == kind) == "".join(t for k, t in whole if k == kind)


def test_plain_words_are_not_held_back() -> None:
    splitter = Splitter()
    shown = "".join(
        text
        for word in ["A", "cat", "sat", "on", "the", "mat", "and", "slept"]
        for _, text in splitter.feed(word + " ")
    )
    assert shown == "A cat sat on the mat and slept "


def test_the_showcase_is_what_the_model_writes(tiny_llama: Path, tmp_path: Path) -> None:
    sessions = ask(tiny_llama, showcase.SCENES, EvaluateConfig(max_new_tokens=6))
    rows = [session.row("tuned") for session in sessions]
    rows[2]["answer"] = "<think>3 x 14 - 5</think> 37 fish. Nyan"
    showcase.write(tmp_path, [*rows, {**rows[0], "family": "persona"}])
    shown = [json.loads(line) for line in (tmp_path / showcase.FILE).read_text().splitlines()]
    assert [s["name"] for s in shown] == ["hello", "degrees", "thoughts", "no thoughts"]
    assert shown[0]["messages"][-1]["content"] == "Hello!" and shown[0]["text"] == rows[0]["answer"] != ""
    assert (shown[2]["thoughts"], shown[2]["answer"]) == ("3 x 14 - 5", "37 fish. Nyan")
    page = records_part._talk(shown[2])["messages"][-1]["parts"]  # what the report shows, thoughts in grey
    assert page == [("thought", "3 x 14 - 5"), ("said", "37 fish. Nyan")]


def test_the_scenes_checks_are_valid_and_none_passes_an_empty_answer() -> None:
    for scene in showcase.SCENES:
        assert scene.checks and not any(fault(check, scene.turns) for check in scene.checks)
        assert not any(verdict["passed"] for verdict in judge(scene.checks, [""]))
