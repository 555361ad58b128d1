"""Ready grids in conf/sweep, a user's own ones, and what is refused before the first run of a grid starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cathpc.config import choices, compose, expand
from cathpc.errors import UserError

SMOKE = "+experiment=smoke"


@pytest.mark.parametrize("name", choices("sweep"))
def test_every_sweep_composes_and_its_runs_differ(name: str) -> None:
    grid = expand([SMOKE, f"+sweep={name}"])
    configs = [compose(overrides) for overrides in grid]
    assert len(configs) > 1
    assert all(one != two for i, one in enumerate(configs) for two in configs[i + 1 :])


@pytest.mark.parametrize(("name", "size"), [("lr", 3), ("refusal", 3), ("quality", 6), ("epochs", 3)])
def test_a_sweep_is_the_product_of_its_values(name: str, size: int) -> None:
    assert len(expand([SMOKE, f"+sweep={name}"])) == size


def test_two_sweeps_multiply_with_each_other_and_with_the_command_line() -> None:
    grid = expand([SMOKE, "+sweep=lr", "+sweep=refusal", "pack.eval_share=0.1,0.2"])
    assert len(grid) == 3 * 3 * 2
    assert grid[0] == [SMOKE, "train.lr=1e-05", "select.refusal_max=0.1", "pack.eval_share=0.1"]
    assert grid[-1] == [SMOKE, "train.lr=0.0001", "select.refusal_max=0.3", "pack.eval_share=0.2"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a sweep of the user's own, in the conf folder of where he works."""
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder / "mine.yaml"


def test_a_sweep_of_the_users_own_is_found_in_his_conf_folder(own: Path) -> None:
    own.write_text("train.lr: 1e-5,2e-5\ntrain.schedule: wsd\n")
    assert expand([SMOKE, "+sweep=mine"]) == [
        [SMOKE, "train.lr=1e-05", "train.schedule=wsd"],
        [SMOKE, "train.lr=2e-05", "train.schedule=wsd"],
    ]


def test_values_may_be_a_list_of_yaml(own: Path) -> None:
    own.write_text(
        "select.refusal_max: [0.1, null]\ntrain.activation_checkpointing: [true]\n"
        "select.languages: [[en], [en, de]]\nselect.quality: [perplexity]\n"
    )
    configs = [compose(overrides) for overrides in expand([SMOKE, "+sweep=mine"])]
    assert [(c.select.refusal_max, c.select.languages) for c in configs] == [
        (0.1, ["en"]),
        (0.1, ["en", "de"]),
        (None, ["en"]),
        (None, ["en", "de"]),
    ]
    assert {(c.train.activation_checkpointing, c.select.quality) for c in configs} == {(True, "perplexity")}


@pytest.mark.parametrize("values", ["[]", "", "''", "{lr: 1e-5}"])
def test_a_key_without_values_is_refused_with_its_file(own: Path, values: str) -> None:
    own.write_text(f"train.lr: {values}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: train\.lr is .*train\.lr: 1e-5,3e-5"):
        expand([SMOKE, "+sweep=mine"])


@pytest.mark.parametrize("text", ["", "- train.lr", "train.lr"])
def test_a_file_that_holds_no_sweep_is_refused(own: Path, text: str) -> None:
    own.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml holds no sweep"):
        expand([SMOKE, "+sweep=mine"])


def test_a_file_that_is_not_yaml_is_refused(own: Path) -> None:
    own.write_text("train.lr: [1e-5")
    with pytest.raises(UserError, match=r"mine\.yaml is not YAML"):
        expand([SMOKE, "+sweep=mine"])


def test_an_unknown_sweep_lists_the_known_and_the_users_own(own: Path) -> None:
    own.write_text("train.lr: 1e-5,2e-5")
    with pytest.raises(UserError, match=r"no sweep 'nothing'.*lr, mine, quality"):
        expand([SMOKE, "+sweep=nothing"])


def test_a_grid_over_a_key_that_does_not_exist_is_refused_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r"unknown key train\.lrr\. Did you mean train\.lr\?"):
        compose(expand([SMOKE, "train.lrr=1e-5,3e-5"])[0])


def test_a_sweep_over_no_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.epochs=range\(3,3\) sweeps over no value"):
        expand([SMOKE, "train.epochs=range(3,3)"])


@pytest.mark.parametrize("order", [["train.lr=1", "+sweep=lr"], ["+sweep=lr", "train.lr=1"]])
def test_a_key_that_is_swept_and_given_is_refused(order: list[str]) -> None:
    with pytest.raises(UserError, match=r"train\.lr is swept and given once more"):
        expand([SMOKE, *order])


def test_a_sweep_without_multirun_names_the_option() -> None:
    with pytest.raises(UserError, match=r"cathpc -m \+experiment=smoke \+sweep=lr"):
        compose([SMOKE, "+sweep=lr"])
