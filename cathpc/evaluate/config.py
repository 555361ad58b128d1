"""Config of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from cathpc.models.config import Dtype


@dataclass
class EvaluateConfig:
    """Group `evaluate`."""

    probes: str = ""
    """JSONL file of probes; '' is the set that ships with cathpc."""
    max_probes: int | None = None
    """Ask at most this many, spread over the families, chosen by a hash of their ids."""
    max_new_tokens: int = 256
    """Tokens an answer."""
    dtype: Dtype = Dtype.bfloat16
    batch_size: int = 8
    """Probes answered at once; in bfloat16 the shape of a batch may decide a near tie between two tokens."""
    resamples: int = 2000
    """Resamples of the bootstrap."""
    seed: int = 0
