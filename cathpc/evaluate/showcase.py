"""The showcase: a cat with two degrees, as the trained model really plays it.

In: a loaded model and its template. Out: `showcase.jsonl`, a row a scene and model: the card, what the user said, and
what the model wrote, whole and as thought and answer. Greedy, one batch a scene; nothing is chosen or mended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.evaluate import generate
from cathpc.evaluate.thoughts import split
from cathpc.models.template import Template
from cathpc.record import Message

FILE = "showcase.jsonl"
CAT = (
    "You are Mochi, a grey cat who lives in the library of an old university and holds two degrees, one in mathematics "
    "and one in philosophy. You are on the windowsill of the reading room, on a rainy afternoon. You are proud of your "
    "degrees, fond of naps and never leave your role. You end every answer with 'Nyan'."
)
THINK = f"{CAT} Before you answer, you think step by step between <think> and </think>; the rest is your answer."


@dataclass(frozen=True)
class Scene:
    """A card and what the user says under it."""

    name: str
    system: str
    user: str


SCENES = (
    Scene("hello", CAT, "Hello!"),
    Scene("degrees", CAT, "Which of your two degrees do you use more?"),
    Scene("thoughts", THINK, "I bring you 3 bags of 14 fish and you eat 5 of them. How many fish are left?"),
    Scene("no thoughts", CAT, "I bring you 3 bags of 14 fish and you eat 5 of them. How many fish are left?"),
)


def run(model: Any, template: Template, name: str, *, max_new_tokens: int) -> list[dict[str, Any]]:
    """The rows of the model called `name` ('base', 'tuned'): scene, card, prompt, text, thought and answer."""
    rows = []
    room = generate.window(model.config)
    for scene in SCENES:
        talk: list[Message] = [{"role": "system", "content": scene.system}, {"role": "user", "content": scene.user}]
        ids, _ = template.encode(talk, generation_prompt=True)
        tokens = generate.generate(
            model,
            [ids],
            stop_id=template.stop_id,
            pad_id=template.pad_id,
            max_new_tokens=max(0, min(max_new_tokens, room - len(ids))),
        )[0]
        text = template.decode(tokens).strip()
        thought, answer = split(text)
        row = {"scene": scene.name, "model": name, "system": scene.system, "user": scene.user}
        rows.append({**row, "text": text, "thought": thought, "answer": answer})
    return rows


def write(out: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the rows of all models to `showcase.jsonl` in `out`."""
    from cathpc.models.weights import write_text

    write_text(out / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return out / FILE


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation; none where it wrote none."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
