"""The act `chat`: one-shot and conversation, in plain output, with a tiny model."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cathpc.acts import chat as act
from cathpc.acts.chat import Speaker, chat
from cathpc.errors import UserError
from cathpc.models.source import prepare
from cathpc.record import Message


def ask(folder: Path, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    """What one question prints."""
    settings = {"prompt": "Hello!", "max_new_tokens": 12, "temperature": 0.9, "seed": 1} | options
    chat(folder, **settings)  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Message]]:
    """The conversations that the model was asked."""
    asked: list[list[Message]] = []
    real = Speaker.stream

    def stream(self: Speaker, messages: list[Message]) -> Iterator[str]:
        asked.append([dict(m) for m in messages])
        return real(self, messages)

    monkeypatch.setattr(Speaker, "stream", stream)
    return asked


def test_one_shot_answers_and_the_seed_decides_what(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ask(tiny_llama, capsys)
    assert first.strip() and first.endswith("\n") and "<|" not in first
    assert ask(tiny_llama, capsys) == first
    assert ask(tiny_llama, capsys, seed=2) != first


def test_the_answer_is_what_generate_of_transformers_gives(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    speaker = Speaker(tiny_llama, max_new_tokens=8, temperature=0, seed=0)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=speaker.model.dtype)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    whole = model.generate(**prompt, do_sample=False, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
    expected = tokenizer.decode(whole, skip_special_tokens=True)
    # A character that is cut in two by the limit is shown by decode, not by the stream.
    assert "".join(speaker.stream(messages)) == expected.rstrip("�")


def test_the_answer_ends_at_the_stop_token(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(tiny_llama, max_new_tokens=50, temperature=0, seed=0)
    hello = speaker.raw.encode("Hello there", add_special_tokens=False).ids
    script = iter([*hello, *speaker.stops, *hello])
    monkeypatch.setattr(speaker, "_choose", lambda logits: next(script))
    assert "".join(speaker.stream([{"role": "user", "content": "x"}])) == "Hello there"


def test_a_conversation_keeps_its_history_and_its_system_message(
    tiny_llama: Path, seen: list[list[Message]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["One", "", "Two", "/reset", "Three", "/system Be brief.", "Four", "/nonsense", "/exit", "Five"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat(tiny_llama, system="You are kind.", max_new_tokens=4, temperature=0)
    assert [(m[0]["content"], m[-1]["content"]) for m in seen] == [
        ("You are kind.", "One"),
        ("You are kind.", "Two"),
        ("You are kind.", "Three"),
        ("Be brief.", "Four"),
    ]
    assert [[m["role"] for m in messages] for messages in seen] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert "there is no /nonsense" in capsys.readouterr().out


def test_the_end_of_input_leaves(tiny_llama: Path, seen: list[list[Message]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One"))
    chat(tiny_llama, max_new_tokens=2)
    assert len(seen) == 1


def test_ctrl_c_ends_the_answer_and_not_the_conversation(
    tiny_llama: Path, seen: list[list[Message]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One\nTwo\n"))

    def interrupted(self: Speaker, messages: list[Message]) -> Iterator[str]:
        seen.append(messages)
        for _ in range(2):  # an impatient hand
            os.kill(os.getpid(), signal.SIGINT)
        yield "So"
        yield " much more"

    monkeypatch.setattr(Speaker, "stream", interrupted)
    chat(tiny_llama)
    assert [len(messages) for messages in seen] == [1, 3]
    assert seen[1][1] == {"role": "assistant", "content": "So"}
    assert "So [interrupted]" in capsys.readouterr().out


def test_control_characters_of_an_answer_do_not_reach_the_terminal() -> None:
    assert act._printable("a\x1b[31mb\x9b2J\r\n\tc\x00é🙂") == "a[31mb2J\n\tcé🙂"


def test_a_folder_of_another_origin_is_asked_in_its_own_template(
    model_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(prepare("random:llama", None, model_cache), tmp_path / "theirs")
    with pytest.raises(UserError, match="has no chat template: this is a base model"):
        ask(folder, capsys)
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.X"}}))
    speaker = Speaker(folder, max_new_tokens=3, temperature=0, seed=0)
    ids = speaker.encode([{"role": "user", "content": "Hello"}])
    assert ids == [1000, *speaker.raw.encode("Hello", add_special_tokens=False).ids]
    assert speaker.stops == {1001}
    with pytest.raises(UserError, match="refuses the conversation: no system"):
        ask(folder, capsys, system="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature -1.0 is negative"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 leaves no room"),
        ({"prompt": "  "}, "--prompt is empty"),
        ({"prompt": "word " * 3000}, "the conversation has [0-9,]+ tokens, the model's context 2,048"),
    ],
)
def test_what_cannot_be_asked_is_explained(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ask(tiny_llama, capsys, **options)


def test_a_folder_that_is_no_model_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        ask(tmp_path / "none", capsys)
    with pytest.raises(UserError, match=r"has no config\.json"):
        ask(tmp_path, capsys)
