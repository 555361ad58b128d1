"""Scores: what the reference GPT, the pool GPT, the refusal classifier and the lexicon say of each record.

In: the record shards of pull and the three models. Out: `scores/scores-NNNNN.parquet` (SCORE_SCHEMA), with the number
and the row order of its record shard; a shard's file is written last and under another name first, so that it marks the
shard as done. Memory grows with one shard and the models, time with the tokens.

`nll` is the mean over all tokens that a fine-tune would learn from: contents and stop tokens of every assistant turn,
given all that stands before them. `refusal` is that of the most refusing turn. A record's score does not depend on
its batch, its shard or its place, within 1e-5 nat a token in float32 and 0.02 in bfloat16, whose matrix products
round differently in batches of another shape.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from cathpc import progress
from cathpc.data.reasoning import Lexicon, language, load_lexicon, measure
from cathpc.errors import DataError
from cathpc.models.config import Dtype, ScoreConfig
from cathpc.models.gpt import Example, Model, tensors, token_nll
from cathpc.models.refusal import RefusalModel
from cathpc.models.template import Template
from cathpc.record import ROLES, SCORE_SCHEMA, Message, Record, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cathpc.config import Config


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
            refusal=RefusalModel.load(refusal / "model"),
            lexicon=lexicon,
            window=config.window,
            batch_tokens=config.batch_tokens,
        )


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage `score`: score every record shard that has no scores yet."""
    started = time.monotonic()
    shards = list(range(len(_record_shards(inputs))))
    tokens = run_shards(config, inputs, out, shards)
    seconds = time.monotonic() - started
    table = pa.concat_tables(pq.read_table(_scores_path(out, shard)) for shard in shards)
    statuses = {row["values"]: row["counts"] for row in pc.value_counts(table["status"]).to_pylist()}
    summary = {
        "records": len(table),
        "statuses": statuses,
        "tokens": int(pc.sum(table["tokens"]).as_py() or 0),
        "answer_tokens": int(pc.sum(table["answer_tokens"]).as_py() or 0),
        "mean_nll": pc.mean(table["nll"]).as_py(),
        "mean_pool_nll": pc.mean(table["pool_nll"]).as_py(),
        "mean_contrast": pc.mean(table["contrast"]).as_py(),
        "mean_refusal": pc.mean(table["refusal"]).as_py(),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
    }
    others = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()) if status != "ok")
    summary["line"] = f"{statuses.get('ok', 0):,} of {len(table):,} records, {summary['tokens']:,} tokens" + (
        f"; {others}" if others else ""
    )
    return summary


def run_shards(config: Config, inputs: dict[str, Path], out: Path, shards: list[int]) -> int:
    """Score the record shards of these numbers, those already done left alone; returns the tokens scored now."""
    paths = _record_shards(inputs)
    (out / "scores").mkdir(exist_ok=True)
    rows = {shard: _rows(paths[shard]) for shard in shards}
    todo = [shard for shard in shards if not _done(_scores_path(out, shard), paths[shard])]
    if not todo:
        return 0
    models = ScoringModels.load(
        config.score, reference=inputs["reference"], pool=inputs["pool"], refusal=inputs["refusal"]
    )
    total = sum(rows.values())
    before = total - sum(rows[shard] for shard in todo)
    tokens = 0
    for shard in todo:
        records = [Record(**row) for row in pq.read_table(paths[shard]).to_pylist()]
        scores = score_records(records, models, progress.counter(out, before, total, "records"))
        _write(_scores_path(out, shard), pa.Table.from_pylist([asdict(s) for s in scores], schema=SCORE_SCHEMA))
        tokens += sum(s.tokens or 0 for s in scores if s.status == "ok")
        before += rows[shard]
    return tokens


