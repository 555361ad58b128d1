"""The contract between a model's tokenizer, its chat template and training, proven on conversations.

In goes a folder with the files of `cathpc.models.tokens`, out comes nothing, or a `UserError` that names the first
promise that is broken. `base` and every other stage that prepares a model prove it with transformers, as a server would
use the folder. Before jobs are submitted `check_models` proves it without torch on what this machine has of the models;
that takes about a second for Llama-3's tokenizer, most of it for reading 128,000 tokens and 280,000 merges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError
from cathpc.models import jinja, source, tokens
from cathpc.models.fetch import used
from cathpc.models.template import MARKERS, Template
from cathpc.models.weights import read_json

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.models.config import TemplateConfig
    from cathpc.record import Message

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
    (
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."},
        {"role": "user", "content": "And 3?"},
        {"role": "assistant", "content": "<think>Five or six?</think> Five."},
    ),
)
"""Conversations of ordinary text on which encoders are compared: lists, digits, white space, scripts, code, an empty
answer, and thoughts, which some templates cut out."""


@dataclass(frozen=True)
class Server:
    """How whoever serves the model turns text into tokens."""

    name: str
    encode: Callable[[str], list[int]]
    """Ids of a text in which special tokens count."""
    chat: Callable[[Sequence[Message], bool], list[int]]
    """Ids of (conversation, whether the header of an answer follows)."""
    eos: int | None
    pad: int | None
    highest: int
    """The highest id."""


def transformers_server(template: Template) -> Server:
    """transformers with the files of the folder, as it loads them."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(template.folder, local_files_only=True)

    def chat(messages: Sequence[Message], prompt: bool) -> list[int]:
        return [*theirs.apply_chat_template(list(messages), add_generation_prompt=prompt, return_dict=False)]

    return Server(
        name="transformers",
        encode=lambda text: theirs.encode(text, add_special_tokens=False),
        chat=chat,
        eos=theirs.eos_token_id,
        pad=theirs.pad_token_id,
        highest=max(theirs.get_vocab().values()),
    )


def plain_server(template: Template) -> Server:
    """What transformers does, by Jinja and the tokenizers library alone: no torch, some milliseconds."""
    raw = template.raw

    def encode(text: str) -> list[int]:
        raw.encode_special_tokens = False
        try:
            ids: list[int] = raw.encode(text, add_special_tokens=False).ids
        finally:
            raw.encode_special_tokens = True
        return ids

    named = template.layout.tokens
    return Server(
        name="the rendered text",
        encode=encode,
        chat=lambda messages, prompt: encode(template.layout.render(messages, prompt=prompt)),
        eos=raw.token_to_id(named["eos_token"]),
        pad=raw.token_to_id(named["pad_token"]),
        highest=max(raw.get_vocab().values()),
    )


def check_contract(folder: Path, server: Callable[[Template], Server] = transformers_server) -> None:
    """Prove on `PROBES` that the model in `folder` and its template keep the promises that training relies on.

    Raises a `UserError` that names the first promise that is broken; see `prove`.
    """
    template = Template.load(folder)
    configs = {name: read_json(folder / name) for name in ("config.json", "generation_config.json")}
    prove(template, server(template), configs)


