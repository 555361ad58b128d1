"""The stages, in order, as data: whoever reads this table knows the project.

A stage is a plain function `(config, inputs, output folder) -> summary`; it knows nothing of Slurm. `config` names the
sections that it may read and that, with its inputs and its version, make its fingerprint; `identity` adds what the
config only points to (the content of a file, the commit of a model).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.config import Config


class Place(Enum):
    """What a stage needs."""

    network = "network"
    """A node that reaches the Hub."""
    cpu = "cpu"
    accelerator = "accelerator"
    """One GPU, or CPU cores."""
    ranks = "ranks"
    """All ranks of the training."""


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    run: str
    """'module:function', imported in the job only."""
    inputs: tuple[str, ...]
    config: tuple[str, ...]
    """Sections of the config that the stage may read."""
    does: str
    """One line for people."""
    place: Place = Place.cpu
    share: float = 0.5
    """Share of this machine's cores that it takes when it runs locally."""
    version: int = 1
    """Raised when the code changes what comes out for the same config and inputs."""
    identity: Callable[[Config], Any] | None = None
    wanted: Callable[[Config], bool] | None = None
    """Of an optional stage: whether this config asks for it."""
    sharded: bool = False
    """Whether an array job can share its work: its module then has `count`, `work` and `finish` beside `run`."""

    def function(self) -> Callable[..., dict[str, Any]]:
        """Import and return the stage's function: `(config, inputs, output folder) -> summary`."""
        return self._member(self.run.partition(":")[2])

    def count(self) -> Callable[..., int]:
        """Of a sharded stage: `(config, inputs) -> number of shards`."""
        return self._member("count")

    def work(self) -> Callable[..., None]:
        """Of a sharded stage: `(config, inputs, output folder, shards)` does these shards."""
        return self._member("work")

    def finish(self) -> Callable[..., dict[str, Any]]:
        """Of a sharded stage: `(config, inputs, output folder) -> summary` puts the shards together."""
        return self._member("finish")

    def _member(self, name: str) -> Callable[..., Any]:
        member: Callable[..., Any] = getattr(importlib.import_module(self.run.partition(":")[0]), name)
        return member


def _file(key: str, path: str, shipped: str) -> str:
    """SHA-256 of the file that config `key` names, or of the one that ships in its place."""
    file = Path(path) if path else Path(__file__).parent / "assets" / shipped
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{key}: cannot read {file}: {error.strerror}. Give a readable file, or leave it empty"
        ) from None


def _sources(config: Config) -> Any:
    from cathpc.data import sources

    return sources.identity(config.dataset, cache=Path(config.paths.cache) / "digests.json")


def _model(config: Config, name: str, *, causal: bool = True) -> Any:
    from cathpc.models import source

    return source.identity(name, cache=Path(config.paths.cache) / "model-digests.json", causal=causal)


def _lexicon(config: Config) -> str:
    digest = _file("score.lexicon", config.score.lexicon, "lexicon.yaml")
    if config.score.lexicon:  # the shipped one has its tests
        from cathpc.data.reasoning import load_lexicon

        load_lexicon(config.score.lexicon)
    return digest


def _layout(config: Config) -> str:
    """Digest of the template of the cards; a `UserError` here, on the login node, where it is none."""
    from cathpc.cards.card import TEMPLATE, Layout

    layout = config.cards.layout
    if layout:
        Layout(Path(layout))
    return _file("cards.layout", layout or str(TEMPLATE), "")


