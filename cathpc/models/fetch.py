"""The Hub's models that an experiment uses: which of them are not in the cache yet, and fetching them.

Jobs that compute run without a network, so all of them are fetched ahead: in the foreground, or by a job on a partition
with a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.models.config import TemplateConfig


def is_hub_id(model: str) -> bool:
    """Whether the name of a model is that of a Hub repository: neither a folder nor 'package:' nor 'random:'."""
    return ":" not in model and model[0] not in "./~"


def used(config: Config) -> list[tuple[str, str, TemplateConfig | None]]:
    """Key, name and template of each model that an experiment uses; no template for one that does not chat."""
    models: tuple[tuple[str, str, TemplateConfig | None], ...] = (
        ("model.base", config.model.base, config.model.template),
        ("gpt.base", config.gpt.base, config.gpt.template),
        ("refusal.base", config.refusal.base, None),
        ("cards.model", config.cards.loaded, config.cards.template),
        ("cards.embedder", config.cards.embedder, None),
        ("cards.nli", config.cards.nli, None),
    )
    return [(key, name, template) for key, name, template in models if name]


def missing(config: Config) -> list[tuple[str, TemplateConfig | None]]:
    """Name and template of each model of the Hub that is not ready in the cache."""
    hub = [(name, template) for _, name, template in used(config) if is_hub_id(name)]
    if not hub:
        return []
    from cathpc.models import source

    return [(name, template) for name, template in hub if not source.ready(name, template, Path(config.paths.cache))]


def fetch(config: Config, note: Callable[[str], None] = print) -> None:
    """Put all of them into the cache."""
    for name, template in missing(config):
        from cathpc.models import source

        note(f"fetching {name}")
        source.prepare(name, template, Path(config.paths.cache))
