"""Conversations as tokens: ids, mask and what a folder needs, on a tiny Llama and on SmolLM2, in every template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cathpc.errors import ChangedError, UserError
from cathpc.models.template import MARKERS, Template

CHAT = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": " What is 2 + 2?\n\n1. four\n\n2. five\n"},
    {"role": "assistant", "content": "It is 4.\n\n1. Because."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye – 再见 🙂"},
]


@pytest.fixture(params=["tiny_llama", "native_llama", "smollm2", "own_smollm2"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Every test below holds for both models and all templates."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def plain(template: Template) -> Callable[[str], list[int]]:
    """Ids of plain text."""
    return lambda text: template.raw.encode(text, add_special_tokens=False).ids


def edited(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of a model folder with one of its JSON files changed."""
    shutil.copytree(folder, target)
    value = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps(value | changes))
    return target


@pytest.mark.parametrize("model", ["tiny_llama", "smollm2"])
def test_ids_of_chatml_are_bos_then_header_content_stop_newline_for_each_message(
    model: str, request: pytest.FixtureRequest
) -> None:
    template = Template.load(request.getfixturevalue(model))
    ids, _ = template.encode([{"role": "user", "content": "  Hello \n"}], generation_prompt=True)
    text = plain(template)
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


def test_ids_of_llama3_are_bos_then_framed_role_two_newlines_content_stop_for_each_message(native_llama: Path) -> None:
    template = Template.load(native_llama)
    ids, _ = template.encode([{"role": "user", "content": "  Hello \n"}], generation_prompt=True)
    text, special = plain(template), template.raw.token_to_id
    header, end = special("<|start_header_id|>"), special("<|end_header_id|>")
    assert ids == [
        special("<|begin_of_text|>"),
        *(header, *text("user"), end, *text("\n\n"), *text("Hello"), special("<|eot_id|>")),
        *(header, *text("assistant"), end, *text("\n\n")),
    ]


def test_ids_of_a_models_own_template_are_its_rendering_with_one_bos_in_front(own_smollm2: Path) -> None:
    template = Template.load(own_smollm2)
    ids, _ = template.encode([{"role": "user", "content": " Hello\n"}], generation_prompt=True)
    assert template.raw.decode(ids, skip_special_tokens=False) == (
        "<|endoftext|><|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.facts["opening"].endswith("trained by Hugging Face<|im_end|>\n<|im_start|>user\n")
    given, _ = template.encode([{"role": "system", "content": "Be brief."}])
    assert "Hugging Face" not in template.raw.decode(given)


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
        == f"It is 4.\n\n1. Because.{template.stop}Bye – 再见 🙂{template.stop}"
    )
    _, none = template.encode(CHAT[:2], generation_prompt=True)
    assert not any(none)


def test_transformers_chat_template_gives_the_very_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    template, theirs = Template.load(folder), AutoTokenizer.from_pretrained(folder)
    for messages, more in ((CHAT, False), (CHAT[:-1], True), (CHAT[1:2], True)):
        ours = template.encode(messages, generation_prompt=more)[0]
        assert theirs.apply_chat_template(messages, add_generation_prompt=more, return_dict=False) == ours


def test_control_tokens_spelt_in_a_message_stay_text(folder: Path) -> None:
    template = Template.load(folder)
    clean = template.encode([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}])[0]
    for entry in (*(template.facts[role] for role in MARKERS), *template.facts["others"]):
        token, number = entry["token"], entry["id"]
        content = f"a {token}\n{token} b"
        ids, _ = template.encode([{"role": "user", "content": content}, {"role": "assistant", "content": f"c{token}"}])
        assert ids.count(number) == clean.count(number)
        assert content in template.decode(ids)


def test_a_role_is_a_word_and_cannot_bring_control_tokens(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"the role 'user<\|im_end\|>'; a role is one word"):
        Template.load(tiny_llama).encode([{"role": "user<|im_end|>", "content": "x"}])


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


def test_an_altered_tokenizer_or_chat_template_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "m", "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(ChangedError, match=r"tokenizer\.json or chat_template\.jinja is not the one"):
        Template.load(folder)
    folder = shutil.copytree(tiny_llama, tmp_path / "n")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    with pytest.raises(ChangedError, match=r"tokenizer\.json or chat_template\.jinja is not the one"):
        Template.load(folder)


def test_a_folder_without_template_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no template\.json"):
        Template.load(tmp_path)
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat_template\.jinja; prepare or export the model again"):
        Template.load(folder)
