"""The refusal classifier: an encoder (BERT) that reads an answer window by window.

In: `labels.parquet` of pull, whose `label` is 0 (complies) to 1 (refuses); any value above 0, a partial refusal, counts
as a refusal. Out: `model/`, a plain Hugging Face sequence classifier with `calibration.json`, `metrics.json`, and
`heldout.parquet` (id, label, probability). An answer is cut into overlapping windows and refuses as much as its most
refusing window, in training as in use, so that a refusal in the middle of a long answer is seen. The prompt is not
shown to the model: it would learn which prompts are refused. Memory grows with the number of labelled answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cathpc import progress
from cathpc.errors import UserError
from cathpc.models.config import RefusalConfig
from cathpc.models.gpt import Model
from cathpc.models.source import prepare
from cathpc.models.weights import write_json
from cathpc.record import answer, heldout, unit_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from cathpc.config import Config

LABELS = {0: "complies", 1: "refuses"}
CALIBRATION = "calibration.json"
TEMPERATURES = (0.5, 5.0)
"""Range of the fitted temperature: few, separable rows would ask for no bound."""
MAX_WINDOWS = 64
"""Windows read of one answer; of a longer one the first and the last half of them."""


@dataclass(frozen=True)
class Labelled:
    """An answer with its human label."""

    id: str
    key: str
    prompt: str
    answer: str
    refuses: bool


@dataclass
class RefusalModel:
    """A trained classifier, ready to use."""

    model: Model
    tokenizer: PreTrainedTokenizerBase
    max_len: int
    """Tokens of a window, the two special tokens included."""
    temperature: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> RefusalModel:
        """Load what the stage `refusal` wrote to `folder` (its `model/`), on the GPU where there is one."""
        calibration = json.loads((folder / CALIBRATION).read_text("utf-8"))
        model: Model = (
            AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(_device()).eval()
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer, int(calibration["max_len"]), float(calibration["temperature"]))

    def predict(self, texts: Sequence[tuple[str, str]], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
        """Calibrated probability in 0..1 that each (prompt, answer) refuses, wholly or in part.

        It does not depend on the other texts beyond the rounding of float32 (1e-5). An empty answer gets 0.
        """
        logits = self.logits([text for _, text in texts], batch_tokens=batch_tokens)
        return sigmoid(logits / self.temperature)

    def logits(self, answers: Sequence[str], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
        """Log-odds of refusal of each answer, not calibrated: that of its most refusing window (-inf without any)."""
        windows = [(i, w) for i, text in enumerate(answers) for w in self.windows(text)]
        windows.sort(key=lambda pair: len(pair[1]))
        result = np.full(len(answers), -np.inf)
        with torch.inference_mode():
            start = 0
            while start < len(windows):
                end = start + 1
                while end < len(windows) and len(windows[end][1]) * (end + 1 - start) <= batch_tokens:
                    end += 1
                odds = self.odds([w for _, w in windows[start:end]]).double().cpu().numpy()
                np.maximum.at(result, [i for i, _ in windows[start:end]], odds)
                start = end
        return result

    def windows(self, text: str) -> list[list[int]]:
        """Token ids of the overlapping windows of `text`, special tokens added; none for an empty text."""
        ids = (
            self.tokenizer.encode(text, add_special_tokens=False, truncation=False, verbose=False)
            if text.strip()
            else []
        )
        room = self.max_len - 2
        stride = max(1, room - room // 4)
        starts = list(range(0, max(1, len(ids) - room // 4), stride)) if ids else []
        if len(starts) > MAX_WINDOWS:
            starts = starts[: MAX_WINDOWS // 2] + starts[-MAX_WINDOWS // 2 :]
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [[first, *ids[s : s + room], last] for s in starts]

    def odds(self, windows: list[list[int]]) -> torch.Tensor:
        """Log-odds of refusal of each window: float [windows], one padded forward pass."""
        width = max(map(len, windows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([w + [pad] * (width - len(w)) for w in windows], device=self.model.device)
        attention = torch.tensor([[1] * len(w) + [0] * (width - len(w)) for w in windows], device=self.model.device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=attention).logits.float()
        return logits[:, 1] - logits[:, 0]


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage `refusal`: train, calibrate and measure the classifier."""
    settings = config.refusal
    rows = read(inputs["pull"] / "labels.parquet")
    train_rows, calibration_rows, held_rows = split(rows, settings)
    for name, part in (("training", train_rows), ("held-out", held_rows)):
        if {r.refuses for r in part} != {True, False}:
            raise UserError(
                f"the refusal classifier needs refusals and other answers on either side, but of {len(rows)} labelled "
                f"rows the {name} part ({len(part)}) has {sum(r.refuses for r in part)} refusals. "
                "Add labelled rows (a source of component `refusal` with `labels`) or change refusal.heldout_share."
            )
    folder = prepare(settings.base, None, Path(config.paths.cache))
    classifier = fit(folder, train_rows, settings, lambda done, total: progress.report(out, done, total, "batches"))
    chosen = classifier.logits([r.answer for r in calibration_rows])
    classifier.temperature = temperature(chosen, np.array([r.refuses for r in calibration_rows], dtype=bool))

    probabilities = classifier.predict([(r.prompt, r.answer) for r in held_rows])
    truth = np.array([r.refuses for r in held_rows])
    metrics = {
        "train": len(train_rows),
        "calibration": len(calibration_rows),
        "heldout": len(held_rows),
        "heldout_refusals": int(truth.sum()),
        "cutoff": settings.cutoff,
        "temperature": classifier.temperature,
        **measure(truth, probabilities, settings.cutoff),
    }
    save(classifier, out / "model")
    write_json(out / "metrics.json", metrics)
    table = {"id": [r.id for r in held_rows], "label": truth.astype(float), "probability": probabilities}
    pq.write_table(pa.table(table), out / ".heldout.tmp")
    os.replace(out / ".heldout.tmp", out / "heldout.parquet")
    line = f"{len(rows):,} labelled answers, "
    line += f"held-out F1 {metrics['f1']:.3f} at {settings.cutoff:g}, AUROC {metrics['auroc']:.3f}"
    return {**metrics, "line": line}


