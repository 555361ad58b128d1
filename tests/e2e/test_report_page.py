"""The report's page in a real Chromium: it draws, answers to the pointer, follows the theme, and asks nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cathpc.config import only
from cathpc.report import stage
from tests import report_fixture
from tests.chromium import browser, programs

PATIENCE_S = 120

COLOURS_OF_CANVASES = """
return Bokeh.documents[0].roots().map(model => {
  const view = [...Object.values(Bokeh.index)].find(view => view.model === model);
  const canvas = view.canvas_view.primary.canvas;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] > 100) seen.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
  }
  return [view.el.parentElement.id, canvas.width, seen.size];
});
"""
POINT = """
const [place, row] = arguments;
const view = Object.values(Bokeh.index).find(view => view.el.parentElement.id === place);
view.el.scrollIntoView({ block: "center", behavior: "instant" });
const data = Bokeh.documents[0].get_model_by_name("records").data;
const box = view.canvas_view.el.getBoundingClientRect();
return [box.left + view.frame.x_scale.compute(data.x[row]), box.top + view.frame.y_scale.compute(data.y[row])];
"""
TOOLTIPS = """
const within = root => [...root.querySelectorAll("*")].flatMap(element => [
  ...(element.classList.contains("bk-tooltip-content") ? [element.textContent] : []),
  ...(element.shadowRoot ? within(element.shadowRoot) : []),
]);
return within(document).join(" ");
"""


def write(root: Path, *, count: int) -> Path:
    inputs = report_fixture.build(root, count=count)
    out = root / "report"
    out.mkdir()
    stage.run(only(report_fixture.config(), ("report", "tracker")), inputs, out)
    return out / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    programs()  # skips before the page is made
    return write(tmp_path_factory.mktemp("run"), count=400)


@pytest.fixture(scope="module")
def desktop(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        load(driver, page)
        yield driver


def load(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.as_uri())
    WebDriverWait(driver, PATIENCE_S).until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
    # Axes are laid out over some frames; the pictures are complete when Bokeh has nothing left to do.
    WebDriverWait(driver, PATIENCE_S).until(lambda d: d.execute_script("return Bokeh.documents[0].is_idle"))


def point_at(driver: Any, x: float, y: float) -> None:
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x - 20, "y": y})
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    driver.last = {"x": x, "y": y, "button": "left", "clickCount": 1}


def click(driver: Any) -> None:
    for kind in ("mousePressed", "mouseReleased"):
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **driver.last})


def complaints(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(driver: Any) -> list[str]:
    """Addresses that the page asked for, other than itself and data within it."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not re.match(r"(file|data|chrome|about):", url)]


def test_every_figure_is_drawn_without_a_word_on_the_console_and_without_a_request(desktop: Any) -> None:
    drawn = desktop.execute_script(COLOURS_OF_CANVASES)
    figures = {re.fullmatch(r"chart-(.*)-\d+", place)[1] for place, _, _ in drawn}  # type: ignore[index]
    shown = {f.get_attribute("id").removeprefix("figure-") for f in desktop.find_elements("css selector", "figure")}
    assert figures == shown and len(drawn) > 20
    assert all(width > 200 and colours > 8 for _, width, colours in drawn), drawn
    assert complaints(desktop) == []
    assert requests(desktop) == []


def test_every_link_within_the_page_leads_to_something_to_see(desktop: Any) -> None:
    links = desktop.find_elements("css selector", "a[href^='#']")
    assert len(links) > 13
    for link in links:
        target = link.get_attribute("href").partition("#")[2]
        desktop.execute_script("arguments[0].click()", link)
        place = desktop.find_element("id", target)
        assert place.is_displayed() or target == "main", target
        if target.startswith("record-"):
            assert place.get_attribute("open"), f"{target} stays closed"


