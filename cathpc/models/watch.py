"""Early stop: the perplexity of held-out answers while a model trains, and the weights where it was lowest.

In: a model under training and a function that measures it. Out: a curve, and the best weights in the model. These are
kept in the host's memory, in the model's own dtype: one copy more of its weights, whatever the data (540 MB for 135
million float32 weights, beside the four that AdamW has: weights, gradients and two moments).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class Watch:
    """Measures every `every` tokens and after the last step; gives up after `patience` measures without a better one.

    Prechelt (1998), Early Stopping - But When?, UP criterion with strips of `every` tokens.
    """

    def __init__(self, measure: Callable[[], float], every: int, patience: int) -> None:
        self.measure, self.every, self.patience = measure, every, patience
        self.curve: list[dict[str, float]] = []
        """step, tokens and perplexity of each measure."""
        self.best: dict[str, float] | None = None
        """The row of `curve` whose weights the model has after `restore`."""
        self._tokens = self._misses = 0
        self._weights: list[torch.Tensor] | None = None

    def after(self, model: Any, step: int, tokens: int, *, last: bool) -> bool:
        """Take note of a step, the `tokens` up to it counted; True where training should stop.

        Where the tokens of all steps do not reach `every`, nothing is measured: there is one state to choose from.
        """
        due = tokens // self.every > self._tokens // self.every
        self._tokens = tokens
        if not due and not (last and self.curve):
            return False
        found = {"step": step, "tokens": tokens, "perplexity": self.measure()}
        self.curve.append(found)
        if math.isfinite(found["perplexity"]) and (not self.best or found["perplexity"] < self.best["perplexity"]):
            self.best, self._misses = found, 0
            # What the last step leaves is in the model.
            self._weights = None if last else [p.detach().to("cpu", copy=True) for p in model.parameters()]
        else:
            self._misses += 1
        return self._misses >= self.patience

    def restore(self, model: Any) -> None:
        """Give `model` its best weights back, where later ones were worse."""
        if self._weights is not None and self.best is not self.curve[-1]:
            with torch.no_grad():
                for parameter, weight in zip(model.parameters(), self._weights, strict=True):
                    parameter.copy_(weight)
        self._weights = None
