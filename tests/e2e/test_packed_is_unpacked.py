"""Packed = unpacked: the loss and the gradients of the same 64 real records, one by one and packed into full rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cathpc.config import PACKAGE, compose
from cathpc.data import pack
from cathpc.data.config import PackConfig
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA
from cathpc.train import attention, batches, microbatch
from cathpc.train.config import Attention, TrainConfig
from cathpc.train.engine import PackedLM

RECORDS = 64
CPU = torch.device("cpu")


def conversations() -> list[list[dict[str, str]]]:
    """The first records of the data that ships with cathpc, as they are."""
    found = []
    for line in (PACKAGE / "assets/demo/reasoning.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError):
            continue  # the demo has broken rows on purpose
        if [m["role"] for m in messages] == ["user", "assistant"] and messages[1]["content"]:
            found.append(messages)
    assert len(found) >= RECORDS
    return found[:RECORDS]


def load(folder: Path, dtype: torch.dtype, *, checkpointing: bool) -> PackedLM:
    from transformers import AutoConfig

    chosen = attention.implementation(Attention.sdpa, AutoConfig.from_pretrained(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=chosen)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": True})
    return PackedLM(model.train(), TrainConfig(loss_chunk=512))


def measured(model: PackedLM, micro_batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum of the losses and its gradients, summed up in the model's dtype as one backward pass after the other."""
    model.zero_grad()
    total = 0.0
    for batch in micro_batches:
        loss = model(**batch)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.double().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "loss_within", "gradient_within"),
    [
        ("tiny", torch.float32, 1e-6, 1e-5),
        ("tiny", torch.bfloat16, 1e-3, 2e-2),
        pytest.param("smollm2_135m", torch.float32, 1e-6, 1e-4, marks=pytest.mark.faults),
    ],
)
def test_64_real_records_have_the_loss_and_the_gradients_that_they_have_alone(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    dtype: torch.dtype,
    loss_within: float,
    gradient_within: float,
    checkpointing: bool,
) -> None:
    """Stated: the largest difference of the loss, and of a gradient in norm, relative to the unpacked one's."""
    top = tmp_path_factory.mktemp("packed")
    config = compose(["+experiment=smoke", f"model={name}"]).model
    base = top / "base"
    base.mkdir()
    (base / "model").symlink_to(prepare(config.base, config.template, top / "cache"))
    template = Template.load(base / "model")
    (top / "cards").mkdir()
    rows = [
        dict.fromkeys(RECORD_SCHEMA.names, "") | {"id": str(i), "label": None, "messages": messages}
        for i, messages in enumerate(conversations())
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), top / "cards/carded.parquet")
    (top / "pack").mkdir()
    settings = SimpleNamespace(pack=PackConfig(seq_len=2048, eval_share=0.0))
    summary = pack.run(settings, {"cards": top / "cards", "base": base}, top / "pack")  # type: ignore[arg-type]
    assert summary["train"]["records"] == RECORDS and summary["train"]["bins"] < RECORDS / 4
    data = batches.load(top / "pack/train", template.pad_id)
    packed = [microbatch.tensors(data, [row], CPU) for row in range(data.bins)]

    alone = []
    for messages in conversations():
        ids, supervised = template.encode(messages)
        labels = [i if s else pack.NO_LABEL for i, s in zip(ids, supervised, strict=True)]
        tensors = {"input_ids": ids, "labels": labels, "position_ids": list(range(len(ids)))}
        alone.append({k: torch.tensor([v]) for k, v in tensors.items()} | {"bounds": [0, len(ids)]})

    model = load(base / "model", dtype, checkpointing=checkpointing)
    loss, gradients = measured(model, packed)
    loss_alone, gradients_alone = measured(model, alone)
    differences = {k: float((g - gradients_alone[k]).norm() / gradients_alone[k].norm()) for k, g in gradients.items()}
    worst = max(differences, key=lambda k: differences[k])
    print(f"{name}, {dtype}: loss {abs(loss / loss_alone - 1):.1e}, gradient {differences[worst]:.1e} ({worst})")
    assert loss == pytest.approx(loss_alone, rel=loss_within)
    assert differences[worst] < gradient_within
