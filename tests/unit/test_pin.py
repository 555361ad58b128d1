"""`pin` against a Hub on loopback, and `pull` of what was pinned."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc import acts
from cathpc.acts import pin
from cathpc.data import lock
from cathpc.errors import TryAgainError, UserError
from tests.hub_server import TOKEN, Hub, Repo, serve

ROOT = Path(__file__).parents[2]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def repos() -> dict[tuple[str, str], Repo]:
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(5)]
    return {
        ("dataset", "org/table"): Repo(
            {"README.md": b"", "data/train-00000-of-00001.parquet": parquet(rows)}, {"license": "mit"}
        ),
        ("dataset", "org/lines"): Repo({"train.jsonl": "\n".join(map(json.dumps, rows[:3])).encode()}),
        ("dataset", "org/code"): Repo(
            {"code.py": b"raise SystemExit('ran')", "train.jsonl": b"{}"}, {"license": "mit"}
        ),
        ("dataset", "org/gated"): Repo(
            {"train.jsonl": b"{}"}, {"license": "other", "license_name": "special"}, gated="manual"
        ),
        ("model", "org/model"): Repo(
            {"config.json": b"{}", "model.safetensors": b"0" * 3_000_000, "pytorch_model.bin": b"0" * 9_000_000},
            {"license": ["apache-2.0", "mit"]},
        ),
    }


@pytest.fixture
def hub(monkeypatch: Any, tmp_path: Path) -> Any:
    with serve(repos()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("CATHPC_LOCK", str(tmp_path / "lock.yaml"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_commit_licence_gating_and_size_are_written(hub: Hub, tmp_path: Path) -> None:
    rows = pin.pin(["org/table", "org/lines"], ["org/model"], tmp_path / "lock.yaml")
    assert [(r["kind"], r["id"], r["license"]) for r in rows] == [
        ("dataset", "org/table", "mit"),
        ("dataset", "org/lines", ""),
        ("model", "org/model", "apache-2.0, mit"),
    ]
    commit = hub.repos["dataset", "org/table"].commit
    assert lock.commit("org/table", "dataset") == commit
    entry = lock.read()["models"]["org/model"]
    assert entry == {
        "commit": hub.repos["model", "org/model"].commit,
        "license": "apache-2.0, mit",
        "gated": False,
        "size_gb": 0.003,
    }
    lines = pin.table(rows).splitlines()
    assert lines[0].split() == ["kind", "id", "commit", "licence", "gated", "size"]
    assert lines[1].split()[:4] == ["dataset", "org/table", commit[:12], "mit"] and "not stated" in lines[2]


def test_a_card_that_states_another_licence_than_the_config_is_refused_and_both_are_said(
    hub: Hub,
) -> None:
    sources = "table: {hub: org/table, license: apache-2.0}, again: {hub: org/table, license: mit}"
    overrides = ["+experiment=smoke", f"+dataset.sources={{{sources}, lines: {{hub: org/lines, license: odc-by}}}}"]
    act, arguments = acts.pick(["pin", *overrides])
    with pytest.raises(UserError) as caught:
        act.main(arguments)
    assert (
        "org/table: its card states the licence 'mit', dataset.sources.table.license is 'apache-2.0'"
        in str(caught.value).splitlines()[1]
    )
    assert list(lock.read()["datasets"]) == ["org/lines"], "a card without a licence contradicts none"
    overrides[1] = overrides[1].replace("apache-2.0", "MIT")
    act, arguments = acts.pick(["pin", *overrides])
    assert act.main(arguments) == 0
    assert lock.read()["datasets"]["org/table"]["license"] == "mit"


def test_what_was_pinned_before_stays(hub: Hub, tmp_path: Path) -> None:
    pin.pin(["org/table"], [], tmp_path / "lock.yaml")
    pin.pin(["org/lines"], [], tmp_path / "lock.yaml")
    assert set(lock.read()["datasets"]) == {"org/table", "org/lines"}
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_every_failure_is_one_line_and_the_rest_is_pinned(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pin.pin(["org/nowhere", "org/table", "org/gated", "no id"], [], tmp_path / "lock.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 4 could not be pinned; the other 1 are pinned:"
    assert f"dataset org/nowhere is not on the Hub ({hub.url}/datasets/org/nowhere)" in lines[1]
    assert f"org/gated is gated: accept its terms on {hub.url}/datasets/org/gated, then set HF_TOKEN" in lines[2]
    assert "'no id' is no id of a dataset" in lines[3]
    assert list(lock.read()["datasets"]) == ["org/table"]


def test_a_gated_repository_is_pinned_with_a_token_that_has_access(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (row,) = pin.pin(["org/gated"], [], tmp_path / "lock.yaml")
    assert (row["gated"], row["license"]) == (True, "special")


def test_a_token_without_access_is_not_shown(hub: Hub, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    with pytest.raises(UserError, match=r"org/gated is gated") as caught:
        pin.pin(["org/gated"], [], tmp_path / "lock.yaml")
    shown = capsys.readouterr()
    assert "canary" not in f"{caught.value}{shown.out}{shown.err}{caught.value.__cause__}"


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [(401, UserError, "not on the Hub|refused the token"), (418, TryAgainError, "answered 418")],
)
def test_a_hub_that_answers_with_an_error(hub: Hub, tmp_path: Path, status: int, error: Any, text: str) -> None:
    hub.status = status
    with pytest.raises(error, match=text):
        pin.pin(["org/table"], [], tmp_path / "lock.yaml")
    assert not (tmp_path / "lock.yaml").exists()


def test_a_hub_out_of_reach_is_one_message(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TryAgainError, match=r"the Hub at http://127\.0\.0\.1:9 cannot be reached .*HF_ENDPOINT"):
        pin.pin(["org/table"], [], tmp_path / "lock.yaml")


PULL = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from cathpc.data import pull
from cathpc.data.config import DatasetConfig, Format, SourceConfig
from cathpc.errors import CathpcError
out = Path(sys.argv[1]) / "out"
out.mkdir()
sources = {n: SourceConfig(hub=f"org/{n}", license="mit", format=Format.prompt_response) for n in sys.argv[2:]}
try:
    summary = pull.run(SimpleNamespace(dataset=DatasetConfig(sources=sources)), {}, out)
    print(json.dumps({n: [s["rows"], s["origin"]] for n, s in summary["sources"].items()}))
except CathpcError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def pulled(tmp_path: Path, *names: str) -> Any:
    """What `pull` says in a process of its own: the libraries read HF_ENDPOINT when they are imported."""
    ran = subprocess.run(
        [sys.executable, "-c", PULL, str(tmp_path), *names],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_pull_streams_the_pinned_commit(hub: Hub, tmp_path: Path) -> None:
    pin.pin(["org/table", "org/lines"], [], tmp_path / "lock.yaml")
    table, lines = (hub.repos["dataset", f"org/{n}"].commit[:12] for n in ("table", "lines"))
    assert pulled(tmp_path, "table", "lines") == {
        "lines": [3, f"org/lines@{lines}/default/train"],
        "table": [5, f"org/table@{table}/default/train"],
    }
    fetched = [r for r in hub.requests if "/resolve/" in r]
    assert fetched and not any("/resolve/main/" in r for r in fetched)


def test_pull_refuses_a_dataset_that_is_code(hub: Hub, tmp_path: Path) -> None:
    pin.pin(["org/code"], [], tmp_path / "lock.yaml")
    kind, message = pulled(tmp_path, "code")
    assert kind == "UserError" and "scripts are no longer supported" in message


def test_pull_does_not_take_a_folder_for_a_hub_dataset(hub: Hub, tmp_path: Path) -> None:
    pin.pin(["org/table"], [], tmp_path / "lock.yaml")
    (tmp_path / "org" / "table").mkdir(parents=True)
    kind, message = pulled(tmp_path, "table")
    assert kind == "UserError" and "there is a file or folder org/table in" in message


def test_pull_names_a_commit_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    pin.pin(["org/table"], [], tmp_path / "lock.yaml")
    hub.repos["dataset", "org/table"].files["new"] = b"1"
    kind, message = pulled(tmp_path, "table")
    assert kind == "UserError" and message.startswith("source 'table': org/table at ")
