"""Config of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from cathpc.models.config import Dtype
from cathpc.schema import speed


@dataclass
class EvaluateConfig:
    """Group `evaluate`."""

    probes: str = ""
    """JSONL file of probes; '' is the set that ships with cathpc."""
    max_probes: int | None = None
    """Ask at most this many, spread over the families, chosen by a hash of their ids."""
    unseen: list[str] = field(default_factory=list)
    """Families of probes that the training taught nothing of: they are measured apart too."""
    max_requests: int | None = None
    """Ask at most this many requests of each kind, unsafe and benign, for the refusal measure; 0 is none."""
    refusal_cutoff: float = 0.2
    """Refusal score above which an answer counts as a refusal."""
    milestone_probes: int = 60
    """Probes asked of each checkpoint that the training kept at an epoch's end; 0 is none."""
    max_new_tokens: int = 256
    """Tokens an answer."""
    dtype: Dtype = Dtype.bfloat16
    """Of weights and activations; on a CPU without bfloat16 this one means float32."""
    batch_size: int = 8
    """Probes answered at once; in bfloat16 the shape of a batch may decide a near tie between two tokens."""
    resamples: int = 2000
    """Resamples of the bootstrap."""
    seed: int = 0


@dataclass
class BenchmarksConfig:
    """Group `benchmarks`: tasks of lm-eval. Its data comes from the Hub, its library from an environment of its own."""

    tasks: list[str] = field(default_factory=list)
    """Names as lm-eval has them, or files of tasks in its form; the stage `benchmarks` is off where there are none.
    General science: sciq, arc_easy, arc_challenge, openbookqa; bioscience: pubmedqa, medqa_4options, medmcqa,
    mmlu_college_biology."""
    limit: int | None = None
    """Questions of each task at most."""
    python: str = speed("")
    """Python of an environment that has lm-eval; '' is the one that runs cathpc."""
