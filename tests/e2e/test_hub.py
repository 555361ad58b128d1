"""From Hub ids to a run without a network: refused, pinned, fetched; against a small Hub-like server on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cathpc.models import tiny
from tests.e2e.harness import Home, complaint
from tests.hub_server import Repo, serve

ROWS = [
    {"instruction": f"Why does reason number {i} hold?", "output": f"Because cause number {i} leads to it."}
    for i in range(20)
]


def folder(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    conf = tmp_path / "conf" / "dataset"
    conf.mkdir(parents=True)
    source = {"hub": "org/reasons", "license": "cc0-1.0", "format": "alpaca"}
    (conf / "hub.yaml").write_text(json.dumps({"sources": {"reasons": source}}))
    return Home(tmp_path)


def test_hub_ids_are_refused_until_they_are_pinned_and_then_fetched_once_for_all_stages(
    home: Home, tmp_path: Path
) -> None:
    for kind in ("llama", "bert"):
        (tmp_path / kind).mkdir()
        tiny.build(kind, tmp_path / kind)
    repos = {
        ("dataset", "org/reasons"): Repo(
            {"train.jsonl": "".join(json.dumps(r) + "\n" for r in ROWS).encode()}, {"license": "cc0-1.0"}
        ),
        ("model", "org/llama"): Repo(folder(tmp_path / "llama"), {"license": "mit"}),
        ("model", "org/bert"): Repo(folder(tmp_path / "bert"), {"license": "apache-2.0"}),
    }
    names = ["+experiment=smoke", "dataset=hub", "model.base=org/llama", "refusal.base=org/bert"]
    lock = tmp_path / "lock.yaml"
    with serve(repos) as hub:
        settings = {"HF_ENDPOINT": hub.url, "CATHPC_LOCK": str(lock), "HF_HOME": str(tmp_path / "hf")}
        refused = home.run("fetch", *names, **settings)
        assert refused.returncode == 2
        message = complaint(refused)
        assert "not pinned" in message and "dataset org/reasons" in message and "model org/bert" in message
        pinned = home.run("pin", *names, **settings)
        assert pinned.returncode == 0, pinned.stderr
        entries = yaml.safe_load(lock.read_text())
        assert entries["models"]["org/llama"]["commit"] == repos["model", "org/llama"].commit
        assert entries["datasets"]["org/reasons"]["license"] == "cc0-1.0"
        fetched = home.run("fetch", *names, **settings)
        assert fetched.returncode == 0, fetched.stdout + fetched.stderr
        assert "20 records" in fetched.stdout and "fetching org/bert" in fetched.stdout
        asked = len(hub.requests)
        again = home.run("fetch", *names, **settings)
        assert again.returncode == 0 and again.stdout.count("up to date") == 2
        assert len(hub.requests) == asked, "what is fetched is not asked for again"