def prove(template: Template, theirs: Server, configs: dict[str, dict[str, Any]]) -> None:
    """Prove the contract of a template, of `theirs`, who serve it, and of the contents of its config files by name.

    Control tokens are one id each and are never spelt by a content; one BOS, at position 0; the text of the template is
    the same every day; the mask covers exactly answers and stop tokens; what is asked in serving is how the
    conversation began in training, at every answer; the stop token ends generation everywhere and is not the padding;
    `theirs` are the very same ids. Raises a `UserError` that names the first promise that is broken.
    """
    facts, folder = template.facts, template.folder
    markers = [(role, facts[role]["token"], facts[role]["id"]) for role in MARKERS]
    markers += [("control", token["token"], token["id"]) for token in facts.get("others", [])]

    def require(kept: bool, broken: str) -> None:
        if not kept:
            raise UserError(f"the chat template cannot be used with {folder}: {broken}")

    for role, token, number in markers:
        ids = theirs.encode(token)
        require(ids == [number], f"the {role} token {token!r} must encode to the one id {number}, it gives {ids}")
    require(
        template.pad_id != template.stop_id,
        f"{template.stop!r} is both stop and padding token, so the model would never learn to stop; set template.pad",
    )
    control = {number for _, _, number in markers}
    apart = len(control) == len(markers) or (template.start_id == template.bos_id and len(control) == len(markers) - 1)
    require(apart, f"two markers share an id: {markers}; set template.bos and template.pad to other tokens")

    for probe in PROBES:
        messages = list(probe)
        for shown in (messages, messages[1:] if messages[0]["role"] == "system" else messages):
            another_day = template.layout.render(shown, strftime_now=lambda form: "another day")
            require(
                template.layout.render(shown) == another_day,
                "it writes the date, so the ids of training would not be those of serving; take another template.name",
            )
        _check_probe(template, theirs, messages, require)

    plain, _ = template.encode([{"role": "user", "content": "a b"}])
    for _, token, _ in markers:
        ids, _ = template.encode([{"role": "user", "content": f"a {token} b"}])
        same = all(ids.count(number) == plain.count(number) for number in control)
        require(same, f"the characters {token!r} inside a message become a control token")

    ends = {name: (config.get("eos_token_id"), config.get("pad_token_id")) for name, config in configs.items()}
    for where, found in {**ends, "tokenizer_config.json": (theirs.eos, theirs.pad)}.items():
        wanted = (template.stop_id, template.pad_id)
        require(found == wanted, f"{where} says EOS and padding are {found}, expected {wanted}")
    rows = configs["config.json"].get("vocab_size", theirs.highest + 1)
    require(theirs.highest < rows, f"the tokenizer has the id {theirs.highest}, the model only {rows} rows")


def _check_probe(
    template: Template, theirs: Server, messages: list[Message], require: Callable[[bool, str], None]
) -> None:
    ids, mask = template.encode(messages)
    one_bos = ids.count(template.bos_id) == 1 and ids[0] == template.bos_id
    require(one_bos, f"a conversation has {ids.count(template.bos_id)} BOS and starts with {ids[0]}, not one at 0")
    learnt = template.raw.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
    answers = "".join(m["content"].strip() + template.stop for m in messages if m["role"] == "assistant")
    require(learnt == answers, f"the supervised tokens read {learnt!r}, expected {answers!r}")
    _same(template, theirs, messages, ids, False, require)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, _ = template.encode(messages[:turn], generation_prompt=True)
        begins = ids[: len(prompt)] == prompt and mask[len(prompt)] and not mask[len(prompt) - 1]
        require(
            begins,
            f"an answer is asked for after {template.raw.decode(prompt, skip_special_tokens=False)!r}, which is not "
            f"what stands before it in training: {template.text(messages)!r}",
        )
        _same(template, theirs, messages[:turn], prompt, True, require)


def _same(
    template: Template,
    theirs: Server,
    messages: list[Message],
    ours: list[int],
    prompt: bool,
    require: Callable[[bool, str], None],
) -> None:
    got = theirs.chat(messages, prompt)
    at = next((i for i, (a, b) in enumerate(zip(got, ours)) if a != b), min(len(got), len(ours)))
    near = [template.raw.decode(ids[max(0, at - 2) : at + 6], skip_special_tokens=False) for ids in (got, ours)]
    require(
        got == ours,
        f"the chat template gives other ids in {theirs.name} than in training, from token {at} on: {near[0]!r} instead "
        f"of {near[1]!r} in {messages!r}",
    )


def check_model(name: str, config: TemplateConfig, cache: Path) -> bool:
    """Prove the contract of the model called `name` as far as this machine has it, without its weights.

    True where it is proven, now or when the model was prepared; False where its tokenizer is not at hand, so that the
    stage which prepares it has to. Raises a `UserError` as `check_contract` does.
    """
    if source.ready(name, config, cache):
        return True
    folder = source.tokenizer_at_hand(name, cache)
    if folder is None:
        return False
    fitted = tokens.fit(folder, config)
    layout = jinja.Layout(fitted.chat_template, fitted.settings)
    template = Template.of(folder, fitted.facts, layout, fitted.text(), fitted.tokenizer)
    prove(template, plain_server(template), {"config.json": fitted.config, "generation_config.json": fitted.generation})
    return True


def check_models(config: Config) -> None:
    """Prove the contract of every chat model of an experiment that is at hand; a `UserError` names the config's key."""
    for key, name, template in used(config):
        if template is not None:
            try:
                check_model(name, template, Path(config.paths.cache))
            except UserError as error:
                raise UserError(f"{key}={name}: {error}") from None
