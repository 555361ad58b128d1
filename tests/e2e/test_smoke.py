"""The whole pipeline with tiny models, as a user runs it: all of it once, nothing twice, and no trace of a kill."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cathpc.pipeline import STAGES
from tests.e2e.harness import Home, complaint

SMOKE = "+experiment=smoke"
CANARY = "canary-3f9c1e-secret"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A finished smoke run."""
    home = Home(tmp_path_factory.mktemp("smoke"))
    result = home.run(SMOKE, SOME_API_TOKEN=CANARY, HF_TOKEN=CANARY)
    assert result.returncode == 0, result.stdout + result.stderr
    (home.folder / "first.log").write_text(result.stdout)
    return home


def copy(home: Home, folder: Path) -> Home:
    """The same stores in another folder, so that a test may harm them."""
    shutil.copytree(home.folder, folder, symlinks=True, dirs_exist_ok=True)
    return Home(folder)


def test_every_stage_of_the_design_is_finished_and_says_so_in_order(home: Home) -> None:
    assert set(home.manifests()) == {s.name for s in STAGES}
    said = re.findall(r"^✓ (\w+)", (home.folder / "first.log").read_text(), re.M)
    assert sorted(said) == sorted(s.name for s in STAGES)
    assert said[-5:] == ["pack", "train", "export", "evaluate", "report"]


def test_the_end_of_the_run_names_model_report_figures_and_the_command_to_chat(home: Home) -> None:
    text = (home.folder / "first.log").read_text()
    for word in ("model", "report", "figures"):
        path = re.search(rf"^  {word}\s+(\S+)$", text, re.M)
        assert path and Path(path.group(1)).exists(), text
    assert "-m cathpc chat +experiment=smoke --prompt 'Hello!'" in text


