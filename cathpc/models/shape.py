"""The dimensions of a Llama-like model: what memory and time are reckoned from, without opening its weights.

In: a `config.json`, or the dimensions that `conf/model/*.yaml` state for a model that is not on this machine yet. Out:
`ShapeConfig` and its number of parameters. No heavy import.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.models.config import ModelConfig


@dataclass
class ShapeConfig:
    """Dimensions of a decoder as `config.json` names them; all 0 where nobody stated them."""

    of: str = ""
    """The model that they belong to; another `model.base` ignores them."""
    layers: int = 0
    """num_hidden_layers."""
    width: int = 0
    """hidden_size."""
    mlp_width: int = 0
    """intermediate_size."""
    heads: int = 0
    """num_attention_heads."""
    kv_heads: int = 0
    """num_key_value_heads."""
    head_dim: int = 0
    """Width of one head."""
    vocab: int = 0
    """vocab_size."""
    tied: bool = False
    """The output layer is the embedding."""

    @property
    def query(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the output layer."""
        return self.vocab * self.width

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one decoder layer by name: inputs and outputs."""
        h, q, k, f = self.width, self.query, self.keys, self.mlp_width
        return {
            **{"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)},
            **{"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)},
        }


def parameters(shape: ShapeConfig) -> int:
    """Number of parameters: layers x (q, k, v, o, gate, up, down and two norms), the last norm, embedding and output.

    As in transformers' `LlamaForCausalLM`; biases and norms of queries, which other families add, make less than 0.1%.
    """
    layer = sum(inputs * outputs for inputs, outputs in shape.matrices.values()) + 2 * shape.width
    return shape.layers * layer + shape.width + shape.embedding * (1 if shape.tied else 2)


def read(file: Path) -> ShapeConfig | None:
    """The shape in a `config.json`; None where it describes no dense decoder of Llama's kind."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        heads = int(data["num_attention_heads"])
        shape = ShapeConfig(
            layers=int(data["num_hidden_layers"]),
            width=int(data["hidden_size"]),
            mlp_width=int(data["intermediate_size"]),
            heads=heads,
            kv_heads=int(data.get("num_key_value_heads") or heads),
            head_dim=int(data.get("head_dim") or int(data["hidden_size"]) // heads),
            vocab=int(data["vocab_size"]),
            tied=bool(data.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    mixture = data.get("num_local_experts") or data.get("num_experts") or data.get("n_routed_experts")
    return None if mixture or not shape.vocab else shape


@dataclass(frozen=True)
class Known:
    """A shape and where it was read."""

    shape: ShapeConfig
    source: str


def find(config: Config) -> Known | None:
    """The shape of `model.base`: from its `config.json` where that is on this machine, else as `model.shape` states it;
    None where neither is known."""
    from cathpc.models import source

    file = source.at_hand(config.model.base, config.model.template, Path(config.paths.cache))
    if file and (shape := read(file)):
        return Known(shape, str(file))
    stated = config.model.shape
    return Known(stated, "model.shape") if stated.layers and stated.of == config.model.base else None


def check(model: ModelConfig, file: Path) -> None:
    """Raise `UserError` where `model.shape` speaks of `model.base` and its `config.json` says otherwise."""
    stated, real = model.shape, read(file)
    if real is None or stated.of != model.base:
        return
    names = [f.name for f in fields(ShapeConfig) if f.name != "of"]
    wrong = [n for n in names if getattr(stated, n) != getattr(real, n)]
    if wrong:
        raise UserError(
            f"{file} is not what was planned with: "
            + ", ".join(f"model.shape.{n} is {getattr(stated, n)}, the model has {getattr(real, n)}" for n in wrong)
            + f". Check that model.base={model.base} is the model that you mean, correct its conf/model/*.yaml, and "
            "look at `plan` again"
        )
