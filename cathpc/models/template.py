"""Conversations as tokens: the same ids in training, scoring, chat and in the exported model.

In goes a model folder with `tokenizer.json`, `chat_template.jinja` and `template.json`; out come ids and the mask of
supervised tokens. A conversation is encoded piece by piece from its messages, never from one templated string: what the
chat template puts around the contents is known from the roles alone (`cathpc.models.jinja`), its control tokens are
placed by id, and whatever a content spells is encoded as plain text. Cost: linear in the text, about 1 MB a second and
thread.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import ChangedError, UserError
from cathpc.models import jinja
from cathpc.models.weights import place, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from cathpc.record import Message

FILE = "template.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", jinja.FILE, FILE, "generation_config.json")
"""What a folder needs, beside weights and config, to be the same model to whoever talks to it."""
MARKERS = ("bos", "start", "stop", "pad")
"""The special tokens that `template.json` names, each with its id."""
KEPT_LAYOUTS = 4096
"""Sequences of roles whose control tokens are remembered."""


def template_hash(tokenizer: dict[str, Any], facts: dict[str, Any], text: str) -> str:
    """First 16 hex digits of a SHA-256 over all that decides ids: the tokenizer's parts, the markers, the chat
    template's `text`.

    `tokenizer` is the content of `tokenizer.json`; how it is indented or ordered does not count.
    """
    parts = {k: tokenizer.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    parts |= {k: facts[k] for k in ("name", *MARKERS)} | {"jinja": text}
    whole = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Template:
    """The chat template of one model folder, loaded by `Template.load`.

    Attributes: `bos_id`, `stop_id`, `pad_id`, `start_id`; `stop` (the stop token's text); `raw` (the tokenizers
    library's tokenizer, which takes all text as plain); `hash` (what decides the ids); `facts` (template.json as it
    is on disk); `layout` (the chat template, ready to render).
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        layout: jinja.Layout,
        tokenizer: Tokenizer,
        special: Sequence[dict[str, Any]],
    ) -> None:
        """Use `load`. `tokenizer` must encode special tokens as plain text; `special` are their entries in its file."""
        self.folder = folder
        self.facts = facts
        self.hash: str = facts.get("hash", "")
        self.stop: str = facts["stop"]["token"]
        self.bos_id: int = facts["bos"]["id"]
        self.start_id: int = facts["start"]["id"]
        self.stop_id: int = facts["stop"]["id"]
        self.pad_id: int = facts["pad"]["id"]
        self.raw = tokenizer
        self.layout = layout
        self._special = {entry["content"]: entry for entry in special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._layouts: dict[tuple[tuple[str, ...], bool], list[list[int]]] = {}

    @classmethod
    def load(cls, folder: Path) -> Template:
        """Read the template of a prepared or exported model folder.

        Raises `UserError` where the folder has none and `ChangedError` where its tokenizer or chat template is not the
        one it was made for.
        """
        folder = Path(folder)
        facts = read_json(folder / FILE)
        if not facts:
            raise UserError(f"{folder} has no {FILE}: it was not prepared or exported by cathpc")
        texts = {}
        for name in (TOKENIZER, jinja.FILE):
            try:
                texts[name] = (folder / name).read_text(encoding="utf-8")
            except FileNotFoundError:
                raise UserError(f"{folder} has no {name}; prepare or export the model again") from None
        content = json.loads(texts[TOKENIZER])
        found = template_hash(content, facts, texts[jinja.FILE])
        if found != facts["hash"]:
            raise ChangedError(
                f"{folder}: {TOKENIZER} or {jinja.FILE} is not the one that {FILE} was written for (hash {found}, "
                f"recorded {facts['hash']}): ids would differ from those of training. Prepare or export the model again"
            )
        return cls.of(folder, facts, jinja.Layout(texts[jinja.FILE], names(folder)), texts[TOKENIZER], content)

    @classmethod
    def of(
        cls, folder: Path, facts: dict[str, Any], layout: jinja.Layout, text: str, content: dict[str, Any]
    ) -> Template:
        """The template of a tokenizer whose file holds `text`, which reads as `content`."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Contents are text: '<|im_end|>' in one must not become the control token.
        tokenizer.encode_special_tokens = True
        words = tokenizer.pre_tokenizer
        if getattr(words, "prepend_scheme", "") == "first":  # as Mistral's; what starts a text is always the BOS
            words.prepend_scheme = "never"
            tokenizer.pre_tokenizer = words
        return cls(folder, facts, layout, tokenizer, [token for token in content["added_tokens"] if token["special"]])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers loads it (imports transformers; tokens of a conversation come from
        `encode`)."""
        from transformers import PreTrainedTokenizerFast

        loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder, local_files_only=True)
        return loaded

    def encode(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and, for each, whether the loss looks at it.

        BOS, then for each message its header, its stripped content and what closes it; with `generation_prompt` the
        header of an assistant turn follows. Supervised: content and stop token of each assistant turn. Raises a
        `UserError` where the chat template refuses the roles.
        """
        pieces = self._pieces(tuple(message["role"] for message in messages), generation_prompt)
        ids = [*pieces[0]]
        mask = [False] * len(ids)
        for message, after in zip(messages, pieces[1:], strict=True):
            body = self._plain(message["content"].strip())
            supervised = message["role"] == "assistant"
            ids += body + after
            mask += [supervised] * len(body) + [supervised] * bool(after) + [False] * (len(after) - 1)
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens are left out."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True)
        return text

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """How a conversation reads in the template, control tokens and all: to show, never to tokenise."""
        stripped = [{**message, "content": message["content"].strip()} for message in messages]
        return self.layout.render(stripped, prompt=generation_prompt)

    def copy(self, target: Path) -> None:
        """Copy tokenizer, chat template, generation config and template.json into the model folder `target`."""
        for name in TOKENIZER_FILES:
            place(self.folder / name, target / name, link=False)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.raw.encode(text, add_special_tokens=False).ids
        return ids

    def _pieces(self, roles: tuple[str, ...], prompt: bool) -> list[list[int]]:
        """Ids before, between and after the contents of a conversation of `roles`."""
        key = (roles, prompt)
        if key not in self._layouts:
            if len(self._layouts) >= KEPT_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = [self._written(piece) for piece in self.layout.pieces(roles, prompt=prompt)]
            for role, after in zip(roles, self._layouts[key][1:], strict=True):
                assert role != "assistant" or after[:1] == [self.stop_id], (roles, after)
        return self._layouts[key]

    def _written(self, text: str) -> list[int]:
        """Ids of control text: special tokens by id, what stands between them as text.

        A special token may swallow the white space beside it (`lstrip`, `rstrip` of its entry in the tokenizer's file).
        """
        ids: list[int] = []
        parts = self._control.split(text)  # text, token, text, ...
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part]["id"])
                continue
            if i > 0 and self._special[parts[i - 1]]["rstrip"]:
                part = part.lstrip()
            if i + 1 < len(parts) and self._special[parts[i + 1]]["lstrip"]:
                part = part.rstrip()
            ids += self._plain(part)
        return ids


def names(folder: Path) -> dict[str, str]:
    """The special tokens that a chat template may name, as `tokenizer_config.json` has them: `bos_token`, ..."""
    config = read_json(folder / "tokenizer_config.json")
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {key: token_text(config[key]) for key in keys if config.get(key)}


def token_text(entry: Any) -> str:
    """The text of a special token as tokenizer_config.json writes it: a string, or an object with `content`."""
    return str(entry.get("content", "")) if isinstance(entry, dict) else str(entry or "")
