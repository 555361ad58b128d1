"""Conversations as tokens: ChatML with a BOS, the same ids in training, scoring, chat and in the exported model.

In goes a model folder with `tokenizer.json` and `template.json`; out come ids and the mask of supervised tokens. A
conversation is encoded piece by piece from its messages, never from one templated string: control tokens are placed by
id, and whatever a content spells is encoded as plain text. Cost: linear in the text, about 1 MB a second and thread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import ChangedError, UserError
from cathpc.models.weights import place, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from cathpc.record import Message

FILE = "template.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"
NAMES = ("chatml",)
START, STOP = "<|im_start|>", "<|im_end|>"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", CHAT_TEMPLATE, FILE, "generation_config.json")
"""What a folder needs, beside weights and config, to be the same model to whoever talks to it."""


def jinja() -> str:
    """The chat template in the form that transformers and inference servers read. No system prompt is added."""
    return (
        "{{- bos_token }}"
        "{%- for message in messages %}"
        f"{{{{- '{START}' + message['role'] + '\\n' + message['content'] | trim + '{STOP}\\n' }}}}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        f"{{{{- '{START}assistant\\n' }}}}"
        "{%- endif %}"
    )


def template_hash(tokenizer: dict[str, Any], facts: dict[str, Any]) -> str:
    """First 16 hex digits of a SHA-256 over all that decides ids: the tokenizer's parts, the markers, the chat
    template.

    `tokenizer` is the content of `tokenizer.json`; how it is indented or ordered does not count.
    """
    parts = {k: tokenizer.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    parts |= {k: facts[k] for k in ("name", "bos", "start", "stop", "pad")} | {"jinja": jinja()}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Template:
    """The chat template of one model folder, loaded by `Template.load`.

    Attributes: `bos_id`, `stop_id`, `pad_id`, `start_id`; `stop` (the stop token's text); `raw` (the tokenizers
    library's tokenizer, which takes all text as plain); `hash` (what decides the ids); `facts` (template.json as it
    is on disk).
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, facts: dict[str, Any], hash: str) -> None:
        """Use `load`. `tokenizer` must encode special tokens as plain text."""
        self.folder = folder
        self.facts = facts
        self.hash = hash
        self.stop: str = facts["stop"]["token"]
        self.bos_id: int = facts["bos"]["id"]
        self.start_id: int = facts["start"]["id"]
        self.stop_id: int = facts["stop"]["id"]
        self.pad_id: int = facts["pad"]["id"]
        self.raw = tokenizer
        self._newline = self._plain("\n")
        self._headers: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: Path) -> Template:
        """Read the template of a prepared or exported model folder.

        Raises `UserError` where the folder has none and `ChangedError` where its tokenizer is not the one it was made
        for.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        facts = read_json(folder / FILE)
        if not facts:
            raise UserError(f"{folder} has no {FILE}: it was not prepared or exported by cathpc")
        try:
            text = (folder / TOKENIZER).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{folder} has no {TOKENIZER}") from None
        found = template_hash(json.loads(text), facts)
        if found != facts["hash"]:
            raise ChangedError(
                f"{folder / TOKENIZER} is not the tokenizer that {FILE} was written for (hash {found}, recorded "
                f"{facts['hash']}): ids would differ from those of training. Prepare or export the model again"
            )
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Contents are text: '<|im_end|>' in one must not become the control token.
        tokenizer.encode_special_tokens = True
        return cls(folder, tokenizer, facts, found)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers loads it (imports transformers; tokens of a conversation come from
        `encode`)."""
        from transformers import PreTrainedTokenizerFast

        loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder, local_files_only=True)
        return loaded

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.raw.encode(text, add_special_tokens=False).ids
        return ids

    def _header(self, role: str) -> list[int]:
        if role not in self._headers:
            self._headers[role] = [self.start_id, *self._plain(f"{role}\n")]
        return self._headers[role]

    def encode(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and, for each, whether the loss looks at it.

        BOS, then for each message: start marker, role, newline, stripped content, stop marker, newline; with
        `generation_prompt` the header of an assistant turn follows. Supervised: the content and the stop marker of each
        assistant turn.
        """
        ids = [self.bos_id]
        mask = [False]
        for message in messages:
            head = self._header(message["role"])
            body = [*self._plain(message["content"].strip()), self.stop_id]
            supervised = message["role"] == "assistant"
            ids += head + body + self._newline
            mask += [False] * len(head) + [supervised] * len(body) + [False] * len(self._newline)
        if generation_prompt:
            head = self._header("assistant")
            ids += head
            mask += [False] * len(head)
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens are left out."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True)
        return text

    def copy(self, target: Path) -> None:
        """Copy tokenizer, chat template, generation config and template.json into the model folder `target`."""
        for name in TOKENIZER_FILES:
            place(self.folder / name, target / name, link=False)


PROBES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi. How are you?"}),
    (
        {"role": "system", "content": "You answer in lists.\n\nBe brief."},
        {"role": "user", "content": "  What are 12 and 3,456.7?\n"},
        {"role": "assistant", "content": "1. Twelve\n\n2. A number\n   - größer als 3.000 €, 日本語 🙂"},
        {"role": "user", "content": "```python\ndef f(x):\n\treturn x ** 2\n```"},
        {"role": "assistant", "content": "\n\n'Tis fine: I've   seen it."},
    ),
    ({"role": "user", "content": "(empty answer)"}, {"role": "assistant", "content": ""}),
)
"""Conversations of ordinary text on which `check_contract` compares encoders: lists, digits, white space, scripts,
code."""


def check_contract(folder: Path) -> None:
    """Prove on `PROBES` that the model in `folder` and its template keep the promises that training relies on.

    One BOS, at position 0; markers are one id each and are never spelt by a content; the mask covers exactly answers
    and stop markers; the stop token ends generation everywhere and is not the padding; transformers' own chat
    template gives the very same ids. Raises a `UserError` that names the first promise that is broken.
    """
    from transformers import AutoTokenizer

    template = Template.load(folder)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    facts = template.facts
    markers = {role: (facts[role]["token"], facts[role]["id"]) for role in ("bos", "start", "stop", "pad")}

    def require(kept: bool, broken: str) -> None:
        if not kept:
            raise UserError(f"the chat template cannot be used with {folder}: {broken}")

    for role, (token, number) in markers.items():
        ids = theirs.encode(token, add_special_tokens=False)
        require(ids == [number], f"the {role} token {token!r} must encode to the one id {number}, it gives {ids}")
    require(
        template.pad_id != template.stop_id,
        f"{template.stop!r} is both stop and padding token, so the model would never learn to stop; set template.pad",
    )
    control = {number for _, number in markers.values()}
    require(len(control) == 4, f"two markers share an id: {markers}; set template.bos and template.pad to other tokens")

    for probe in PROBES:
        messages = list(probe)
        ids, mask = template.encode(messages)
        one_bos = ids.count(template.bos_id) == 1 and ids[0] == template.bos_id
        require(one_bos, f"a conversation has {ids.count(template.bos_id)} BOS and starts with {ids[0]}, not one at 0")
        learnt = template.raw.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
        answers = "".join(m["content"].strip() + template.stop for m in messages if m["role"] == "assistant")
        require(learnt == answers, f"the supervised tokens read {learnt!r}, expected {answers!r}")
        prompt, _ = template.encode(messages[:-1], generation_prompt=True)
        require(ids[: len(prompt)] == prompt, "the generation prompt is not how the full conversation begins")
        for shown, ours, more in ((messages, ids, False), (messages[:-1], prompt, True)):
            got = theirs.apply_chat_template(shown, add_generation_prompt=more, return_dict=False)
            require(got == ours, f"transformers' chat template gives other ids for {shown!r}: {got} instead of {ours}")

    for token, _ in markers.values():
        plain, _ = template.encode([{"role": "user", "content": "a b"}])
        ids, _ = template.encode([{"role": "user", "content": f"a {token} b"}])
        same = all(ids.count(number) == plain.count(number) for number in control)
        require(same, f"the characters {token!r} inside a message become a control token")

    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    for where, ids in (
        ("config.json", (config.get("eos_token_id"), config.get("pad_token_id"))),
        ("generation_config.json", (generation.get("eos_token_id"), generation.get("pad_token_id"))),
        ("tokenizer_config.json", (theirs.eos_token_id, theirs.pad_token_id)),
    ):
        wanted = (template.stop_id, template.pad_id)
        require(ids == wanted, f"{where} says EOS and padding are {ids}, expected {wanted}")
    highest = max(theirs.get_vocab().values())
    rows = config.get("vocab_size", highest + 1)
    require(highest < rows, f"the tokenizer has the id {highest}, the model only {rows} rows")
