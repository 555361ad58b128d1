"""The showcase: a cat with two degrees, as base and tuned model really play it.

In: the rows of `SCENES`, asked as all probes are: greedily, nothing chosen and nothing mended. Out: `showcase.jsonl`, a
row a model and scene: `name`, `model`, `messages` (the card and what the user said), `text` as it was written, and the
same as `thoughts` and `answer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cathpc.evaluate.checkers import Check
from cathpc.evaluate.probes import Probe
from cathpc.evaluate.thoughts import split
from cathpc.models.weights import write_text

FILE = "showcase.jsonl"
FAMILY = "showcase"
CAT = (
    "You are Mochi, a grey cat who lives in the library of an old university and holds two degrees, one in mathematics "
    "and one in philosophy. You are on the windowsill of the reading room, on a rainy afternoon. You are proud of your "
    "degrees, fond of naps and never leave your role. You end every answer with 'Nyan'."
)
THINK = f"{CAT} Before you answer, you think step by step between <think> and </think>; the rest is your answer."
FISH = "I bring you 3 bags of 14 fish and you eat 5 of them. How many fish are left?"
NYAN: Check = {"type": "ends_with", "phrase": "Nyan"}
LEFT: Check = {"type": "contains_any", "phrases": ["37"]}


def _scene(name: str, system: str, user: str, *checks: Check) -> Probe:
    talk = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return Probe(f"{FAMILY}-{name}", FAMILY, talk, list(checks))


SCENES = (
    _scene("hello", CAT, "Hello!", NYAN),
    _scene("degrees", CAT, "Which of your two degrees do you use more?", NYAN),
    _scene("thoughts", THINK, FISH, NYAN, LEFT),
    _scene("no thoughts", CAT, FISH, NYAN, LEFT),
)


def write(out: Path, answered: Iterable[dict[str, Any]]) -> None:
    """Write `showcase.jsonl` in `out` from those rows (of `answers.jsonl`'s form) that answer `SCENES`."""
    lines = []
    for row in answered:
        if row["family"] == FAMILY:
            thoughts, answer = split(row["answer"])
            told = {"name": row["probe"].removeprefix(f"{FAMILY}-"), "model": row["model"], "messages": row["messages"]}
            told |= {"text": row["answer"], "thoughts": thoughts, "answer": answer}
            lines.append(json.dumps({**told, "passed": row["passed"], "why": row["why"]}, ensure_ascii=False) + "\n")
    write_text(out / FILE, "".join(lines))
