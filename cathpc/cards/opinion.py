"""What models think of a card: the checks that no program can do, for cards that passed all others.

In: a card's text and a record. Out: '' or what was seen. A sentence encoder gives cosine similarities (mean pooling, as
Sentence-BERT, arXiv:1908.10084), a model for natural language inference the probability of a contradiction. Texts are
cut to the model's window; memory is that of the models and one pair of texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cathpc.cards.config import CardsConfig
from cathpc.errors import UserError
from cathpc.models.source import prepare


class Opinion:
    """The models that the config names, loaded."""

    def __init__(self, config: CardsConfig, cache: Path) -> None:
        """Raises `UserError` where a model is not there or has no label 'contradiction'."""
        self._config = config
        self._embedder = _load("AutoModel", config.embedder, cache) if config.embedder else None
        self._nli = _load("AutoModelForSequenceClassification", config.nli, cache) if config.nli else None
        if self._nli:
            labels = {str(name).lower(): at for at, name in self._nli[0].config.id2label.items()}
            if "contradiction" not in labels:
                known = ", ".join(labels)
                raise UserError(
                    f"cards.nli={config.nli} has the labels {known}; one called 'contradiction' was expected"
                )
            self._contradiction = int(labels["contradiction"])

    def similarity(self, text: str, other: str) -> float:
        """Cosine similarity of two texts, -1 to 1."""
        assert self._embedder is not None
        model, tokenizer = self._embedder
        batch = tokenizer([text, other], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch.to(model.device)).last_hidden_state.float()
        mask = batch["attention_mask"][..., None].to(hidden.device)
        first, second = (hidden * mask).sum(1) / mask.sum(1)
        return float(torch.cosine_similarity(first, second, dim=0))

    def contradiction(self, premise: str, hypothesis: str) -> float:
        """Probability that `hypothesis` contradicts `premise`."""
        assert self._nli is not None
        model, tokenizer = self._nli
        batch = tokenizer(premise, hypothesis, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits[0].float()
        return float(torch.softmax(logits, -1)[self._contradiction])

    def of(self, text: str, answers: list[str], record: str) -> dict[str, str]:
        """The outcome of each check that the config asks for, by name."""
        outcomes: dict[str, str] = {}
        if self._nli:
            worst = max(self.contradiction(text, answer) for answer in answers)
            outcomes["nli"] = f"contradiction {worst:.2f}" if worst > self._config.nli_max else ""
        if self._embedder and self._config.similarity:
            near = self.similarity(text, record)
            outcomes["similarity"] = f"similarity {near:.2f}" if near < self._config.similarity else ""
        return outcomes


def _load(kind: str, name: str, cache: Path) -> tuple[Any, Any]:
    import transformers

    folder = prepare(name, None, cache)
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, **placement)
    model.train(False)
    return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
