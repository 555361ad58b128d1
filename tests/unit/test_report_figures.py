"""The figures of runs of every kind: one component, no refusals, nothing kept, nothing scored, very many records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from matplotlib import rc_context

from cathpc.data import filters
from cathpc.data.config import SelectConfig
from cathpc.report import data_part, figures, figures_flow, figures_scorers, figures_scores, measures
from cathpc.report.gather import Facts, gather
from cathpc.report.measures import of_component
from cathpc.report.picture import Picture
from cathpc.report.style import STYLE
from cathpc.tracking import workspace
from tests import report_fixture


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return gather(report_fixture.build(tmp_path_factory.mktemp("run")), examples=1)


def draw(facts: Facts, folder: Path, max_points: int = 6000) -> dict[str, Picture]:
    with rc_context(STYLE):
        pictures = {
            **figures_flow.flow(facts, folder),
            **figures_scores.population(facts, folder, max_points),
            **figures_scores.lengths(facts, folder),
            **figures_scores.scores_by_length(facts, folder, max_points),
        }
    for key, picture in pictures.items():
        assert picture.png == folder / f"{key}.png" and (folder / f"{key}.svg").is_file()
        for text in (picture.alt, picture.caption):
            assert "nan" not in text.split() and "None" not in text and "–" not in text, f"{key}: {text}"
    return pictures


def changed(facts: Facts, **columns: pa.Array) -> Facts:
    table = facts.scored
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return replace(facts, scored=table)


def one_component(facts: Facts) -> Facts:
    sources = {"health_set": facts.sources["health_set"]}
    return replace(facts, scored=of_component(facts.scored, "health"), sources=sources)


def no_refusals(facts: Facts) -> Facts:
    return changed(facts, refusal=pc.if_else(pc.is_valid(facts.scored["refusal"]), 0.0, None).cast(pa.float64()))


def nothing_kept(facts: Facts) -> Facts:
    rule = pc.if_else(pc.equal(facts.scored["rule"], ""), "quota", facts.scored["rule"])
    return changed(facts, kept=pa.array([False] * facts.scored.num_rows), rule=rule)


def nothing_scored(facts: Facts) -> Facts:
    nothing = pa.nulls(facts.scored.num_rows, pa.float64())
    return changed(facts, refusal=nothing, contrast=nothing, perplexity=nothing, answer_tokens=nothing)


def ten(facts: Facts) -> Facts:
    scored = facts.scored.slice(0, 10)
    counts = {row["values"]: row["counts"] for row in pc.value_counts(scored["source"]).to_pylist()}
    sources = {n: {**seen, "kept": counts[n], "rows": counts[n] + 8} for n, seen in facts.sources.items()}
    return replace(facts, scored=scored, sources=sources)


EVERY = {
    "flow", "flow-sources", "population", "population-components", "length-reasoning", "length-health",
    "score-length-contrast", "score-length-perplexity", "score-length-contrast-generator",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (one_component, {"flow-sources", "population-components", "length-reasoning"}),
        (no_refusals, set()),
        (nothing_kept, set()),
        (nothing_scored, EVERY - {"flow", "flow-sources", "score-length-contrast-generator"}),
        (ten, set()),
    ],
)
def test_a_run_of_any_kind_has_the_figures_for_which_there_is_data(
    facts: Facts, tmp_path: Path, change: Callable[[Facts], Facts], missing: set[str]
) -> None:
    assert set(draw(change(facts), tmp_path)) == EVERY - missing


def test_files_stay_small_for_very_many_records(facts: Facts, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 100_000
    rows = rng.integers(0, facts.scored.num_rows, count)
    many = facts.scored.take(pa.array(rows))
    noise = {name: pa.array(rng.normal(0.1, 0.2, count)) for name in ("contrast",)}
    noise |= {"id": pa.array([f"{i:016x}" for i in range(count)]), "refusal": pa.array(rng.beta(0.3, 3, count))}
    draw(changed(replace(facts, scored=many), **noise), tmp_path, max_points=3000)
    sizes = {path.name: path.stat().st_size / 1e3 for path in tmp_path.iterdir()}
    assert len(sizes) == 18 and max(sizes.values()) < 500, sizes


def test_a_waterfall_begins_with_the_rows_read_and_leaves_labelled_refusals_out(facts: Facts, tmp_path: Path) -> None:
    labels = {"rows": 80, "kept": 80, "rejected": {}, "component": "refusal"}
    with rc_context(STYLE):
        pictures = figures_flow.flow(replace(facts, sources={**facts.sources, "labels": labels}), tmp_path)
    kept = pc.sum(facts.scored["kept"]).as_py()
    assert f"432 rows read, {kept} records kept" in pictures["flow"].alt  # 400 scored, 8 set aside of each source
    assert "duplicate 24" in pictures["flow"].alt and "labels" not in pictures["flow-sources"].alt


def test_sources_beyond_the_panels_share_the_last_one(facts: Facts, tmp_path: Path) -> None:
    seen = next(iter(facts.sources.values()))
    more = {f"small_{i}": {**seen, "rows": 8, "kept": 0} for i in range(20)}
    with rc_context(STYLE):
        pictures = figures_flow.flow(replace(facts, sources={**facts.sources, **more}), tmp_path)
    alt = pictures["flow-sources"].alt
    assert "13 others: 0% of 104 rows kept" in alt and alt.count("rows kept") == figures_flow.PANELS


def test_rank_correlation_with_the_length_is_told(facts: Facts, tmp_path: Path) -> None:
    tokens = facts.scored["answer_tokens"]
    every = changed(facts, contrast=pc.negate(tokens.cast(pa.float64())))
    with rc_context(STYLE):
        pictures = figures_scores.scores_by_length(every, tmp_path, 500)
    assert pictures["score-length-contrast"].alt.count("ρ = −1.00") == 4
    assert "ρ =" not in pictures["score-length-perplexity"].alt, "equal values have no rank correlation"


def test_generators_are_shown_with_every_score(facts: Facts, tmp_path: Path) -> None:
    with rc_context(STYLE):
        assert not figures_scorers.generators(
            replace(facts, answers_heldout=facts.answers_heldout.slice(0, 0)), tmp_path
        )
        pictures = figures_scorers.generators(facts, tmp_path)
    assert "vicuna-13b: contrast 0." in pictures["auroc"].alt and "mean: contrast 0." in pictures["auroc"].alt


def test_calibration_names_the_error_and_its_interval(facts: Facts, tmp_path: Path) -> None:
    with rc_context(STYLE):
        picture = figures_scorers.reliability(facts, tmp_path)["reliability"]
        assert not figures_scorers.reliability(replace(facts, heldout=facts.heldout.slice(0, 0)), tmp_path)
    assert "calibration error is 0.041 (95% interval 0.03 to 0.09)." in picture.caption


def main_population(facts: Facts, share: float) -> Facts:
    """The same run, selected with `select.population` too."""
    settings = SelectConfig(population=share)
    rows = facts.scored.to_pylist()
    cuts = {}
    for component in report_fixture.COMPONENTS:
        left = [row for row in rows if row["component"] == component and row["rule"] in ("", "quality")]
        places = [np.array([row[name] for row in left]) for name in ("refusal", "contrast")]
        densities = filters.density(settings, *places)
        cut = filters.population_cut(settings, densities)
        assert cut is not None
        cuts[component] = {**facts.cuts[component], "population": cut}
        for row, density in zip(left, densities, strict=True):
            if density < cut:
                row |= {"kept": False, "rule": "population", "value": float(density), "threshold": cut}
    manifest = facts.manifests["select"]
    config = {"select": {**manifest["config"]["select"], "population": share, "quotas": {"health": 5, "general": 0}}}
    return replace(
        facts,
        scored=pa.Table.from_pylist(rows, schema=facts.scored.schema),
        cuts=cuts,
        manifests={**facts.manifests, "select": {**manifest, "config": config}},
    )


def test_the_main_population_is_drawn_by_component_and_told(facts: Facts, tmp_path: Path) -> None:
    every = main_population(facts, 0.8)
    borders = measures.populations(every)
    assert set(borders) == set(report_fixture.COMPONENTS) and not measures.populations(facts)
    outside = 0
    for component, (density, border) in borders.items():
        rows = [r for r in of_component(every.scored, component).to_pylist() if r["rule"] in (*filters.COMPARING, "")]
        axes = filters.plane_axes("contrast", *(np.array([r[name] for r in rows]) for name in ("refusal", "contrast")))
        beyond = density.at(*axes) < border * (1 - 1e-9)
        assert beyond.tolist() == [r["rule"] == "population" for r in rows]
        outside += int(beyond.sum())
    text = data_part.population(every)["text"]
    assert outside > 10 and f"that holds 80% of it; {outside} records lie outside" in text
    assert "main population" not in data_part.population(facts)["text"]
    picture = draw(every, tmp_path)["population-components"]
    assert "The heavy line borders its main population: the smallest region that holds 80%" in picture.caption
    assert picture.alt.count("outside its main population") == 4
    alone = main_population(facts, 0.8)
    pictures = draw(replace(alone, scored=of_component(alone.scored, "health"), sources={}), tmp_path)
    assert "population-components" in pictures, "the border of a single component is drawn too"


def test_quotas_are_told_by_the_keys_that_set_them(facts: Facts) -> None:
    every = main_population(nothing_kept(facts), 0.8)
    flow = data_part.flow(every)
    assert "The mix takes at most 5 of health." in flow["text"]
    settings = {row[0]: row[3] for row in flow["by_rule"]["rows"]}
    assert settings["quota"] == "quotas: general 0 health 5" and settings["population"] == "population: 0.8"
    assert "The mix takes at most" not in data_part.flow(facts)["text"]


def test_the_dashboard_shows_pictures_that_a_report_has(facts: Facts, tmp_path: Path) -> None:
    drawn = {f"figures/{key}" for key in figures.draw(facts, tmp_path, max_points=500)}
    assert set(workspace.FIGURES["Report"]) <= drawn
