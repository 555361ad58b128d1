"""Tables of the report as plain data, and the names of their rows.

A table is {"caption", "head", "rows", "numeric" (columns set right), "foot" (a last row or None),
"link" (the column of ids of records that the page explains, or None)}; cells are values,
not text: the page formats them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cathpc.record import Message
from cathpc.report.html import words

Table = dict[str, Any]
_PERCENTAGES = re.compile(r"[\d.]+%(–[\d.]+%)?")


LABELS = {
    "records": "records trained on",
    "train_tokens": "tokens trained on",
    "heldout_records": "held-out records",
    "heldout_tokens": "held-out tokens",
    "heldout_ppl_before": "held-out perplexity, base",
    "heldout_ppl_after": "held-out perplexity, tuned",
    "heldout": "held-out answers",
    "heldout_refusals": "of them refusals",
    "folds": "folds by prompt",
    "examples": "further examples, for training alone",
    "unlabelled": "unlabelled answers, taken for no refusals",
    "suspects": "of them left out, as they look like refusals",
    "threshold": "probability from which one does",
    "cutoff": "cut for precision and recall",
    "best_cutoff": "cut of the highest F1",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "expected calibration error (bins of equal mass)",
    "lr": "learning rate",
    "tokens_per_s": "tokens a second",
    "mfu": "model FLOPs utilisation (MFU)",
    "goodput": "goodput: time that made progress of all time held",
    "held_s": "time held by all attempts, seconds",
    "memory_gb": "memory, GB",
    "first_loss": "training loss, first step",
    "loss": "training loss, last step",
    "eval_loss": "held-out loss, last",
}
"""Keys of summaries whose name says less than words would."""


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    foot: Sequence[Any] | None = None,
    link: int | None = None,
) -> Table:
    """A table for the page; a column whose cells are numbers or percentages (or absent) is set right."""
    numeric = {
        i
        for i in range(1, len(head))
        if any(is_number(row[i]) for row in rows) and all(row[i] in (None, "–") or is_number(row[i]) for row in rows)
    }
    cells = [list(row) for row in rows]
    return {"caption": caption, "head": list(head), "rows": cells, "numeric": numeric, "foot": foot, "link": link}


def label(key: str) -> str:
    """The key of a summary in words."""
    return LABELS.get(key, words(key))


def is_number(value: Any) -> bool:
    """Whether a cell is a number, a percentage or an interval of percentages."""
    if isinstance(value, str):
        return bool(_PERCENTAGES.fullmatch(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def first_user(messages: Sequence[Message]) -> str:
    """The first user turn on one line."""
    return " ".join(next((m["content"] for m in messages if m["role"] == "user"), "").split())
