"""The contract of tokenizer, template and training: what breaks it is named, before anything is queued where it can."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cathpc.acts import plan, run
from cathpc.cards.config import CardsConfig
from cathpc.config import compose
from cathpc.dispatch import graph
from cathpc.errors import UserError
from cathpc.models import contract, jinja, source, template, tiny, tokens
from cathpc.models.config import TemplateConfig, TemplateName
from cathpc.models.contract import check_contract, check_model, check_models, plain_server

from .conftest import LLAMA_TEMPLATE, NATIVE_TEMPLATE

CHATML = jinja.TURNS[TemplateName.chatml].jinja()
OWN = TemplateConfig(name=TemplateName.own, pad="<|reserved_special_token_2|>", renames=LLAMA_TEMPLATE.renames)
SERVERS = [contract.transformers_server, plain_server]


@pytest.fixture
def raw_llama(model_cache: Path, tmp_path: Path) -> Path:
    """A tiny Llama base without chat tokens, in a folder of the user's own."""
    return Path(shutil.copytree(source.prepare("random:llama", None, model_cache), tmp_path / "llama"))


def forged(folder: Path, target: Path, *, text: str | None = None, **facts: object) -> Path:
    """A copy of a model folder with another chat template or other markers, its hash made to fit."""
    shutil.copytree(folder, target)
    if text is not None:
        (target / jinja.FILE).write_text(text)
    known = json.loads((target / template.FILE).read_text()) | facts
    tokenizer = json.loads((target / template.TOKENIZER).read_text())
    known["hash"] = template.template_hash(tokenizer, known, (target / jinja.FILE).read_text())
    (target / template.FILE).write_text(json.dumps(known))
    return target


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("model", ["tiny_llama", "native_llama", "smollm2", "own_smollm2"])
def test_prepared_models_keep_the_contract(model: str, server: contract.Server, request: pytest.FixtureRequest) -> None:
    check_contract(request.getfixturevalue(model), server)  # type: ignore[arg-type]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{{- bos_token }}", ""), "a conversation has 0 BOS"),
        (("{{- bos_token }}", "{{- bos_token }}{{- bos_token }}"), "a conversation has 2 BOS"),
        (("{%- for message in messages %}", "{%- for message in messages %}{{- bos_token }}"), "a conversation has"),
        ((" | trim", ""), "gives other ids in .* than in training, from token"),
        ((" | trim", " | trim | replace('</think>', '')"), "gives other ids in .* than in training, from token"),
        (("<|im_start|>assistant", "<|im_start|>assistant\\nSure:"), "an answer is asked for after"),
        (("{{- bos_token }}", "{{- bos_token + strftime_now('%d %b') }}"), "it writes the date"),
    ],
)
def test_a_chat_template_that_breaks_the_contract_is_refused_by_name(
    tiny_llama: Path, tmp_path: Path, server: contract.Server, change: tuple[str, str], message: str
) -> None:
    assert change[0] in CHATML
    with pytest.raises(UserError, match=message):
        check_contract(forged(tiny_llama, tmp_path / "m", text=CHATML.replace(*change)), server)  # type: ignore[arg-type]


def test_an_eos_that_is_not_the_stop_token_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        folder = shutil.copytree(tiny_llama, tmp_path / name)
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"eos_token_id": 1}))
        with pytest.raises(UserError, match=rf"{name} says EOS"):
            check_contract(folder, plain_server)
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(values | {"eos_token": "<|end_of_text|>"}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json says EOS"):
        check_contract(folder, plain_server)


def test_padding_that_is_the_stop_token_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    stop = json.loads((tiny_llama / template.FILE).read_text())["stop"]
    with pytest.raises(UserError, match="both stop and padding token"):
        check_contract(forged(tiny_llama, tmp_path / "m", pad=stop), plain_server)


def test_a_tokenizer_that_marks_the_start_of_a_text_with_a_space_keeps_the_contract(
    raw_llama: Path, tmp_path: Path
) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # as Mistral's
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [
        *"\n\t▁",
        *{letter for probe in contract.PROBES for m in probe for letter in m["content"] if letter != " "},
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=letters, special_tokens=["<unk>"], max_token_length=8
    )
    tokenizer.train_from_iterator(tiny.TEXT.splitlines(), trainer)
    special = ["<s>", "</s>", *(f"[control_{i}]" for i in range(8))]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(raw_llama / "tokenizer.json"))
    (raw_llama / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    renames = {"[control_0]": "<|im_start|>", "[control_1]": "<|im_end|>"}
    target = tmp_path / "m"
    tokens.write(tokens.fit(raw_llama, TemplateConfig(pad="[control_2]", renames=renames)), raw_llama, target)
    check_contract(target)
    check_contract(target, plain_server)


# --- a model's own template -------------------------------------------------------------------------------------------


def own(folder: Path, text: str, target: Path) -> dict[str, object]:
    """Fit the tokenizer in `folder` with the chat template `text`, as if it came with it, and prove it."""
    (folder / jinja.FILE).write_text(text)
    facts = tokens.write(tokens.fit(folder, OWN), folder, target)
    check_contract(target, plain_server)
    check_contract(target)
    return facts


def test_an_own_template_is_kept_and_its_tokens_are_found(raw_llama: Path, tmp_path: Path) -> None:
    facts = own(raw_llama, CHATML, tmp_path / "m")
    assert (tmp_path / "m" / jinja.FILE).read_text() == CHATML
    assert (facts["start"], facts["stop"]) == (
        {"token": "<|im_start|>", "id": 1002},
        {"token": "<|im_end|>", "id": 1003},
    )


def test_an_own_template_may_stand_in_the_tokenizers_config_among_others(raw_llama: Path, tmp_path: Path) -> None:
    file = raw_llama / "tokenizer_config.json"
    values = json.loads(file.read_text())
    for text in (CHATML, [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]):
        file.write_text(json.dumps(values | {"chat_template": text}))
        assert jinja.own(raw_llama) == CHATML
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"template\.name=own, but the tokenizer of .* has no chat template"):
        tokens.fit(raw_llama, OWN)


