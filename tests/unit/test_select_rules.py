"""Selection: one test for each reason to drop a record, and what is written about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data import filters, select
from cathpc.data.config import SelectConfig
from cathpc.errors import DataError, UserError
from cathpc.record import RECORD_SCHEMA, SCORE_SCHEMA, Record, Score

LOOSE = {"drop_quality": 0.0}


def record(key: str, component: str = "general", turns: int = 1, source: str = "s") -> Record:
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"answer {key}"}]
    return Record(id=key, source=source, component=component, messages=turn * turns)


def score(key: str, **figures: Any) -> Score:
    """A score that passes every rule, but for `figures`."""
    fine = {"nll": 1.0, "pool_nll": 1.5, "perplexity": 2.7, "contrast": 0.5, "refusal": 0.01, "tokens": 220}
    fine |= {
        "answer_tokens": 200,
        "correlatives": 3,
        "steps": 2,
        "turn_tokens": 200.0,
        "diagnosis": 0.6,
        "language": "en",
    }
    return Score(id=key, **{**fine, **figures})


class Case:
    """Shards on disk and the stage on them."""

    def __init__(self, folder: Path, rows: list[tuple[Record, Score]], shard: int = 100) -> None:
        self.inputs = {"pull": folder / "pull", "score": folder / "score"}
        self.out = folder / "out"
        for path in (self.inputs["pull"] / "records", self.inputs["score"] / "scores", self.out):
            path.mkdir(parents=True)
        for number, start in enumerate(range(0, len(rows), shard) or [0]):
            part = rows[start : start + shard]
            for kind, schema, items in (
                ("pull/records/records", RECORD_SCHEMA, [r for r, _ in part]),
                ("score/scores/scores", SCORE_SCHEMA, [s for _, s in part]),
            ):
                table = pa.Table.from_pylist([vars(i) for i in items], schema=schema)
                pq.write_table(table, folder / f"{kind}-{number:05d}.parquet")

    def run(self, **settings: Any) -> dict[str, Any]:
        config: Any = SimpleNamespace(select=SelectConfig(**{**LOOSE, **settings}))
        return select.run(config, self.inputs, self.out)

    def verdicts(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in pq.read_table(self.out / "verdicts.parquet").to_pylist()}

    def kept(self) -> list[str]:
        return pq.read_table(self.out / "kept.parquet")["id"].to_pylist()


def judge(tmp_path: Path, bad: tuple[Record, Score], **settings: Any) -> dict[str, Any]:
    """The verdict on `bad`, next to a record that passes."""
    case = Case(tmp_path, [(record("good"), score("good")), bad])
    case.run(**settings)
    assert case.kept() == ["good"]
    assert case.verdicts()["good"] == {
        "id": "good", "kept": True, "rule": "", "value": None, "threshold": None, "source": "s", "component": "general",
    }  # fmt: skip
    return case.verdicts()["bad"]


def reason(verdict: dict[str, Any]) -> tuple[Any, ...]:
    return verdict["rule"], verdict["value"], verdict["threshold"]


def test_a_record_without_scores_is_dropped_by_its_status(tmp_path: Path) -> None:
    bad = Score("bad", status="too_long", tokens=5000, answer_tokens=4000)
    assert reason(judge(tmp_path, (record("bad"), bad))) == ("status", 5000, None)


def test_a_record_that_was_not_worth_scoring_is_dropped_by_the_rule_that_says_why(tmp_path: Path) -> None:
    counts = {"tokens": 90, "answer_tokens": 70, "steps": 1, "language": "en"}
    bad = Score("bad", status="skipped", correlatives=0, **counts)
    assert reason(judge(tmp_path, (record("bad"), bad))) == ("no_correlative", 0, 1)


def test_a_record_of_another_language_is_dropped(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", language="de")))) == ("language", None, None)


def test_a_refusal_is_dropped(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", refusal=0.21)))) == ("refusal", 0.21, 0.2)


def test_a_short_answer_is_dropped(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", answer_tokens=9)))) == ("too_short", 9, 10)


def test_a_long_answer_is_dropped(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", answer_tokens=1001)))) == ("too_long", 1001, 1000)


def test_a_short_chain_of_thought_of_a_single_turn_is_dropped(tmp_path: Path) -> None:
    bad = (record("bad", "reasoning"), score("bad", answer_tokens=50))
    assert reason(judge(tmp_path, bad)) == ("cot_short", 50, 50)


def test_a_short_chain_of_thought_in_a_conversation_stays(tmp_path: Path) -> None:
    case = Case(tmp_path, [(record("talk", "reasoning", turns=2), score("talk", answer_tokens=50))])
    case.run()
    assert case.kept() == ["talk"]


def test_a_short_health_answer_is_dropped(tmp_path: Path) -> None:
    bad = (record("bad", "health"), score("bad", answer_tokens=100))
    assert reason(judge(tmp_path, bad)) == ("health_short", 100, 100)


def test_a_vague_health_answer_is_dropped_where_a_diagnosis_is_asked_for(tmp_path: Path) -> None:
    bad = (record("bad", "health"), score("bad", diagnosis=0.3))
    assert reason(judge(tmp_path / "asked", bad, health_min_diagnosis=0.5)) == ("health_vague", 0.3, 0.5)
    case = Case(tmp_path / "not", [bad, (record("other"), score("other", diagnosis=0.1))])
    case.run()
    assert case.kept() == ["bad", "other"], "off by default"
    case.run(health_min_diagnosis=0.2)
    assert case.kept() == ["bad", "other"], "of health alone"


def test_an_answer_without_correlatives_is_dropped(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", correlatives=0)))) == ("no_correlative", 0, 1)


def test_an_answer_with_few_steps_is_dropped_where_steps_are_asked_for(tmp_path: Path) -> None:
    assert reason(judge(tmp_path, (record("bad"), score("bad", steps=1)), min_steps=2)) == ("few_steps", 1, 2)


@pytest.mark.parametrize(("quality", "bad", "limit"), [("contrast", 0.1, 0.2), ("perplexity", 9.5, 9.0)])
def test_what_is_worse_than_the_least_quality_is_dropped_in_every_component(
    tmp_path: Path, quality: str, bad: float, limit: float
) -> None:
    rows = [(record("good"), score("good")), (record("at"), score("at", **{quality: limit}))]
    rows += [(record("bad", "health"), score("bad", **{quality: bad}))]
    case = Case(tmp_path, rows)
    case.run(quality=quality)
    assert case.kept() == ["good", "at", "bad"], "off by default"
    summary = case.run(quality=quality, min_quality=limit)
    assert case.kept() == ["good", "at"] and summary["dropped"] == {"low_quality": 1}
    assert reason(case.verdicts()["bad"]) == ("low_quality", bad, limit)
    with pytest.raises(UserError, match=r"rule 'low_quality' .*select\.min_quality is"):
        case.run(quality=quality, min_quality=9.0 if quality == "contrast" else 0.9)


def test_the_first_rule_that_drops_a_record_is_its_reason(tmp_path: Path) -> None:
    bad = (record("bad"), score("bad", language="de", refusal=0.9, answer_tokens=1))
    assert judge(tmp_path, bad)["rule"] == "language"


def test_the_worst_share_by_contrast_is_dropped_within_each_component(tmp_path: Path) -> None:
    rows = [(record(f"g{i}"), score(f"g{i}", contrast=i / 10)) for i in range(11)]
    rows += [(record(f"h{i}", "health"), score(f"h{i}", contrast=-10 + i / 10)) for i in range(11)]
    case = Case(tmp_path, rows, shard=5)
    case.run(drop_quality=0.3)
    assert set(case.kept()) == {f"{c}{i}" for c in "gh" for i in range(3, 11)}
    assert reason(case.verdicts()["h2"]) == ("quality", -9.8, -9.7)
    assert reason(case.verdicts()["g0"]) == ("quality", 0.0, 0.3)


def test_by_perplexity_the_highest_are_dropped(tmp_path: Path) -> None:
    rows = [(record(f"g{i}"), score(f"g{i}", perplexity=float(i))) for i in range(11)]
    case = Case(tmp_path, rows)
    case.run(quality="perplexity", drop_quality=0.3)
    assert case.kept() == [f"g{i}" for i in range(8)]


def test_quality_is_ranked_among_what_the_other_rules_left(tmp_path: Path) -> None:
    rows = [(record(f"r{i}"), score(f"r{i}", contrast=-5.0, refusal=0.9)) for i in range(10)]
    rows += [(record(f"g{i}"), score(f"g{i}", contrast=float(i))) for i in range(11)]
    case = Case(tmp_path, rows)
    case.run(drop_quality=0.1)
    assert case.kept() == [f"g{i}" for i in range(1, 11)]


def test_a_quota_is_shared_equally_by_the_components_and_drawn_by_hash(tmp_path: Path) -> None:
    rows = [(record(f"g{i}"), score(f"g{i}")) for i in range(50)]
    rows += [(record(f"h{i}", "health"), score(f"h{i}")) for i in range(50)]
    rows += [(record(f"x{i}", "roleplay"), score(f"x{i}")) for i in range(4)]
    case = Case(tmp_path, rows, shard=30)
    case.run(max_records=20)
    kept = case.kept()
    assert [sum(k.startswith(c) for k in kept) for c in "ghx"] == [8, 8, 4]
    general = sorted((f"g{i}" for i in range(50)), key=filters.sample_hash)
    assert {k for k in kept if k.startswith("g")} == set(general[:8])
    assert reason(case.verdicts()[general[8]]) == (
        "quota", filters.sample_hash(general[8]), filters.sample_hash(general[7]),
    )  # fmt: skip


def test_rules_that_are_switched_off_drop_nothing(tmp_path: Path) -> None:
    odd = score("odd", language="xx", refusal=1.0, answer_tokens=1, correlatives=0)
    case = Case(tmp_path, [(record("odd", "health"), odd)])
    case.run(
        languages=[],
        refusal_max=None,
        min_answer_tokens=0,
        max_answer_tokens=0,
        health_min_tokens=0,
        min_correlatives=0,
    )
    assert case.kept() == ["odd"]


def test_a_refusal_cutoff_of_zero_is_the_strictest_one(tmp_path: Path) -> None:
    rows = [(record("sure"), score("sure", refusal=0.0)), (record("near"), score("near", refusal=0.001))]
    case = Case(tmp_path, rows)
    case.run(refusal_max=0.0)
    assert case.kept() == ["sure"] and reason(case.verdicts()["near"]) == ("refusal", 0.001, 0.0)


def test_nothing_kept_names_the_rule_that_emptied_it(tmp_path: Path) -> None:
    rows = [(record("a"), score("a", language="de")), (record("b"), score("b", refusal=0.4))]
    case = Case(tmp_path, rows)
    with pytest.raises(UserError, match=r"rule 'refusal' .*0\.4.*select\.refusal_max is 0\.2"):
        case.run()


@pytest.mark.parametrize(
    "settings", [{"quality": "beauty"}, {"drop_quality": 1.0}, {"refusal_max": 20.0}, {"population": 1.5}]
)
def test_settings_without_sense_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    case = Case(tmp_path, [(record("a"), score("a"))])
    with pytest.raises(UserError, match=f"select.{next(iter(settings))}"):
        case.run(**settings)


def test_the_flow_adds_up_by_source_and_by_component(tmp_path: Path) -> None:
    rows = [(record("a", source="one"), score("a")), (record("b", source="one"), score("b", refusal=0.9))]
    rows += [(record("c", "health", source="two"), score("c", answer_tokens=5))]
    case = Case(tmp_path, rows, shard=2)
    summary = case.run()
    flow = json.loads((case.out / "flow.json").read_text())
    assert (flow["in"], flow["kept"]) == (3, 1)
    assert {k: v for k, v in flow["dropped"].items() if v} == {"refusal": 1, "too_short": 1}
    for group in ("by_source", "by_component"):
        assert sum(part["in"] for part in flow[group].values()) == 3
        for part in flow[group].values():
            assert part["in"] == part["kept"] + sum(part["dropped"].values())
    assert flow["by_source"]["one"]["dropped"]["refusal"] == 1
    assert summary["two_or_more_steps"] == 1.0 and summary["components"]["general"]["median_answer_tokens"] == 200


def test_the_result_does_not_depend_on_the_shards_and_keeps_records_whole(tmp_path: Path) -> None:
    rows = [(record(f"r{i}", turns=1 + i % 3), score(f"r{i}", contrast=(i * 7 % 13) / 13)) for i in range(40)]
    one, many = Case(tmp_path / "one", rows), Case(tmp_path / "many", rows, shard=7)
    for case in (one, many):
        case.run(drop_quality=0.4, max_records=15)
    kept = pq.read_table(one.out / "kept.parquet")
    assert kept.schema == RECORD_SCHEMA
    assert kept == pq.read_table(many.out / "kept.parquet")
    whole = {r.id: r.messages for r, _ in rows}
    assert all(row["messages"] == whole[row["id"]] for row in kept.to_pylist())


def test_scores_of_other_records_are_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, [(record("a"), score("b"))])
    with pytest.raises(DataError, match="scores-00000"):
        case.run()


def test_missing_or_torn_scores_are_named(tmp_path: Path) -> None:
    case = Case(tmp_path, [(record("a"), score("a"))])
    path = case.inputs["score"] / "scores" / "scores-00000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="scores-00000"):
        case.run()
    path.unlink()
    with pytest.raises(DataError, match="scores-00000"):
        case.run()


def test_selection_loads_no_torch() -> None:
    code = "import sys, cathpc.data.select; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def plane(refusal: Any, quality: Any) -> list[tuple[Record, Score]]:
    """Records at these places of the (refusal, quality) plane."""
    pairs = list(zip(refusal, quality, strict=True))
    return [(record(f"r{i}"), score(f"r{i}", refusal=float(x), contrast=float(y))) for i, (x, y) in enumerate(pairs)]


def test_what_lies_outside_the_main_population_is_dropped(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    inside = plane(1 / (1 + np.exp(4 + draws.normal(0, 0.5, 500))), draws.normal(0.3, 0.1, 500))
    far = [(record(f"far{i}"), score(f"far{i}", refusal=0.15, contrast=c)) for i, c in enumerate((-2.0, 2.5, 3.0))]
    case = Case(tmp_path, inside + far)
    case.run(population=0.9)
    kept = case.kept()
    assert not any(key.startswith("far") for key in kept) and 0.9 * 503 <= len(kept) <= 0.92 * 503
    rule, value, threshold = reason(case.verdicts()["far0"])
    assert rule == "population" and 0 <= value < threshold < 1
    flow = json.loads((case.out / "flow.json").read_text())
    assert flow["cuts"]["general"]["population"] == threshold


def test_the_main_population_is_the_smallest_region_that_holds_its_share() -> None:
    """Two normal populations: the border cuts both at one density, unlike a box (Hyndman 1996)."""
    draws = np.random.default_rng(1)
    logit = np.concatenate([draws.normal(-4, 0.3, 6000), draws.normal(-2, 0.6, 4000)])
    refusal, quality = (
        1 / (1 + np.exp(-logit)),
        np.concatenate([draws.normal(0, 0.2, 6000), draws.normal(2, 0.4, 4000)]),
    )
    settings = SelectConfig(population=0.8)
    densities = filters.density(settings, refusal, quality)
    cut = filters.population_cut(settings, densities)
    assert cut is not None and (densities >= cut).mean() == pytest.approx(0.8, abs=0.02)

    def normal(x: Any, y: Any, sx: float, sy: float) -> Any:
        return np.exp(-((x / sx) ** 2 + (y / sy) ** 2) / 2) / (2 * np.pi * sx * sy)

    true = 0.6 * normal(logit + 4, quality, 0.3, 0.2) + 0.4 * normal(logit + 2, quality - 2, 0.6, 0.4)
    agree = (densities >= cut) == (true >= np.quantile(true, 0.2))
    assert agree.mean() > 0.95


def test_a_population_of_equal_records_stays_whole(tmp_path: Path) -> None:
    case = Case(tmp_path, plane([0.01] * 20, [0.5] * 20))
    case.run(population=0.5)
    assert len(case.kept()) == 20


def test_a_component_has_a_quota_of_its_own(tmp_path: Path) -> None:
    rows = [(record(f"g{i}"), score(f"g{i}")) for i in range(30)]
    rows += [(record(f"h{i}", "health"), score(f"h{i}")) for i in range(30)]
    case = Case(tmp_path, rows, shard=7)
    case.run(quotas={"health": 5})
    assert [sum(k.startswith(c) for k in case.kept()) for c in "gh"] == [30, 5]
    assert {k for k in case.kept() if k.startswith("h")} == set(
        sorted((f"h{i}" for i in range(30)), key=filters.sample_hash)[:5]
    )


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"quotas": {"health": 5}}, ["quotas"]),
        ({"max_records": 9}, ["max_records"]),
        ({"quotas": {"health": 5}, "max_records": 9}, ["quotas", "max_records"]),
    ],
)
def test_the_quota_is_told_by_the_keys_that_are_set(settings: dict[str, Any], keys: list[str]) -> None:
    assert filters.keys(SelectConfig(**settings), "quota") == keys
    assert filters.keys(SelectConfig(**settings), "refusal") == ["refusal_max"]
    assert filters.keys(SelectConfig(**settings), "status") == []
