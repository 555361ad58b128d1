"""Faults 32 to 34: damaged files and monstrous rows are set aside with a reason, others finish, in bounded memory."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data.block import BLOCK_BYTES, PIECE
from cathpc.data.config import DatasetConfig, Format, SourceConfig
from cathpc.data.files import blocks
from cathpc.data.read import rows as decoded
from cathpc.errors import UserError
from tests.unit.test_pull_stage import ROOT, Pulled, line, one

GOOD = line("a", "b")


def many(count: int) -> str:
    draws = random.Random(0)
    return "".join(line(f"question {i}", " ".join(draws.choices("abcdefghij", k=40)) + f" {i}") for i in range(count))


def table(count: int) -> pa.Table:
    rows = [json.loads(text) for text in many(count).splitlines()]
    return pa.table({name: [row[name] for row in rows] for name in ("prompt", "response")})


def with_another(tmp_path: Path, name: str, content: bytes) -> Pulled:
    """What a damaged source leaves beside a sound one."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "sound.jsonl").write_text(GOOD)
    sources = {
        key: SourceConfig(path=path, license="mit", format=Format.prompt_response)
        for key, path in (("damaged", name), ("sound", "sound.jsonl"))
    }
    got = Pulled(tmp_path, DatasetConfig(root=str(tmp_path), sources=sources))
    assert got.sources["sound"]["kept"] == 1
    return got


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.json.zst", "a.csv.gz", "a.jsonl.zst", "a.arrow", "b.arrow", "a.parquet"]
)
def test_all_kinds_of_files_give_the_same_rows(tmp_path: Path, name: str) -> None:
    data = table(300)
    if name.endswith("parquet"):
        pq.write_table(data, tmp_path / "x", row_group_size=50)
    elif name.endswith("arrow"):
        start = pa.ipc.new_file if name == "a.arrow" else pa.ipc.new_stream
        with start(str(tmp_path / "x"), data.schema) as writer:
            writer.write_table(data, max_chunksize=70)
    else:
        text = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in data.to_pylist()),
            "json": json.dumps(data.to_pylist()),
            "csv": "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in data.to_pylist()),
        }[name.split(".")[1]]
        with pa.output_stream(str(tmp_path / "x"), compression="gzip" if name.endswith("gz") else "zstd") as file:
            file.write(text.encode())
    got = one(tmp_path, name, (tmp_path / "x").read_bytes(), near_duplicates=0)
    assert got.pairs == [(r["prompt"], r["response"]) for r in data.to_pylist()]
    assert got.records[-1]["origin"] == f"{name}:300"


def test_a_parquet_file_without_its_footer_is_one_row_set_aside_and_others_finish(tmp_path: Path) -> None:
    pq.write_table(table(10), tmp_path / "x")
    got = with_another(tmp_path, "a.parquet", (tmp_path / "x").read_bytes()[:-20])
    assert got.reasons == ["unreadable"] and got.rejects[0]["detail"].startswith("damaged")
    assert "DAMAGED: a.parquet:1" in got.summary["line"]


