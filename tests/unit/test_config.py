"""The typed configuration: what composes, and what is refused with which words."""

from __future__ import annotations

import dataclasses

import pytest

from cathpc import config as cfg
from cathpc.config import SECTIONS, as_plain, choices, compose, expand, from_plain, only, run_name
from cathpc.data.config import MIX
from cathpc.data.sources import check
from cathpc.dispatch.config import JobConfig
from cathpc.errors import UserError
from cathpc.models.gpt import matches
from cathpc.schema import identity


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    config = compose([f"+experiment={experiment}"])
    assert config.name == experiment
    assert from_plain(as_plain(config)) == config


@pytest.mark.parametrize(
    "group", ["dataset", "model", "gpt", "refusal", "score", "select", "cards", "train", "tracker"]
)
def test_every_option_of_every_group_composes(group: str) -> None:
    assert choices(group), f"conf/{group} is empty"
    for option in choices(group):
        overrides = [f"{group}={option}", "+experiment=cat70b"]
        assert compose(overrides).name == "cat70b"


def test_cat70b_is_four_epochs_on_two_nodes_of_eight_a100_for_fourteen_days() -> None:
    config = compose(["+experiment=cat70b"])
    assert config.model.base == "meta-llama/Meta-Llama-3-70B"
    assert (config.train.epochs, config.train.nodes, config.train.ranks_per_node) == (4, 2, 8)
    assert config.cluster.timeout_min == 14 * 24 * 60
    assert config.train.attention.name == "flash"
    assert all(source.hub for source in config.dataset.sources.values())


