"""The refusal classifier in use: an encoder (BERT) that reads a prompt and its answer, window by window.

In: pairs of prompt and answer, and the folder that stage `refusal` wrote. Out: a calibrated probability that the answer
refuses, wholly or in part. An answer is cut into overlapping windows and refuses as much as its most refusing window,
in training as in use, so that a refusal in the middle of a long answer is seen. The prompt stands before every window,
since it decides what words mean: 'X was not justified' describes, or declines to say why X was justified. Time grows
with the tokens, memory with the batch and the number of answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cathpc.models.calibration import sigmoid
from cathpc.models.gpt import Model
from cathpc.models.precision import fast_dtype
from cathpc.models.weights import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

LABELS = {0: "complies", 1: "refuses"}
CALIBRATION = "calibration.json"
MAX_WINDOWS = 64
"""Windows read of one answer; of a longer one the first and the last half of them."""
OVERLAP = 32
"""Tokens that two windows share, at most a quarter of one: more than a refusing sentence has."""
TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})
"""An uncased BERT takes the apostrophe of "can’t" for another word than that of "can't"."""


class Window(NamedTuple):
    """Token ids of what the encoder reads at once: prompt, and a piece of the answer; no special tokens."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer) + 3


@dataclass
class RefusalModel:
    """A trained classifier, ready to use."""

    model: Model
    tokenizer: PreTrainedTokenizerBase
    max_len: int
    """Tokens of a window, prompt and three special tokens included."""
    prompt_len: int
    """Tokens of the prompt that each window begins with; of a longer prompt its beginning and its end."""
    temperature: float = 1.0
    bias: float = 0.0

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> RefusalModel:
        """Load what stage `refusal` wrote to `folder` (its `model/`), on the GPU where there is one.

        `dtype` None takes bfloat16 where the device multiplies in it, else float32.
        """
        calibration = json.loads((folder / CALIBRATION).read_text("utf-8"))
        model: Model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype or fast_dtype())
        return cls(model.to(device()).eval(), AutoTokenizer.from_pretrained(folder), **calibration)

    def predict(self, texts: Sequence[tuple[str, str]], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
        """Calibrated probability in 0..1 that the answer of each (prompt, answer) refuses, wholly or in part.

        It does not depend on the other texts beyond rounding: 1e-5 in float32; in bfloat16 0.02, and 0.05 from
        float32, on average a tenth of that. An empty answer gets 0.
        """
        return sigmoid(self.logits(texts, batch_tokens=batch_tokens) / self.temperature + self.bias)

    def logits(self, texts: Sequence[tuple[str, str]], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
        """Log-odds of refusal, not calibrated: that of the most refusing window (-inf for an empty answer)."""
        windows = [self.windows(prompt, text) for prompt, text in texts]
        odds = self.window_odds([w for each in windows for w in each], batch_tokens=batch_tokens)
        result = np.full(len(texts), -np.inf)
        np.maximum.at(result, np.repeat(np.arange(len(texts)), [len(each) for each in windows]), odds)
        return result

    def window_odds(self, windows: Sequence[Window], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
        """Log-odds of refusal of each window, in batches of windows of like length."""
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        result = np.zeros(len(windows))
        with torch.inference_mode():
            start = 0
            while start < len(order):
                end = start + 1
                while end < len(order) and len(windows[order[end]]) * (end + 1 - start) <= batch_tokens:
                    end += 1
                chosen = order[start:end]
                result[chosen] = self.odds([windows[i] for i in chosen]).double().cpu().numpy()
                start = end
        return result

    def windows(self, prompt: str, text: str) -> list[Window]:
        """The overlapping windows of `text`, each behind `prompt`; none for an empty text."""
        if not text.strip():
            return []
        question, ids = self._encode(prompt), self._encode(text)
        if len(question) > self.prompt_len:
            half = self.prompt_len // 2
            question = question[: self.prompt_len - half] + question[len(question) - half :]
        room = self.max_len - 3 - len(question)
        overlap = min(OVERLAP, room // 4)
        starts = list(range(0, max(1, len(ids) - overlap), room - overlap)) if ids else []
        if len(starts) > MAX_WINDOWS:
            starts = starts[: MAX_WINDOWS // 2] + starts[-MAX_WINDOWS // 2 :]
        return [Window(question, ids[s : s + room]) for s in starts]

    def _encode(self, text: str) -> list[int]:
        plain = text.translate(TYPOGRAPHY)
        ids: list[int] = self.tokenizer.encode(plain, add_special_tokens=False, truncation=False, verbose=False)
        return ids

    def odds(self, windows: Sequence[Window]) -> torch.Tensor:
        """Log-odds of refusal of each window: float32 [windows], one padded forward pass."""
        lengths = torch.tensor([len(w) for w in windows])
        width = int(lengths.max())
        first, last, pad = (getattr(self.tokenizer, f"{kind}_token_id") for kind in ("cls", "sep", "pad"))
        rows = [[first, *w.prompt, last, *w.answer, last] for w in windows]
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        place = torch.arange(width)
        inputs = {"input_ids": ids, "attention_mask": (place < lengths[:, None]).long()}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            begins = torch.tensor([len(w.prompt) + 2 for w in windows])[:, None]
            inputs["token_type_ids"] = ((place >= begins) & (place < lengths[:, None])).long()
        logits: torch.Tensor = self.model(**{k: v.to(self.model.device) for k, v in inputs.items()}).logits.float()
        return logits[:, 1] - logits[:, 0]

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that `load` and plain transformers read."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        own = {name: getattr(self, name) for name in ("max_len", "prompt_len", "temperature", "bias")}
        write_json(folder / CALIBRATION, own)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
