"""Chat templates as Jinja text: the named ones, the model's own, and what each puts around the contents.

In goes the text of a template, out come the pieces that stand before, between and after the contents of a conversation.
They are read off a rendering with placeholders for contents, so that the text which servers render and the tokens of
training have one source. A template of a model is a stranger's: it is rendered in Jinja's sandbox, with what
transformers gives it. Cost: some 50 microseconds a rendering, growing with the number of messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError
from cathpc.models.config import TemplateName
from cathpc.models.weights import read_json

if TYPE_CHECKING:
    from jinja2 import Environment

    from cathpc.record import Message

FILE = "chat_template.jinja"
_PLACE = re.compile("\ue000(\\d+)\ue001")  # private use: neither white space nor anything that a template looks for
_ROLE = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Turn:
    """How a named template writes a message: `start`, role, `middle`, stripped content, `stop`, `rest`."""

    start: str
    middle: str
    stop: str
    rest: str = ""

    def jinja(self) -> str:
        """The template in the form that transformers and inference servers read. No system prompt is added."""
        start, middle, end = _quoted(self.start), _quoted(self.middle), _quoted(self.stop + self.rest)
        return (
            "{{- bos_token }}"
            "{%- for message in messages %}"
            f"{{{{- {start} + message['role'] + {middle} + message['content'] | trim + {end} }}}}"
            "{%- endfor %}"
            "{%- if add_generation_prompt %}"
            f"{{{{- {_quoted(f'{self.start}assistant{self.middle}')} }}}}"
            "{%- endif %}"
        )


TURNS = {
    TemplateName.chatml: Turn("<|im_start|>", "\n", "<|im_end|>", "\n"),
    TemplateName.llama3: Turn("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
}
"""The named templates. Llama-3's is that of its model card and of `llama_models.llama3.chat_format`."""

_TRIM = (
    "{%- set stripped = namespace(messages=[]) %}"
    "{%- for message in messages %}"
    "{%- set text = message['content'] %}"
    "{%- set message = dict(message, content=text | trim) if text is string else message %}"
    "{%- set stripped.messages = stripped.messages + [message] %}"
    "{%- endfor %}"
    "{%- set messages = stripped.messages %}"
)


def own(folder: Path) -> str:
    """The chat template of the model in `folder`, as it comes. A `UserError` where it has none."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    text = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((t.get("template") for t in text if isinstance(t, dict) and t.get("name") == "default"), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"template.name=own, but the tokenizer of {folder} has no chat template (no {FILE} and no chat_template in "
            f"tokenizer_config.json); name one: template.name={' or '.join(name.name for name in TURNS)}"
        )
    return text


def adapted(text: str, tokens: dict[str, str], bos: str) -> str:
    """A model's own template with all that the contract wants and it lacks put in front of it.

    A BOS where it writes none; contents stripped where it leaves them as they are, for outer white space would melt
    into the control text around it; its EOS by name where it mentions one, for the stop token takes its place in the
    tokenizer. `tokens`: what the template may name (`bos_token`, ...).
    """
    layout = Layout(text, tokens)
    talk = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    loose = [{**message, "content": f"\n {message['content']} \n"} for message in talk]
    plain = layout.render(talk)
    head = ""
    if "eos_token" in text:
        head += f"{{%- set eos_token = {_quoted(tokens.get('eos_token', ''))} %}}"
    if layout.render(loose) != plain:
        head += _TRIM
    if not plain.startswith(bos):
        head += "{{- bos_token }}"
    return head + text


class Layout:
    """One chat template, ready to render; `tokens` are the special tokens that it may name (`bos_token`, ...)."""

    def __init__(self, text: str, tokens: dict[str, str]) -> None:
        """A `UserError` where `text` is no Jinja template."""
        from jinja2 import TemplateError

        self.text = text
        self.tokens = tokens
        self._error = TemplateError
        try:
            self._template = _environment().from_string(text)
        except TemplateError as error:
            raise UserError(f"the chat template is not Jinja: {error}") from None

    def render(self, messages: Sequence[Message], *, prompt: bool = False, **more: Any) -> str:
        """The text of a conversation, with `prompt` up to where the assistant goes on; `more` are further variables.

        A `UserError` where the template refuses it.
        """
        names = {**self.tokens, "tools": None, "documents": None, "add_generation_prompt": prompt, **more}
        try:
            return self._template.render(messages=list(messages), **names)
        except (self._error, TypeError, ValueError, ArithmeticError) as error:
            talk = ", ".join(message["role"] for message in messages)
            raise UserError(f"the chat template refuses a conversation of {talk}: {error}") from None

    def pieces(self, roles: Sequence[str], *, prompt: bool = False) -> list[str]:
        """The texts before, between and after the contents of a conversation of `roles`: one more than there are roles.

        Raises a `UserError` where the template refuses these roles or leaves a content out, repeats or moves it, and
        where a role is not a plain word, for it would be written among control tokens.
        """
        for role in roles:
            if not _ROLE.fullmatch(role):
                raise UserError(f"a message has the role {role!r}; a role is one word of lower-case letters")
        places = [f"\ue000{i}\ue001" for i in range(len(roles))]
        talk = [{"role": role, "content": place} for role, place in zip(roles, places, strict=True)]
        text = self.render(talk, prompt=prompt)
        found = [int(number) for number in _PLACE.findall(text)]
        for i, role in enumerate(roles):
            if found.count(i) != 1:
                does = f"writes {found.count(i)} times" if i in found else "leaves out"
                raise UserError(f"the chat template {does} the content of message {i + 1} ({role})")
        if found != sorted(found):
            raise UserError(f"the chat template moves messages of a conversation of {', '.join(roles)}")
        return _PLACE.split(text)[::2]


def _quoted(text: str) -> str:
    """`text` as a Jinja string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


@cache
def _environment() -> Environment:
    """The sandbox in which transformers renders chat templates (`utils.chat_template_utils`), without its imports."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks answers, changes nothing of the text."""

        tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