def test_the_same_command_again_does_nothing(home: Home) -> None:
    before, events = home.manifests(), len(home.ledger())
    result = home.run(SMOKE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("up to date") == len(STAGES) + 1
    assert home.manifests() == before
    assert len(home.ledger()) == events, "no job was submitted"


def test_another_learning_rate_redoes_train_and_what_follows_and_nothing_before(home: Home) -> None:
    before = home.manifests()
    result = home.run(SMOKE, "train.lr=3e-5")
    assert result.returncode == 0, result.stdout + result.stderr
    added = {stage for stage, found in home.manifests().items() if found - before.get(stage, set())}
    assert added == {"train", "export", "evaluate", "report"}


def _losses(folder: Path) -> dict[int, float]:
    """Step -> loss; of a step that was taken twice, the later attempt's."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["global_step"]: row["loss"] for row in rows if "loss" in row}


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of a model's weights."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
    assert found
    return found


def _wait(ready: Callable[[], object], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _ranks(store: Path) -> list[int]:
    """Process ids of the training ranks that work in `store`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if (
                b"submitit.core._submit" in words
                and str(store.parent).encode() + b"/runs" in words
                and b"logs/train" in words
            ):
                found.append(int(process.name))
    return found


def test_training_killed_after_a_checkpoint_goes_on_from_it_and_equals_an_uninterrupted_one(
    home: Home, tmp_path: Path
) -> None:
    other = copy(home, tmp_path / "killed")
    shutil.rmtree(other.store / "train")
    whole = home.stage("train")
    running = other.start(SMOKE)
    checkpoints = other.store / "train" / whole.name / "checkpoints"
    _wait(lambda: len(_ranks(other.store)) >= 2)
    ranks = _ranks(other.store)  # looked for now: the steps behind the checkpoint take half a second
    _wait(lambda: list(checkpoints.glob("step-*/manifest.json")))
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 1, out
    assert "The same command goes on" in out or "failed" in out
    assert "Traceback" not in out
    saved = max(int(p.parent.name.removeprefix("step-")) for p in checkpoints.glob("step-*/manifest.json"))
    result = other.run(SMOKE)
    assert result.returncode == 0, result.stdout + result.stderr
    again = other.store / "train" / whole.name
    rows = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    second = [
        r["global_step"] for r in rows if "loss" in r and r.get("attempt", 1) == max(x.get("attempt", 1) for x in rows)
    ]
    assert min(second) > 1, f"the second attempt began from nothing; a checkpoint of step {saved} was there"
    assert _losses(again) == _losses(whole)
    exported = home.stage("export")  # there are others, of another learning rate
    assert digests(other.store / "export" / exported.name / "model") == digests(exported / "model")


def test_a_killed_command_is_resumed_by_the_same_one_and_nothing_is_done_twice(home: Home, tmp_path: Path) -> None:
    other = copy(home, tmp_path / "killed")
    for name in ("pack", "train", "export", "evaluate", "report"):
        shutil.rmtree(other.store / name)
    running = other.start(SMOKE)
    _wait(lambda: _ranks(other.store))
    running.kill()  # the command alone: its job lives on
    running.communicate(timeout=60)
    result = other.run(SMOKE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert other.manifests() == {s: f & other.manifests()[s] for s, f in other.manifests().items()}
    assert _losses(other.store / "train" / home.stage("train").name) == _losses(home.stage("train"))
    submitted = [e["stage"] for e in other.ledger() if e["event"] == "submitted"]
    assert submitted.count("pack") == 2, "once in the finished run that was copied, once after"


def test_two_commands_at_once_share_the_work(home: Home, tmp_path: Path) -> None:
    other = copy(home, tmp_path / "twice")
    for name in ("select", "cards", "pack", "train"):
        shutil.rmtree(other.store / name)
    first, second = other.start(SMOKE), other.start(SMOKE)
    out_first, _ = first.communicate(timeout=300)
    out_second, _ = second.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, 0), out_first + out_second
    assert all(len(found) >= 1 for found in other.manifests().values())
    assert not list(other.store.glob("*/*/error.*.json"))


def test_the_exported_model_loads_in_plain_transformers_and_its_template_gives_the_ids_of_training(home: Home) -> None:
    import numpy as np
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = home.stage("export") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    ast.parse(code)
    assert model.config.pad_token_id != model.generation_config.eos_token_id
    records = {r["id"]: r["messages"] for r in pq.read_table(home.stage("cards") / "carded.parquet").to_pylist()}
    pack = home.stage("pack") / "train"
    ids, segments = np.load(pack / "input_ids.npy"), np.load(pack / "segment_ids.npy")
    seen = 0
    for row in pq.read_table(pack / "segments.parquet").to_pylist():
        trained = ids[row["bin"]][segments[row["bin"]] == row["segment"]].tolist()
        served = tokenizer.apply_chat_template(records[row["id"]], tokenize=True, return_dict=False)
        assert served == trained
        seen += 1
    assert seen >= 5


def test_chat_answers_once_with_a_system_prompt(home: Home) -> None:
    result = home.run("chat", SMOKE, "--system", "You are a cat.", "--prompt", "Hello!", "--max-new-tokens", "8")
    assert result.returncode == 0, result.stderr
    assert "<|im_" not in result.stdout
    again = home.run(
        "chat", "--model", str(home.stage("export") / "model"), "--prompt", "Hello!", "--max-new-tokens", "8"
    )
    assert again.returncode == 0, again.stderr


def test_status_and_plan_know_that_all_is_done(home: Home) -> None:
    status = home.run("status", SMOKE, "--json")
    assert {row["state"] for row in json.loads(status.stdout).values()} == {"done"}
    assert home.run("plan", SMOKE).stdout.count("up to date") == len(STAGES)
    waiting = json.loads(home.run("status", SMOKE, "train.lr=0.5", "--json").stdout)
    assert waiting["pack"]["state"] == "done" and waiting["train"]["state"] == "waiting"


def test_everything_that_a_run_writes_is_private_and_holds_no_secret(home: Home) -> None:
    for path in [*home.store.rglob("*"), *(home.folder / "runs").rglob("*")]:
        if path.is_symlink():
            continue
        assert path.stat().st_mode & 0o077 == 0, f"{path} may be read by others"
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), f"{path} holds a secret"