STAGES: tuple[Stage, ...] = (
    Stage(
        "pull",
        "cathpc.data.pull:run",
        inputs=(),
        config=("paths", "dataset"),
        does="sources -> records, deduplicated, with provenance",
        place=Place.network,
        version=4,
        identity=_sources,
    ),
    Stage(
        "base",
        "cathpc.models.base:run",
        inputs=(),
        config=("paths", "model"),
        does="the model to fine-tune: checked safetensors, chat tokens",
        place=Place.network,
        version=2,
        identity=lambda c: _model(c, c.model.base),
    ),
    Stage(
        "reference",
        "cathpc.models.gpt:reference",
        inputs=("pull",),
        config=("paths", "gpt"),
        does="a GPT trained on the reference generators' answers only",
        place=Place.accelerator,
        version=4,
        identity=lambda c: _model(c, c.gpt.base),
    ),
    Stage(
        "pool",
        "cathpc.models.gpt:pool",
        inputs=("pull",),
        config=("paths", "gpt"),
        does="the same GPT trained on all other generators' answers",
        place=Place.accelerator,
        version=4,
        identity=lambda c: _model(c, c.gpt.base),
    ),
    Stage(
        "refusal",
        "cathpc.models.refusal_train:run",
        inputs=("pull",),
        config=("paths", "refusal"),
        does="a BERT that tells refusals",
        place=Place.accelerator,
        share=1.0,
        version=6,
        identity=lambda c: [
            _model(c, c.refusal.base, causal=False),
            _file("refusal.examples", c.refusal.examples, "refusals.jsonl"),
        ],
    ),
    Stage(
        "score",
        "cathpc.data.score:run",
        inputs=("pull", "reference", "pool", "refusal"),
        config=("paths", "score"),
        does="perplexity, contrast, refusal and reasoning measures of every record",
        share=1.0,
        sharded=True,
        version=2,
        identity=_lexicon,
    ),
    Stage(
        "select",
        "cathpc.data.select:run",
        inputs=("pull", "score"),
        config=("select",),
        does="kept records, and every drop with its reason",
        version=4,
    ),
    Stage(
        "cards",
        "cathpc.cards.stage:run",
        inputs=("select",),
        config=("paths", "cards", "serving"),
        does="a system card for every kept record",
        place=Place.accelerator,
        share=1.0,
        sharded=True,
        version=5,
        identity=lambda c: [
            _model(c, c.cards.loaded) if c.cards.loaded else None,
            [_model(c, name, causal=False) for name in (c.cards.embedder, c.cards.nli) if name],
            _layout(c),
        ],
    ),
    Stage(
        "pack",
        "cathpc.data.pack:run",
        inputs=("cards", "base"),
        config=("pack",),
        does="tokens, labels and segments, packed to the sequence length",
        version=2,
    ),
    Stage(
        "train",
        "cathpc.train.loop:run",
        inputs=("pack", "base"),
        config=("train",),
        does="the fine-tune",
        place=Place.ranks,
        share=1.0,
        version=3,
        identity=lambda c: c.train.nodes * c.train.ranks_per_node,  # how they lie on nodes changes no result
    ),
    Stage(
        "export",
        "cathpc.train.export:run",
        inputs=("train", "base", "pack", "pull", "reference", "pool", "refusal", "select", "cards"),  # for its cards
        config=(),
        does="checkpoint -> Hugging Face folder",
        share=1.0,
        version=2,
        identity=lambda c: c.name,  # the title of the model card
    ),
    Stage(
        "evaluate",
        "cathpc.evaluate.stage:run",
        inputs=("export", "base", "train", "pack", "reference", "refusal"),
        config=("evaluate",),
        does="does the model obey its system prompt: base, tuned, milestones",
        place=Place.accelerator,
        share=1.0,
        version=5,
        identity=lambda c: [
            _file("evaluate.probes", c.evaluate.probes, "probes.jsonl"),
            _file("", "", "requests.jsonl"),
        ],
    ),
    Stage(
        "report",
        "cathpc.report.stage:run",
        inputs=(
            "pull",
            "base",
            "reference",
            "pool",
            "refusal",
            "score",
            "select",
            "cards",
            "pack",
            "train",
            "export",
            "evaluate",
        ),
        config=("report",),
        does="one HTML page, the cards of model and data",
        version=6,
        identity=lambda c: c.name,
    ),
)
OPTIONAL: tuple[Stage, ...] = (
    Stage(
        "benchmarks",
        "cathpc.evaluate.benchmarks:run",
        inputs=("export", "base"),
        config=("benchmarks",),
        does="tasks of lm-eval: base and tuned",
        place=Place.accelerator,
        share=1.0,
        wanted=lambda c: bool(c.benchmarks.tasks),
    ),
)
"""Stages that most runs do without."""
BY_NAME = {stage.name: stage for stage in (*STAGES, *OPTIONAL)}


def stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a run with this config, in order."""
    return (*STAGES, *(stage for stage in OPTIONAL if stage.wanted is not None and stage.wanted(config)))
