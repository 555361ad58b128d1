"""The rules of selection, as data, in the order in which they are applied.

A rule looks at columns of all records at once (`Columns`, NumPy arrays of one length) and says which it drops, with the
figure it looked at and what it held it against. The first rule that drops a record is the record's reason. `RULES`
look at one record at a time and so work shard by shard; quality and quota compare records with each other and come
after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cathpc.data.config import SelectConfig
from cathpc.data.density import plane
from cathpc.errors import UserError
from cathpc.record import unit_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Strings = NDArray[np.object_]


@dataclass(frozen=True)
class Columns:
    """What the rules see of the records; figures are NaN where the status is not 'ok'."""

    component: Strings
    turns: NDArray[np.int64]
    """Assistant turns."""
    status: Strings
    language: Strings
    refusal: Floats
    tokens: Floats
    answer_tokens: Floats
    correlatives: Floats
    steps: Floats
    diagnosis: Floats
    quality: Floats
    """The score that `select.quality` names."""


@dataclass(frozen=True)
class Drop:
    """What a rule says: `dropped` for each record, and the figures that it compared."""

    dropped: Flags
    value: Floats
    threshold: float
    concerns: Flags | None = None
    """Which records the rule is about; None is all."""
    known: Flags | None = None
    """Of which records it is known what the rule looks at; None is those with a value."""

    def passed(self, row: int) -> bool | None:
        """Whether the record in this row passes; None where what the rule looks at was not measured."""
        known = ~np.isnan(self.value) if self.known is None else self.known
        return not bool(self.dropped[row]) if known[row] else None


@dataclass(frozen=True)
class Rule:
    """A rule by name; `apply` returns None where the config switches it off."""

    name: str
    key: str
    """The field of group `select` that sets it."""
    apply: Callable[[SelectConfig, Columns], Drop | None]


def _status(config: SelectConfig, c: Columns) -> Drop:
    # 'skipped' by the bounds of group `score`: the rules behind those bounds say why (`cathpc.checks`).
    scored = np.isin(c.status.astype(str), ("ok", "skipped"))
    return Drop(~scored, c.tokens, np.nan, known=np.ones(len(scored), bool))


def _language(config: SelectConfig, c: Columns) -> Drop | None:
    if not config.languages:
        return None
    dropped = ~np.isin(c.language.astype(str), config.languages)
    return Drop(dropped, np.full(len(dropped), np.nan), np.nan, known=np.asarray(c.language != ""))


def _refusal(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.refusal_max
    return None if limit is None else Drop(c.refusal > limit, c.refusal, limit)


def _too_short(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.min_answer_tokens
    return Drop(c.answer_tokens < limit, c.answer_tokens, limit) if limit else None


def _too_long(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.max_answer_tokens
    return Drop(c.answer_tokens > limit, c.answer_tokens, limit) if limit else None


def _cot_short(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.reasoning_min_tokens
    held = (c.component == "reasoning") & (c.turns == 1)
    return Drop(held & (c.answer_tokens <= limit), c.answer_tokens, limit, held) if limit else None


def _health_short(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.health_min_tokens
    held = np.asarray(c.component == "health")
    return Drop(held & (c.answer_tokens <= limit), c.answer_tokens, limit, held) if limit else None


def _health_vague(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.health_min_diagnosis
    held = np.asarray(c.component == "health")
    return Drop(held & (c.diagnosis < limit), c.diagnosis, limit, held) if limit else None


def _no_correlative(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.min_correlatives
    return Drop(c.correlatives < limit, c.correlatives, limit) if limit else None


def _few_steps(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.min_steps
    return Drop(c.steps < limit, c.steps, limit) if limit else None


def _low_quality(config: SelectConfig, c: Columns) -> Drop | None:
    limit = config.min_quality
    return None if limit is None else Drop(worse(config, c.quality, limit), c.quality, limit)


STATUS = "status"
"""The rule that what has no figures falls to."""
RULES: tuple[Rule, ...] = (
    Rule(STATUS, "", _status),
    Rule("language", "languages", _language),
    Rule("too_short", "min_answer_tokens", _too_short),
    Rule("too_long", "max_answer_tokens", _too_long),
    Rule("cot_short", "reasoning_min_tokens", _cot_short),
    Rule("health_short", "health_min_tokens", _health_short),
    Rule("health_vague", "health_min_diagnosis", _health_vague),
    Rule("no_correlative", "min_correlatives", _no_correlative),
    Rule("few_steps", "min_steps", _few_steps),
    Rule("refusal", "refusal_max", _refusal),
    Rule("low_quality", "min_quality", _low_quality),
)
POPULATION, QUALITY, QUOTA = "population", "quality", "quota"
COMPARING = (POPULATION, QUALITY, QUOTA)
"""The rules that compare records, in their order, behind `RULES`."""
NAMES: tuple[str, ...] = (*(rule.name for rule in RULES), *COMPARING)
_KEYS: dict[str, tuple[str, ...]] = {rule.name: (rule.key,) if rule.key else () for rule in RULES} | {
    POPULATION: ("population",),
    QUALITY: ("drop_quality",),
    QUOTA: ("quotas", "max_records"),
}


def keys(config: SelectConfig, rule: str) -> list[str]:
    """The fields of group `select` that set `rule`: of several those that are set; none for the status."""
    named = _KEYS.get(rule, ())
    return [key for key in named if len(named) == 1 or getattr(config, key)]


HIGHER_IS_BETTER = {"contrast": True, "perplexity": False}
"""The scores that can rank quality."""


def check(config: SelectConfig) -> None:
    """Raise UserError where group `select` makes no sense."""
    if config.quality not in HIGHER_IS_BETTER:
        raise UserError(f"select.quality is '{config.quality}'; choose one of {sorted(HIGHER_IS_BETTER)}.")
    if not 0 <= config.drop_quality < 1:
        raise UserError(f"select.drop_quality is {config.drop_quality}; it is a share, from 0 to below 1.")
    if config.refusal_max is not None and not 0 <= config.refusal_max <= 1:
        raise UserError(
            f"select.refusal_max is {config.refusal_max}; it is a probability, from 0 to 1 (null switches it off)."
        )
    if config.population is not None and not 0 < config.population <= 1:
        raise UserError(
            f"select.population is {config.population}; it is a share, above 0 and up to 1 (null switches it off)."
        )


RIM = 0.001
"""Refusal scores below it, and above one minus it, count as lying there: the logit of 0 is infinite."""


def plane_axes(quality: str, refusal: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The (refusal, quality) plane's coordinates.

    Refusal scores pile up near 0 and 1 and are taken on the logit scale, a perplexity by its logarithm.
    """
    clipped = np.clip(refusal, RIM, 1 - RIM)
    return np.log(clipped / (1 - clipped)), values if HIGHER_IS_BETTER[quality] else np.log(values)


