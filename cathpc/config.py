"""The typed configuration: one schema out of each owner's dataclass, composed by Hydra, checked across fields.

`compose` takes Hydra overrides and returns a `Config`; whatever is wrong with them ends in one `UserError` that names
the key and the valid choices. YAML files under `conf/` hold values only; defaults live in the dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from cathpc.cards.config import CardsConfig
from cathpc.data.config import MIX, DatasetConfig, PackConfig, SelectConfig
from cathpc.dispatch.config import ClusterConfig, JobConfig
from cathpc.errors import UserError
from cathpc.evaluate.config import BenchmarksConfig, EvaluateConfig
from cathpc.models.config import GptConfig, ModelConfig, RefusalConfig, ScoreConfig
from cathpc.pipeline import BY_NAME
from cathpc.report.config import ReportConfig
from cathpc.schema import speed
from cathpc.serving.config import ServingConfig
from cathpc.tracking.config import TrackerConfig
from cathpc.train.config import TrainConfig

PACKAGE = Path(__file__).parent


@dataclass
class PathsConfig:
    """Group-less section `paths`: folders; none of them changes a result."""

    store: str = speed("store")
    """Finished stages, shared by all runs."""
    runs: str = speed("runs")
    """One folder a run: its config, its ledger, its logs, links to its stages."""
    cache: str = speed("cache")
    """Converted models and digests of large files; may be deleted at any time."""
    demo: str = speed(str(PACKAGE / "assets" / "demo"))
    """The data that ships with cathpc."""
    research: str = speed("../shared/data")
    """The real data that `+experiment=research` reads."""


@dataclass
class Config:
    """The whole configuration. A stage sees the sections that it declares in `cathpc.pipeline`, and no others."""

    name: str = ""
    """Name of the experiment."""
    dry_run: bool = False
    """Print the jobs that would be submitted, in full, and submit none."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    gpt: GptConfig = field(default_factory=GptConfig)
    refusal: RefusalConfig = field(default_factory=RefusalConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    cards: CardsConfig = field(default_factory=CardsConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


_NAMED: dict[str, tuple[str, ...]] = {"cluster.stages": tuple(BY_NAME), "select.quotas": MIX}
"""Mappings whose keys are known: they are there before anything is composed, for overrides to find."""
SECTIONS = tuple(f.name for f in fields(Config) if f.name not in ("name", "dry_run"))


class _Undeclared:
    """Stands in for a section that a stage has not declared: reading it would escape the stage's fingerprint."""

    def __init__(self, section: str) -> None:
        self._section = section

    def __getattr__(self, key: str) -> Any:
        raise AssertionError(f"this stage reads {self.__dict__['_section']}.{key} but does not declare the section")


def only(config: Config, sections: tuple[str, ...]) -> Config:
    """A copy of `config` in which all sections but the named ones refuse to be read."""
    hidden = {s: _Undeclared(s) for s in SECTIONS if s not in sections}
    return dataclasses.replace(config, **hidden)  # type: ignore[arg-type]  # the stand-in is the point


def conf_dir() -> Path:
    """The folder of YAML groups: beside the package in a checkout, inside it in an installed wheel."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def own_conf_dir() -> Path | None:
    """`./conf` of the working folder, where it is another one: a user's own options, without touching cathpc's."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != conf_dir().resolve() else None


def choices(group: str) -> list[str]:
    """Options of a config group, cathpc's and the user's own."""
    folders = [conf_dir(), *filter(None, [own_conf_dir()])]
    return sorted({p.stem for f in folders for p in (f / group).glob("*.yaml") if p.stem != "lock"})


# --- composing ------------------------------------------------------------------------------------------------------


@contextmanager
def _hydra() -> Iterator[Callable[..., Any]]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    cluster = ClusterConfig(stages={name: JobConfig() for name in _NAMED["cluster.stages"]})
    select = SelectConfig(quotas=dict.fromkeys(_NAMED["select.quotas"], 0))
    ConfigStore.instance().store(name="schema", node=Config(cluster=cluster, select=select))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        yield compose


def compose(overrides: list[str], *, model: Path | None = None) -> Config:
    """Compose and check the configuration for Hydra `overrides` such as ['+experiment=demo', 'train.lr=3e-5'].

    Where a folder's `model` is used, no experiment need be named: what the overrides leave open is as in
    `conf/config.yaml`. Raises `UserError` for an override that does not parse, an unknown group option or key, a value
    of the wrong type, a value out of its range and a combination that cannot work.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    named = any(o.lstrip("+").startswith("experiment=") for o in overrides)
    if model and not named:
        overrides = ["name=model", *overrides]
    elif not named:
        raise UserError(
            "no experiment is named. Give one of: "
            + ", ".join(f"+experiment={c}" for c in choices("experiment"))
            + "\n  for example: python -m cathpc +experiment=demo"
        )
    if sweep := next((o for o in overrides if _sweep_name(o) is not None), ""):
        raise UserError(f"{sweep} makes a grid of runs, which needs -m: python -m cathpc -m {' '.join(overrides)}")
    overrides = [f"+{o}" if o.startswith("experiment=") else o for o in overrides]
    if own := own_conf_dir():
        overrides = [*overrides, f"hydra.searchpath=['file://{own}']"]
    try:
        with _hydra() as hydra_compose:
            composed = hydra_compose(config_name="config", overrides=overrides)
        _refuse_unknown(OmegaConf.to_container(composed, resolve=False), Config, "")
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from None
    if not isinstance(config, Config):
        raise AssertionError(f"composed a {type(config).__name__}")
    from cathpc.checks import check

    check(config)
    config.cluster.stages = {name: own for name, own in config.cluster.stages.items() if own != JobConfig()}
    if config.train.resume_from:  # a job runs in another folder, and one training has one fingerprint
        config.train.resume_from = str(Path(config.train.resume_from).absolute())
    config.select.quotas = {name: most for name, most in config.select.quotas.items() if most}
    return config


def _refuse_unknown(node: Any, schema: Any, where: str) -> None:
    """Raise `UserError` for a key that the schema does not have: '+group.key=1' gets past Hydra's own check."""
    hints = get_type_hints(schema)
    for key, value in node.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in hints:
            raise UserError(_unknown_key(path, key, hints))
        if dataclasses.is_dataclass(hints[key]):
            _refuse_unknown(value, hints[key], path)
        elif get_origin(hints[key]) is dict and dataclasses.is_dataclass(get_args(hints[key])[1]):
            for name, item in value.items():
                _refuse_unknown(item, get_args(hints[key])[1], f"{path}.{name}")


def expand(overrides: list[str]) -> list[list[str]]:
    """The grid of a multirun: one list of overrides for every combination of the swept values ('train.lr=1e-5,2e-5').

    Hydra's grammar parses the sweeps; the order is that of Hydra's basic sweeper. `+sweep=NAME` adds the overrides of
    `conf/sweep/NAME.yaml`. Raises `UserError` for a sweep without values and for a swept key that is given twice.
    """
    import itertools

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    plain: list[str] = []
    for text in overrides:
        name = _sweep_name(text)
        plain += [text] if name is None else _sweep(name)
    try:
        parsed = OverridesParser.create().parse_overrides(plain)
    except HydraException as error:
        raise UserError(_explain(error)) from None
    keys = [o.get_key_element().lstrip("+") for o in parsed]
    axes = []
    for key, override in zip(keys, parsed, strict=True):
        if not override.is_sweep_override():
            axes.append([override.input_line or ""])
            continue
        if keys.count(key) > 1:  # the later one would win, in runs that differ by name alone
            raise UserError(f"{key} is swept and given once more: {override.input_line}. Leave out one of the two")
        axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        if not axes[-1]:
            raise UserError(f"{override.input_line} sweeps over no value. Give some: {key}=VALUE,VALUE")
    return [list(combination) for combination in itertools.product(*axes)]


def _sweep_name(override: str) -> str | None:
    """NAME of '+sweep=NAME', or None for any other override."""
    key, _, value = override.partition("=")
    return value if key.lstrip("+") == "sweep" else None


def _sweep(name: str) -> list[str]:
    """The overrides of `sweep/NAME.yaml`: 'train.lr: 1e-5,3e-5' as on the command line, or a list of values."""
    import yaml

    found = [f for d in (conf_dir(), own_conf_dir()) if d and (f := d / "sweep" / f"{name}.yaml").is_file()]
    if not found:
        raise UserError(f"there is no sweep {name!r}. Valid: {', '.join(choices('sweep'))}")
    try:
        grid = yaml.safe_load(found[0].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{found[0]} is not YAML: {error}") from None
    expected = "Expected lines of the form 'train.lr: 1e-5,3e-5'"
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"{found[0]} holds no sweep. {expected}")
    overrides = []
    for key, values in grid.items():
        if isinstance(values, dict) or values in (None, "", []):
            raise UserError(f"{found[0]}: {key} is {values!r}, not values to sweep over. {expected}")
        # JSON for null, true and false; a number or a text stands as it is.
        texts = [json.dumps(v) if v is None or isinstance(v, bool) else str(v) for v in _listed(values)]
        overrides.append(f"{key}={','.join(texts)}")
    return overrides


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _explain(error: Exception) -> str:
    """One message for what Hydra or OmegaConf raised, with the valid choices."""
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = str(current).strip()
        if text and text not in chain:
            chain.append(text)
        current = current.__cause__
    whole = "\n".join(chain)
    # "Could not override 'train.lrr'." / "Key 'lrr' not in 'TrainConfig'" / full_key: train.lrr
    overridden = re.search(r"Could not override '([^']+)'", whole)
    full_key = re.search(r"full_key: (\S+)", whole)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", whole)
    if (file := re.search(r"In '(experiment/[^']+)'", whole)) and "@experiment." in whole:
        return (
            f"conf/{file.group(1)}.yaml: its first line must be '# @package _global_', for it sets values of all groups"
        )
    if unknown or (overridden and "not in struct" in whole):
        keys = [found.group(1) for found in (overridden, full_key) if found]
        return _locate(max(keys, key=len, default=""), whole)  # select.quotas={x: 1} is select.quotas, then ...x
    override = getattr(error, "override", None)  # what did not parse
    if override:
        return f"the override {override!r} does not parse: {whole.splitlines()[0]}. Quote text with special characters"
    if full_key:
        first = chain[-1].splitlines()[0]
        return f"{full_key.group(1)}: {first}"
    return "\n  ".join(line for line in whole.splitlines() if line.strip() and "hydra.verbose" not in line)


def _locate(key: str, otherwise: str) -> str:
    """The message for an unknown `key`, which names the first part of it that the schema does not have."""
    schema: Any = Config
    parts = key.split(".")
    for number, part in enumerate(parts):
        hints = get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}
        if part not in hints:
            return _unknown_key(".".join(parts[: number + 1]), part, hints) if hints else otherwise.splitlines()[0]
        schema = hints[part]
        known = _NAMED.get(".".join(parts[: number + 1]))
        if known and number + 1 < len(parts) and parts[number + 1] not in known:
            return _unknown_key(".".join(parts[: number + 2]), parts[number + 1], known)
        if get_origin(schema) is dict:  # the next part is a name of the user's, such as that of a source
            return otherwise.splitlines()[0] if number + 2 >= len(parts) else _locate_in(schema, parts, number)
    return otherwise.splitlines()[0]


def _locate_in(schema: Any, parts: list[str], number: int) -> str:
    hints = get_type_hints(get_args(schema)[1]) if dataclasses.is_dataclass(get_args(schema)[1]) else {}
    if parts[number + 2] not in hints:
        return _unknown_key(".".join(parts), parts[number + 2], hints)
    parent, name = ".".join(parts[: number + 1]), parts[number + 1]
    return f"there is no {parent}.{name}. A new one is added whole: +{parent}={{{name}: {{KEY: VALUE, ...}}}}"


def _unknown_key(path: str, key: str, hints: Collection[str]) -> str:
    near = difflib.get_close_matches(key, hints, 1)
    parent = path.rpartition(".")[0]
    hint = f" Did you mean {f'{parent}.{near[0]}'.lstrip('.')}?" if near else ""
    return f"unknown key {path}.{hint} Valid keys of {parent or 'the top level'}: {', '.join(sorted(hints))}"


def run_name(config: Config, overrides: list[str]) -> str:
    """Name of the run: the experiment, and a hash of what was overridden, so that the same command is the same run."""
    others = sorted(o for o in overrides if o.lstrip("+").partition("=")[0] not in ("experiment", "dry_run"))
    if not others:
        return config.name
    return f"{config.name}-{hashlib.sha256(chr(10).join(others).encode()).hexdigest()[:8]}"


def as_plain(config: Any) -> Any:
    """A config as plain JSON data (Enums by name): what jobs, manifests and `config.yaml` hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, dict):
        return {str(k): as_plain(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_plain(v) for v in config]
    return getattr(config, "name", config) if not isinstance(config, (str, int, float, bool, type(None))) else config


def from_plain(data: dict[str, Any]) -> Config:
    """The inverse of `as_plain`; validates types against the schema."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), data))
    assert isinstance(config, Config)
    return config


def cores(cluster: ClusterConfig) -> int:
    """Cores that this process may use, or fewer where the config says so."""
    available = len(os.sched_getaffinity(0))
    return min(cluster.cores, available) if cluster.cores else available
