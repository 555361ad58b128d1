"""A model folder to talk to: any Hugging Face folder with safetensors and a chat template.

In: a folder. Out: the causal model, and the language that it is spoken to in: ids of a conversation, text of ids, the
ids that end an answer. A folder that cathpc prepared or exported is asked in exactly the ids that training saw; any
other in those of its own chat template. No code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from cathpc.record import Message


@dataclass(frozen=True)
class Language:
    """How a model is spoken to."""

    encode: Callable[[list[Message]], list[int]]
    """Ids of a conversation and of the header of the answer that follows; a `UserError` where the template refuses."""
    raw: Tokenizer
    """Decodes."""
    stops: frozenset[int]
    """Ids that end an answer."""
    pad_id: int

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, control tokens left out."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True)
        return text


def load(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model in `folder`, on the GPUs where there are any; `dtype` None is bfloat16 where the device has it, else
    float32. Raises `UserError` for what is no folder, has no safetensors or an architecture of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cathpc.models.bars import no_bars
    from cathpc.models.precision import fast_dtype
    from cathpc.models.tokens import clean_config
    from cathpc.models.weights import tensors

    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}; --model takes a Hugging Face folder with safetensors")
    fields = clean_config(folder)
    tensors(folder)
    name = fields.pop("model_type", "")
    try:
        config = AutoConfig.for_model(name, **fields)
    except ValueError:
        raise UserError(f"{folder}: the architecture {name!r} is not built into transformers") from None
    on_gpus = torch.cuda.is_available()
    with no_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or fast_dtype(),
            use_safetensors=True,
            local_files_only=True,
            **({"device_map": "auto"} if on_gpus else {}),
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def language(folder: Path, model: PreTrainedModel) -> Language:
    """How the model in `folder` is spoken to; raises `UserError` where it has no tokenizer or no chat template."""
    from cathpc.models.template import FILE, Template
    from cathpc.models.weights import read_json

    if (folder / FILE).is_file():
        template = Template.load(folder)
        return Language(
            lambda m: template.encode(m, generation_prompt=True)[0],
            template.raw,
            frozenset({template.stop_id}),
            template.pad_id,
        )

    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json, so nothing can be said to it")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer in {folder} has no chat template: this is a base model, not one to chat with. "
            "Fine-tune it first, or name a folder with a chat_template.jinja"
        )
    stop = read_json(folder / "generation_config.json").get("eos_token_id", model.config.eos_token_id)
    stops = frozenset({tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None})

    def encode(messages: list[Message]) -> list[int]:
        from jinja2.exceptions import TemplateError

        try:
            ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise UserError(f"the chat template of {folder} refuses the conversation: {error}") from None
        return ids

    pad = tokenizer.pad_token_id  # masked, so that any id does
    return Language(encode, tokenizer.backend_tokenizer, stops, min(stops, default=0) if pad is None else int(pad))
