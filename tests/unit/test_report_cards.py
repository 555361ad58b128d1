"""The cards of model and data: what a run knows is in them, what it does not know is said, and they stay Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cathpc.models.template import Template
from cathpc.report import data_card, model_card
from cathpc.report.gather import gather
from cathpc.report.measures import rule_counts
from cathpc.store import MANIFEST, write_json
from tests import report_fixture


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return report_fixture.build(tmp_path_factory.mktemp("run"))


def cells(card: str, first: str) -> list[str]:
    """The cells of the table's row that begins with `first`."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", card, re.M)
    return [cell.strip() for cell in row.split("|")]


def test_the_data_card_has_each_source_with_its_licence_and_what_became_of_its_rows(folders: dict[str, Path]) -> None:
    card = data_card.data_card("demo", folders)
    kept = gather(folders, examples=1).scored.to_pylist()
    for name in report_fixture.COMPONENTS:
        mine = sum(row["kept"] for row in kept if row["component"] == name)
        found = cells(card, f"{name}_set")
        assert found[:2] == [name, "cc-by-4.0"] and found[3:] == ["108", "8", "100", str(mine)]
        assert "sha256 abab" in found[2]


def test_the_data_card_has_every_rule_that_dropped_records_with_its_threshold(folders: dict[str, Path]) -> None:
    card = data_card.data_card("demo", folders).partition("## Filters")[2].partition("## Scoring models")[0]
    for rule, count in rule_counts(gather(folders, examples=1)):
        assert cells(card, rule.replace("_", " "))[-1] == str(count)
    assert cells(card, "refusal")[0] == "refusal_max: 0.2"
    assert "general 0.05" in cells(card, "quality")[1]


def test_cards_of_an_unfinished_run_say_what_is_not_known(folders: dict[str, Path]) -> None:
    card = data_card.data_card("demo", {"cards": folders["cards"]})
    assert "Not known here: pull, select." in card and "## Sources" not in card and "## Known limits" in card


def test_text_of_a_source_cannot_break_a_table() -> None:
    assert data_card.markdown(["a"], [["x | y\nz"]]).splitlines()[-1] == "| x \\| y z |"


def test_the_model_card_says_under_which_licence_the_base_is(
    folders: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    template = Template.load(tiny_llama)

    def told(summary: dict[str, str]) -> str:
        write_json(tmp_path / MANIFEST, {"config": {"model": {"base": "org/llama"}}, "summary": summary})
        known = data_card.manifests({**folders, "base": tmp_path})
        return "\n".join([model_card._head(known), model_card._made(known, template, {})])

    assert '\nlicense: "llama3"\n' in told({"license": "llama3"})
    assert cells(told({"license": "llama3"}), "its licence, which holds for this model too") == ["llama3"]
    assert "license:" not in told({}) and "not known" in told({})


def test_the_model_card_shows_the_prompt_as_it_is_and_what_was_measured(
    folders: dict[str, Path], tiny_llama: Path
) -> None:
    template = Template.load(tiny_llama)
    told = model_card.trained(folders["train"] / "metrics.jsonl", 24)
    assert told["step"] == 24 and told["epochs"] == 2 and told["tokens"] == 24 * 1024
    pack = {"seq_len": 512, "train": {"records": 60}, "digest": "f" * 64}
    fidelity = json.loads((folders["evaluate"] / "fidelity.json").read_text())
    before = model_card.model_card("demo", template, pack, told, folders)
    after = model_card.model_card("demo", template, pack, told, folders, fidelity=fidelity)
    prompt = template.text(
        [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Hello!"}],
        generation_prompt=True,
    )
    for card in (before, after):
        assert f"`{json.dumps(prompt, ensure_ascii=False)}`" in card and prompt.rstrip() in card
        assert cells(card, "general_set")[:2] == ["general", "cc-by-4.0"]
        assert template.hash in card and "f" * 64 in card and "## Known limits" in card
    assert "probes passed" not in before and "`model_card.md` beside the run's report" in before
    assert "+45 percentage points" in after
    tuned = fidelity["models"]["tuned"]["all"]
    assert cells(after, "probes passed")[1] == data_card.share(tuned)
