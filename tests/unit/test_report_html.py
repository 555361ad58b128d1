"""The page: self-contained, escaped, accessible, complete."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cathpc.config import only
from cathpc.errors import DataError
from cathpc.report import charts, charts_flow, html, sampling, stage
from cathpc.report.gather import gather
from cathpc.report.plots import Bar
from cathpc.report.sampling import sample
from tests import report_fixture

VOID = {"meta", "link", "img", "br", "input"}


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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
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
    assert len(inner) == 1 + 13 + 4 and set(inner) <= set(ids), "to the content, the sections, the nearest records"


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    assert not page.all("iframe") and not page.all("object")
    assert len(page.all("script")) == 4 and not any("src" in attrs for attrs in page.all("script"))
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "eval" not in policy and "http" not in policy
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
    others |= {"goodput", "milestones"}
    assert figures == {f"figure-{name}" for name in curves | planes | others}
    assert all(len(attrs["alt"]) > 40 for attrs in page.all("img"))


def test_embedded_svg_holds_no_script_and_no_outer_reference(page: Page) -> None:
    texts = [base64.b64decode(a["src"].partition(",")[2]) for a in page.all("img") if "svg" in a["src"][:30]]
    assert len(texts) == 14
    for text in texts:
        assert b"<script" not in text
        assert all(ref.startswith(b"#") for ref in re.findall(rb'(?:xlink:)?href="([^"]*)"', text))


def test_charts_are_drawn_for_every_figure_and_their_data_stays_text(
    run: tuple[Path, dict[str, Path]], page: Page
) -> None:
    text = (run[0] / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="charts-data">(.*?)</script>', text, re.S)
    assert "<" not in data
    told = json.loads(data)
    places = {attrs["id"] for attrs in page.all("div") if attrs.get("id", "").startswith("chart-")}
    assert set(told["roots"].values()) == places
    drawn = {re.sub(r"-\d+$", "", place).removeprefix("chart-") for place in places}
    assert drawn == {attrs["id"].removeprefix("figure-") for attrs in page.all("figure")}
    assert all(len(attrs["aria-label"]) > 40 for attrs in page.all("div") if "chart" in attrs.get("class", "").split())


def test_no_text_of_a_chart_is_taken_for_tex() -> None:
    plot = charts.canvas(100, names=["$$x^2$$", "a price of $5"])
    text = charts.embed({"one": charts.Chart([("", plot)])})
    assert "$$" not in text and "a price of $5" in text


def test_records_are_explained_with_every_rule_and_the_nearest_ones_are_among_them(
    run: tuple[Path, dict[str, Path]], page: Page
) -> None:
    facts = gather(run[1], examples=1)
    shown = {attrs["id"] for attrs in page.all("details") if attrs.get("id", "").startswith("record-")}
    assert shown == {f"record-{row['record']['id']}" for row in facts.explained} and len(shown) >= 24
    for rule in ("refusal", "quality", "cot_short", "health_short"):
        assert f"record-{sampling.nearest(facts.scored, rule)['id'][0].as_py()}" in shown
    applied = {"refusal", "quality", "cot_short", "health_short"}  # of the rules those that the fixture's verdicts know
    for row in facts.explained:
        failed = [r["rule"] for r in row["rules"] if r["passes"] is False and r["rule"] in applied]
        if row["verdict"]["kept"]:
            assert not failed
        elif row["verdict"]["rule"] in {r["rule"] for r in row["rules"]}:
            assert row["verdict"]["rule"] in failed


def test_thoughts_of_the_showcase_stand_apart_from_what_is_said(page: Page) -> None:
    thoughts = [attrs for attrs in page.all("div") if attrs.get("class") == "text thought"]
    assert len(thoughts) == 1 and report_fixture.THOUGHT in page.text and "<think>" not in page.text


def test_what_a_run_did_not_write_is_named_and_hinders_nothing(
    run: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    inputs = dict(run[1])
    for name, file in (("pull", "records"), ("evaluate", "showcase.jsonl")):
        shutil.copytree(run[1][name], tmp_path / name)
        inputs[name] = tmp_path / name
        gone = tmp_path / name / file
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    fidelity = json.loads((tmp_path / "evaluate" / "fidelity.json").read_text())
    del fidelity["milestones"]
    (tmp_path / "evaluate" / "fidelity.json").write_text(json.dumps(fidelity))
    out = tmp_path / "out"
    out.mkdir()
    stage.run(only(report_fixture.config(), ("report", "tracker")), inputs, out)
    text = " ".join(Page((out / "report.html").read_text()).text.split())
    for missing in ("the text of the records", "a showcase", "the fidelity of checkpoints on the way"):
        assert missing in text.partition("Not in this run:")[2][:400]


def test_time_of_every_attempt_is_divided_into_what_it_did(run: tuple[Path, dict[str, Path]]) -> None:
    first, second = gather(run[1], examples=1).attempts
    assert first["progress"] == pytest.approx(24 * 4.2) and first["again"] == pytest.approx(5 * 4.2)
    assert second["again"] == 0 and second["progress"] == pytest.approx(24 * 4.2)
    for one in (first, second):
        parts = sum(one[part] for part in ("progress", "again", "eval", "save", "rest"))
        assert one["held"] == pytest.approx(parts) and one["rest"] > 0


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


def test_sources_whose_names_begin_alike_stay_apart() -> None:
    bars = [Bar("rows read", 10, False), Bar("too_short", 4, True), Bar("kept", 6, False)]
    alike = ["customer_support_2023_q1", "customer_support_2023_q2"]
    for names, shown in ((alike, alike), (["notes", alike[0]], ["notes", "customer_support_20…"])):
        plot = charts_flow._sources({name: bars for name in names}).panels[0][1]
        assert sorted(plot.y_range.factors) == sorted(shown)