def test_the_pointer_over_a_point_shows_its_record_and_a_click_explains_it(desktop: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    data = desktop.execute_script("return Bokeh.documents[0].get_model_by_name('records').data")
    ids = [id for id, x in zip(data["id"], data["x"], strict=True) if x is not None]
    whole = {e.get_attribute("id") for e in desktop.find_elements("css selector", "details[id^='record-']")}
    hostile = [f"{number:016x}" for number in range(0, 400, 50)]
    for candidates in (whole & {f"record-{id}" for id in ids}, {f"record-{id}" for id in ids} - whole):
        wanted = min(candidates).removeprefix("record-")
        x, y = desktop.execute_script(POINT, "chart-population-0", data["id"].index(wanted))
        point_at(desktop, x, y)
        text = WebDriverWait(desktop, PATIENCE_S).until(lambda d: d.execute_script(TOOLTIPS))
        shown = re.findall(r"[0-9a-f]{16}", text)
        assert ("<script>" in text) == bool({*shown} & {*hostile}), "what a record holds is text"
        assert set(shown) <= set(ids) and "What is the best way to learn" in text and "_set (" in text, text
        click(desktop)
        WebDriverWait(desktop, PATIENCE_S).until(lambda d: "#record-" in d.current_url)
        chosen = desktop.current_url.rpartition("-")[2]
        assert chosen in ids
        if f"record-{chosen}" in whole:
            assert desktop.find_element("id", f"record-{chosen}").get_attribute("open")
        else:
            told = desktop.find_element("id", "record").text
            assert chosen in told and "What is the best way to learn" in told and "refusal score" in told
    assert complaints(desktop) == []


def test_a_records_id_that_is_typed_in_is_shown(desktop: Any) -> None:
    field = desktop.find_element("id", "find-id")
    for typed, said in (("00000000000000ff", "subject number 255"), ("fffffff", "is not on this page")):
        field.clear()
        field.send_keys(typed)
        field.submit()
        assert said in desktop.find_element("id", "record").text


def test_a_name_in_a_legend_hides_its_marks_and_shows_them_again(desktop: Any) -> None:
    visible = """
    const named = [...Bokeh.documents[0]._all_models.values()].filter(model => model.name === arguments[0]);
    return named.map(model => model.visible);
    """
    button = desktop.find_element("css selector", "#figure-population button.key")
    name = button.get_attribute("data-name")
    assert desktop.execute_script(visible, name) == [True, True]
    for pressed, state in (("false", False), ("true", True)):
        desktop.execute_script("arguments[0].click()", button)
        assert button.get_attribute("aria-pressed") == pressed
        assert desktop.execute_script(visible, name) == [state, state]


def luminance(colour: str) -> float:
    """Relative luminance of 'rgb(r, g, b)' (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrasts(driver: Any) -> dict[str, float]:
    """Contrast of texts of every kind with the ground behind them."""
    found = driver.execute_script(
        """
        const ground = element => {
          for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$|transparent/.test(colour)) return colour;
          }
          return "rgb(255, 255, 255)";
        };
        const kinds = ["body", "h2", "header p", "a", ".tile dt", ".tile .note", "figcaption", ".caption", "thead th",
          "td", ".tag.good", ".tag.bad", ".tag.soft", ".role", ".text", ".thought", ".panel-title", "button.key",
          "footer"];
        return Object.fromEntries(kinds.map(kind => {
          const element = document.querySelector(kind);
          return [kind, [getComputedStyle(element).color, ground(element)]];
        }));
        """
    )
    told = {}
    for kind, (text, ground) in found.items():
        high, low = sorted((luminance(text), luminance(ground)), reverse=True)
        told[kind] = (high + 0.05) / (low + 0.05)
    return told


def test_light_and_dark_follow_the_system_and_the_switch_and_all_text_has_contrast(
    desktop: Any, page: Path, tmp_path: Path
) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert luminance(desktop.execute_script(paper)) > 0.9
    assert min(contrasts(desktop).values()) >= 4.5, contrasts(desktop)
    with browser(tmp_path, dark=True) as driver:
        load(driver, page)
        assert luminance(driver.execute_script(paper)) < 0.05
        assert min(contrasts(driver).values()) >= 4.5, contrasts(driver)
        assert luminance(axis_colour(driver)) > 0.25, "axes are drawn for a light page"
        driver.find_element("id", "theme").click()
        assert luminance(driver.execute_script(paper)) > 0.9
        assert luminance(axis_colour(driver)) < 0.2
        driver.refresh()
        assert luminance(driver.execute_script(paper)) > 0.9, "the choice is kept"
        assert complaints(driver) == []


def axis_colour(driver: Any) -> str:
    """The colour in which the numbers of an axis are drawn."""
    found: str = driver.execute_script(
        """
        const model = Bokeh.documents[0].roots()[0].below[0];
        const view = Bokeh.index[Object.keys(Bokeh.index)[0]].views.find_one(model);
        const colour = view.visuals.major_label_text.get_text_color();
        const [r, g, b] = colour.match(/\\w\\w/g).map(part => parseInt(part, 16));
        return `rgb(${r}, ${g}, ${b})`;
        """
    )
    return found


def test_a_phone_needs_no_scrolling_sideways_and_sees_every_figure(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path, width=390) as driver:
        load(driver, page)
        inner, outer = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert inner <= outer == 390
        drawn = driver.execute_script(COLOURS_OF_CANVASES)
        assert all(200 < width <= 390 and colours > 8 for _, width, colours in drawn), drawn
        wide = driver.execute_script(
            "return [...document.querySelectorAll('button, .tile, figure, summary, p, h1, h2')]"
            ".filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
        )
        assert wide == []
        assert complaints(driver) == []


def test_without_scripts_and_on_paper_the_still_pictures_stand_in_for_the_charts(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path, scripts=False) as driver:
        driver.get(page.as_uri())
        pictures = driver.find_elements("css selector", "figure img")
        assert len(pictures) > 15 and all(picture.is_displayed() for picture in pictures)
        assert not any(e.is_displayed() for e in driver.find_elements("css selector", ".moving, .needs-script"))
        assert complaints(driver) == []
    with browser(tmp_path / "paper", dark=True) as driver:
        load(driver, page)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert all(picture.is_displayed() for picture in driver.find_elements("css selector", "figure img"))
        assert not any(e.is_displayed() for e in driver.find_elements("css selector", ".moving"))
        assert luminance(driver.execute_script("return getComputedStyle(document.body).backgroundColor")) > 0.9


def test_a_hundred_thousand_records_are_drawn_from_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    programs()
    page = write(tmp_path, count=100_000)
    assert page.stat().st_size < 6e6
    with browser(tmp_path / "profile") as driver:
        load(driver, page)
        drawn = driver.execute_script(COLOURS_OF_CANVASES)
        assert all(colours > 8 for _, _, colours in drawn), drawn
        told = driver.find_element("id", "figure-population").text
        assert re.search(r"Drawn are 5,9\d\d of 98,970 scored records", told), told  # of 6,000 some have no score
        assert complaints(driver) == [] and requests(driver) == []
