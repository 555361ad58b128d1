"""Datasets of the Hub, of a small stand-in on loopback: as robust as local files, and a network is no damage."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data import lock, remote
from cathpc.data.config import DatasetConfig, Format, SourceConfig
from cathpc.errors import TryAgainError, UserError
from tests.hub_server import Hub, Repo, serve
from tests.unit.test_pull_stage import Pulled, line


def parquet(start: int, count: int, groups: int = 1000, **more: Any) -> bytes:
    columns = {
        "prompt": [f"question {i}" for i in range(start, start + count)],
        "response": [f"answer {i}" for i in range(start, start + count)],
    }
    file = io.BytesIO()
    pq.write_table(pa.table({**columns, **more}), file, row_group_size=groups, use_dictionary=False)
    return file.getvalue()


def torn(content: bytes, group: int) -> bytes:
    """The file with a row group that cannot be read."""
    start = pq.read_metadata(io.BytesIO(content)).row_group(group).column(1).data_page_offset
    return content[:start] + b"\xff" * 40 + content[start + 40 :]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub without a dataset, which the libraries of this process take for theirs."""
    with serve({}) as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setenv("CATHPC_LOCK", str(tmp_path / "lock.yaml"))
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield server


def pull(hub: Hub, tmp_path: Path, files: dict[str, bytes], **settings: Any) -> Pulled:
    """What stage `pull` makes of a dataset of these files."""
    repo = hub.repos["dataset", "org/set"] = Repo(files, {"license": "mit"})
    entry = {"commit": repo.commit, "license": "mit", "gated": False, "size_gb": 0.1}
    lock.write({"datasets": {"org/set": entry}, "models": {}}, tmp_path / "lock.yaml")
    source = SourceConfig(hub="org/set", license="mit", format=Format.prompt_response)
    options = {"near_duplicates": 0, "workers": 1, **settings}
    return Pulled(tmp_path, DatasetConfig(sources={"k": source}, **options))


def test_files_follow_each_other_and_rows_are_numbered_through_them(hub: Hub, tmp_path: Path) -> None:
    files = {f"data/train-0000{i}.parquet": parquet(4 * i, 4, groups=3) for i in range(3)}
    got = pull(hub, tmp_path, files)
    assert got.pairs == [(f"question {i}", f"answer {i}") for i in range(12)]
    start = f"org/set@{hub.repos['dataset', 'org/set'].commit[:12]}/default/train:"
    assert [r["origin"] for r in got.records] == [f"{start}{i + 1}" for i in range(12)]


def test_only_the_columns_that_are_wanted_are_read_and_count_as_large(hub: Hub, tmp_path: Path) -> None:
    picture = ["x" * 2_000_000 + str(i) for i in range(6)]
    got = pull(hub, tmp_path, {"train.parquet": parquet(0, 6, picture=picture)}, max_row_mb=0.1)
    assert len(got.records) == 6 and not got.rejects
    text = "".join(line(f"q {i}", "x" * (200_000 if i == 1 else 5)) for i in range(3))
    got = pull(hub, tmp_path, {"train.jsonl": text.encode()}, max_row_mb=0.1)
    assert len(got.records) == 2 and got.reasons == ["too_large"]