def read(path: Path) -> list[Labelled]:
    """The labelled answers of `path`, those with an answer and a label."""
    rows = []
    for row in pq.read_table(path).to_pylist():
        text = answer(row["messages"] or [])
        if text and row["label"] is not None:
            prompt = next((m["content"] for m in row["messages"] if m["role"] == "user"), "")
            key = " ".join(prompt.casefold().split())
            rows.append(Labelled(row["id"], key, prompt, text, row["label"] > 0))
    return rows


def split(rows: list[Labelled], settings: RefusalConfig) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """(training, calibration, held-out) rows; all answers to one prompt fall into one part."""
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    for row in rows:
        if heldout([{"role": "user", "content": row.prompt}], settings.heldout_share, settings.seed):
            parts[2].append(row)
        else:
            parts[int(unit_hash(f"calibration {row.key}", settings.seed) < settings.calibration_share)].append(row)
    return parts


def fit(
    folder: Path,
    rows: list[Labelled],
    settings: RefusalConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> RefusalModel:
    """Tune the encoder in `folder` on `rows`; the classes weigh the same, however many rows each has.

    Matrices multiply in bfloat16 (autocast), weights and optimizer stay in float32.
    """
    torch.manual_seed(settings.seed)
    names = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    model: Model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=2, **names
    )
    limit = getattr(model.config, "max_position_embeddings", settings.max_len)
    classifier = RefusalModel(model.to(_device()), AutoTokenizer.from_pretrained(folder), min(settings.max_len, limit))
    refusals = sum(r.refuses for r in rows)
    weights = {True: len(rows) / (2 * refusals), False: len(rows) / (2 * (len(rows) - refusals))}
    cut = [(row, classifier.windows(row.answer)) for row in rows]

    steps = settings.epochs * -(-len(cut) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1.0, 0.1 * steps), 1 - step / (steps + 1))
    )
    model.train()
    done = 0
    for epoch in range(settings.epochs):
        order = sorted(cut, key=lambda item: unit_hash(f"{epoch} {item[0].id}", settings.seed))
        for start in range(0, len(order), settings.batch_size):
            batch = [(row, windows) for row, windows in order[start : start + settings.batch_size] if windows]
            if not batch:
                continue
            chosen = [_strongest(classifier, windows) for _, windows in batch]
            with torch.autocast(model.device.type, torch.bfloat16):
                odds = classifier.odds(chosen)
            target = torch.tensor([float(row.refuses) for row, _ in batch], device=odds.device)
            weight = torch.tensor([weights[row.refuses] for row, _ in batch], device=odds.device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, target, weight=weight)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            report(done, steps)
    model.eval()
    return classifier


def _strongest(classifier: RefusalModel, windows: list[list[int]]) -> list[int]:
    """The window that refuses most: the gradient of a maximum flows through it alone, so only it is trained on."""
    if len(windows) == 1:
        return windows[0]
    classifier.model.eval()  # without dropout
    with torch.inference_mode(), torch.autocast(classifier.model.device.type, torch.bfloat16):
        best = int(classifier.odds(windows).argmax())
    classifier.model.train()
    return windows[best]


def temperature(logits: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The temperature in `TEMPERATURES` that minimises the NLL of `truth` (Guo et al. 2017), by ternary search.

    1.0 where there are fewer than eight rows or one class only.
    """
    kept = np.isfinite(logits)
    logits, truth = logits[kept], truth[kept]
    if len(truth) < 8 or truth.all() or not truth.any():
        return 1.0

    def loss(log_t: float) -> float:
        signed = np.where(truth, -logits, logits) / np.exp(log_t)
        return float(np.logaddexp(0, signed).mean())

    low, high = np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])  # unimodal in 1/T, so in log T too
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))


def measure(truth: NDArray[np.bool_], probabilities: NDArray[np.float64], cutoff: float) -> dict[str, float]:
    """Precision, recall and F1 of 'probability above `cutoff`', AUROC, and ECE over ten bins of equal mass."""
    flagged = probabilities > cutoff
    hits = int((flagged & truth).sum())
    precision, recall = hits / max(1, int(flagged.sum())), hits / max(1, int(truth.sum()))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
        "auroc": auroc(truth, probabilities),
        "ece": calibration_error(truth, probabilities),
    }


def auroc(truth: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    """Probability that a positive ranks above a negative, ties counting half (Mann and Whitney 1947)."""
    ordered, inverse = np.unique(values, return_inverse=True)
    positive = np.bincount(inverse[truth], minlength=len(ordered))
    negative = np.bincount(inverse[~truth], minlength=len(ordered))
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def calibration_error(truth: NDArray[np.bool_], probabilities: NDArray[np.float64], bins: int = 10) -> float:
    """Expected calibration error: mean |observed share - mean probability| over `bins` bins of equal mass."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(truth[p].mean() - probabilities[p].mean()) for p in parts) / len(order))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic function, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save(classifier: RefusalModel, folder: Path) -> None:
    """Write a Hugging Face folder that `RefusalModel.load` and plain transformers read."""
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / CALIBRATION, {"temperature": classifier.temperature, "max_len": classifier.max_len})
