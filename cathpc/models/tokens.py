"""The tokenizer's part of token surgery: control tokens, chat template and the files that name them.

In goes a model folder and the template that is asked for, out come `tokenizer.json` with reserved tokens renamed,
`tokenizer_config.json`, `chat_template.jinja`, `config.json`, `generation_config.json` and `template.json`: all that a
conversation needs to become tokens, and no weights. So a template can be proven to fit before anything is queued.
Memory and time grow with the tokenizer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.errors import UserError
from cathpc.models import jinja
from cathpc.models import template as chat
from cathpc.models.config import TemplateConfig, TemplateName
from cathpc.models.weights import read_json, write_json, write_text
from cathpc.schema import identity

_TALK = ("system", "user", "assistant", "user", "assistant")


@dataclass(frozen=True)
class Fitted:
    """A tokenizer with a chat template, as its files will have it."""

    tokenizer: dict[str, Any]
    """tokenizer.json."""
    settings: dict[str, str]
    """Special tokens by name (`bos_token`, ...)."""
    chat_template: str
    config: dict[str, Any]
    """config.json."""
    generation: dict[str, Any]
    """generation_config.json."""
    facts: dict[str, Any]
    """template.json, without its hash and the rows of the tables."""

    def text(self) -> str:
        """tokenizer.json on one line: indented, it would be written by Python's own code, ten times as slowly."""
        return json.dumps(self.tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n"


def fit(source: Path, config: TemplateConfig) -> Fitted:
    """Fit the tokenizer of the model in `source` with the chat template of `config`.

    Raises a `UserError` where a token is missing or the template cannot be used.
    """
    tokenizer = _tokenizer_json(source, config.renames)
    settings = _settings(source, config)
    text = _chat_template(source, config, settings)
    facts = _markers(source, tokenizer, jinja.Layout(text, settings), config)
    ids = {f"{name}_token_id": facts[role]["id"] for name, role in _NAMES.items()}
    return Fitted(
        tokenizer=tokenizer,
        settings=settings | {f"{name}_token": facts[role]["token"] for name, role in _NAMES.items()},
        chat_template=text,
        config=clean_config(source) | ids,
        generation=read_json(source / "generation_config.json") | ids,
        facts=facts,
    )


def write(fitted: Fitted, source: Path, target: Path) -> dict[str, Any]:
    """Write all files but the weights to the folder `target`; returns `template.json`, now with its hash."""
    target.mkdir(parents=True, exist_ok=True)
    known = chat.template_hash(fitted.tokenizer, fitted.facts, fitted.chat_template)
    facts = {**fitted.facts, "hash": known}
    write_json(target / "config.json", fitted.config)
    write_json(target / "generation_config.json", fitted.generation)
    write_text(target / chat.TOKENIZER, fitted.text())
    write_json(target / "tokenizer_config.json", _tokenizer_config(source, fitted.settings))
    write_text(target / jinja.FILE, fitted.chat_template)
    write_json(target / chat.FILE, facts)
    return facts


_NAMES = {"bos": "bos", "eos": "stop", "pad": "pad"}
"""What configs call a special token -> its marker."""


def clean_config(source: Path) -> dict[str, Any]:
    """`config.json` without the entries that point to code of the repository or to where the model came from."""
    config = read_json(source / "config.json")
    if not config:
        raise UserError(f"{source} has no config.json: it is not a Hugging Face model folder")
    return {k: v for k, v in config.items() if k not in ("auto_map", "_name_or_path")}


def _added(tokenizer: dict[str, Any], token: str) -> dict[str, Any] | None:
    """The added token with this text."""
    return next((t for t in tokenizer["added_tokens"] if t["content"] == token), None)


def _tokenizer_json(source: Path, renames: dict[str, str]) -> dict[str, Any]:
    """`tokenizer.json` with its tokens renamed."""
    tokenizer = read_json(source / chat.TOKENIZER)
    if not tokenizer:
        raise UserError(
            f"{source} has no {chat.TOKENIZER}; save one where the model comes from, with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    tokenizer |= {"truncation": None, "padding": None}
    vocabulary = tokenizer["model"].get("vocab")
    for old, new in renames.items():
        entry = _added(tokenizer, old)
        if entry is None:
            reserved = [t["content"] for t in tokenizer["added_tokens"] if "reserved" in t["content"]]
            have = f"reserved tokens: {', '.join(reserved[:4])}..." if reserved else "it has no reserved tokens"
            raise UserError(f"template.renames: the tokenizer of {source} has no special token {old!r}; {have}")
        if _added(tokenizer, new) is not None or (isinstance(vocabulary, dict) and new in vocabulary):
            raise UserError(
                f"template.renames: the tokenizer of {source} has a token {new!r} already; leave out '{old}: {new}'"
            )
        entry |= {"content": new, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        if isinstance(vocabulary, dict) and old in vocabulary:
            tokenizer["model"]["vocab"] = vocabulary = {new if k == old else k: v for k, v in vocabulary.items()}
        if tokenizer.get("post_processor"):
            tokenizer["post_processor"] = _replace(tokenizer["post_processor"], old, new)
    return tokenizer


def _replace(value: Any, old: str, new: str) -> Any:
    """`value` (JSON) with every string and key that equals `old` replaced."""
    if isinstance(value, dict):
        return {(new if k == old else k): _replace(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replace(v, old, new) for v in value]
    return new if value == old else value


def _settings(source: Path, config: TemplateConfig) -> dict[str, str]:
    """The tokenizer's special tokens by name (`bos_token`, ...), renamed, those of `config` in place of its own."""
    own = {key: config.renames.get(token, token) for key, token in chat.names(source).items()}
    asked = {"bos_token": config.bos, "pad_token": config.pad}
    return own | {key: token for key, token in asked.items() if token}


def _chat_template(source: Path, config: TemplateConfig, settings: dict[str, str]) -> str:
    """The Jinja text of the template that is asked for."""
    if config.name is TemplateName.own:
        return jinja.adapted(jinja.own(source), settings, settings.get("bos_token", ""))
    return jinja.TURNS[config.name].jinja()


def _markers(source: Path, tokenizer: dict[str, Any], layout: jinja.Layout, config: TemplateConfig) -> dict[str, Any]:
    """Tokens and ids of the template's markers; each must be one special token of the (renamed) tokenizer.

    `start` is the first control token of a message, `stop` the one that ends an answer, `others` are the rest;
    `opening` is how a conversation without a system message begins, a system prompt of the template's own included.
    """

    def marker(role: str, token: str, remedy: str) -> dict[str, Any]:
        entry = _added(tokenizer, token)
        if entry is None:
            have = ", ".join(t["content"] for t in tokenizer["added_tokens"][:6])
            seen = f"{token!r} is no special token of it" if token else "it names none"
            raise UserError(f"the tokenizer of {source} has no {role} token: {seen} (it has {have}...); {remedy}")
        entry["special"] = True
        return {"token": token, "id": int(entry["id"])}

    bos, pad = layout.tokens.get("bos_token", ""), layout.tokens.get("pad_token", "")
    facts: dict[str, Any] = {"name": config.name.name, "asked": identity(config)}
    facts["bos"] = marker("bos", bos, "set template.bos to the token that starts a conversation")
    if (count := layout.render(_talk()).count(bos)) != 1:
        raise UserError(
            f"the BOS of {source}, {bos!r}, would stand {count} times in a conversation of {len(_TALK)} messages; set "
            "template.bos to a special token that nothing else uses"
        )
    turn = jinja.TURNS.get(config.name)
    start, stop, others = _named(turn) if turn else _found(source, tokenizer, layout)
    remedy = f"template.name={config.name.name} needs it: rename a reserved token to it with template.renames"
    facts["start"] = marker("start", start, remedy)
    facts["stop"] = marker("stop", stop, remedy)
    facts["pad"] = marker("pad", pad, "set template.pad to a reserved token that nothing else uses")
    facts["others"] = [marker("control", token, remedy) for token in others]
    facts["opening"] = layout.pieces(("user",))[0]
    if facts["pad"]["id"] == facts["stop"]["id"]:
        raise UserError(
            f"the padding token of {source} is the stop token {stop!r}, so the model would never learn to stop; "
            "set template.pad to another token"
        )
    return facts


def _talk() -> list[dict[str, str]]:
    return [{"role": role, "content": role} for role in _TALK]


def _named(turn: jinja.Turn) -> tuple[str, str, list[str]]:
    """(start, stop, other control tokens) of a named template."""
    return turn.start, turn.stop, [turn.middle.strip()] if turn.middle.strip() else []


def _found(source: Path, tokenizer: dict[str, Any], layout: jinja.Layout) -> tuple[str, str, list[str]]:
    """(start, stop, other control tokens) of a model's own template: the tokenizer's added tokens that it writes."""
    added = sorted((t["content"] for t in tokenizer["added_tokens"]), key=len, reverse=True)
    control = re.compile("|".join(re.escape(token) for token in added if not token.isspace()))
    pieces = layout.pieces(_TALK)
    ends = [after for role, after in zip(_TALK, pieces[1:], strict=True) if role == "assistant"]
    stops = {found.group() if (found := control.match(end)) else "" for end in ends}
    if len(stops) != 1 or "" in stops:
        raise UserError(
            f"template.name=own: after an answer the chat template of {source} writes {' or '.join(map(repr, ends))}. "
            "One special token, always the same, must come first, or the model cannot learn to stop; take "
            f"template.name={' or '.join(name.name for name in jinja.TURNS)}"
        )
    (stop,) = stops
    bos = layout.tokens["bos_token"]
    written = dict.fromkeys(control.findall("\0".join([*layout.pieces(("user",), prompt=True), *pieces])))
    others = [token for token in written if token not in (bos, stop)]
    return (others[0], stop, others[1:]) if others else (bos, stop, [])


def _tokenizer_config(source: Path, settings: dict[str, str]) -> dict[str, Any]:
    """A plain `tokenizer_config.json`: tokenizer.json decides the ids, no class or code of the repository does."""
    fresh: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **settings,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    longest = read_json(source / "tokenizer_config.json").get("model_max_length")
    return fresh | ({"model_max_length": longest} if isinstance(longest, int) else {})
