"""What leaves a training: a folder that plain transformers loads, with the very weights that were trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from cathpc import acts, store
from cathpc.config import compose
from cathpc.errors import DataError, UserError
from cathpc.models.template import Template
from cathpc.train import export, history
from cathpc.train.partitions import Saved
from cathpc.train.writing import TAG
from tests.e2e.ranks import copy, final_weights, flip, settings, trained, whole, world

__all__ = ["whole", "world"]  # fixtures

IDS = torch.arange(3, 60)[None]


def exported(world: SimpleNamespace, train: Path, out: Path, **which: Any) -> dict[str, Any]:
    config: Any = SimpleNamespace(name="tiny")
    return export.run(config, {"train": train, "base": world.base, "pack": world.pack}, out, **which)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
        return found


def test_the_exported_model_loads_in_plain_transformers_and_has_the_trained_weights(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    assert exported(world, whole, tmp_path)["shards"] == 1
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    reference = AutoModelForCausalLM.from_pretrained(world.base / "model", dtype=torch.bfloat16)
    reference.load_state_dict({name: tensor.bfloat16() for name, tensor in final_weights(whole).items()})
    assert logits(model).equal(logits(reference))
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Yes."}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    there = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert there == Template.load(tmp_path / "model").encode(messages)[0]
    card = (tmp_path / "model/README.md").read_text()
    assert "<|begin_of_text|><|im_start|>system" in card


class Say(LogitsProcessor):  # type: ignore[misc]
    """Makes a model say these tokens."""

    def __init__(self, ids: list[int], start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        wanted = self.ids[min(input_ids.shape[1] - self.start, len(self.ids) - 1)]
        return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([wanted]), 0.0)


def test_generation_ends_at_the_stop_token_of_its_own_accord(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    exported(world, whole, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    template = Template.load(tmp_path / "model")
    assert template.stop == "<|im_end|>"
    prompt = torch.tensor([template.encode([{"role": "user", "content": "Hi"}], generation_prompt=True)[0]])
    said = [40, 41, template.stop_id, 42]
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=10,
        do_sample=False,
        logits_processor=LogitsProcessorList([Say(said, prompt.shape[1])]),
    )
    assert found[0, prompt.shape[1] :].tolist() == said[:3]


def test_many_small_shards_are_the_same_model(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    exported(world, whole, tmp_path)
    states = history.committed(whole / "checkpoints")[0] / TAG
    small = copy(tmp_path / "model", tmp_path / "small")
    (small / "model.safetensors").unlink()
    _, shards = export.write_weights(Saved(states), small, tmp_path, shard_bytes=100_000)
    assert shards > 2
    there = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(small).state_dict().items():
        assert tensor.equal(there[name]), name


def test_a_milestone_is_exported_by_its_step_and_a_damaged_one_is_not(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    assert exported(world, whole, tmp_path / "four", step=4)["checkpoint"] == "step-000004"
    assert "after step 4:" in (tmp_path / "four/model/README.md").read_text()
    exported(world, whole, tmp_path / "twelve")
    early, late = (load_file(tmp_path / name / "model/model.safetensors") for name in ("four", "twelve"))
    assert any(not early[name].equal(late[name]) for name in late)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 in .* There are: 4, 8, 12"):
        exported(world, whole, tmp_path / "five", step=5)
    train = copy(whole, tmp_path / "train")
    flip(next((train / "checkpoints/step-000012" / TAG).glob("*rank_0*optim_states.pt")))
    with pytest.raises(DataError, match="is not the file that was saved"):
        exported(world, train, tmp_path / "damaged")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_are_exported_for_peft_and_added_to_the_base_model(
    world: SimpleNamespace, tmp_path: Path, stage: int
) -> None:
    peft = pytest.importorskip("peft")
    lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}
    out = trained(world, tmp_path / "lora", settings(lora=lora, zero_stage=stage, lr=3e-2, save_every_steps=6))
    saved = Saved(history.committed(out / "checkpoints")[0] / TAG)
    assert all(".lora_A.default.weight" in name or ".lora_B.default.weight" in name for name in saved.shapes)
    assert not any("base_layer" in name for name in saved.module["module"]), "frozen weights are not saved"

    exported(world, out, tmp_path / "export")
    config = json.loads((tmp_path / "export/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    base = AutoModelForCausalLM.from_pretrained(world.base / "model", dtype=torch.float32)
    before = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, tmp_path / "export/adapter"))
    assert (adapted - before).abs().max() > 1e-2, "the adapters have learnt something"

    merged = tmp_path / "merged"
    shutil.copytree(tmp_path / "export/model", merged)
    scale = lora["alpha"] / lora["rank"]  # type: ignore[operator]
    export.write_shard(
        merged / "model.safetensors", export.adapters.Merged(saved, world.base / "model", scale), dtype=torch.float32
    )
    whole = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=1e-5)
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "export/model")
    assert rounded.dtype == torch.bfloat16
    for name, tensor in AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict().items():
        assert rounded.state_dict()[name].equal(tensor.bfloat16()), name


def test_the_act_exports_a_milestone_and_says_what_else_there_is(
    world: SimpleNamespace, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", "+experiment=smoke"]
    act, arguments = acts.pick([*words, "--step", "4"])
    places = store.places(compose(arguments.overrides))
    with pytest.raises(UserError, match=r"store/base/.* is not finished"):
        act.main(arguments)
    for name, folder in (("train", whole), ("base", world.base), ("pack", world.pack)):
        shutil.copytree(folder, places[name].folder)
        (places[name].folder / "manifest.json").write_text("{}")
    assert act.main(arguments) == 0
    out = tmp_path / "runs/smoke/export-step-000004"
    assert str(out / "model") in capsys.readouterr().out
    assert (out / "model/model.safetensors").exists()
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name]
    with pytest.raises(UserError, match="is there already: remove it, or name another folder with --to FOLDER"):
        act.main(arguments)
    _, other = acts.pick([*words, "--step", "5", "--to", "elsewhere"])
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .* There are: 4, 8, 12"):
        act.main(other)
