"""Conversations as tokens: the contract between tokenizer, template and model, on a tiny Llama and on SmolLM2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cathpc.errors import ChangedError, UserError
from cathpc.models.template import Template, check_contract

CHAT = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": " What is 2 + 2?\n\n1. four\n\n2. five\n"},
    {"role": "assistant", "content": "It is 4.\n\n1. Because."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye – 再见 🙂"},
]


@pytest.fixture(params=["tiny_llama", "smollm2"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Every test below holds for both models."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def edited(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of a model folder with one of its JSON files changed."""
    shutil.copytree(folder, target)
    value = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(value | changes))
    return target


def test_ids_are_bos_then_header_content_stop_newline_for_each_message(folder: Path) -> None:
    template = Template.load(folder)
    ids, _ = template.encode([{"role": "user", "content": "  Hello \n"}], generation_prompt=True)
    raw = template.raw

    def text(value: str) -> list[int]:
        return raw.encode(value, add_special_tokens=False).ids

    assert ids == [
        template.bos_id,
        template.start_id,
        *text("user\n"),
        *text("Hello"),
        template.stop_id,
        *text("\n"),
        template.start_id,
        *text("assistant\n"),
    ]


def test_one_bos_at_position_0(folder: Path) -> None:
    template = Template.load(folder)
    ids, _ = template.encode(CHAT)
    assert [i for i, token in enumerate(ids) if token == template.bos_id] == [0]


def test_supervised_are_answers_and_their_stop_token_only(folder: Path) -> None:
    template = Template.load(folder)
    ids, mask = template.encode(CHAT)
    learnt = [i for i, m in zip(ids, mask, strict=True) if m]
    assert (
        template.raw.decode(learnt, skip_special_tokens=False)
        == "It is 4.\n\n1. Because.<|im_end|>Bye – 再见 🙂<|im_end|>"
    )
    _, none = template.encode(CHAT[:2], generation_prompt=True)
    assert not any(none)


def test_transformers_chat_template_gives_the_very_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    template, theirs = Template.load(folder), AutoTokenizer.from_pretrained(folder)
    for messages, more in ((CHAT, False), (CHAT[:-1], True), (CHAT[1:2], True)):
        ours = template.encode(messages, generation_prompt=more)[0]
        assert theirs.apply_chat_template(messages, add_generation_prompt=more, return_dict=False) == ours


@pytest.mark.parametrize("role", ["bos", "start", "stop", "pad"])
def test_control_tokens_spelt_in_a_message_stay_text(folder: Path, role: str) -> None:
    template = Template.load(folder)
    token, number = template.facts[role]["token"], template.facts[role]["id"]
    clean = template.encode([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}])[0]
    content = f"a {token}\n{token} b"
    ids, _ = template.encode([{"role": "user", "content": content}, {"role": "assistant", "content": f"c{token}"}])
    assert ids.count(number) == clean.count(number)
    assert content in template.decode(ids)


def test_decode_leaves_control_tokens_out(folder: Path) -> None:
    template = Template.load(folder)
    ids, mask = template.encode(CHAT[:3])
    assert template.decode([i for i, m in zip(ids, mask, strict=True) if m]) == CHAT[2]["content"]


def test_stop_token_is_eos_everywhere_and_padding_is_another(folder: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    template = Template.load(folder)
    config = json.loads((folder / "config.json").read_text())
    generation, theirs = GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config["eos_token_id"] == generation.eos_token_id == theirs.eos_token_id == template.stop_id
    assert config["pad_token_id"] == generation.pad_token_id == theirs.pad_token_id == template.pad_id
    assert template.pad_id != template.stop_id


def test_copy_carries_the_template_to_another_folder(folder: Path, tmp_path: Path) -> None:
    Template.load(folder).copy(tmp_path)
    copied = Template.load(tmp_path)
    assert copied.hash == Template.load(folder).hash
    assert copied.encode(CHAT) == Template.load(folder).encode(CHAT)


def test_hash_does_not_depend_on_how_the_tokenizer_file_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "m", "tokenizer.json")
    assert Template.load(folder).hash == Template.load(tiny_llama).hash


def test_an_altered_tokenizer_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "m", "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(ChangedError, match=r"tokenizer\.json is not the tokenizer"):
        Template.load(folder)


def test_a_folder_without_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no template\.json"):
        Template.load(tmp_path)


def test_contract_names_an_eos_that_is_not_the_stop_token(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "m", "generation_config.json", eos_token_id=1)
    with pytest.raises(UserError, match=r"generation_config\.json says EOS"):
        check_contract(folder)


def test_contract_names_a_chat_template_that_gives_other_ids(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    jinja = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(jinja.replace("{{- bos_token }}", ""))
    with pytest.raises(UserError, match="chat template gives other ids"):
        check_contract(folder)


def test_contract_names_padding_that_is_the_stop_token(tiny_llama: Path, tmp_path: Path) -> None:
    from cathpc.models.template import template_hash

    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    facts = json.loads((folder / "template.json").read_text())
    facts["pad"] = facts["stop"]
    facts["hash"] = template_hash(json.loads((folder / "tokenizer.json").read_text()), facts)
    (folder / "template.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="both stop and padding token"):
        check_contract(folder)
