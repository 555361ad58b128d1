"""GGUF to a Hugging Face folder, once: fp32 safetensors, tokenizer, config.

In goes one `.gguf` file, out comes a model folder that equals what transformers loads from the file. Peak memory is
four bytes a parameter and one quantised tensor; time is about 15 s for 135 million parameters.
"""

from __future__ import annotations

import struct
from pathlib import Path

from cathpc.errors import UserError
from cathpc.models.weights import read_json, write_json, write_text

_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r")
"""Values of `tokenizer.ggml.pre` that split every digit off before GPT-2's split (llama.cpp, `llm_tokenizer_bpe`);
transformers leaves the digits out, which changes the ids of '\\n\\n1.' and the like."""
_GPT2 = ("gpt-2", "mpt", "olmo", "phi-2")
"""Values that mean GPT-2's split, which is what transformers takes for every value that it does not know."""


def convert(file: Path, target: Path) -> None:
    """Write the model of the GGUF file `file` to the folder `target`.

    Raises a `UserError` where the file is broken or where its text is split into words in a way that is not known here,
    for then every id could be wrong without a sign of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    split = _split(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{file} cannot be converted: {error}. Use the model's safetensors instead") from error
    # What was loaded from GGUF refuses to be saved; a plain model of the same config takes over its tensors.
    fields = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    config = type(loaded.config).from_dict(fields)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]  # untyped there
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(target)
    if split == "digits":
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    template = tokenizer.chat_template
    tokenizer.chat_template = None
    tokenizer.save_pretrained(target)
    if isinstance(template, str):
        write_text(target / "chat_template.jinja", template)
    own = read_json(target / "tokenizer_config.json")
    kept = {k: v for k, v in own.items() if k.endswith("_token") or k == "model_input_names"}
    write_json(
        target / "tokenizer_config.json",
        kept | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings},
    )


def _split(file: Path) -> str:
    """How the file's tokenizer splits text: 'digits' where transformers must be corrected, else 'transformers'."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.integrations.gguf.reader import read_gguf_metadata

    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file; download it again")
    try:
        metadata, _ = read_gguf_metadata(str(file), ())
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{file} is a broken GGUF file ({error}); download it again") from error
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "")
    if split in _DIGITS_FIRST:
        return "digits"
    if kind == "gpt2" and split not in (*_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        raise UserError(f"{file}: how its tokenizer splits text ({split!r}) is not known; use the model's safetensors")
    return "transformers"