def test_of_a_parquet_file_with_a_broken_row_group_the_others_are_kept(tmp_path: Path) -> None:
    pq.write_table(table(3000), tmp_path / "x", row_group_size=1000, use_dictionary=False)
    content = bytearray((tmp_path / "x").read_bytes())
    group = pq.read_metadata(tmp_path / "x").row_group(1).column(1)
    start = group.data_page_offset
    content[start : start + 400] = b"\xff" * 400
    got = with_another(tmp_path, "a.parquet", bytes(content))
    assert got.sources["damaged"]["rows"] == 3000
    assert sum(r["source"] == "damaged" for r in got.records) == 2000
    assert got.rejects[0]["rows"] == 1000 and got.rejects[0]["origin"] == "a.parquet:1001"


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "arrow", "json"])
def test_what_comes_before_the_end_of_a_file_that_was_cut_short_is_kept(tmp_path: Path, kind: str) -> None:
    if kind == "arrow":
        with pa.ipc.new_file(str(tmp_path / "x"), table(3000).schema) as writer:
            writer.write_table(table(3000), max_chunksize=500)
        content = (tmp_path / "x").read_bytes()
    elif kind == "json":
        content = json.dumps(table(3000).to_pylist()).encode()
    else:
        with pa.output_stream(str(tmp_path / "x"), compression="gzip" if kind.endswith("gz") else "zstd") as file:
            for start in range(0, 3000, 100):
                file.write("".join(many(3000).splitlines(keepends=True)[start : start + 100]).encode())
                file.flush()
        content = (tmp_path / "x").read_bytes()
    got = with_another(tmp_path, f"a.{kind}", content[: len(content) * 3 // 4])
    kept = sum(r["source"] == "damaged" for r in got.records)
    assert 500 <= kept < 3000
    assert got.reasons[-1] == "unreadable" and set(got.reasons) <= {"unreadable", "not_json"}


def test_a_file_that_is_not_what_its_name_says_is_one_error(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow", "a.jsonl.gz", "a.jsonl.zst"):
        with pytest.raises(UserError, match=rf"1 rows of k give no record \(unreadable 1\)\. {name}:1: "):
            one(tmp_path, name, b"certainly something else, and long enough to be looked at" * 9)


def test_a_broken_element_of_a_large_array_loses_what_follows_it_and_says_where(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"question {i}", "response": "x" * 4000}) for i in range(5500)]
    rows[1] = '{"prompt": oops}'
    got = one(tmp_path, "a.json", "[" + ",\n".join(rows) + "]", near_duplicates=0)
    assert (tmp_path / "a.json").stat().st_size > 20_000_000
    assert got.pairs == [("question 0", "x" * 4000)] and got.reasons == ["unreadable"]
    assert "Expecting value at line 2, column 12" in got.rejects[0]["detail"]


@pytest.mark.parametrize("shift", range(20))
def test_an_array_may_be_cut_anywhere_between_two_reads(tmp_path: Path, shift: int) -> None:
    """Whatever token the border of the first piece falls into, the elements are the same."""
    tail = [1.5e-7, 'q\\"', {"a": [True, None, -0.25, "\U0001f600"]}, -12]
    start = '["' + "x" * (PIECE - 5 - shift * 3) + '", '
    path = tmp_path / "a.json"
    path.write_text(start + ", ".join(map(json.dumps, tail)) + "]")
    found = [row for block in blocks(path, "a.json", 8_000_000, 10**9) for _, row in decoded(block, 8_000_000)]
    assert found[1:] == tail


def test_a_too_large_element_is_passed_over_and_the_next_is_kept(tmp_path: Path) -> None:
    rows = [json.loads(line(str(i), "x" * (5_000_000 if i == 1 else 50))) for i in range(4)]
    got = one(tmp_path, "a.json", json.dumps(rows), max_row_mb=1)
    assert [prompt for prompt, _ in got.pairs] == ["0", "2", "3"] and got.reasons == ["too_large"]
    assert got.rejects[0]["detail"].startswith("5.0 MB")


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl", "a.parquet", "a.arrow"])
def test_a_block_is_bounded_by_bytes_and_carries_no_other_rows(tmp_path: Path, name: str) -> None:
    data = pa.table({"prompt": [str(i) for i in range(300)], "response": ["x" * 50_000] * 300})
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(data, path)
    elif name.endswith("arrow"):
        with pa.ipc.new_file(str(path), data.schema) as writer:
            writer.write_table(data)
    elif name.endswith("csv"):
        path.write_text("prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in data.to_pylist()))
    else:
        lines = [json.dumps(row) for row in data.to_pylist()]
        path.write_text("\n".join(lines) if name.endswith("jsonl") else "[" + ",".join(lines) + "]")
    found = list(blocks(path, name, 8_000_000, 10**9))
    assert max(len(pickle.dumps(block)) for block in found) < BLOCK_BYTES * 1.2
    numbers = [number for block in found for number, _ in decoded(block, 8_000_000)]
    assert len(found) < 20 and numbers == list(range(1, 301))


@pytest.mark.parametrize("categorical", [False, True])
def test_a_long_value_that_many_rows_share_counts_for_each_of_them(tmp_path: Path, categorical: bool) -> None:
    data = pa.table({"prompt": [str(i) for i in range(200)], "response": ["x" * 1_000_000] * 200})
    if categorical:
        data = data.set_column(1, "response", data["response"].dictionary_encode())
    path = tmp_path / "a.parquet"
    pq.write_table(data, path, compression="zstd")
    assert path.stat().st_size < 100_000
    batches = [block.rows for block in blocks(path, "a.parquet", 8_000_000, 10**9)]
    sizes = [batch.nbytes for batch in batches if isinstance(batch, pa.RecordBatch)]
    assert sum(sizes) > 200_000_000 and max(sizes) < BLOCK_BYTES * 1.2
    with pytest.raises(UserError, match=r"a\.parquet: expanded size over the limit of 0\.05 GB"):
        list(blocks(path, "a.parquet", 8_000_000, 50_000_000))


def test_a_bomb_is_refused_before_it_has_grown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: expanded size over the limit of 0\.01 GB.*max_expanded_gb"):
        one(tmp_path, "a.jsonl.gz", gzip.compress(b"\n" * 20_000_000), max_expanded_gb=0.01)
    pq.write_table(pa.table({"prompt": ["x"] * 3_000_000}), tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"a\.parquet: expanded size over the limit"):
        one(tmp_path, "a.parquet", (tmp_path / "x").read_bytes(), max_expanded_gb=0.02)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_row_of_200_mb_is_set_aside_in_memory_that_does_not_grow_with_it(tmp_path: Path, name: str) -> None:
    """Text is passed over in pieces; a column of Parquet holds its pages, and is allowed three times the row."""
    size = 200_000_000
    shapes = {
        "jsonl": ("", '{"prompt": "%s", "response": "%s"}', "\n", "\n"),
        "json": ("[", '{"prompt": "%s", "response": "\\"%s"}', ",\n", "]"),
        "csv": ("prompt,response\n", '%s,"%s"', "\n", "\n"),
    }
    if name.endswith("parquet"):
        pq.write_table(pa.table({"prompt": ["a", "c", "d"], "response": ["b", "x" * size, "e"]}), tmp_path / name)
    else:
        start, row, between, end = shapes[name.split(".")[1]]
        text = start + between.join(row % pair for pair in (("a", "b"), ("c", "x" * size), ("d", "e"))) + end
        content = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
        del text, content
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from cathpc.data import pull\n"
        "from cathpc.data.config import DatasetConfig, Format, SourceConfig\n"
        "from cathpc.train.metrics import resident_peak\n"
        "before = resident_peak()\n"
        "source = SourceConfig(path=sys.argv[2], license='mit', format=Format.prompt_response)\n"
        "config = DatasetConfig(root=sys.argv[1], sources={'k': source}, workers=1)\n"
        "out = Path(sys.argv[1]) / 'out'; out.mkdir()\n"
        "summary = pull.run(SimpleNamespace(dataset=config), {}, out)\n"
        "print(json.dumps([summary['records'], summary['reasons'], (resident_peak() - before) / 1e6]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), name]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    records, reasons, grown = json.loads(ran.stdout)
    assert (records, reasons) == (2, {"too_large": 1})
    assert grown < (700 if name.endswith("parquet") else 150), f"{grown:.0f} MB"


def test_several_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cathpc.data import pull

    monkeypatch.setattr(pull, "_A_WORKERS_BYTES", 1000)
    text = many(3000) + "{broken\n" + many(10)
    got = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        got.append(one(folder, "a.jsonl", text, workers=workers))
    assert got[0].records == got[1].records and got[0].rejects == got[1].rejects
    assert len(got[0].records) == 3000 and len(got[0].rejects) == 11
