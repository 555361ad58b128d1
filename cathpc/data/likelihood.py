"""What the reference GPT, the pool GPT, the refusal classifier and the lexicon say of each record.

In: records and the loaded models. Out: a `Score` a record. Memory grows with the records and the models, time with the
tokens.

`nll` is the mean over all tokens that a fine-tune would learn from: contents and stop tokens of every assistant turn,
given all that stands before them. `refusal` is that of the most refusing turn. A record's score does not depend on
its batch, its shard or its place, within 1e-5 nat a token in float32 and 0.02 in bfloat16, whose matrix products
round differently in batches of another shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from cathpc.broken import MOST, Broken, bisect
from cathpc.data.reasoning import Lexicon, language, load_lexicon, measure
from cathpc.errors import DataError
from cathpc.models.config import Dtype, ScoreConfig
from cathpc.models.gpt import Example, Model, tensors, token_nll
from cathpc.models.refusal import RefusalModel
from cathpc.models.template import Template
from cathpc.record import ROLES, Message, Record, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoringModels:
    """All that scoring needs; `reference` and `pool` share `template`."""

    template: Template
    reference: Model
    pool: Model
    refusal: RefusalModel
    lexicon: Lexicon
    window: int
    """Tokens of the longest conversation that is scored."""
    batch_tokens: int
    """Tokens of a forward pass, padding included."""

    @classmethod
    def load(cls, config: ScoreConfig, *, reference: Path, pool: Path, refusal: Path) -> ScoringModels:
        """Load the models from the folders of the stages of these names, on the GPU where there is one.

        Raises DataError where the two GPTs do not share their template, UserError for a faulty lexicon.
        """
        lexicon = load_lexicon(config.lexicon)
        template, other = Template.load(reference / "model"), Template.load(pool / "model")
        if template.hash != other.hash:
            raise DataError(
                f"{reference} and {pool} have different templates or tokenizers ({template.hash}, {other.hash}): "
                "their scores cannot be compared. Train both from one gpt.base."
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        return cls(
            template=template,
            reference=_load(reference / "model", config.dtype),
            pool=_load(pool / "model", config.dtype),
            refusal=RefusalModel.load(refusal / "model", getattr(torch, config.dtype.value)),
            lexicon=lexicon,
            window=config.window,
            batch_tokens=config.batch_tokens,
        )


def score_records(
    records: Iterable[Record], models: ScoringModels, report: Callable[[int], None] = lambda done: None
) -> list[Score | Broken]:
    """The score of each record, in the order of `records`; `report` is told how many are done.

    No figure is NaN: 'empty' (the last assistant turn has no token), 'too_long' (more than `models.window` tokens) and
    'broken' (malformed messages, or a likelihood that is not finite) say what hindered it. The counts of tokens are
    given for 'too_long' too, all other figures for 'ok' alone. A record that makes anything raise is `Broken`, and
    costs its batch some more passes; RuntimeError where more than `MOST` do.
    """
    rows = list(records)
    tokenised = bisect(rows, lambda block: [_tokenise(record, models) for record in block])
    found: list[Score | Broken] = [t if isinstance(t, Broken) else t.score for t in tokenised]
    broken = sum(isinstance(t, Broken) for t in tokenised)
    todo = [(i, t) for i, t in enumerate(tokenised) if not isinstance(t, Broken) and t.score.status == "ok"]
    todo.sort(key=lambda pair: (len(pair[1].example.ids), pair[0]))
    done = len(rows) - len(todo)
    for batch in _batches(todo, models.batch_tokens):
        results = bisect([t for _, t in batch], lambda block: _scored(block, models), MOST - broken)
        for (i, _), result in zip(batch, results, strict=True):
            if isinstance(result, Broken):
                result, broken = Broken(rows[i], result.error), broken + 1
            found[i] = result
        done += len(batch)
        report(done)
    return found


@dataclass(frozen=True)
class _Tokenised:
    record: Record
    score: Score
    """As far as counting tokens goes."""
    example: Example
    """Empty where the record is not to be scored."""


def _scored(batch: Sequence[_Tokenised], models: ScoringModels) -> list[Score]:
    """The scores of one batch."""
    examples = [t.example for t in batch]
    reference, pool = (mean_nll(model, examples, models.template.pad_id) for model in (models.reference, models.pool))
    turns = [(k, pair) for k, t in enumerate(batch) for pair in _turns(t.record.messages)]
    refusals = np.zeros(len(batch))
    probabilities = models.refusal.predict([pair for _, pair in turns], batch_tokens=models.batch_tokens)
    np.maximum.at(refusals, [k for k, _ in turns], probabilities)
    scores = [replace(t.score) for t in batch]
    for k, (t, score) in enumerate(zip(batch, scores, strict=True)):
        _fill(score, t.record, float(reference[k]), float(pool[k]), float(refusals[k]), models.lexicon)
    return scores


def mean_nll(model: Model, examples: list[Example], pad_id: int) -> NDArray[np.float64]:
    """Mean NLL, in nats a token, over the supervised tokens of each example: float64 [examples]."""
    with torch.inference_mode():
        nll, row = token_nll(model, *tensors(examples, pad_id, model.device))
        place, values = row.cpu().numpy(), nll.double().cpu().numpy()
    counts = np.bincount(place, minlength=len(examples))
    return np.asarray(np.bincount(place, weights=values, minlength=len(examples)) / np.maximum(counts, 1))


def _tokenise(record: Record, models: ScoringModels) -> _Tokenised:
    nothing = Example([], [])
    score = Score(id=record.id)
    try:
        if not record.messages or any(m["role"] not in ROLES for m in record.messages):
            raise ValueError("no messages, or a role of no one")
        ids, mask = models.template.encode(record.messages)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeError):  # a null, a lone surrogate, …
        score.status = "broken"
        return _Tokenised(record, score, nothing)
    score.tokens, score.answer_tokens = len(ids), _last_turn(record.messages, mask)
    if not score.answer_tokens:
        score.status = "empty"
    elif len(ids) > models.window:
        score.status = "too_long"
    return _Tokenised(record, score, Example(ids, mask) if score.status == "ok" else nothing)


def _last_turn(messages: list[Message], mask: list[bool]) -> int:
    """Content tokens of the last turn where that is the assistant's: the last run of the mask, its stop token left
    out."""
    if messages[-1]["role"] != "assistant" or True not in mask:
        return 0
    end = len(mask) - mask[::-1].index(True)
    start = end
    while start and mask[start - 1]:
        start -= 1
    return end - start - 1


def _turns(messages: list[Message]) -> list[tuple[str, str]]:
    """Each assistant turn behind the user turn before it."""
    prompt, turns = "", []
    for message in messages:
        if message["role"] == "user":
            prompt = message["content"]
        elif message["role"] == "assistant":
            turns.append((prompt, message["content"]))
    return turns


def _fill(score: Score, record: Record, nll: float, pool_nll: float, refusal: float, lexicon: Lexicon) -> None:
    if not (math.isfinite(nll) and math.isfinite(pool_nll) and math.isfinite(refusal)):
        score.status, score.tokens, score.answer_tokens = "broken", None, None
        return
    score.nll, score.pool_nll, score.contrast = nll, pool_nll, pool_nll - nll
    score.perplexity = math.exp(min(nll, 700.0))  # the largest that a float64 holds
    score.refusal = refusal
    turns = _turns(record.messages)
    counts = [measure(text, lexicon) for _, text in turns]
    score.correlatives, score.steps = sum(c.correlatives for c in counts), sum(c.steps for c in counts)
    score.language = language(turns[-1][1], context=turns[-1][0])


def _batches(todo: list[tuple[int, _Tokenised]], batch_tokens: int) -> list[list[tuple[int, _Tokenised]]]:
    """`todo`, ascending by length, in batches whose padded size is at most `batch_tokens` (or of one record)."""
    result: list[list[tuple[int, _Tokenised]]] = []
    for one in todo:
        if result and len(one[1].example.ids) * (len(result[-1]) + 1) <= batch_tokens:
            result[-1].append(one)
        else:
            result.append([one])
    return result


def _load(folder: Path, dtype: Dtype) -> Model:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype.value), local_files_only=True
    )
    model.to(device).eval()
    return model
