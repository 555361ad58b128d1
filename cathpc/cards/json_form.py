"""A card's form as an endpoint is asked for it and gives it: JSON, under a schema where the endpoint decodes by one.

In: a conversation that asks for a filled form; an answer. Out: the same conversation in JSON; the form that the answer
holds. Linear in the texts.
"""

from __future__ import annotations

import json
from typing import Any

from cathpc.cards import form
from cathpc.cards.config import CardForm
from cathpc.record import Message

AS_JSON = "Answer with one JSON object and nothing else. Its keys, each with a short text: "


def names() -> list[str]:
    """The form's labels without their colons."""
    return [label.rstrip(":") for label in form.LABELS]


def response_format(kind: CardForm) -> dict[str, Any]:
    """What an endpoint is told of the answer's form: the JSON Schema of a card, or of the labels' lines."""
    lines = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names()},
        "required": names(),
        "additionalProperties": False,
    }
    schema = form.schema() if kind is CardForm.json else lines
    return {"type": "json_schema", "json_schema": {"name": "card", "strict": True, "schema": schema}}


def as_json(asked: list[Message]) -> list[Message]:
    """A conversation that asks for a filled form, its examples and its request turned to JSON."""
    turned: list[Message] = []
    for message in asked:
        content = message["content"]
        if message["role"] == "assistant":
            content = json.dumps(form.lines(content), ensure_ascii=False)
        elif message["role"] == "system":
            content = f"{content}\n{AS_JSON}{', '.join(names())}."
        turned.append({"role": message["role"], "content": content})
    return turned


def as_form(text: str, kind: CardForm = CardForm.labels) -> str:
    """The card's form from an answer: its JSON object, perhaps fenced or among words, or its lines; '' where it is
    neither or something of the form is missing."""
    start, end = text.find("{"), text.rfind("}")
    if kind is CardForm.json:
        try:
            form.read(text[start : end + 1], kind, [])
        except form.Malformed:
            return ""
        return text[start : end + 1]
    fields: dict[str, Any] = form.lines(text)
    if 0 <= start < end:
        try:
            found = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            found = None
        fields = found if isinstance(found, dict) else fields
    if not all(isinstance(fields.get(name), str) for name in names()):
        return ""
    return "\n".join(f"{name}: {' '.join(fields[name].split())}" for name in names())
