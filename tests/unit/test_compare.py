"""The runs of a sweep side by side: whose they are, what they share, which is best; from manifests that tests write."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cathpc import store
from cathpc.acts import compare
from cathpc.config import compose, run_name
from cathpc.errors import UserError
from cathpc.pipeline import STAGES
from cathpc.runs import open_run

ROOT = Path(__file__).parents[2]
SMOKE = "+experiment=smoke"
ALL = tuple(s.name for s in STAGES)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finish(place: store.Place, summary: dict[str, Any], seconds: float = 1.0) -> None:
    """Give the stage a manifest as `store.commit` does, if it has none."""
    place.folder.mkdir(parents=True, exist_ok=True)
    if place.manifest() is None:
        used = {name: {"digest": store.read_json(f / store.MANIFEST)["digest"]} for name, f in place.inputs.items()}
        manifest = {"fingerprint": place.fingerprint, "digest": place.fingerprint, "inputs": used}
        store.write_json(place.folder / store.MANIFEST, {**manifest, "summary": summary, "seconds": seconds})


def make_run(
    *overrides: str,
    held_out: float | None = 2.0,
    stages: tuple[str, ...] = ALL,
    kept: int = 60,
    dropped: dict[str, int] | None = None,
    tuned: float = 0.5,
) -> str:
    """A run whose `stages` are finished with these figures; returns its name."""
    config = compose([SMOKE, *overrides])
    run = open_run(config, [SMOKE, *overrides])
    summaries: dict[str, dict[str, Any]] = {
        "select": {"in": 100, "kept": kept, "dropped": dropped or {"quality": 40}},
        "train": {
            "first_loss": 3.0,
            "loss": 2.5,
            "eval_loss": held_out,
            "steps": 16,
            "tokens": 25_992,
            "tokens_per_s": 1234.5,
        },
        "evaluate": {
            "models": {"base": {"all": {"share": 0.25}}, "tuned": {"all": {"share": tuned}}},
            "difference": {"share": tuned - 0.25},
        },
    }
    for name, place in store.places(config).items():
        if name in stages:
            finish(place, summaries.get(name, {}))
            run.link(place)
    return run.name


def table(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `compare` prints."""
    assert compare.main(parse(*arguments)) == 0
    return capsys.readouterr().out


