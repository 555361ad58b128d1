"""Bad input, as a user meets it: one clear message, no traceback, exit code 2; bad rows are counted and set aside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import NOBODY, Home, as_ordinary_user, complaint

GOOD = {
    "instruction": "Why is the sky blue?",
    "input": "",
    "output": "Because air scatters short waves more than long ones.",
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def pulled(
    home: Home, text: bytes | None, *overrides: str, name: str = "rows.jsonl"
) -> subprocess.CompletedProcess[str]:
    """`fetch` of one source whose file holds `text`, described by a YAML file of the user's own."""
    if text is not None:
        (home.folder / name).write_bytes(text)
    conf = home.folder / "conf" / "dataset"
    conf.mkdir(parents=True)
    source = {"path": name, "format": "alpaca", "component": "general", "license": "cc0-1.0"}
    (conf / "own.yaml").write_text(json.dumps({"root": str(home.folder), "sources": {"mine": source}}))
    return home.run("fetch", "+experiment=smoke", "dataset=own", *overrides)


def lines(*rows: object) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def test_bad_rows_are_counted_and_written_to_a_rejects_file_and_the_good_ones_go_on(home: Home) -> None:
    big = {"instruction": "Tell me all.", "output": "word " * 10_000_000}
    rows = lines(GOOD, b"{broken", {"instruction": "No answer?"}, big, b'"text"', {**GOOD, "output": None})
    result = pulled(home, rows)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (home.folder / "runs").iterdir()
    out = home.stage("pull", run.name)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 5
    assert {r["reason"] for r in rejects} >= {"not_json", "no_answer", "too_large"}
    assert all("rows.jsonl" in r["origin"] for r in rejects)
    assert "5" in result.stdout, "the line of the stage counts what was set aside"
    counted = json.loads((out / "sources.json").read_text())
    assert "mine" in json.dumps(counted)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (None, (), ["rows.jsonl", "mine"]),
        (b"", (), ["rows.jsonl", "empty"]),
        (lines(GOOD), ("dataset.sources.mine.format=xml",), ["xml", "alpaca", "sharegpt"]),
        (lines(GOOD), ("+dataset.sources.mine.columns={answer: reply}",), ["reply", "output", "mine"]),
        (lines(GOOD), ("dataset.sources.mine.path=../outside.jsonl",), ["outside.jsonl", "root"]),
        (lines(GOOD), ("+dataset.sources.mine.licence=mit",), ["licence", "license"]),
        (lines({"instruction": "No answer?"}), (), ["mine"]),
        (lines(GOOD), ("dataset.sources.mine.license=unknown",), ["mine", "unknown", "state the licence"]),
        (lines(GOOD), ("dataset.sources.mine.license=''",), ["mine.license", "licence"]),
        (lines(GOOD), ("dataset.decontaminate=[gone.jsonl]",), ["dataset.decontaminate", "gone.jsonl"]),
    ],
    ids=[
        "missing file",
        "empty file",
        "unknown format",
        "wrong column",
        "path out",
        "unknown key",
        "nothing usable",
        "unknown licence",
        "no licence",
        "missing evaluation set",
    ],
)
def test_a_source_that_cannot_be_used_is_one_message(
    home: Home, text: bytes | None, overrides: tuple[str, ...], words: list[str]
) -> None:
    result = pulled(home, text, *overrides)
    assert result.returncode == 2, result.stdout + result.stderr
    message = complaint(result)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["+experiment=smoke", "train.lr=-1"], ["train.lr", "-1", "greater than 0"]),
        (["+experiment=smoke", "train.speed=9"], ["train.speed", "epochs"]),
        (["+experiment=nothing"], ["nothing", "cat70b"]),
        (["trian"], ["trian", "run", "chat"]),
        (["run", "--fast", "+experiment=smoke"], ["--fast"]),
        (["status", "smoke"], ["smoke", "override"]),
        (["chat", "+experiment=smoke", "--prompt", "Hello!"], ["smoke", "python -m cathpc +experiment=smoke"]),
        (["chat", "--model", "/nowhere", "--prompt", "Hello!"], ["/nowhere"]),
        (["+experiment=smoke", "model.base=./nowhere"], ["nowhere"]),
        (["+experiment=smoke", "model.base=package:no_such_package"], ["no_such_package"]),
        (["+experiment=smoke", "select.quotas={beauty: 9}"], ["beauty", "general"]),
        (["select", "+experiment=smoke"], ["pull", "-m cathpc +experiment=smoke"]),
        (["diff", "smoke", "other"], ["runs"]),
        (["+experiment=cat70b", "cluster=local", "train=cpu"], ["pin", "meta-llama/Meta-Llama-3-70B"]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) and "=" in value[0] else "",
)
def test_a_wrong_command_is_one_message(home: Home, command: list[str], words: list[str]) -> None:
    result = home.run(*command, CATHPC_LOCK=str(home.folder / "lock.yaml"))
    assert result.returncode == 2, result.stdout + result.stderr
    message = complaint(result)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "content", "override", "words"),
    [
        (
            "bert/config.json",
            {"architectures": ["BertModel"]},
            "gpt.base=./bert",
            ["./bert", "BertModel", "ForCausalLM"],
        ),
        ("bert/config.json", {"architectures": ["BertModel"]}, "model.base=./bert", ["./bert", "BertModel"]),
        (
            "lexicon.yaml",
            {"correlatives": {"words": {"causal": [True]}}},
            "score.lexicon=lexicon.yaml",
            ["lexicon.yaml"],
        ),
        ("lexicon.yaml", {"words": []}, "score.lexicon=lexicon.yaml", ["lexicon.yaml", "correlatives", "steps"]),
    ],
    ids=["GPT that is none", "base that is none", "lexicon with a truth", "lexicon of another shape"],
)
def test_a_model_or_lexicon_that_is_none_is_refused_before_anything_runs(
    home: Home, name: str, content: object, override: str, words: list[str]
) -> None:
    (home.folder / name).parent.mkdir(exist_ok=True)
    (home.folder / name).write_text(json.dumps(content))
    result = home.run("+experiment=smoke", override)
    assert result.returncode == 2, result.stdout + result.stderr
    message = complaint(result)
    for word in words:
        assert word in message
    assert not home.manifests()


def test_a_folder_that_an_ordinary_user_cannot_write_is_named(home: Home) -> None:
    locked = home.folder / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    work = home.folder / "work"
    work.mkdir()
    if os.getuid() == 0:
        home.folder.chmod(0o755)
        for parent in list(home.folder.parents)[:3]:
            if parent.is_relative_to(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir()):
                parent.chmod(0o755)
        shutil.chown(work, NOBODY, NOBODY)
        shutil.chown(locked, NOBODY, NOBODY)
    for override in (f"paths.store={locked}/store", f"paths.runs={locked}/runs", f"paths.cache={locked}/cache"):
        command = as_ordinary_user(home.command("fetch", "+experiment=smoke", override))
        environment = {**home.environment(), "HOME": str(work)}
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 2, result.stdout + result.stderr
        assert "locked" in complaint(result)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_message_and_the_same_command_goes_on_elsewhere(home: Home, tiny_disk: Path) -> None:
    result = home.run("fetch", "+experiment=smoke", f"paths.store={tiny_disk}/store")
    assert result.returncode == 2, result.stdout + result.stderr
    message = complaint(result)
    assert str(tiny_disk) in message and "space" in message
    assert home.run("fetch", "+experiment=smoke").returncode == 0
