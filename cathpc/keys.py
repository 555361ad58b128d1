"""The page of all config keys: `python -m cathpc.keys > docs/configuration.md`.

In: the schema (`cathpc.config.Config`), whose docstrings are the texts, and the table of stages, which says whose
fingerprints a key enters. Out: Markdown. The page is made, never edited; a test fails where it is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from cathpc.config import PACKAGE, SECTIONS, Config, choices
from cathpc.pipeline import BY_NAME

INTRO = """# Configuration

Every key that cathpc has. This page is made from the dataclasses in `cathpc/*/config.py` (`make docs`); do not edit it.

A value is set in one of four places; the later one wins:

1. the dataclass, whose defaults this page shows;
2. an option of a group, `conf/GROUP/NAME.yaml`, taken with `GROUP=NAME`, such as `dataset=demo`;
3. an experiment, `conf/experiment/NAME.yaml`, taken with `+experiment=NAME`: it chooses options and sets values;
4. an override on the command line, `KEY=VALUE`, such as `train.lr=3e-5`.

Options and experiments of your own go into `conf/` of the folder that you work in; cathpc's own stay as they are.
`python -m cathpc plan +experiment=NAME --cfg` prints what comes out of all that. A wrong key, type or combination is
refused at once, with the valid choices.

On a command line, lists and mappings are written in one piece and quoted: `'select.languages=[en,de]'`,
`'cluster.env={NCCL_DEBUG: WARN}'`; `null` is no value, a text with special characters stands in quotes of its own:
`'model.template.bos="<|endoftext|>"'`.

The column *redoes* names the stages whose fingerprint has the key: with another value they are done again, and so are
all that stand on them. A key without one changes where or how fast a result is made, not the result, and redoes
nothing. Files count by their content and models of the Hub by their commit, wherever they lie. A key at its default
counts for nothing, so that keys which a later version of cathpc brings along redo nothing by themselves.
"""

COUNTED = {
    "dataset.root": "`pull` (by content)",
    "dataset.sources.NAME.path": "`pull` (by content)",
    "train.nodes": "`train` (by the number of ranks)",
    "train.ranks_per_node": "`train` (by the number of ranks)",
    "name": "`export`, `report`",
}
"""Keys outside of their section's fingerprint whose meaning a stage's `identity` counts -> what they redo."""

COMMON = {
    "dtype": "Floating-point type of weights and activations.",
    "max_new_tokens": "Most tokens that are written at once.",
    "seed": "Of every random choice of this section.",
    "temperature": "Of the sampling; 0 takes the likeliest token.",
}
"""What a key of this name means wherever it stands, unless its own docstring says more."""


@dataclass(frozen=True)
class Key:
    """One key of the schema."""

    path: str
    """Its full name; NAME stands for a name of the user's."""
    kind: str
    default: str
    redoes: str
    """Stages whose fingerprint it enters, '' where it enters none."""
    does: str


def keys(section: str) -> Iterator[Key]:
    """The keys of a section, nested ones behind their parent."""
    stages = ", ".join(f"`{stage.name}`" for stage in BY_NAME.values() if section in stage.config)
    yield from _keys(get_type_hints(Config)[section], section, stages)


def page() -> str:
    """The whole page."""
    parts = [INTRO, "Sections: " + ", ".join(f"[{name}](#{name})" for name in SECTIONS) + ".\n"]
    parts.append("## The top level\n\n" + _table(_top()))
    for section in SECTIONS:
        schema = get_type_hints(Config)[section]
        about = re.sub(r"^(Group|Group-less section) `\w+`[:.] ?", "", _one_line(inspect.getdoc(schema) or ""))
        options = ", ".join(f"`{section}={name}`" for name in choices(section))
        text = [about[:1].upper() + about[1:], f"Options: {options}." if options else ""]
        parts.append("\n\n".join(filter(None, [f"## {section}", " ".join(filter(None, text)), _table(keys(section))])))
    return "\n".join(parts)


def docs(schema: type) -> dict[str, str]:
    """Field or member of a class -> the docstring below it, '' where it has none."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    last = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
            found[last] = ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
            found[last] = ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last] = _one_line(str(node.value.value))
            last = ""
    return found


def _keys(schema: type, where: str, stages: str) -> Iterator[Key]:
    hints, texts = get_type_hints(schema), docs(schema)
    for field in dataclasses.fields(schema):
        path, hint = f"{where}.{field.name}".lstrip("."), hints[field.name]
        inside = stages if field.metadata.get("identity", True) else ""
        does = texts[field.name] or COMMON.get(field.name, "")
        nested = _nested(hint)
        if nested is not None:
            of, name = nested
            if name:
                yield Key(path + name.rpartition(".")[0], "mapping", _default(field), _redoes(path, inside), does)
            elif does:
                yield Key(path, "section", "", _redoes(path, inside), does)
            yield from _keys(of, path + name, inside)
            continue
        yield Key(path, _type(hint), _default(field), _redoes(path, inside), _does(does, hint))


def _nested(hint: Any) -> tuple[type, str] | None:
    """The dataclass behind a field, and how one of its entries is named: '' for a section, '.NAME' for a mapping."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, ""
    if get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
        return get_args(hint)[1], ".NAME"
    return None


def _redoes(path: str, inside: str) -> str:
    return COUNTED.get(path, inside)


def _top() -> Iterator[Key]:
    texts, hints = docs(Config), get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.name not in SECTIONS:
            kind = _type(hints[field.name])
            yield Key(field.name, kind, _default(field), _redoes(field.name, ""), texts[field.name])


def _not_none(hint: Any) -> Any:
    """What `hint` is beside None."""
    return next(one for one in get_args(hint) if one is not type(None)) if type(None) in get_args(hint) else hint


def _type(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.name}`" for member in hint)
    if get_origin(hint) is list:
        return f"list of {_type(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"mapping to {_type(get_args(hint)[1])}"
    if type(None) in get_args(hint):
        return f"{_type(_not_none(hint))} or `null`"
    return {"str": "text", "int": "integer", "float": "number", "bool": "`true` or `false`"}[hint.__name__]


def _does(text: str, hint: Any) -> str:
    """What a key does: its own docstring, and those of an Enum's members; the Enum's where there is nothing else."""
    hint = _not_none(hint)
    if not (isinstance(hint, type) and issubclass(hint, Enum)):
        return text
    said = [f"`{name}`: {one.rstrip('.')}" for name, one in docs(hint).items() if one]
    return " ".join(filter(None, (text, "; ".join(said) + "." if said else ""))) or _one_line(
        inspect.getdoc(hint) or ""
    )


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if isinstance(value, Enum):
        return f"`{value.name}`"
    if isinstance(value, str):
        value = value.replace(str(PACKAGE), "…/cathpc")
        return f"`{value}`" if value else "`''`"
    return f"`{json.dumps(value)}`"


def _table(rows: Iterator[Key]) -> str:
    lines = ["| key | type | default | redoes | what it does |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.path}`", row.kind, row.default, row.redoes or "–", row.does)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(page(), end="")