def density(config: SelectConfig, refusal: Floats, quality: Floats) -> Floats:
    """How densely one component's records lie around each of them in the plane, relative to the densest place."""
    if not len(refusal):
        return np.zeros(0)
    axes = plane_axes(config.quality, refusal, quality)
    found = plane(*axes)
    return np.asarray(found.at(*axes) / found.mass.max())


def population_cut(config: SelectConfig, densities: Floats) -> float | None:
    """The density below which one component's records lie outside its main population; None where nothing is dropped.

    The highest-density region: of all regions that hold the share it is the smallest. Its border is the quantile of the
    density over the records themselves (Hyndman 1996, Computing and Graphing Highest Density Regions, section 3.1).
    """
    if not config.population or not len(densities):
        return None
    return float(np.quantile(densities, 1 - config.population, method="lower"))


def quality_cut(config: SelectConfig, values: Floats) -> float | None:
    """The quality at which the worst `drop_quality` share of one component's records ends; None where nothing is
    dropped.

    A quantile that is a record's own quality, so that never more than the share is dropped; equal records stay
    together.
    """
    if not config.drop_quality or not len(values):
        return None
    if HIGHER_IS_BETTER[config.quality]:
        return float(np.quantile(values, config.drop_quality, method="lower"))
    return float(np.quantile(values, 1 - config.drop_quality, method="higher"))


def worse(config: SelectConfig, values: Floats, cut: float) -> Flags:
    """Which of `values` lie on the worse side of a cut by quality; none that is NaN."""
    return np.asarray(values < cut if HIGHER_IS_BETTER[config.quality] else values > cut)


def quotas(counts: dict[str, int], total: int) -> dict[str, int]:
    """Equal shares of `total` for the components; what a small one leaves goes to the others, the rest by their
    names."""
    left, result = total, {}
    for place, name in enumerate(sorted(counts, key=lambda n: (counts[n], n))):
        share = left // (len(counts) - place)
        result[name] = min(counts[name], share)
        left -= result[name]
    return result


QUOTA_SEED = 3  # another order than that in which the scoring GPTs take their training records


def sample_hash(record_id: str) -> float:
    """The number in [0, 1) by which a quota takes records, the smallest first: it depends on the id alone."""
    return unit_hash(record_id, QUOTA_SEED)
