"""Scoring a file of one's own: every row in gives one row out, in order, whatever is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data import scorefile
from cathpc.data.likelihood import ScoringModels, score_records
from cathpc.data.scorefile import COLUMNS, Fields, Survey, fields, score_file, survey, to_row
from cathpc.errors import UserError
from cathpc.models.config import Dtype, ScoreConfig
from cathpc.record import Record, Score

MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def models(scoring_folders: dict[str, Path]) -> ScoringModels:
    return ScoringModels.load(ScoreConfig(dtype=Dtype.float32, window=300), **scoring_folders)


def conversation(key: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Ask {key}"},
        {"role": "assistant", "content": "because it is so " * (key + 1)},
    ]


def counted(records: Sequence[Record]) -> list[Score]:
    """Stands for the models where only the file is looked at: the score says which answer it saw."""
    return [Score("", nll=float(len(r.messages[-1]["content"])), tokens=len(r.messages)) for r in records]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def scored(tmp_path: Path, file: Path, scorer: Any = counted, output: str = "out.jsonl", **named: str) -> list[Any]:
    seen = survey(file, MAX_BYTES)
    columns = fields(seen, **named)
    out = tmp_path / output
    options: dict[str, Any] = {"about": "a", "max_bytes": MAX_BYTES}
    score_file(file, out, columns, seen.rows, scorer, **options)
    assert not list(tmp_path.glob(".*.partial"))
    if out.suffix == ".parquet":
        rows: list[Any] = pq.read_table(out).to_pylist()
        return rows
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_have_the_scores_that_their_records_have_in_the_pipeline(tmp_path: Path, models: ScoringModels) -> None:
    records = [Record(f"r{i}", "s", "general", conversation(i)) for i in range(6)]
    file = lines(tmp_path / "in.jsonl", *({"id": r.id, "messages": r.messages} for r in records))
    found = scored(tmp_path, file, lambda rows: score_records(rows, models))
    for row, score in zip(found, score_records(records, models), strict=True):
        assert tuple(row) == COLUMNS
        assert row["id"] == score.id and row["status"] == score.status == "ok"
        for name in COLUMNS[2:]:
            assert row[name] == pytest.approx(getattr(score, name), abs=1e-5)


def test_every_bad_row_gives_one_row_with_a_named_status_in_its_place(tmp_path: Path, models: ScoringModels) -> None:
    good = {"instruction": "q", "output": "because it is"}
    rows: list[tuple[Any, str]] = [
        (good, "ok"),
        ({"instruction": "q", "output": ""}, "empty"),
        ({"instruction": "q"}, "empty"),
        ({"instruction": None, "output": "x"}, "no_prompt"),
        ({"instruction": 3, "output": "x"}, "wrong_type"),
        ("[1, 2]", "wrong_type"),
        ('{"instruction": "q", "output"', "not_json"),
        ('{"instruction": "q", "output": NaN}', "wrong_type"),
        ({"instruction": "q", "output": "a\0b"}, "bad_text"),
        ('{"instruction": "q", "output": "\\ud800"}', "bad_text"),
        ({"instruction": "q", "output": "so " * 50_000}, "too_large"),
        ({"instruction": "q", "output": "so " * 5_000}, "too_long"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "bad_turns"),
        ({"messages": []}, "no_prompt"),
        ({"messages": conversation(1)}, "ok"),
        (good, "ok"),
    ]
    file = lines(tmp_path / "in.jsonl", *(row for row, _ in rows))
    with open(file, "ab") as more:
        more.write(b'{"instruction": "q", "output": "\xff\xfe"}\n')
    found = scored(tmp_path, file, lambda records: score_records(records, models))
    assert [row["status"] for row in found] == [*(status for _, status in rows), "bad_text"]
    assert [row["id"] for row in found] == list(range(1, len(found) + 1))
    for row in found:
        figures = [row[name] for name in ("perplexity", "nll", "contrast", "refusal", "correlatives", "steps")]
        if row["status"] == "ok":
            assert all(math.isfinite(figure) for figure in figures)
        else:
            assert set(figures) == {None}
    assert found[0]["nll"] == pytest.approx(found[15]["nll"], abs=1e-5)


def test_a_chosen_conversation_is_scored_and_a_bad_one_has_its_own_status(tmp_path: Path) -> None:
    good = {"prompt": "Ask 1", "chosen": conversation(1), "rejected": conversation(0), "chosen-rating": 5.0}
    rows = [good, {**good, "chosen": conversation(1)[::-1]}, {**good, "chosen": []}, {**good, "chosen": "plain"}]
    file = lines(tmp_path / "in.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows[:3]), tmp_path / "in.parquet")
    found = scored(tmp_path, file)
    assert [row["status"] for row in found] == ["ok", "bad_turns", "no_prompt", "ok"]
    assert [row["nll"] for row in found if row["status"] == "ok"] == [len("because it is so because it is so"), 5]
    assert scored(tmp_path, tmp_path / "in.parquet") == found[:3]


def test_parquet_in_and_out_equal_json_lines(tmp_path: Path) -> None:
    rows = [{"id": f"k{i}", "prompt": "q", "response": None if i == 2 else "x" * (i + 1)} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    one = scored(tmp_path, lines(tmp_path / "in.jsonl", *rows))
    other = scored(tmp_path, tmp_path / "in.parquet", output="out.parquet")
    assert one == other and [row["status"] for row in one] == ["ok", "ok", "empty", "ok", "ok"]
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert tuple(schema.names) == COLUMNS and schema.field("id").type == pa.string()


@pytest.mark.parametrize("group", [0, 1])
def test_every_row_of_a_damaged_row_group_gives_one_row_in_its_place(tmp_path: Path, group: int) -> None:
    rows = [{"id": i, "prompt": "q", "response": f"answer {i}"} for i in range(300)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100, use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(group).column(2).data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    found = scored(tmp_path, path)
    bad = range(group * 100, group * 100 + 100)
    assert [row["status"] for row in found] == ["unreadable" if i in bad else "ok" for i in range(300)]
    assert [row["id"] for row in found] == [i + 1 if i in bad else i for i in range(300)]


def test_columns_that_are_named_are_seen_behind_any_number_of_others(tmp_path: Path) -> None:
    rows = [{f"k{i} {j}": 1 for j in range(50)} for i in range(100)]
    file = lines(tmp_path / "in.jsonl", *rows, {"ask": "q", "reply": "a", "output": "b"})
    seen = survey(file, MAX_BYTES, ["ask", "reply"])
    assert fields(seen, instruction="ask", answer="reply").answer == "reply"
    assert {"ask", "reply", "output"} < set(seen.columns) and len(seen.columns) < 1100


def test_whole_ids_stay_whole_and_mixed_ones_become_text_in_parquet(tmp_path: Path) -> None:
    whole_ids = lines(tmp_path / "whole.jsonl", *({"id": i * 7, "prompt": "q", "response": "x"} for i in range(3)))
    assert [row["id"] for row in scored(tmp_path, whole_ids, output="a.parquet")] == [0, 7, 14]
    mixed = lines(
        tmp_path / "mixed.jsonl", *({"id": i, "prompt": "q", "response": "x"} for i in (5, "b", None, 2**70, True))
    )
    expected = ["5", "b", "3", str(2**70), "True"]
    assert [row["id"] for row in scored(tmp_path, mixed, output="b.parquet")] == expected


@pytest.mark.parametrize(
    ("row", "named", "messages"),
    [
        ({"instruction": "q", "input": "i", "output": "a"}, {}, ["q\n\ni", "a"]),
        ({"prompt": "q", "response": "a", "input": "i"}, {}, ["q", "a"]),
        ({"text": "q", "label": "a", "output": "no"}, {"instruction": "text", "answer": "label"}, ["q", "a"]),
        ({"messages": [], "text": "q", "x": "a"}, {"instruction": "text", "answer": "x"}, ["q", "a"]),
        ({"prompt": "q", "chosen": "a", "s": "be kind"}, {"system": "s"}, ["be kind", "q", "a"]),
        ({"prompt": "q", "chosen": conversation(0), "rejected": []}, {}, ["Ask 0", "because it is so"]),
        (
            {"prompt": "q", "chosen": conversation(0), "s": "be kind"},
            {"system": "s"},
            ["be kind", "Ask 0", "because it is so"],
        ),
        (
            {"prompt": "q", "x": conversation(0)},
            {"instruction": "prompt", "answer": "x"},
            ["Ask 0", "because it is so"],
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {}, ["q", "a"]),
        ({"instruction": "c", "input": "q", "output": "a"}, {"instruction": "input", "answer": "output"}, ["q", "a"]),
    ],
)
def test_columns_are_those_named_else_the_usual_ones(
    row: dict[str, Any], named: dict[str, str], messages: list[str]
) -> None:
    _, record = to_row(row, 1, fields(Survey(1, tuple(row)), **named))
    assert isinstance(record, Record)
    assert [m["content"] for m in record.messages] == messages


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    file = lines(tmp_path / "in.jsonl", {"prompt": "q", "text": "a"})
    with pytest.raises(UserError, match=r"--answer reply: no row has such a column. Columns seen: prompt, text"):
        scored(tmp_path, file, instruction="prompt", answer="reply")
    with pytest.raises(UserError, match=r"--instruction is given without --answer"):
        scored(tmp_path, file, instruction="prompt")
    with pytest.raises(UserError, match=r"--instruction COLUMN --answer COLUMN. Columns seen: prompt, text"):
        scored(tmp_path, file)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    cases = {"in.txt": "unknown file format", "gone.jsonl": "no such file", "empty.jsonl": "has no row"}
    (tmp_path / "in.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for name, text in cases.items():
        with pytest.raises(UserError, match=rf"{name}.*{text}|{name} {text}"):
            survey(tmp_path / name, MAX_BYTES)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(UserError, match=r"torn.parquet cannot be read as parquet"):
        survey(tmp_path / "torn.parquet", MAX_BYTES)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "in.jsonl", {"prompt": "q", "response": "a"})
    for name, text in {"out.csv": "jsonl or .parquet", "no/out.jsonl": "no folder", "in.jsonl": "is the input"}.items():
        with pytest.raises(UserError, match=text):
            scorefile.check_output(tmp_path / name, file)


def test_after_a_kill_only_the_rest_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorefile, "CHUNK_ROWS", 4)
    file = lines(tmp_path / "in.jsonl", *({"prompt": "q", "response": "x" * (i + 1)} for i in range(10)))
    out, asked = tmp_path / "out.jsonl", []
    options: dict[str, Any] = {"max_bytes": MAX_BYTES}

    def dying(records: Sequence[Record]) -> list[Score]:
        if len(records[0].messages[-1]["content"]) > 8:
            raise KeyboardInterrupt
        return counted(records)

    columns = Fields(instruction="prompt", answer="response")
    with pytest.raises(KeyboardInterrupt):
        score_file(file, out, columns, 10, dying, about="a", **options)
    assert not out.exists(), "an output is whole or absent"
    with open(tmp_path / ".out.jsonl.partial", "ab") as partial:
        partial.write(b'{"id": 9, "sta')  # what a kill in the middle of writing leaves

    def noting(records: Sequence[Record]) -> list[Score]:
        asked.extend(len(r.messages[-1]["content"]) for r in records)
        return counted(records)

    assert score_file(file, out, columns, 10, noting, about="a", **options) == 8
    assert asked == [9, 10]
    assert [json.loads(line)["nll"] for line in out.read_text().splitlines()] == list(range(1, 11))


def test_what_other_models_had_left_is_scored_anew(tmp_path: Path) -> None:
    file = lines(tmp_path / "in.jsonl", {"prompt": "q", "response": "xx"})
    out = tmp_path / "out.jsonl"
    (tmp_path / ".out.jsonl.partial").write_text('old\n{"id": 1, "nll": 7}\n')
    columns = Fields(instruction="prompt", answer="response")
    options: dict[str, Any] = {"max_bytes": MAX_BYTES}
    assert score_file(file, out, columns, 1, counted, about="new", **options) == 0
    assert json.loads(out.read_text())["nll"] == 2


def test_two_processes_never_write_one_output(tmp_path: Path) -> None:
    file = lines(tmp_path / "in.jsonl", {"prompt": "q", "response": "xx"})
    columns = Fields(instruction="prompt", answer="response")
    options: dict[str, Any] = {"about": "a", "max_bytes": MAX_BYTES}

    def second(records: Sequence[Record]) -> list[Score]:
        with pytest.raises(UserError, match="another process is writing it"):
            score_file(file, tmp_path / "out.jsonl", columns, 1, counted, **options)
        return counted(records)

    score_file(file, tmp_path / "out.jsonl", columns, 1, second, **options)
    assert json.loads((tmp_path / "out.jsonl").read_text())["status"] == "ok"


def test_a_chunk_is_bounded_by_its_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorefile, "CHUNK_CHARACTERS", 1000)
    file = lines(tmp_path / "in.jsonl", *({"prompt": "q", "response": "x" * 600} for _ in range(5)))
    sizes: list[int] = []

    def noting(records: Sequence[Record]) -> list[Score]:
        sizes.append(len(records))
        return counted(records)

    scored(tmp_path, file, noting)
    assert sizes == [2, 2, 1]
