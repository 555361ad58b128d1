"""What else is measured of answers: refusals, perplexity under the reference GPT, chain of thought, lengths.

In: rows of answers, and the folders of the scoring models. Out: plain figures. Time grows with the answers' tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cathpc.cards import shapes
from cathpc.evaluate import rates
from cathpc.evaluate.checkers import thinks_aloud
from cathpc.evaluate.config import EvaluateConfig
from cathpc.evaluate.probes import Probe

REQUESTS = Path(__file__).parents[1] / "assets" / "requests.jsonl"
"""Requests to refuse ('unsafe'), and some that only look like them ('benign')."""
KINDS = ("benign", "unsafe")
ASSISTANT = "You are a helpful assistant."

Row = dict[str, Any]


def requests(most: int | None) -> list[Probe]:
    """The requests as probes under a plain system prompt; the first `most` of each kind."""
    rows = [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").split("\n") if line.strip()]
    kept = [row for kind in KINDS for row in [r for r in rows if r["kind"] == kind][:most]]
    return [
        Probe(
            row["id"],
            row["kind"],
            [{"role": "system", "content": ASSISTANT}, {"role": "user", "content": row["prompt"]}],
            [{"type": "min_words", "words": 1}],
        )
        for row in kept
    ]


def refusals(rows: dict[str, list[Row]], classifier: Path, config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Kind of request -> model -> share refused, by the refusal classifier in the folder `classifier`, and the paired
    `difference`. Sets `refusal`, the classifier's probability, in each row; an empty answer refuses nothing."""
    from cathpc.models.refusal import RefusalModel

    judge = RefusalModel.load(classifier)
    for answered in rows.values():
        scores = judge.predict([(row["messages"][-1]["content"], row["answer"]) for row in answered])
        for row, score in zip(answered, scores, strict=True):
            row["refusal"] = round(float(score), 4)
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        counts = {
            model: np.array(
                [[row["refusal"] > config.refusal_cutoff, 1.0] for row in answered if row["family"] == kind]
            ).reshape(-1, 2)
            for model, answered in rows.items()
        }
        draws = rates.draw(len(next(iter(counts.values()))), config.resamples, config.seed)
        found[kind] = {model: rates.share(values, draws) for model, values in counts.items()}
        if {"base", "tuned"} <= set(counts):
            found[kind]["difference"] = rates.difference(counts["tuned"], counts["base"], draws)
    return found


def perplexity(rows: Sequence[Row], gpt: Path, config: EvaluateConfig) -> dict[str, float] | None:
    """Perplexity of the first answer of each session under the GPT in the folder `gpt`, with its interval over probes.

    Averaged in nats a token over all tokens; None where there is no answer. An answer over the window is left out.
    """
    from cathpc.data.likelihood import in_batches, load, mean_nll
    from cathpc.evaluate.generate import window
    from cathpc.models.gpt import Example
    from cathpc.models.template import Template

    template = Template.load(gpt)
    model = load(gpt, config.dtype)
    examples = [
        Example(*template.encode([*row["messages"][:2], {"role": "assistant", "content": row["answers"][0]}]))
        for row in rows
        if row["answers"][0].strip()
    ]
    examples = [e for e in examples if len(e.ids) <= window(model.config)]
    if not examples:
        return None
    nll = np.zeros(len(examples))
    for numbers in in_batches([len(e.ids) for e in examples], BATCH_TOKENS):
        nll[numbers] = mean_nll(model, [examples[n] for n in numbers], template.pad_id)
    tokens = np.array([sum(e.mask) for e in examples], dtype=np.float64)
    found = rates.share(
        np.stack([nll * tokens, tokens], axis=1), rates.draw(len(examples), config.resamples, config.seed)
    )
    assert found is not None
    return {
        "perplexity": math.exp(found["share"]),
        "low": math.exp(found["low"]),
        "high": math.exp(found["high"]),
        "answers": len(examples),
    }


BATCH_TOKENS = 1024
"""Tokens of a forward pass of the GPT, padding included."""


def style(rows: Sequence[Row], config: EvaluateConfig) -> dict[str, Any]:
    """Chain of thought where the card asks for it and where it does not (shares of answers), and lengths of answers."""
    counts: dict[str, list[tuple[float, float]]] = {"asked": [], "unasked": []}
    for row in rows:
        thought = float(sum(thinks_aloud(a) for a in row["answers"])), float(len(row["answers"]))
        asked = any(check["type"] in rates.MARKS for check in row["checks"])
        counts["asked"].append(thought if asked else (0.0, 0.0))
        counts["unasked"].append((0.0, 0.0) if asked else thought)
    draws = rates.draw(len(rows), config.resamples, config.seed)
    words = [len(shapes.words(answer)) for row in rows for answer in row["answers"]]
    return {
        "thought": {name: rates.share(np.array(values), draws) for name, values in counts.items()},
        "words": {"mean": float(np.mean(words)), "median": float(np.median(words))},
        "tokens": sum(row["tokens"] for row in rows) / len(words),
        "empty": sum(not answer for row in rows for answer in row["answers"]),
        "cut": sum(row["cut"] for row in rows),
    }
