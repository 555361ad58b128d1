"""Thoughts are told from the answer, whole and piece by piece."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cathpc.evaluate import generate, showcase
from cathpc.evaluate.thoughts import Splitter, split
from cathpc.models.config import Dtype

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
    model, template = generate.load(tiny_llama, Dtype.float32)
    rows = showcase.run(model, template, "tuned", max_new_tokens=6)
    assert [r["scene"] for r in rows] == [s.name for s in showcase.SCENES]
    showcase.write(tmp_path, rows)
    assert showcase.read(tmp_path) == rows and showcase.read(tmp_path / "elsewhere") == []
    ids, _ = template.encode(
        [{"role": "system", "content": showcase.CAT}, {"role": "user", "content": "Hello!"}], generation_prompt=True
    )
    tokens = generate.generate(model, [ids], stop_id=template.stop_id, pad_id=template.pad_id, max_new_tokens=6)[0]
    assert rows[0]["text"] == template.decode(tokens).strip() != ""
    assert all(split(r["text"]) == (r["thought"], r["answer"]) for r in rows)
