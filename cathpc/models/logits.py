"""Models whose losses would be computed wrongly: training and scoring take logits from the output layer, in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cathpc.errors import UserError

_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Keys of a config by which an architecture changes its logits behind the output layer: Gemma-2, Granite, Cohere."""


def refuse_changed(folder: Path, described: Any) -> None:
    """Raise a `UserError` where the model in `folder`, `described` by its Hugging Face config, changes its logits."""
    for key in _CHANGES:
        if getattr(described, key, None) is not None:
            raise UserError(
                f"{folder / 'config.json'}: '{key}' says that this architecture ({described.model_type}) changes "
                f"its logits after the output layer, which the chunked loss does not do. Choose a model without it."
            )