def parse(*arguments: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    compare.options(parser)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(list(arguments))


def data(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `compare --json` prints."""
    found: dict[str, Any] = json.loads(table(*arguments, "--json", capsys=capsys))
    return found


def test_runs_are_sorted_by_held_out_loss_and_the_best_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    worse = make_run("train.lr=1e-5", held_out=3.5)
    best = make_run("train.lr=3e-5", held_out=2.25)
    unfinished = make_run("train.lr=1e-4", stages=ALL[:9])
    rows = data(SMOKE, capsys=capsys)["runs"]
    assert [r["run"] for r in rows] == [best, worse, unfinished]
    assert [r["best"] for r in rows] == [True, False, False]
    lines = table(SMOKE, capsys=capsys).splitlines()
    assert lines[1].split()[:2] == ["*", best] and not lines[2].startswith("*")


def test_columns_are_the_overrides_in_which_the_runs_differ(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5", "pack.eval_share=0.1")
    make_run("train.lr=3e-5", "pack.eval_share=0.1", held_out=2.5)
    rows = data(SMOKE, capsys=capsys)["runs"]
    assert [r["overrides"] for r in rows] == [{"train.lr": 1e-5}, {"train.lr": 3e-5}]


def test_a_run_that_does_not_override_a_key_shows_the_value_that_it_had(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    make_run("train.lr=3e-5", held_out=9.0)
    rows = data(SMOKE, capsys=capsys)["runs"]
    assert [r["overrides"] for r in rows] == [{"train.lr": 1e-3}, {"train.lr": 3e-5}]


def test_the_same_value_in_another_spelling_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=3e-5")
    make_run("train.lr=0.00003")
    assert [r["overrides"] for r in data(SMOKE, capsys=capsys)["runs"]] == [{}, {}]


def test_a_group_is_shown_by_the_option_that_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    make_run("tracker=disabled", held_out=9.0)
    assert [r["overrides"] for r in data(SMOKE, capsys=capsys)["runs"]] == [{"tracker": None}, {"tracker": "disabled"}]


def test_figures_come_from_the_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tuned=0.75)
    (found,) = data(SMOKE, capsys=capsys)["runs"]
    assert found["state"] == "finished"
    assert (found["kept"], found["kept_share"], found["dropped"]) == (60, 0.6, {"quality": 40})
    assert (found["first_loss"], found["last_loss"], found["held_out"]) == (3.0, 2.5, 2.0)
    assert (found["steps"], found["tokens"], found["tokens_per_s"]) == (16, 25_992, 1234.5)
    assert (found["base"], found["tuned"], found["difference"]) == (0.25, 0.75, 0.5)
    assert found["seconds"] == len(ALL)
    assert not found["best"], "one run is not the best of any"


def test_drops_by_rule_have_columns_only_where_the_selections_differ(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5", held_out=1.0)
    make_run("train.lr=3e-5")
    assert "dropped" not in table(SMOKE, capsys=capsys)
    make_run("train.lr=1e-4", "select.refusal_max=0.1", kept=30, dropped={"quality": 40, "refusal": 30}, held_out=4.0)
    out = table(SMOKE, capsys=capsys)
    assert "dropped refusal" in out.splitlines()[0] and "dropped quality" not in out.splitlines()[0]
    (same,) = [line for line in out.splitlines() if line.startswith("same in all: ")]
    assert "dropped quality 40" in same


def test_held_out_losses_of_different_records_are_marked_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5")
    make_run("train.lr=3e-5")
    assert data(SMOKE, capsys=capsys)["notes"] == []
    make_run("select.refusal_max=0.1")
    (note,) = data(SMOKE, capsys=capsys)["notes"]
    assert "different records" in note


def test_shared_stages_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5")
    make_run("train.lr=3e-5")
    assert data(SMOKE, capsys=capsys)["shared"] == list(ALL[:9])
    assert f"shared by all: {', '.join(ALL[:9])}\n" in table(SMOKE, capsys=capsys)


def test_without_a_held_out_loss_the_most_kept_records_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    few = make_run("select.refusal_max=0.1", kept=10, stages=ALL[:7])
    many = make_run("select.refusal_max=0.3", kept=20, stages=ALL[:7])
    rows = data(SMOKE, capsys=capsys)["runs"]
    assert [(r["run"], r["best"]) for r in rows] == [(many, True), (few, False)]
    assert "* most records kept" in table(SMOKE, capsys=capsys)


# --- how far a run is -----------------------------------------------------------------------------------------------


def state_of(*overrides: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    (found,) = data(SMOKE, *overrides, capsys=capsys)["runs"]
    return found["state"], found["message"]


def test_a_run_that_waits_names_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(stages=ALL[:3])
    assert state_of(capsys=capsys) == ("waits for pool", "")


def test_a_failed_run_names_the_stage_and_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(stages=ALL[:3])
    pool = store.places(compose([SMOKE]))["pool"].folder
    pool.mkdir(parents=True)
    (pool / "error.0.json").write_text(json.dumps({"message": "no [answer] of others", "code": 2}))
    assert state_of(capsys=capsys) == ("failed in pool", "no [answer] of others")
    assert "failed in pool: no [answer] of others" in table(SMOKE, capsys=capsys)


def test_a_running_stage_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from cathpc import lease

    make_run(stages=ALL[:3])
    pool = store.places(compose([SMOKE]))["pool"].folder
    pool.mkdir(parents=True)
    (pool / "progress.json").write_text(json.dumps({"done": 5, "total": 16, "unit": "steps"}))
    assert state_of(capsys=capsys)[0] == "stopped in pool"
    with lease.held(pool):
        assert state_of(capsys=capsys)[0] == "pool 5/16 steps"


def test_a_stage_that_was_removed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    make_run()
    shutil.rmtree(store.places(compose([SMOKE]))["train"].folder)
    assert state_of(capsys=capsys)[0] == "train was removed"


def test_a_result_on_an_input_that_was_made_anew_is_stale(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    pack = store.places(compose([SMOKE]))["pack"].folder / store.MANIFEST
    store.write_json(pack, {**store.read_json(pack), "digest": "another"})
    assert state_of(capsys=capsys)[0] == "stale from train on"


def test_a_config_of_another_version_still_shows_what_the_links_lead_to(capsys: pytest.CaptureFixture[str]) -> None:
    name = make_run(stages=ALL[:12])
    file = Path("runs") / name / "config.json"
    found = json.loads(file.read_text())
    found["config"]["train"]["a_key_of_old"] = 1
    file.write_text(json.dumps(found))
    (row,) = data(SMOKE, capsys=capsys)["runs"]
    assert (row["state"], row["held_out"]) == ("waits for report", 2.0)


# --- which runs -----------------------------------------------------------------------------------------------------


def test_runs_are_named_by_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    one, two = make_run("train.lr=1e-5", held_out=1.0), make_run("train.lr=3e-5")
    assert [r["run"] for r in data("--runs", "smoke-*", capsys=capsys)["runs"]] == [one, two]
    assert [r["run"] for r in data("--runs", "smoke", two, capsys=capsys)["runs"]] == ["smoke", two]


def test_a_grid_takes_its_own_runs_and_names_those_that_were_not_begun(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=7e-5")
    overrides = [SMOKE, "train.lr=1e-05"]
    one = make_run(*overrides[1:])
    assert one == run_name(compose(overrides), overrides)
    found = data("--runs", SMOKE, "+sweep=lr", capsys=capsys)
    assert [r["run"] for r in found["runs"]] == [one]
    assert [note.split()[-1] for note in found["notes"]] == ["train.lr=3e-05", "train.lr=0.0001"]


def test_runs_of_another_experiment_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    other = open_run(compose([SMOKE, "name=smoke-test"]), [SMOKE])
    assert other.name == "smoke-test"
    assert [r["run"] for r in data(SMOKE, capsys=capsys)["runs"]] == ["smoke"]


def test_an_unknown_run_names_the_close_ones() -> None:
    make_run("train.lr=1e-5")
    with pytest.raises(UserError, match=r"no run 'smok'.*Did you mean: smoke-[0-9a-f]{8}"):
        compare.main(parse("--runs", "smok"))


def test_no_run_at_all_names_the_command_that_starts_one() -> None:
    make_run()
    with pytest.raises(UserError, match=r"Runs in runs: smoke"):
        compare.main(parse())
    with pytest.raises(UserError, match=r"cathpc -m \+experiment=demo \+sweep=lr\. Runs there: smoke"):
        compare.main(parse("+experiment=demo", "+sweep=lr"))


def test_a_folder_of_runs_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no folder of runs .*elsewhere"):
        compare.main(parse("paths.runs=elsewhere", "--runs", "x"))


# --- forms ----------------------------------------------------------------------------------------------------------


def test_the_csv_holds_every_figure_of_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5", held_out=1.5)
    make_run("select.refusal_max=0.1", dropped={"refusal": 3})
    table(SMOKE, "--csv", "table.csv", capsys=capsys)
    with open("table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["held_out"] for r in rows] == ["1.5", "2.0"]
    assert [(r["dropped.quality"], r["dropped.refusal"]) for r in rows] == [("40", "0"), ("0", "3")]
    assert [(r["train.lr"], r["select.refusal_max"]) for r in rows] == [("1e-05", "null"), ("0.001", "0.1")]


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train.lr=1e-5", held_out=1.5)
    make_run("select.refusal_max=0.1", dropped={"refusal": 3}, kept=97, tuned=0.3)
    out = table(SMOKE, capsys=capsys)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) > 100, "one line a run, however many columns"


def test_no_heavy_library_is_imported() -> None:
    make_run("train.lr=1e-5", stages=ALL[:3])
    code = (
        "import sys, argparse; from cathpc.acts import compare; p = argparse.ArgumentParser(); compare.options(p); "
        "p.add_argument('overrides', nargs='*'); compare.main(p.parse_intermixed_args(['+experiment=smoke'])); "
        "print(sorted({'torch', 'transformers', 'datasets', 'deepspeed', 'wandb', 'submitit'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "waits for pool" in done.stdout and done.stdout.splitlines()[-1] == "[]"
