"""Config of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from cathpc.schema import speed


@dataclass
class EvaluateConfig:
    """Group `evaluate`."""

    probes: str = ""
    """JSONL file of probes; '' is the set that ships with cathpc."""
    max_probes: int | None = None
    max_new_tokens: int = 256
    batch_size: int = speed(8)
    seed: int = 0
