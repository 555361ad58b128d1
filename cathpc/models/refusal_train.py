"""Stage `refusal`: train, calibrate and measure the classifier of refusals.

In: `labels.parquet` and the records of pull. Out: `model/` (a Hugging Face sequence classifier, `calibration.json`),
`heldout.parquet` (id, label, log-odds before scaling and probability of every labelled answer), `suspects.jsonl` and
`metrics.json`.

All labelled answers train the model that is kept, and all of them measure it: `refusal.folds` classifiers, each
trained without the prompts of its fold, give every labelled answer a probability from a model that never saw its
prompt. These out-of-fold log-odds fit the scaling (Platt 1999), and for the figures each fold is scaled by what the
others fit. Then `refusal.trainings` classifiers learn from all labelled answers, and the mean of their weights is kept:
each alone takes other harmless answers for refusals.

Unlabelled answers of the records serve as further non-refusals: labelled ones are few and alike, and a classifier that
saw nothing else takes a captain's log or a doctor's letter for a refusal. But sets of GPT-4's answers hold refusals
too. So at half-time each unlabelled answer is judged by the classifier of its fold, which saw neither it nor another
answer to its prompt, and what looks like a refusal trains none of them in the second half: an answer whose probability
reaches the mean of that of labelled refusals (confident learning: Northcutt et al. 2021, arXiv:1911.00068, 3.1).

Time grows with (folds + trainings) times epochs times the labelled, shipped and unlabelled answers, memory with
(folds + 1) classifiers and their optimizers (16 bytes a weight) and the weights of the other trainings. Of the records
all ids are read, and the answers of the shards that hold a chosen one.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import log_loss
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cathpc import progress
from cathpc.errors import UserError
from cathpc.models.calibration import bands, measure, scaling, sigmoid
from cathpc.models.config import RefusalConfig
from cathpc.models.gpt import Model
from cathpc.models.precision import fast_dtype
from cathpc.models.refusal import LABELS, RefusalModel, Window, device
from cathpc.models.refusal_rows import TROUBLES, Row, examples, folds, labelled, splice, unlabelled
from cathpc.models.source import prepare
from cathpc.models.weights import write_json, write_text
from cathpc.record import unit_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cathpc.config import Config

    Floats = NDArray[np.float64]

SPLICED = 0.1
"""Share of the non-refusals that get a refusing sentence, anew in every epoch."""
TROUBLED = 0.2
"""Share of the rows whose prompt gets a sentence of `TROUBLES`: a patient who cannot move the leg refuses nothing."""
WITHOUT_PROMPT = 0.15
"""Share of the rows that are shown without their prompt, so that the answer, not the prompt, must tell."""
SMOOTHING = 0.02
"""Label smoothing: human labels are wrong now and then."""


@dataclass(frozen=True)
class Corpus:
    """What there is to learn from, beside the labelled rows."""

    examples: list[Row]
    phrases: list[str]
    unlabelled: list[Row]


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """The stage; raises UserError where the labelled rows of a fold are of one class only."""
    settings = config.refusal
    rows = labelled(inputs["pull"] / "labels.parquet")
    corpus = Corpus(
        *examples(settings.examples), unlabelled(inputs["pull"] / "records", settings.unlabelled, settings.seed)
    )
    base = prepare(settings.base, None, Path(config.paths.cache))
    _check(rows, settings)

    truth = np.array([row.refuses for row in rows])
    which = np.array(folds(rows, settings.folds, settings.seed))
    told = _Progress(out, settings, len(rows) + len(corpus.unlabelled), len(corpus.examples))
    logits, suspects, threshold = crossfit(base, rows, corpus, settings, told)
    probabilities = _scaled(logits, truth, which)
    left_out = {row.id for row, _ in suspects}
    fitted = [fit(base, rows, corpus, one, left_out, told) for one in starts(settings)]
    classifier, averaged = kept(fitted, rows, logits)
    intervals = bands(truth, probabilities, [row.key for row in rows], settings.cutoff)
    metrics = {
        "heldout": len(rows),
        "heldout_refusals": int(truth.sum()),
        "folds": settings.folds,
        "examples": len(corpus.examples),
        "unlabelled": len(corpus.unlabelled),
        "suspects": len(suspects),
        "threshold": threshold,
        "trainings": settings.trainings,
        "averaged": averaged,
        "cutoff": settings.cutoff,
        **measure(truth, probabilities, settings.cutoff),
        "bands": intervals,
        "temperature": classifier.temperature,
        "bias": classifier.bias,
    }
    classifier.save(out / "model")
    found = ({"id": r.id, "probability": p, "prompt": r.prompt, "answer": r.answer} for r, p in suspects)
    write_text(out / "suspects.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found))
    write_json(out / "metrics.json", metrics)
    table = {"id": [r.id for r in rows], "label": truth.astype(float), "log_odds": logits, "probability": probabilities}
    pq.write_table(pa.table(table), out / ".heldout.tmp")
    os.replace(out / ".heldout.tmp", out / "heldout.parquet")
    line = f"{len(rows):,} labelled answers, held-out F1 {metrics['f1']:.3f} at {settings.cutoff:g}, "
    line += f"AUROC {metrics['auroc']:.3f}, ECE {metrics['ece']:.3f}"
    return {**metrics, "line": line}


class _Progress:
    """Counts the batches of all trainings of the stage."""

    def __init__(self, out: Path, settings: RefusalConfig, divided: int, shared: int) -> None:
        """`divided` answers are told apart by fold, `shared` ones train with each."""
        self._out, self._done = out, 0
        part = divided * (settings.folds - 1) // settings.folds
        epoch = settings.folds * _batches(part + shared, settings)
        epoch += settings.trainings * _batches(divided + shared, settings)
        self._total = settings.epochs * epoch

    def __call__(self) -> None:
        self._done += 1
        progress.report(self._out, min(self._done, self._total), self._total, "batches")


def _check(rows: Sequence[Row], settings: RefusalConfig) -> None:
    which = np.array(folds(rows, settings.folds, settings.seed))
    truth = np.array([row.refuses for row in rows], dtype=bool)
    for fold in range(settings.folds):
        for name, part in (("training", truth[which != fold]), ("held-out", truth[which == fold])):
            if part.all() or not part.any():
                raise UserError(
                    f"the refusal classifier needs refusals and other answers in every fold, but of {len(rows)} "
                    f"labelled rows the {name} part of fold {fold + 1} ({len(part)}) has {int(part.sum())} refusals. "
                    "Add labelled rows (a source of component `refusal` with `labels`) or lower refusal.folds."
                )


def crossfit(
    base: Path, rows: Sequence[Row], corpus: Corpus, settings: RefusalConfig, told: Callable[[], None] = lambda: None
) -> tuple[Floats, list[tuple[Row, float]], float]:
    """(log-odds of each row from a classifier that never saw its prompt, the suspects among the unlabelled answers with
    their half-time probability, the probability from which on they are suspects)."""
    sides = (rows, corpus.unlabelled)
    which, free = (np.array(folds(side, settings.folds, settings.seed), dtype=int) for side in sides)
    truth = np.array([row.refuses for row in rows])
    trainings = [Training(base, settings, told) for _ in range(settings.folds)]

    def train(epochs: range, left_out: Set[str]) -> None:
        for fold, training in enumerate(trainings):
            seen = [row for row, k in zip(rows, which, strict=True) if k != fold]
            more = [r for r, k in zip(corpus.unlabelled, free, strict=True) if k != fold and r.id not in left_out]
            training.run(epochs, [*seen, *corpus.examples, *more], corpus.phrases)

    def judge(side: Sequence[Row], of: NDArray[np.int64]) -> Floats:
        logits = np.zeros(len(side))
        for fold, training in enumerate(trainings):
            held = [(row.prompt, row.answer) for row, k in zip(side, of, strict=True) if k == fold]
            logits[of == fold] = training.classifier.logits(held)
        return logits

    train(_halves(settings)[0], frozenset())
    threshold, suspects = 1.0, list[tuple[Row, float]]()
    if corpus.unlabelled:
        logits = judge(rows, which)
        temperature, bias = scaling(logits, truth)
        threshold = float(_scaled(logits, truth, which)[truth].mean())
        found = sigmoid(judge(corpus.unlabelled, free) / temperature + bias).tolist()
        suspects = [(row, p) for row, p in zip(corpus.unlabelled, found, strict=True) if p >= threshold]
    train(_halves(settings)[1], {row.id for row, _ in suspects})
    return judge(rows, which), suspects, threshold


def fit(
    base: Path,
    rows: Sequence[Row],
    corpus: Corpus,
    settings: RefusalConfig,
    suspects: Set[str] = frozenset(),
    told: Callable[[], None] = lambda: None,
) -> RefusalModel:
    """Tune the encoder in `base` on `rows`, the examples and the unlabelled answers; `suspects` are the ids of those
    that the second half goes without, as in `crossfit`."""
    training = Training(base, settings, told)
    for epochs, left_out in zip(_halves(settings), (frozenset(), suspects), strict=True):
        more = [row for row in corpus.unlabelled if row.id not in left_out]
        training.run(epochs, [*rows, *corpus.examples, *more], corpus.phrases)
    return training.classifier


def starts(settings: RefusalConfig) -> list[RefusalConfig]:
    """`settings` for each of `refusal.trainings`: with a seed of its own."""
    return [replace(settings, seed=settings.seed + number) for number in range(settings.trainings)]


def kept(fitted: Sequence[RefusalModel], rows: Sequence[Row], logits: Floats) -> tuple[RefusalModel, bool]:
    """(the calibrated classifier to use, whether its weights are the mean of those of `fitted`, or the first's).

    `fitted` learned from all `rows`; `logits` are the rows' log-odds by classifiers that never saw their prompts, and
    fit the scaling. What one training happened to learn and the others did not is averaged out, at the cost of one
    model in use (a uniform soup: Wortsman et al. 2022, Model soups, arXiv:2203.05482). The log-odds of a mean are
    flatter than those of its parts, so they are brought to the mean of theirs, by least squares on `rows`, before the
    scaling applies. A mean takes trainings that end in one valley, as those of a pretrained encoder do. Where they do
    not, it tells nothing: its cross-entropy on `rows`, which it has seen, is then above that of `logits`.
    """
    truth = np.array([row.refuses for row in rows])
    temperature, bias = scaling(logits, truth)
    first = replace(fitted[0], temperature=temperature, bias=bias)
    if len(fitted) == 1:
        return first, False
    texts = [(row.prompt, row.answer) for row in rows]
    soup = replace(first, model=_mean([one.model for one in fitted]))
    slope, offset = np.polyfit(soup.logits(texts), np.mean([one.logits(texts) for one in fitted], axis=0), 1).tolist()
    if slope <= 0:
        return first, False
    soup = replace(soup, temperature=temperature / slope, bias=bias + offset / temperature)
    worse = log_loss(truth, soup.predict(texts)) > log_loss(truth, sigmoid(logits / temperature + bias))
    return (first, False) if worse else (soup, True)


def _mean(models: Sequence[Model]) -> Model:
    """A model with the mean of the weights of `models`."""
    states = [model.state_dict() for model in models]
    mean = copy.deepcopy(models[0])
    for name, values in mean.state_dict().items():
        if values.is_floating_point():
            values.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mean


def _halves(settings: RefusalConfig) -> tuple[range, range]:
    middle = settings.epochs - settings.epochs // 2
    return range(middle), range(middle, settings.epochs)


def _scaled(logits: Floats, truth: NDArray[np.bool_], which: NDArray[np.int64]) -> Floats:
    """Probabilities of out-of-fold log-odds; each fold is scaled by the others, as a row's own label must not help."""
    probabilities = np.zeros(len(logits))
    for fold in np.unique(which):
        temperature, bias = scaling(logits[which != fold], truth[which != fold])
        probabilities[which == fold] = sigmoid(logits[which == fold] / temperature + bias)
    return probabilities


class Training:
    """An encoder that is being tuned to tell refusals.

    Refusals and other answers weigh the same in sum. The embeddings of words stay as they are: most words of an answer
    to come are in no labelled row. Matrices multiply in bfloat16 where that is fast (autocast), weights and optimizer
    are float32. Attention has no dropout, so that the fused kernels serve it.
    """

    def __init__(self, base: Path, settings: RefusalConfig, told: Callable[[], None] = lambda: None) -> None:
        torch.manual_seed(settings.seed)
        model: Model = AutoModelForSequenceClassification.from_pretrained(
            base, config=_classifier_config(base), dtype=torch.float32
        )
        model.base_model.embeddings.requires_grad_(False)
        max_len = min(settings.max_len, getattr(model.config, "max_position_embeddings", settings.max_len))
        prompt_len = min(settings.prompt_len, max_len // 4)
        self.classifier = RefusalModel(model.to(device()), AutoTokenizer.from_pretrained(base), max_len, prompt_len)
        self._settings, self._told = settings, told
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=settings.lr, weight_decay=0.01, fused=True)

    def run(self, epochs: range, rows: Sequence[Row], phrases: Sequence[str]) -> None:
        """Train for `epochs` of `refusal.epochs`; the learning rate rises over the first tenth and falls to 0."""
        model = self.classifier.model
        for epoch in epochs:
            torch.manual_seed(self._settings.seed + epoch)  # the draws of dropout hang on no other training
            batches = _epoch(self.classifier, rows, phrases, epoch, self._settings)
            model.train()
            for number, batch in enumerate(batches):
                done = (epoch + number / len(batches)) / self._settings.epochs
                for group in self._optimizer.param_groups:
                    group["lr"] = self._settings.lr * min(1.0, 10 * done + 1e-3, 1 - done)
                self._step(batch)
                self._told()
        model.eval()

    def _step(self, batch: _Batch) -> None:
        with _autocast(self.classifier.model):
            odds = self.classifier.odds(batch.windows)
        target = torch.tensor([1 - SMOOTHING if r else SMOOTHING for r in batch.refuses], device=odds.device)
        weight = torch.tensor(batch.weights, device=odds.device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, target, weight=weight)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _classifier_config(base: Path) -> Any:
    names = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    config = AutoConfig.from_pretrained(base, num_labels=2, **names)
    for name in ("attention_probs_dropout_prob", "attention_dropout"):  # BERT's and RoBERTa's; ModernBERT's
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def _batches(rows: int, settings: RefusalConfig) -> int:
    return -(-rows // settings.batch_size)


@dataclass(frozen=True)
class _Batch:
    windows: list[Window]
    refuses: list[bool]
    weights: list[float]


def _epoch(
    classifier: RefusalModel, rows: Sequence[Row], phrases: Sequence[str], epoch: int, settings: RefusalConfig
) -> list[_Batch]:
    """The batches of an epoch: rows in an order of their own, of like length within eight batches."""

    def chance(row: Row, what: str) -> float:
        return unit_hash(f"{what} {epoch} {row.id}", settings.seed)

    changed = []
    for row in sorted(rows, key=lambda row: chance(row, "order")):
        if phrases and not row.refuses and chance(row, "splice") < SPLICED:
            row = splice(row, phrases, f"{epoch} {row.id}")
        if chance(row, "troubled") < TROUBLED:
            row = replace(row, prompt=f"{row.prompt} {TROUBLES[int(chance(row, 'trouble') * len(TROUBLES))]}")
        changed.append(row)
    refusals = sum(row.refuses for row in changed)
    shares = {True: len(changed) / (2 * max(1, refusals)), False: len(changed) / (2 * max(1, len(changed) - refusals))}
    prompts = ("" if chance(row, "prompt") < WITHOUT_PROMPT else row.prompt for row in changed)
    windows = [classifier.windows(prompt, row.answer) for prompt, row in zip(prompts, changed, strict=True)]
    cut = [(w, row) for w, row in zip(_strongest(classifier, windows), changed, strict=True) if w is not None]
    size, batches = settings.batch_size, []
    for start in range(0, len(cut), 8 * size):
        block = sorted(cut[start : start + 8 * size], key=lambda one: len(one[0]))
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    batches.sort(key=lambda batch: chance(batch[0][1], "batch"))
    return [_Batch([w for w, _ in b], [r.refuses for _, r in b], [shares[r.refuses] for _, r in b]) for b in batches]


def _strongest(classifier: RefusalModel, windows: Sequence[Sequence[Window]]) -> list[Window | None]:
    """The window of each answer that refuses most, None where it has none.

    The answer counts as its most refusing window does, and the gradient of a maximum flows through it alone (multiple
    instance learning: Andrews et al. 2002, section 4): so only it is trained on, of refusals and of other answers.
    """
    several = [w for each in windows if len(each) > 1 for w in each]
    classifier.model.eval()  # without dropout
    with torch.inference_mode(), _autocast(classifier.model):
        odds = iter(classifier.window_odds(several))
    return [max(each, key=lambda _: next(odds)) if len(each) > 1 else next(iter(each), None) for each in windows]


def _autocast(model: Model) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=fast_dtype() == torch.bfloat16)