def test_a_stage_that_fails_ends_in_one_message_and_keeps_what_is_done(home: Home, tmp_path: Path) -> None:
    other = copy(home, tmp_path / "fails")
    result = other.run(SMOKE, "select.min_answer_tokens=100000")
    assert result.returncode == 2
    assert "select" in complaint(result)
    assert other.run(SMOKE).stdout.count("up to date") == len(STAGES) + 1


def test_the_report_is_made_again_alone(home: Home, tmp_path: Path) -> None:
    other = copy(home, tmp_path / "again")
    assert other.run("report", SMOKE, "report.title=Once more").returncode == 0
    pages = [page.read_text() for page in other.store.glob("report/*/report.html")]
    assert sum("Once more" in page for page in pages) == 1
    missing = other.run("report", SMOKE, "train.lr=0.25")
    assert missing.returncode == 2 and "the stage train is not finished" in complaint(missing)


def test_a_sweep_shares_the_stages_that_are_equal(home: Home) -> None:
    result = subprocess.run(
        home.command("plan", SMOKE, "train.lr=3e-5"),
        cwd=home.folder,
        env=home.environment(),
        capture_output=True,
        text=True,
    )
    assert result.stdout.count("up to date") == len(STAGES), "done by the test of another learning rate"
    swept = home.run("-m", SMOKE, "train.lr=3e-5,1e-3")
    assert swept.returncode == 0, swept.stderr
    assert "[1/2]" in swept.stdout and "[2/2]" in swept.stdout
    assert swept.stdout.count("✓") == 0


def test_a_file_of_ones_own_is_scored_with_the_models_of_the_run(home: Home, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shard = sorted((home.stage("pull") / "records").glob("*.parquet"))[0]
    records = pq.read_table(shard).to_pylist()
    scored = pq.read_table(next((home.stage("score") / "scores").glob("scores-00000.parquet"))).to_pylist()
    lines = [json.dumps({"id": r["id"], "messages": r["messages"]}) for r in records]
    lines.insert(1, '{"id": "bad", "messages": [{"role": "user", "content": "Well?"}]}')
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    result = home.run("score", SMOKE, "--input", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out.parquet"))
    assert result.returncode == 0, result.stderr
    assert f"{len(lines)} rows" in result.stdout and "1 empty" in result.stdout
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert found.pop(1) == {**dict.fromkeys(found[0]), "id": "bad", "status": "empty"}
    for one, other in zip(found, scored, strict=True):
        assert list(one) == [
            "id", "status", "perplexity", "nll", "contrast", "refusal", "tokens", "correlatives", "steps",
            "turn_tokens", "diagnosis",
        ]  # fmt: skip
        assert (one["id"], one["status"], one["steps"]) == (other["id"], other["status"], other["steps"])
        for figure in ("nll", "contrast", "refusal"):
            assert one[figure] == pytest.approx(other[figure], abs=0.02)
    assert (tmp_path / "out.parquet").stat().st_mode & 0o077 == 0


def test_scoring_with_models_that_are_not_trained_names_the_command_that_trains_them(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "Well?", "response": "Yes."}\n')
    files = ["--input", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    result = home.run("score", SMOKE, "gpt.lr=0.5", *files)
    assert result.returncode == 2
    assert "Train them: python -m cathpc +experiment=smoke gpt.lr=0.5" in complaint(result)
    result = home.run("score", SMOKE, *files, "--answer", "reply", "--instruction", "prompt")
    assert result.returncode == 2
    assert "--answer reply: no row has such a column. Columns seen: prompt, response" in complaint(result)
    assert not (tmp_path / "out.jsonl").exists()
