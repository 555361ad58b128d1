"""The page: self-contained, escaped, accessible, complete."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cathpc.config import only
from cathpc.errors import DataError
from cathpc.report import html, stage
from cathpc.report.gather import gather
from cathpc.report.sampling import sample
from tests import report_fixture

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects tags, text and whether all that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, name: str) -> list[dict[str, Any]]:
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("run")
    inputs = report_fixture.build(root)
    out = root / "report"
    out.mkdir()
    stage.run(only(report_fixture.config(), ("report", "tracker")), inputs, out)
    return out, inputs


@pytest.fixture(scope="module")
def page(run: tuple[Path, dict[str, Path]]) -> Page:
    return Page((run[0] / "report.html").read_text())


def test_every_tag_is_closed_and_every_link_within_the_page_has_its_target(page: Page) -> None:
    assert not page.open
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    inner = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert len(inner) == 11 and set(inner) <= set(ids)


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    assert not page.all("script") and not page.all("iframe") and not page.all("object")
    assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img"))
    assert all(attrs["href"].startswith("data:") for attrs in page.all("link"))
    outer = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert outer and all(href.startswith("https://arxiv.org/") for href in outer)


def test_every_figure_is_there_with_an_alternative_text(page: Page) -> None:
    figures = {attrs["id"] for attrs in page.all("figure")}
    curves = {f"train-{name}" for name in ("loss", "lr", "norm", "speed")}
    planes = {"population", "population-components", "score-length-contrast", "score-length-perplexity"}
    others = {"flow", "flow-sources", "length-reasoning", "length-health", "reliability", "fidelity", "time", "auroc"}
    planes.add("score-length-contrast-generator")
    assert figures == {f"figure-{name}" for name in curves | planes | others}
    assert all(len(attrs["alt"]) > 40 for attrs in page.all("img"))


def test_embedded_svg_holds_no_script_and_no_outer_reference(page: Page) -> None:
    texts = [base64.b64decode(a["src"].partition(",")[2]) for a in page.all("img") if "svg" in a["src"][:30]]
    assert len(texts) == 12
    for text in texts:
        assert b"<script" not in text
        assert all(ref.startswith(b"#") for ref in re.findall(rb'(?:xlink:)?href="([^"]*)"', text))


def test_markup_inside_records_is_shown_as_text(run: tuple[Path, dict[str, Path]], page: Page) -> None:
    text = (run[0] / "report.html").read_text()
    assert report_fixture.ATTACK not in text
    assert report_fixture.ATTACK in page.text


def test_the_nearest_record_that_a_rule_dropped_is_named_for_explain(
    run: tuple[Path, dict[str, Path]], page: Page
) -> None:
    scored = gather(run[1], examples=1).scored.to_pylist()
    dropped = [row for row in scored if row["rule"] == "refusal"]
    nearest = min(dropped, key=lambda row: row["value"] - row["threshold"])
    assert nearest["id"] in page.text


def test_figures_on_the_page_are_those_of_the_run(run: tuple[Path, dict[str, Path]], page: Page) -> None:
    facts = gather(run[1], examples=4)
    kept = facts.scored["kept"].to_pylist().count(True)
    assert f"Of 400 records that were pulled, {kept} " in page.text
    assert "Training was stopped and went on after step 24." in page.text
    flat = " ".join(page.text.split())
    for rule in ("status", "refusal", "cot short", "health short", "quality"):
        assert rule in flat
    assert "refusal_max: 0.2" in flat
    assert "Tuned minus base is +45 percentage points" in flat


def test_steps_that_a_resume_superseded_are_left_out(run: tuple[Path, dict[str, Path]]) -> None:
    facts = gather(run[1], examples=4)
    assert [row["global_step"] for row in facts.steps] == list(range(report_fixture.STEPS + 1))
    assert facts.resumed == [report_fixture.RESUMED_AFTER]
    after = facts.steps[report_fixture.RESUMED_AFTER + 1]
    assert after["attempt"] == 2


def test_examples_hold_plain_cards_too_and_are_the_same_every_time(run: tuple[Path, dict[str, Path]]) -> None:
    first, second = (gather(run[1], examples=12).card_examples for _ in range(2))
    assert first == second and len(first) == 12
    assert [row["verdict"] for row in first].count("plain") == 4
    assert all(row["record"]["messages"][0]["role"] == "system" for row in first)


def test_a_second_run_writes_the_same_bytes(run: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    stage.run(only(report_fixture.config(), ("report", "tracker")), run[1], tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (run[0] / "report.html").read_bytes()


def test_points_are_sampled_by_their_ids(run: tuple[Path, dict[str, Path]]) -> None:
    scored = gather(run[1], examples=1).scored
    some = sample(scored, 50)["id"].to_pylist()
    assert len(some) == 50 and set(some) <= set(sample(scored, 80)["id"].to_pylist())
    assert sample(scored, 400) is scored


@pytest.mark.parametrize(
    ("name", "text"), [("train/metrics.jsonl", None), ("evaluate/fidelity.json", "{"), ("cards/cards.jsonl", "{}\nx\n")]
)
def test_a_missing_or_broken_file_is_named(
    run: tuple[Path, dict[str, Path]], tmp_path: Path, name: str, text: str | None
) -> None:
    stage_name, _, file = name.partition("/")
    broken = tmp_path / stage_name
    shutil.copytree(run[1][stage_name], broken)
    (broken / file).unlink()
    if text is not None:
        (broken / file).write_text(text.replace("{}", '{"id": "1", "verdict": "plain"}'))
    with pytest.raises(DataError, match=file):
        gather(run[1] | {stage_name: broken}, examples=2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (12345, "12,345"), (0.012345, "0.0123"), (2e-5, "2.00e-05"), (12345.6, "12,346"),
     (float("nan"), "–"), (["en", "de"], "en, de"), ("", "")],
)  # fmt: skip
def test_numbers_read_well(value: object, text: str) -> None:
    assert html.number(value) == text


def test_long_texts_are_cut_with_a_note() -> None:
    assert html.shorten("x" * 1000, 700).endswith("[300 more characters]")
    assert html.shorten(" short ") == "short"