def test_an_own_template_gets_the_bos_and_the_stripping_that_it_lacks(raw_llama: Path, tmp_path: Path) -> None:
    bare = CHATML.replace("{{- bos_token }}", "").replace(" | trim", "")
    own(raw_llama, bare, tmp_path / "m")
    assert (tmp_path / "m" / jinja.FILE).read_text().endswith("{{- bos_token }}" + bare)


def test_an_own_template_keeps_its_eos_beside_the_stop_token(raw_llama: Path, tmp_path: Path) -> None:
    text = CHATML + "{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}"
    facts = own(raw_llama, text, tmp_path / "m")
    assert facts["stop"] == {"token": "<|im_end|>", "id": 1003}
    assert {"token": "<|end_of_text|>", "id": 1001} in facts["others"]  # type: ignore[operator]
    ids, mask = template.Template.load(tmp_path / "m").encode([{"role": "assistant", "content": "Yes"}])
    assert ids[-1] == 1001 and not mask[-1]


def test_an_own_template_that_folds_the_system_message_into_the_users_turn_works(
    raw_llama: Path, tmp_path: Path
) -> None:
    text = (
        "{{- bos_token }}{%- for message in messages %}"
        "{%- if message.role == 'system' %}{{- '<|start_header_id|>' + message.content | trim + '\n' }}"
        "{%- elif message.role == 'user' %}{{- '<|start_header_id|>' + message.content | trim + '<|end_header_id|>' }}"
        "{%- else %}{{- message.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    )
    facts = own(raw_llama, text.replace("'\n'", "'<|end_header_id|>'"), tmp_path / "m")
    assert facts["stop"] == {"token": "<|eot_id|>", "id": 1009}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("{%- for message in messages %}", "{%- for message in messages if message.role != 'system' %}"),
            r"leaves out the content of message 1 \(system\)",
        ),
        (
            ("{{- bos_token }}", "{%- if messages[0].role == 'system' %}{{- raise_exception('No!') }}{%- endif %}"),
            "refuses a conversation of system, user, assistant, user, assistant: No!",
        ),
        (("+ message['content']", "+ message['content'] | trim + message['content']"), "writes 2 times the content"),
        (("in messages %}", "in messages | reverse %}"), "moves messages of a conversation"),
        (("<|im_end|>\\n", "\\n\\n"), "One special token, always the same, must come first"),
        (("{%- for", "{%- for for"), "is not Jinja"),
        (("{{- bos_token }}", "{{- strftime_now('%d %b %Y') }}"), "it writes the date"),
        (("message['content'] | trim", "(message['content'] | trim).split('</think>')[-1]"), "gives other ids in"),
        (
            ("+ '\\n' + message", "+ '\\n' + ('<think></think>' if message.role == 'assistant' else '') + message"),
            "an answer is asked for after",
        ),
        (("{%- endfor %}", "{{- bos_token }}{%- endfor %}"), "would stand 6 times"),
    ],
)
def test_an_own_template_that_cannot_be_trained_on_is_refused_by_name(
    raw_llama: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in CHATML
    with pytest.raises(UserError, match=message):
        own(raw_llama, CHATML.replace(*change), tmp_path / "m")


def test_an_own_template_is_rendered_in_a_sandbox(raw_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refuses a conversation of .*unsafe"):
        own(raw_llama, "{{ messages.__class__.__mro__[1].__subclasses__() }}", tmp_path / "m")


# --- before anything is queued ----------------------------------------------------------------------------------------


def test_check_model_needs_neither_torch_nor_transformers(raw_llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cathpc.models.contract import check_model;"
        "from cathpc.models.config import TemplateConfig;"
        f"config = TemplateConfig(pad={LLAMA_TEMPLATE.pad!r}, renames={LLAMA_TEMPLATE.renames!r});"
        "print(check_model(sys.argv[1], config, Path(sys.argv[2])),"
        "[m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, str(raw_llama), str(tmp_path / "cache")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "True []\n"
    assert not (tmp_path / "cache" / "models").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TemplateConfig(), "no start token: '<|im_start|>' is no special token"),
        (TemplateConfig(renames={"<|reserved_special_token_99|>": "<|im_start|>"}), "has no special token"),
        (TemplateConfig(name=TemplateName.llama3), "no pad token: it names none"),
        (TemplateConfig(name=TemplateName.own), "has no chat template"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_before_submission_with_its_key(
    raw_llama: Path, tmp_path: Path, config: TemplateConfig, message: str
) -> None:
    experiment = SimpleNamespace(
        model=SimpleNamespace(base=str(raw_llama), template=config),
        gpt=SimpleNamespace(base="random:llama", template=config),  # not at hand: left to its stage
        refusal=SimpleNamespace(base="random:bert"),
        cards=CardsConfig(template=config),
        paths=SimpleNamespace(cache=str(tmp_path / "cache")),
    )
    with pytest.raises(UserError, match=re.escape(f"model.base={raw_llama}: ") + ".*" + re.escape(message)):
        check_models(experiment)  # type: ignore[arg-type]


def test_a_model_that_is_not_at_hand_is_left_to_its_stage_and_a_prepared_one_is_proven(
    model_cache: Path, native_llama: Path, tmp_path: Path
) -> None:
    assert not check_model("random:llama", NATIVE_TEMPLATE, tmp_path)
    assert check_model("random:llama", NATIVE_TEMPLATE, model_cache)


def test_a_tokenizer_in_the_hubs_cache_is_proven_without_a_network(
    raw_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    (tmp_path / "lock.yaml").write_text(json.dumps({"models": {"org/model": {"commit": commit}}}))
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(raw_llama / name, snapshot)
    monkeypatch.setenv("CATHPC_LOCK", str(tmp_path / "lock.yaml"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert check_model("org/model", LLAMA_TEMPLATE, tmp_path / "cache")
    with pytest.raises(UserError, match="no start token"):
        check_model("org/model", TemplateConfig(), tmp_path / "cache")
    shutil.rmtree(snapshot)
    assert not check_model("org/model", LLAMA_TEMPLATE, tmp_path / "cache")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "reserved",
            "template.renames: the tokenizer of .* has no special token '<|reserved_special_token_1|>'; reserved",
        ),
        ("none", "has no special token '<|reserved_special_token_0|>'; it has no reserved tokens"),
        ("weights", "no safetensors weights: it has pytorch_model.bin, which is never opened"),
    ],
)
def test_run_on_a_cluster_refuses_a_base_that_cannot_be_trained_before_anything_is_submitted(
    raw_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    message: str,
) -> None:
    file = raw_llama / "tokenizer.json"
    if fault == "weights":
        (raw_llama / "model.safetensors").rename(raw_llama / "pytorch_model.bin")
    else:
        missing = "<|reserved_special_token_1|>" if fault == "reserved" else "<|reserved_special_token_"
        file.write_text(file.read_text().replace(missing, missing.replace("reserved", "other")))
    overrides = [
        "+experiment=smoke",
        "cluster=devcluster",
        f"model.base={raw_llama}",
        f"paths.cache={tmp_path / 'cache'}",
        f"paths.store={tmp_path / 'store'}",
        f"paths.runs={tmp_path / 'runs'}",
    ]
    config = compose(overrides)
    message = re.sub(r"([(|])", r"\\\1", message)
    monkeypatch.setattr(run, "refuse_unfit", lambda config: None)  # what it says is tested with `plan`
    monkeypatch.setattr(graph, "submit", lambda *a, **k: pytest.fail("something was submitted"))
    with pytest.raises(UserError, match=message):
        run.submit(config, ["+experiment=smoke"])
    if fault != "weights":
        assert plan.main(SimpleNamespace(overrides=overrides, cfg=False, mfu=0.4, tokens=None)) == 0  # type: ignore[arg-type]
        assert re.search(f"refused: model.base={raw_llama}: .*{message}", capsys.readouterr().out)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "store").exists()