def score_records(
    records: Iterable[Record], models: ScoringModels, report: Callable[[int], None] = lambda done: None
) -> list[Score]:
    """The score of each record, in the order of `records`; `report` is told how many are done.

    No record makes this fail and no figure is NaN: 'empty' (the last assistant turn has no token), 'too_long' (more
    than `models.window` tokens) and 'broken' (malformed messages, or a likelihood that is not finite) say what
    hindered it. The counts of tokens are given for 'too_long' too, all other figures for 'ok' alone.
    """
    rows = list(records)
    tokenised = [_tokenise(record, models) for record in rows]
    scores = [score for score, _ in tokenised]
    order = sorted((i for i, s in enumerate(scores) if s.status == "ok"), key=lambda i: (len(tokenised[i][1].ids), i))
    done = len(rows) - len(order)
    for batch in _batches(order, [len(example.ids) for _, example in tokenised], models.batch_tokens):
        examples = [tokenised[i][1] for i in batch]
        reference, pool = (
            mean_nll(model, examples, models.template.pad_id) for model in (models.reference, models.pool)
        )
        turns = [(k, pair) for k, i in enumerate(batch) for pair in _turns(rows[i].messages)]
        refusals = np.zeros(len(batch))
        probabilities = models.refusal.predict([pair for _, pair in turns], batch_tokens=models.batch_tokens)
        np.maximum.at(refusals, [k for k, _ in turns], probabilities)
        for k, i in enumerate(batch):
            _fill(scores[i], rows[i], float(reference[k]), float(pool[k]), float(refusals[k]), models.lexicon)
        done += len(batch)
        report(done)
    return scores


def mean_nll(model: Model, examples: list[Example], pad_id: int) -> NDArray[np.float64]:
    """Mean NLL, in nats a token, over the supervised tokens of each example: float64 [examples]."""
    with torch.inference_mode():
        nll, row = token_nll(model, *tensors(examples, pad_id, model.device))
        place, values = row.cpu().numpy(), nll.double().cpu().numpy()
    counts = np.bincount(place, minlength=len(examples))
    return np.asarray(np.bincount(place, weights=values, minlength=len(examples)) / np.maximum(counts, 1))


def _tokenise(record: Record, models: ScoringModels) -> tuple[Score, Example]:
    """The score as far as counting tokens goes, and the tokens where they are to be scored."""
    nothing = Example([], [])
    score = Score(id=record.id)
    try:
        if not record.messages or any(m["role"] not in ROLES for m in record.messages):
            raise ValueError("no messages, or a role of no one")
        ids, mask = models.template.encode(record.messages)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeError):  # a null, a lone surrogate, …
        score.status = "broken"
        return score, nothing
    score.tokens, score.answer_tokens = len(ids), _last_turn(record.messages, mask)
    if not score.answer_tokens:
        score.status = "empty"
    elif len(ids) > models.window:
        score.status = "too_long"
    return score, Example(ids, mask) if score.status == "ok" else nothing


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


def _batches(order: list[int], lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """`order`, ascending by length, in batches whose padded size is at most `batch_tokens` (or of one record)."""
    result: list[list[int]] = []
    for i in order:
        if result and lengths[i] * (len(result[-1]) + 1) <= batch_tokens:
            result[-1].append(i)
        else:
            result.append([i])
    return result


def _load(folder: Path, dtype: Dtype) -> Model:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype.value), local_files_only=True
    )
    model.to(device).eval()
    return model


def _record_shards(inputs: dict[str, Path]) -> list[Path]:
    return sorted((inputs["pull"] / "records").glob("records-*.parquet"))


def _scores_path(out: Path, shard: int) -> Path:
    return out / "scores" / f"scores-{shard:05d}.parquet"


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is no readable Parquet file ({error}); delete the stage's folder and pull again."
        ) from error


def _done(scores: Path, records: Path) -> bool:
    """Whether the shard has its scores; those of records that have been pulled anew since do not count."""
    return scores.exists() and pq.read_table(scores, columns=["id"]) == pq.read_table(records, columns=["id"])


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
