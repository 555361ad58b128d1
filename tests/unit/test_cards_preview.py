"""The act `cards preview`: some cards and what all of them cost, before the hours are spent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc import acts
from cathpc.acts import cards as act
from cathpc.errors import UserError
from cathpc.record import RECORD_SCHEMA
from cathpc.serving.config import EndpointConfig

from .test_cards_stage import RECORDS, TINY, whole_config


def config(cache: Path, **cards: Any) -> Any:
    found = whole_config(replace(TINY, **cards), cache)
    found.cluster = SimpleNamespace(arrays={"cards": 2})
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "kept.parquet"
    pq.write_table(pa.Table.from_pylist([r.row() for r in RECORDS], RECORD_SCHEMA), file)
    return file


def test_preview_writes_the_cards_of_n_records_only_and_the_same_ones_once(
    kept: Path, model_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = EndpointConfig(usd_per_million_input=1000.0, usd_per_million_output=2000.0)
    settings = config(model_cache, endpoint=prices, shard_records=1, attempts=1)
    assert act.preview(settings, kept, 2) == 0
    said = capsys.readouterr().out
    assert [r.id in said for r in RECORDS] == [True, False, True, False, False]
    assert (
        "2 of 5 records" in said and "tokens written" in said and "USD" in said and "on each of 2 array tasks" in said
    )
    files = list((model_cache / "previews").rglob("drafts-*.jsonl"))
    drafts = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [d["id"] for d in drafts] == [RECORDS[0].id]
    assert act.preview(settings, kept, 2) == 0
    assert sum(len(file.read_text().splitlines()) for file in files) == 1


def test_positions_are_spread_evenly() -> None:
    assert act.spread(10, 3) == [0, 3, 6] and act.spread(2, 9) == [0, 1]


def test_preview_before_selection_names_the_command(tmp_path: Path) -> None:
    words = ["cards", "preview", "-n", "3", "+experiment=smoke", f"paths.store={tmp_path}", f"paths.cache={tmp_path}"]
    with pytest.raises(UserError, match="no records are selected yet"):
        found, arguments = acts.pick(words)
        found.main(arguments)
    with pytest.raises(UserError, match="at least one"):
        found, arguments = acts.pick([*words[:3], "0", *words[4:]])
        found.main(arguments)
