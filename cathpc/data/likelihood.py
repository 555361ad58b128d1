"""What the reference GPT, the pool GPT, the refusal classifier and the lexicon say of each record.

In: records and the loaded models. Out: a `Score` a record. Memory grows with the records and the models, time with the
tokens.

`nll` is the mean over all tokens that a fine-tune would learn from: contents and stop tokens of every assistant turn,
given all that stands before them. `refusal` is that of the most refusing turn. A record's score does not depend on its
batch, its shard, its place or the number of threads, within 1e-5 nat a token in float32 (3e-5 where an answer has fewer
than five tokens) and 0.02 in bfloat16, whose matrix products may round differently in batches of another shape: on a
CPU with AVX-512's bfloat16 they do not, and not a bit changes. bfloat16 is within 0.01 nat a token of float32 on
average over answer tokens (`tests/bench/score`). The shorter an answer, the further it may be: up to 0.005 for 150 to
250 tokens, 0.10 for five to nine, 0.17 for two to four, where 0.09 is the average.

What makes it fast: a conversation is tokenised once for both GPTs; sequences of like length share a batch, so that
hardly anything is padding; logits exist for answer tokens alone, some at a time; attention is `cathpc.models.blocks` on
CPUs, with as many threads as the task has cores. Weights are read through a memory map. What the bounds of group
`score` rule out is counted and not scored.
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
from cathpc.models.blocks import speed_up
from cathpc.models.config import Dtype, ScoreConfig
from cathpc.models.gpt import Example, Model, tensors, token_nll
from cathpc.models.precision import usable
from cathpc.models.refusal import RefusalModel
from cathpc.models.template import Template
from cathpc.record import ROLES, Message, Record, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Bounds:
    """Records outside get the status 'skipped'; 0 and () bound nothing."""

    min_answer_tokens: int = 0
    max_answer_tokens: int = 0
    min_correlatives: int = 0
    languages: tuple[str, ...] = ()

    def hold(self, score: Score) -> bool:
        """Whether a record with these counts lies within."""
        tokens, most = score.answer_tokens or 0, self.max_answer_tokens or math.inf
        wanted = not self.languages or score.language in self.languages
        return (
            wanted and self.min_answer_tokens <= tokens <= most and (score.correlatives or 0) >= self.min_correlatives
        )


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
    bounds: Bounds = Bounds()
    """What is not worth scoring."""

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
        model = load(reference / "model", config.dtype)
        return cls(
            template=template,
            reference=model,
            pool=load(pool / "model", config.dtype),
            refusal=RefusalModel.load(refusal / "model", usable(config.dtype)),
            lexicon=lexicon,
            window=config.longest(getattr(model.config, "max_position_embeddings", None)),
            batch_tokens=config.batch_tokens,
            bounds=Bounds(
                config.min_answer_tokens, config.max_answer_tokens, config.min_correlatives, tuple(config.languages)
            ),
        )


def score_records(
    records: Iterable[Record], models: ScoringModels, report: Callable[[int], None] = lambda done: None
) -> list[Score | Broken]:
    """The score of each record, in the order of `records`; `report` is told how many are done, those that are scored
    by their share of the tokens, so that the time left can be told from it.

    No figure is NaN: 'empty' (the last assistant turn has no token), 'too_long' (more than `models.window` tokens),
    'skipped' (outside `models.bounds`) and 'broken' (malformed messages, or a likelihood that is not finite) say what
    hindered it. The counts of tokens are given for 'too_long' too, those of words and the language for 'skipped'; all
    other figures for 'ok' alone. A record that makes anything raise is `Broken`, and
    costs its batch some more passes; RuntimeError where more than `MOST` do.
    """
    rows = list(records)
    tokenised = bisect(rows, lambda block: [_tokenise(record, models) for record in block])
    found: list[Score | Broken] = [t if isinstance(t, Broken) else t.score for t in tokenised]
    broken = sum(isinstance(t, Broken) for t in tokenised)
    todo = [(i, t) for i, t in enumerate(tokenised) if not isinstance(t, Broken) and t.score.status == "ok"]
    lengths = [len(t.example.ids) for _, t in todo]
    total, tokens = sum(lengths), 0
    for numbers in reversed(in_batches(lengths, models.batch_tokens)):  # longest first: a want of memory shows at once
        batch = [todo[n] for n in numbers]
        results = bisect([t for _, t in batch], lambda block: _scored(block, models), MOST - broken)
        for (i, _), result in zip(batch, results, strict=True):
            if isinstance(result, Broken):
                result, broken = Broken(rows[i], result.error), broken + 1
            found[i] = result
        tokens += sum(lengths[n] for n in numbers)
        report(len(rows) - len(todo) + len(todo) * tokens // total)
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
    for k, score in enumerate(scores):
        _fill(score, float(reference[k]), float(pool[k]), float(refusals[k]))
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
    else:
        score.turn_tokens = _turn_tokens(mask)
        _count(score, record, models)
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


def _turn_tokens(mask: list[bool]) -> float | None:
    """Content tokens of an assistant turn, on average: of each run of the mask all but its stop token."""
    turns = sum(here and not before for here, before in zip(mask, [False, *mask], strict=False))
    return sum(mask) / turns - 1 if turns else None


def _turns(messages: list[Message]) -> list[tuple[str, str]]:
    """Each assistant turn behind the user turn before it."""
    prompt, turns = "", []
    for message in messages:
        if message["role"] == "user":
            prompt = message["content"]
        elif message["role"] == "assistant":
            turns.append((prompt, message["content"]))
    return turns


def _count(score: Score, record: Record, models: ScoringModels) -> None:
    """Set what is counted in the assistant turns, and the status 'skipped' where that is out of bounds."""
    turns = _turns(record.messages)
    counts = [measure(text, models.lexicon) for _, text in turns]
    score.correlatives, score.steps = sum(c.correlatives for c in counts), sum(c.steps for c in counts)
    score.diagnosis = max(c.diagnosis for c in counts)
    score.language = language(turns[-1][1], context=turns[-1][0])
    if not models.bounds.hold(score):
        score.status = "skipped"


def _fill(score: Score, nll: float, pool_nll: float, refusal: float) -> None:
    if not (math.isfinite(nll) and math.isfinite(pool_nll) and math.isfinite(refusal)):
        vars(score).update(vars(Score(score.id, "broken")))
        return
    score.nll, score.pool_nll, score.contrast = nll, pool_nll, pool_nll - nll
    score.perplexity = math.exp(min(nll, 700.0))  # the largest that a float64 holds
    score.refusal = refusal


def in_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """The numbers of sequences of these lengths, ascending by length, in batches whose padded size is at most
    `batch_tokens` (or of one sequence)."""
    result: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if result and lengths[i] * (len(result[-1]) + 1) <= batch_tokens:
            result[-1].append(i)
        else:
            result.append([i])
    return result


def load(folder: Path, dtype: Dtype) -> Model:
    """The causal model in `folder`, ready to score in `dtype` (see `usable`); on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=usable(dtype), use_safetensors=True, local_files_only=True
    )
    model.to(device).eval()
    return speed_up(model)