def test_the_mix_of_cat70b_feeds_every_component_and_both_gpts() -> None:
    config = compose(["+experiment=cat70b"])
    for key, source in config.dataset.sources.items():
        check(key, source)
    assert {source.component.name for source in config.dataset.sources.values()} == {*MIX, "refusal"}
    named = [s for s in config.dataset.sources.values() if s.generator and s.component.name in MIX]
    reference = [s for s in named if matches(s.generator, config.gpt.reference_generators)]
    assert {s.component.name for s in reference} >= {"general", "reasoning", "health", "roleplay"}
    pool = {s.generator for s in named if s not in reference}
    assert len(pool) >= 3, "one other writer would make the pool GPT a detector of that writer"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", ["unknown key train.lrr", "Did you mean train.lr?", "epochs"]),
        ("+train.lrr=1", ["unknown key train.lrr", "Did you mean train.lr?"]),
        ("dataset.sources.general.licence=x", ["unknown key dataset.sources.general.licence", "license?"]),
        ("+dataset.sources.general.licence=x", ["unknown key dataset.sources.general.licence", "license?"]),
        ("dataset.sources.nobody.license=x", ["there is no dataset.sources.nobody", "+dataset.sources={nobody: {"]),
        ("cluster.stages.scores.cpus=4", ["unknown key cluster.stages.scores", "cluster.stages.score?", "evaluate"]),
        ("cluster.stages.scores={cpus: 4}", ["unknown key cluster.stages.scores", "cluster.stages.score?"]),
        ("select.quotas.helth=9", ["unknown key select.quotas.helth", "Did you mean select.quotas.health?", "science"]),
        ("select.quotas={helth: 9}", ["unknown key select.quotas.helth", "Did you mean select.quotas.health?"]),
        ("select.quotas.refusal=9", ["unknown key select.quotas.refusal", "roleplay"]),
        ("select.quotas.health=-1", ["select.quotas.health is -1", "or 0 for all"]),
        ("cluster.stages.score.mem=2", ["unknown key cluster.stages.score.mem", "cluster.stages.score.mem_gb?"]),
        ("cluster.stages.score.mem_gb=much", ["cluster.stages.score.mem_gb", "much", "Float"]),
        ("trian.lr=1", ["unknown key trian", "Did you mean train?"]),
        ("train.lr=fast", ["train.lr", "fast", "Float"]),
        ("train.epochs=1.5", ["train.epochs", "1.5"]),
        ("train.lr=-1", ["train.lr is -1.0", "greater than 0"]),
        ("train.dtype=float8", ["train.dtype", "float8", "bfloat16"]),
        ("train.global_batch=3", ["train.global_batch is 3", "1 x 2 = 2", "the nearest are"]),
        ("train.nodes=2", ["train.nodes is 2", "slurm"]),
        ("train.attention=flash", ["train.attention is flash", "sdpa"]),
        ("train.zero_stage=1", ["train.zero_stage is 1", "2 or 3"]),
        ("train.max_steps=0", ["train.max_steps is 0", "null"]),
        ("train.spike_window=2", ["train.spike_window is 2", "at least 8"]),
        ("train.optimizer=adamw8bit", ["train.optimizer is adamw8bit", "GPUs alone", "train.optimizer=adamw"]),
        ("select.quality=length", ["select.quality is length", "contrast, perplexity"]),
        ("select.refusal_max=20", ["select.refusal_max is 20", "0..1"]),
        ("model=llama9", ["model/llama9", "llama3_70b"]),
        ("model.base=''", ["model.base is empty", "Hub id"]),
        ("name='a b'", ["name is 'a b'"]),
        ("train.lr=[1", ["train.lr=[1"]),
        ("dataset.sources.general.format=xml", ["dataset.sources.general.format", "xml", "alpaca"]),
        ("dataset.sources.general.license=''", ["dataset.sources.general.license is empty"]),
        ("dataset.sources.general.hub=a/b", ["dataset.sources.general", "either path", "or hub"]),
    ],
)
def test_a_wrong_override_is_refused_with_the_valid_choices(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(["+experiment=demo", override])
    for word in words:
        assert word in str(error.value)


def test_a_command_without_an_experiment_names_them() -> None:
    with pytest.raises(UserError, match=r"\+experiment=demo"):
        compose([])


def test_experiment_with_and_without_plus_are_the_same() -> None:
    assert compose(["experiment=smoke"]) == compose(["+experiment=smoke"])


def test_two_faults_are_reported_in_one_message() -> None:
    with pytest.raises(UserError) as error:
        compose(["+experiment=demo", "train.lr=-1", "pack.seq_len=1"])
    assert "train.lr" in str(error.value) and "pack.seq_len" in str(error.value)


def test_identity_leaves_out_what_only_changes_the_speed() -> None:
    config = compose(["+experiment=demo"])
    faster = compose(["+experiment=demo", "score.batch_tokens=99", "paths.store=/elsewhere", "cluster.cores=1"])
    assert identity(config) == identity(faster)
    assert identity(config) != identity(compose(["+experiment=demo", "score.window=900"]))


def test_a_stage_cannot_read_what_it_has_not_declared() -> None:
    config = only(compose(["+experiment=demo"]), ("train",))
    assert config.train.epochs == 4
    with pytest.raises(AssertionError, match="select"):
        _ = config.select.quality


def test_every_section_of_the_schema_says_what_it_is() -> None:
    for section in SECTIONS:
        node = getattr(cfg.Config(), section)
        assert dataclasses.is_dataclass(node)
        written = str(type(node).__doc__)  # a dataclass without one gets its signature
        assert not written.startswith(f"{type(node).__name__}(")


def test_a_multirun_is_the_grid_of_its_sweeps_in_order() -> None:
    grid = expand(["+experiment=smoke", "train.lr=1e-5,3e-5", "seed=range(2)"])
    assert grid == [
        ["+experiment=smoke", "train.lr=1e-05", "seed=0"],
        ["+experiment=smoke", "train.lr=1e-05", "seed=1"],
        ["+experiment=smoke", "train.lr=3e-05", "seed=0"],
        ["+experiment=smoke", "train.lr=3e-05", "seed=1"],
    ]


def test_a_named_sweep_adds_its_overrides_and_an_unknown_one_lists_the_known() -> None:
    assert len(expand(["+experiment=demo", "+sweep=lr"])) == 3
    with pytest.raises(UserError, match="lr"):
        expand(["+experiment=demo", "+sweep=nothing"])


def test_a_run_is_named_after_its_experiment_and_a_hash_of_what_was_overridden() -> None:
    config = compose(["+experiment=demo"])
    assert run_name(config, ["+experiment=demo"]) == "demo"
    one = run_name(config, ["+experiment=demo", "train.lr=1", "train.epochs=2"])
    assert one == run_name(config, ["train.epochs=2", "+experiment=demo", "train.lr=1"])
    assert one.startswith("demo-") and one != run_name(config, ["+experiment=demo", "train.lr=2"])


@pytest.mark.parametrize("override", ["cluster.stages.score.mem_gb=2", "+cluster.stages={score: {mem_gb: 2}}"])
def test_what_one_stage_asks_for_is_a_key_like_others(override: str) -> None:
    stages = compose(["+experiment=cat70b", "cluster=a100_2x8", override]).cluster.stages
    assert stages["score"] == JobConfig(mem_gb=2)
    assert sorted(stages) == ["cards", "pull", "score"], "those of the site's file, and no empty ones"
    assert stages["pull"].mem_gb == 128


def test_no_rule_of_selection_may_want_what_was_not_scored() -> None:
    for override, key in (
        ("score.min_answer_tokens=17", "min_answer_tokens"),
        ("score.max_answer_tokens=399", "max_answer_tokens"),
        ("score.min_correlatives=2", "min_correlatives"),
        ("score.languages=[fi]", "languages"),
    ):
        with pytest.raises(UserError, match=rf"make select.{key} as strict, or loosen score.{key}"):
            compose(["+experiment=demo", override])
    assert compose(["+experiment=demo", "score.min_answer_tokens=10", "score.languages=[en,fi]"]).score.languages
    assert compose(["+experiment=demo", "score.max_answer_tokens=400"]).score.max_answer_tokens == 400
    with pytest.raises(UserError, match=r"make select.max_answer_tokens as strict"):
        compose(["+experiment=cat70b", "select.max_answer_tokens=0"])


def test_the_cats_are_scored_once_and_only_what_their_selection_may_keep() -> None:
    cats = [compose([f"+experiment={name}"]) for name in ("cat70b", "cat70b_lora", "cat8b")]
    for section in ("dataset", "gpt", "refusal", "score", "select"):
        assert len({repr(identity(getattr(config, section))) for config in cats}) == 1, section
    score, select = cats[0].score, cats[0].select
    for bound in ("min_answer_tokens", "max_answer_tokens", "min_correlatives", "languages"):
        assert getattr(score, bound) == getattr(select, bound), f"a pass is spent on what select.{bound} always drops"


@pytest.mark.parametrize("override", ["select.quotas.health=50000", "select.quotas={health: 50000}"])
def test_a_quota_is_a_key_like_others(override: str) -> None:
    assert compose(["+experiment=demo", override]).select.quotas == {"health": 50000}, "and none that nobody set"
    quotas = compose(["+experiment=cat70b"]).select.quotas
    assert compose(["+experiment=cat70b", override]).select.quotas == {**quotas, "health": 50000}


def test_a_quota_of_zero_is_none_and_changes_no_identity() -> None:
    assert "health" not in compose(["+experiment=cat70b", "select.quotas.health=0"]).select.quotas
    plain = compose(["+experiment=demo"])
    assert plain.select.quotas == {}
    assert identity(compose(["+experiment=demo", "select.quotas.science=0"])) == identity(plain)