def test_a_damaged_file_is_set_aside_as_far_as_it_cannot_be_read(hub: Hub, tmp_path: Path) -> None:
    whole = parquet(0, 30, groups=10)
    files = {
        "train-0.parquet": whole[:-20],
        "train-1.parquet": torn(whole, 1),
        "train-2.parquet": parquet(100, 5),
    }
    got = pull(hub, tmp_path, files)
    assert [p[0] for p in got.pairs] == [f"question {i}" for i in [*range(10), *range(20, 30), *range(100, 105)]]
    assert [(r["reason"], r.get("rows", 1), r["origin"].rpartition(":")[2]) for r in got.rejects] == [
        ("unreadable", 1, "1"), ("unreadable", 10, "12"),
    ]  # fmt: skip
    assert got.rejects[0]["detail"].startswith("train-0.parquet: damaged") and "DAMAGED" in got.summary["line"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json"])
def test_a_broken_line_is_set_aside_and_the_lines_around_it_are_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    lines = [line(f"q {i}", f"a {i}") for i in range(4)]
    text = "".join([lines[0], '{"prompt": "q"\n', *lines[1:]])
    if name == "train.json":
        text = "[" + ",".join(lines) + ', {"prompt" }]'
    content = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    got = pull(hub, tmp_path, {name: content, f"other-{name}": content})
    assert got.pairs[:4] == [(f"q {i}", f"a {i}") for i in range(4)]
    broken = "unreadable" if name == "train.json" else "not_json"
    assert set(got.reasons) == {broken, "duplicate"} and got.reasons.count(broken) == 2


def test_a_file_that_is_not_what_its_name_says_ends_nothing(hub: Hub, tmp_path: Path) -> None:
    got = pull(hub, tmp_path, {"train-0.jsonl.gz": b"certainly no gzip", "train-1.jsonl": line("q", "a").encode()})
    assert got.pairs == [("q", "a")] and got.reasons == ["unreadable"]


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.jsonl.gz", "train.jsonl.zst", "train.arrow"])
def test_a_hub_that_fails_within_a_file_is_an_error_to_retry_and_no_damage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    draws = random.Random(0)
    rows = [{"prompt": f"q {draws.random()}", "response": f"a {draws.random()}"} for _ in range(20_000)]
    table = pa.Table.from_pylist(rows)
    file = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(table, file, row_group_size=1000)
    elif name.endswith("arrow"):
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    else:
        with pa.output_stream(str(file)) as out:  # compressed as the name says
            out.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    monkeypatch.setattr(remote, "BLOCK", 100_000)
    buffered: Any = huggingface_hub.hf_file_system.HfFileSystemFile
    real, asked = buffered._fetch_range, list[int]()

    def failing(self: Any, start: int, end: int) -> bytes:
        asked.append(start)
        if len(asked) > 2:
            raise huggingface_hub.utils.httpx.ReadError("connection reset by peer")  # type: ignore[attr-defined]
        answer: bytes = real(self, start, end)
        return answer

    monkeypatch.setattr(buffered, "_fetch_range", failing)
    with pytest.raises(TryAgainError, match=rf"source 'k': org/set at .*, {name}: the Hub cannot be reached: connec"):
        pull(hub, tmp_path, {name: file.read_bytes()})
    assert len(asked) == 3


@pytest.mark.parametrize(("status", "kind"), [(500, TryAgainError), (429, TryAgainError), (403, UserError)])
def test_a_busy_hub_is_asked_again_and_one_that_refuses_is_not(status: int, kind: type[Exception]) -> None:
    httpx: Any = huggingface_hub.utils.httpx  # type: ignore[attr-defined]
    response = httpx.Response(status, request=httpx.Request("GET", "http://hub"))
    assert type(remote.failure("k", huggingface_hub.errors.HfHubHTTPError("no", response=response))) is kind


def test_a_split_that_is_not_there_is_refused(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["dataset", "org/set"] = Repo({"train.jsonl": line("q", "a").encode()})
    entry = {"commit": repo.commit, "license": "mit", "gated": False, "size_gb": 0.1}
    lock.write({"datasets": {"org/set": entry}, "models": {}}, tmp_path / "lock.yaml")
    source = SourceConfig(hub="org/set", license="mit", split="exam", format=Format.prompt_response)
    with pytest.raises(UserError, match=r"org/set at .* cannot be loaded \(subset '', split 'exam'\)"):
        Pulled(tmp_path, DatasetConfig(sources={"k": source}))


def test_what_only_the_library_can_read_is_streamed_by_it(hub: Hub, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: table.csv\n  sep: ';'\n---\n"
    table = "prompt;response;long\n" + "".join(f"q {i};a {i};{'x' * 200_000}\n" for i in range(5))
    got = pull(hub, tmp_path, {"README.md": card.encode(), "table.csv": table.encode()}, max_row_mb=0.1)
    assert got.pairs == [(f"q {i}", f"a {i}") for i in range(5)] and not got.rejects
