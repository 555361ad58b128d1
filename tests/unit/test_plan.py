"""`plan`: memory, time and disk before anything is queued, what is refused and what is proposed instead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cathpc.acts import plan, run
from cathpc.config import Config, choices, compose
from cathpc.errors import UserError
from cathpc.models import shape as shapes
from cathpc.models.shape import Known, ShapeConfig, parameters
from cathpc.train import estimate, fit, memory
from cathpc.train.config import LoraConfig, Offload, Optimizer, TrainConfig

GIB = memory.GIB
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without store and cache, on a machine that has no model of the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def planned(*overrides: str) -> tuple[Config, Known]:
    config = compose(list(overrides))
    known = shapes.find(config)
    assert known is not None
    return config, known


def needs(*overrides: str) -> fit.Fit:
    return fit.fit(*planned(*overrides))


def test_parameters_are_counted_exactly() -> None:
    assert parameters(compose(["+experiment=cat70b"]).model.shape) == 70_553_706_496
    assert parameters(compose(["+experiment=cat8b"]).model.shape) == 8_030_261_248
    assert parameters(compose(["+experiment=demo"]).model.shape) == 134_515_008


@pytest.mark.parametrize("model", [m for m in choices("model") if m != "own"])
def test_every_model_that_ships_states_the_shape_of_the_model_that_it_names(model: str) -> None:
    stated = compose(["+experiment=cat70b", f"model={model}"]).model
    assert stated.shape.of == stated.base
    assert parameters(stated.shape) > 0


def test_the_tiny_llama_is_as_its_config_states(tiny_llama: Path) -> None:
    real, stated = shapes.read(tiny_llama / "config.json"), compose(["+experiment=smoke"]).model
    assert real == replace(stated.shape, of="")
    shapes.check(stated, tiny_llama / "config.json")


def test_stage_base_refuses_a_model_of_another_shape_than_was_planned_with(tiny_llama: Path) -> None:
    model = compose(["+experiment=smoke", "model.shape.layers=3", "model.shape.tied=true"]).model
    with pytest.raises(UserError) as error:
        shapes.check(model, tiny_llama / "config.json")
    for words in ("model.shape.layers is 3, the model has 2", "model.shape.tied is True", "conf/model", "plan"):
        assert words in str(error.value)
    shapes.check(replace(model, base="./another"), tiny_llama / "config.json")  # the statement is of random:llama


def test_the_model_at_hand_counts_before_the_one_that_is_stated(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    text = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "vocab_size": 500,
    }
    (folder / "config.json").write_text(json.dumps(text))
    _, known = planned("+experiment=cat70b", "model.base=./llama")
    assert Path(known.source).resolve() == (folder / "config.json").resolve()
    assert known.shape == ShapeConfig(
        layers=3, width=32, mlp_width=96, heads=4, kv_heads=4, head_dim=8, vocab=500, tied=False
    )
    (folder / "config.json").write_text(json.dumps({**text, "num_local_experts": 8}))
    assert shapes.find(compose(["+experiment=cat70b", "model.base=./llama"])) is None
    assert shapes.find(compose(["+experiment=cat70b", "model.base=another/model"])) is None


# --- memory -----------------------------------------------------------------------------------------------------------


def row(need: memory.Memory, name: str) -> float:
    return sum(max(r.bytes.values()) for r in need.rows if r.name == name)


def test_trap_12_70b_with_fp32_adam_on_16_gpus_takes_18_bytes_a_parameter_for_states_alone() -> None:
    need = needs("+experiment=cat70b", "train.offload=none").gpu
    classic = sum(row(need, name) for name in ("weights", "fp32 weights", "AdamW's moments")) / GIB
    assert classic == pytest.approx(14 * 70_553_706_496 / 16 / GIB)
    assert classic + row(need, "gradients") / GIB == pytest.approx(73.9, abs=0.05)  # 65.7 with gradients of 2 bytes
    assert classic + row(need, "gradients") / 2 / GIB == pytest.approx(65.7, abs=0.05)


def test_offloading_8_bits_and_adapters_take_the_states_off_the_gpu() -> None:
    base = ("+experiment=cat70b", "train.offload=none", "train.micro_batch=1")
    plain = needs(*base).gpu
    offloaded = needs(*base[:1], "train.micro_batch=1", "train.offload=optimizer")
    assert plain.total - offloaded.gpu.total > 1.06 * 16 * 70e9 / 16 * 0.99
    assert row(needs(*base[:1], "train.offload=parameters").gpu, "weights") == 0
    eight = needs(*base, "train.optimizer=adamw8bit").gpu
    assert row(eight, "AdamW's moments") == pytest.approx(2.03 * 70_553_706_496 / 16, rel=0.01)
    lora = needs(*base, "train.lora.rank=64").gpu
    adapters = 80 * 64 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672))
    assert row(lora, "AdamW's moments") == pytest.approx(8 * adapters / 16)
    assert row(lora, "gradient of the output layer") == 0


def test_activations_follow_the_micro_batch_the_checkpointing_and_their_offload() -> None:
    train, shape = compose(["+experiment=cat70b"]).train, compose(["+experiment=cat70b"]).model.shape
    kept = [row(memory.rank(t, 8192, shape, gpu=True), "activation checkpoints") for t in _micro(train, 1, 2)]
    assert kept == [10 * GIB, 20 * GIB]  # 2 bytes x 8192 tokens x 8192 x 80 layers
    whole = memory.rank(replace(train, activation_checkpointing=False, micro_batch=1), 8192, shape, gpu=True)
    assert row(whole, "activations") == 80 * 8192 * memory.layer_bytes(train, shape, gpu=True)
    # Korthikanti et al. count 34 bytes a token and unit of width for GPT: with SwiGLU of 3.5 x and few keys it is near.
    assert 34 < memory.layer_bytes(train, shape, gpu=True) / 8192 < 55
    away = memory.rank(replace(train, offload_activations=True, micro_batch=1), 8192, shape, gpu=True)
    assert row(away, "activation checkpoints") == 2 * 2 * 8192 * 8192


def _micro(train: TrainConfig, *counts: int) -> list[TrainConfig]:
    return [replace(train, micro_batch=count) for count in counts]


def test_page_locked_memory_is_counted_in_powers_of_two() -> None:
    assert memory.pinned(0) == 0
    assert memory.pinned(4096) == 4096
    assert memory.pinned(4097) == 8192
    rows = {r.name: r.bytes for r in needs("+experiment=cat70b").host}
    assert rows["gradients"] == 8 * (2**35 + 4 * 2**32 + 2**31)
    assert rows["fp32 weights, moments"] == pytest.approx(8 * 12 * 70_553_706_496 / 16)


def test_a_checkpoint_holds_12_bytes_a_trained_parameter() -> None:
    config, known = planned("+experiment=cat70b")
    assert memory.checkpoint(config.train, known.shape) == 12 * 70_553_706_496
    eight = replace(config.train, optimizer=Optimizer.adamw8bit)
    assert memory.checkpoint(eight, known.shape) == pytest.approx(6.03 * 70_553_706_496, rel=1e-3)
    lora = replace(config.train, lora=LoraConfig(rank=64))
    assert memory.checkpoint(lora, known.shape) < 12 * 70_553_706_496 / 80


@pytest.mark.parametrize(
    "experiment",
    [("cat70b",), ("cat70b", "train=cat70b_40gb", "cluster=a100_40_2x8"), ("cat8b",), ("cat70b_lora",)],
)
def test_what_ships_fits_the_cards_that_it_names_with_room_to_spare(experiment: tuple[str, ...]) -> None:
    config, known = planned(f"+experiment={experiment[0]}", *experiment[1:])
    found = fit.fit(config, known)
    assert found.gpu_fits and not found.tight and found.host_fits
    assert fit.faults(config) == []


def test_the_figures_beside_the_configs_are_those_of_plan() -> None:
    text = (ROOT / "conf/train/cat70b.yaml").read_text()
    plain = needs("+experiment=cat70b", "train.offload=none", "train.micro_batch=1")
    small = needs("+experiment=cat70b", "train.micro_batch=1")
    tight = needs("+experiment=cat70b", "train.offload=none", "train.micro_batch=1", "train.optimizer=adamw8bit")
    chosen = needs("+experiment=cat70b")
    for found in (plain, small, tight, chosen):
        assert f"{found.gpu.total / GIB:.1f}" in text, found.gpu.total / GIB
    assert tight.tight
    assert f"{chosen.gpu_limit / GIB:.1f} GiB" in text
    assert f"{memory.host_total(chosen.host) / GIB:.0f} GiB" in text


def test_the_page_s_table_is_what_plan_reckons() -> None:
    text = (ROOT / "docs" / "memory.md").read_text()
    need = needs("+experiment=cat70b").gpu
    for row in need.rows:
        cells = [f" {row.bytes[m] / GIB:.2f} " if row.bytes.get(m) else " " for m in memory.Moment]
        assert f"| {row.name} |{'|'.join(cells)}|" in text, row
    config, known = planned("+experiment=cat70b", "train.offload=none")
    listed = [c for c in fit.alternatives(config, known) if not c.order[0] and "cluster" not in " ".join(c.overrides)]
    assert len(listed) == 4
    for candidate in listed:
        line = (
            rf"{re.escape(' '.join(candidate.overrides))} +{candidate.gpu_bytes / GIB:.1f} .*{re.escape(candidate.why)}"
        )
        assert re.search(line, text), line


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_configs_that_do_fastest_first() -> None:
    overrides = ["+experiment=cat70b", "train.offload=none"]
    config, known = planned(*overrides)
    (fault,) = fit.faults(config)
    assert "meta-llama/Meta-Llama-3-70B needs 1" in fault and "a GPU gives 78.4" in fault
    found = fit.alternatives(config, known)
    texts = [" ".join(c.overrides) for c in found]
    assert "train.offload=optimizer" in texts and "train.lora.rank=64" in texts
    assert all(text in fault for text in texts)
    same = [c.seconds for c in found if c.order == (False, False)]
    assert len(same) >= 3 and same == sorted(same)
    for candidate in found:  # each is a line to paste
        better = compose([*overrides[:1], "train.offload=none", *candidate.overrides])
        assert fit.fit(better, known).gpu_fits
        assert fit.fit(better, known).host_fits
    names = [frozenset(c.overrides) for c in found if not c.tight]
    assert not any(one < other for one in names for other in names)


def test_offloads_slow_a_step_down_by_their_bytes() -> None:
    config, known = planned("+experiment=cat70b", "train.offload=none")
    plain = fit.seconds(config.train, config, known)
    offloaded = replace(config.train, offload=Offload.optimizer)
    n = 70_553_706_496 / 16
    expected = (2 * 2 + 1) * 4 * n / 20e9 + 2 * n / 20e9 + 28 * n * 8 / 150e9
    assert fit.seconds(offloaded, config, known) - plain == pytest.approx(expected)
    eight = replace(config.train, optimizer=Optimizer.adamw8bit)
    assert fit.seconds(eight, config, known) == plain


def test_nothing_is_refused_where_the_model_or_the_card_is_not_known() -> None:
    assert fit.faults(compose(["+experiment=cat70b", "train.offload=none", "cluster.gpu_memory_gb=0"])) == []
    assert fit.faults(compose(["+experiment=cat70b", "train.offload=none", "model.base=some/model"])) == []
    assert fit.faults(compose(["+experiment=smoke"])) == []
    assert fit.faults(compose(["+experiment=smoke", "cluster=devcluster"])) == []


def test_a_node_with_too_little_memory_for_the_offload_is_refused() -> None:
    (fault,) = fit.faults(compose(["+experiment=cat70b", "cluster.mem_gb=512"]))
    assert "948 GiB of host memory" in fault and "asks for 512" in fault
    wanted = re.search(r"set (cluster\.mem_gb=\d+)", fault)
    assert wanted
    assert fit.faults(compose(["+experiment=cat70b", wanted[1]])) == []
    assert fit.faults(compose(["+experiment=cat70b", "cluster.mem_gb=0"])) == []


def test_a_warning_too_short_for_a_save_is_refused(tmp_path: Path) -> None:
    (fault,) = fit.faults(compose(["+experiment=cat70b", "cluster.lead_s=600"]))
    wanted = re.search(r"Set (cluster\.lead_s=\d+)", fault)
    assert wanted
    assert fit.faults(compose(["+experiment=cat70b", wanted[1]])) == []
    assert fit.faults(compose(["+experiment=cat70b", "cluster.lead_s=600", "cluster.disk_gbs=20"])) == []
    measured = {"attempt": 1, "global_step": 3, "loss": 1.0, "step_s": 20.0, "seconds": {"save": 100.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(measured) + "\n")
    assert fit.faults(compose(["+experiment=cat70b", "cluster.lead_s=600"]), folder=tmp_path) == []
    (fault,) = fit.faults(compose(["+experiment=cat70b", "cluster.timeout_min=30"]))
    assert "cluster.timeout_min=30 leaves no time" in fault


def test_run_refuses_in_the_words_of_plan_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = ["+experiment=smoke", "cluster.gpus_per_node=8", "cluster.gpu_memory_gb=1"]
    with pytest.raises(UserError, match=r"random:llama needs .* GiB a GPU") as error:
        run.one(compose(overrides), overrides)
    assert "train.lora.rank=64" in str(error.value) or "Nothing that cathpc can do fits" in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_that_it_would_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["+experiment=cat70b", "train.offload=none", "dry_run=true"]
    run.one(compose(overrides), overrides)
    assert "# it would be refused: meta-llama/Meta-Llama-3-70B needs" in capsys.readouterr().out


# --- time, tokens, disk -----------------------------------------------------------------------------------------------


def test_operations_are_those_that_the_training_counts(tiny_llama: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cathpc.train import flops

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama))
    shape = shapes.read(tiny_llama / "config.json")
    assert shape is not None
    assert estimate.work(shape) == flops.work(model)
    assert parameters(shape) == sum(p.numel() for p in model.parameters())


def test_70b_costs_six_operations_a_parameter_and_token_and_attention() -> None:
    config, known = planned("+experiment=cat70b")
    a_token = estimate.step_flops(config.train, 8192, known.shape) / (64 * 8192)
    assert a_token == pytest.approx(6 * (70_553_706_496 - 128256 * 8192) + 12 * 80 * 8192 * 4096.5, rel=1e-4)
    assert estimate.hardware_factor(config.train) == pytest.approx(4 / 3)


def test_tokens_are_counted_where_packed_bounded_where_limited_and_else_unknown(tmp_path: Path) -> None:
    assert estimate.tokens(compose(["+experiment=cat70b"]), None) is None
    config = compose(["+experiment=cat70b", "pack.max_tokens=1000000"])
    bound = estimate.tokens(config, None)
    assert bound and (bound.tokens, bound.exact) == (1_000_000, False)
    assert bound.steps == 2  # 524,288 tokens each
    counts = {"train": {"bins": 130, "tokens": 1_050_000}}
    (tmp_path / "pack.json").write_text(json.dumps(counts))
    packed = estimate.tokens(config, tmp_path)
    assert packed and (packed.tokens, packed.steps, packed.exact) == (1_050_000, 3, True)
    assert estimate.steps(config.train, packed) == 12
    assert estimate.steps(replace(config.train, max_steps=5), packed) == 5
    limited = estimate.tokens(compose(["+experiment=research", "pack.max_tokens=null"]), None)
    assert limited and "at most 128 records" in limited.how


def test_disk_counts_what_stays_and_what_is_being_written() -> None:
    config, known = planned("+experiment=cat70b")
    rows = {r.name: r.bytes for r in estimate.disk(config, known.shape, estimate.stated(config, 1e9))}
    one = 12 * 70_553_706_496
    assert rows["checkpoints"] == 4 * one and rows["milestones"] == 4 * one
    assert rows["packed data"] == 12e9
    kept = compose(["+experiment=cat70b", "train.save_milestones=false"])
    assert "milestones" not in {r.name for r in estimate.disk(kept, known.shape, None)}


# --- the act ----------------------------------------------------------------------------------------------------------


def shown(*arguments: str) -> str:
    code = "import sys; from cathpc.__main__ import main; n = main(sys.argv[1:]); " + (
        "heavy = {'torch', 'transformers', 'deepspeed', 'pandas', 'datasets'} & set(sys.modules); "
        "print('heavy', sorted(heavy), file=sys.stderr); sys.exit(n)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "heavy []" in done.stderr
    return done.stdout


def test_plan_shows_memory_disk_tokens_time_and_segments_without_a_heavy_import() -> None:
    text = shown("+experiment=cat70b", "--tokens", "3e9", "--mfu", "0.3")
    for words in (
        "70,553,706,496 parameters by model.shape",
        "memory of one GPU in GiB",
        "of 78.4: fits",
        "host memory of one node",
        "847 GB, 12 bytes a parameter",
        "3,000,000,000 an epoch (as you say)",
        "at 20 GB/s",
        "x 30%",
        "4 jobs of 14 d 0 h",
        "GPU-hours",
        "train ",
    ):
        assert words in text, words
    assert "does not fit" not in text and "needs" not in text


def test_plan_shows_what_run_would_refuse_and_ends_well() -> None:
    text = shown("+experiment=cat70b", "train.offload=none")
    assert "refused: meta-llama/Meta-Llama-3-70B needs" in text
    assert "train.offload=optimizer" in text


def test_plan_of_cpu_ranks_and_of_an_unknown_model() -> None:
    assert "memory of one CPU process" in shown("+experiment=smoke")
    text = shown("+experiment=cat70b", "model.base=some/model")
    assert "memory and time are not known" in text and "model.shape" in text


def test_a_wrong_mfu_is_refused() -> None:
    arguments = type("Arguments", (), {"overrides": ["+experiment=smoke"], "cfg": False, "mfu": 40.0, "tokens": None})
    with pytest.raises(UserError, match=r"--mfu is 40"):
        plan.main(arguments)  # type: ignore[arg-type]
