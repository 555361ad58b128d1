"""A command that would begin a training anew beside one that another number of ranks left unfinished."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cathpc import lease, store
from cathpc.acts import run
from cathpc.config import compose
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME
from cathpc.store import Place
from cathpc.train import history, worlds
from cathpc.train.config import LoraConfig, TrainConfig

INPUTS = {"pack": "a" * 16, "base": "b" * 16}
SIXTEEN = TrainConfig(nodes=2, ranks_per_node=8)
EIGHT = replace(SIXTEEN, nodes=1)


def unfinished(store: Path, name: str, train: TrainConfig, step: int, **inputs: str) -> Path:
    """A training's folder with one checkpoint."""
    folder = store / "train" / name
    checkpoint = folder / "checkpoints" / history.folder_name(step)
    checkpoint.mkdir(parents=True)
    used = {stage: {"fingerprint": fingerprint, "digest": "d"} for stage, fingerprint in (INPUTS | inputs).items()}
    (folder / "inputs.json").write_text(json.dumps(used))
    manifest: dict[str, Any] = {"step": step, "world_size": train.nodes * train.ranks_per_node, "files": {}}
    manifest["identity"] = {"config": worlds.decisive(train)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


def place(store: Path) -> Place:
    inputs = {name: store / name / fingerprint for name, fingerprint in INPUTS.items()}
    return Place(BY_NAME["train"], "f" * 16, store / "train" / ("f" * 16), inputs)


def test_an_unfinished_training_by_other_ranks_is_named_with_what_can_be_done(tmp_path: Path) -> None:
    unfinished(tmp_path, "short", SIXTEEN, 200)
    folder = unfinished(tmp_path, "long", SIXTEEN, 1200)
    with pytest.raises(UserError) as refused:
        worlds.refuse(place(tmp_path), EIGHT, busy=lambda folder: False)
    message = str(refused.value)
    assert "by 16 ranks has come to step 1,200" in message
    assert "with 8 it would begin again at step 0" in message
    assert f"train.resume_from={folder}\n" in message
    assert "train.nodes x train.ranks_per_node = 16" in message


def test_a_smaller_micro_batch_is_the_same_training(tmp_path: Path) -> None:
    unfinished(tmp_path, "other", replace(SIXTEEN, micro_batch=2), 200)
    with pytest.raises(UserError):
        worlds.refuse(place(tmp_path), EIGHT, busy=lambda folder: False)


@pytest.mark.parametrize(
    "why", ["other_config", "other_data", "same_ranks", "finished", "busy", "own_history", "own_end", "told", "empty"]
)
def test_whatever_else_lies_in_the_store_is_no_reason(tmp_path: Path, why: str) -> None:
    mine, train = place(tmp_path), EIGHT
    if why == "other_config":
        unfinished(tmp_path, "other", replace(SIXTEEN, lr=1.0), 200)
    elif why == "other_data":
        unfinished(tmp_path, "other", SIXTEEN, 200, pack="c" * 16)
    elif why == "same_ranks":
        unfinished(tmp_path, "other", EIGHT, 200)
    elif why != "empty":
        folder = unfinished(tmp_path, "other", SIXTEEN, 200)
        if why == "finished":
            (folder / "manifest.json").write_text("{}")
        elif why == "own_history":
            unfinished(tmp_path, mine.folder.name, EIGHT, 10)
        elif why == "own_end":
            mine.folder.mkdir()
            (mine.folder / "manifest.json").write_text(json.dumps({"fingerprint": mine.fingerprint}))
        elif why == "told":
            train = replace(EIGHT, resume_from=str(folder))
    worlds.refuse(mine, train, busy=lambda folder: why == "busy")


def test_run_looks_before_it_starts_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, now = (compose(["+experiment=smoke", f"train.ranks_per_node={ranks}"]) for ranks in (2, 1))
    run.refuse_lost_steps(now)
    mine = store.places(now)["train"]
    inputs = {name: folder.name for name, folder in mine.inputs.items()}
    folder = unfinished(mine.folder.parents[1], store.places(before)["train"].folder.name, before.train, 8, **inputs)
    with pytest.raises(UserError, match=f"train.resume_from={folder}"):
        run.refuse_lost_steps(now)
    run.refuse_lost_steps(before)
    with lease.held(folder):
        run.refuse_lost_steps(now)


def test_a_checkpoint_holds_all_of_its_adapters_and_no_other_default() -> None:
    assert worlds.decisive(TrainConfig()) == {}
    held = worlds.decisive(TrainConfig(lr=1e-4, lora=LoraConfig(rank=8)))
    assert held == {"lr": 1e-4, "lora": asdict(LoraConfig(rank=8))}
