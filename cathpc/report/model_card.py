"""The model card: what a model was made from, how it is prompted, what was measured, as Markdown for its folder.

In: the run's name, the template, the figures of the training and the finished folders of the stages. Out: text. The
stage `export` writes it as README.md, before fidelity is measured; the stage `report` writes it anew with what was
measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc import __version__
from cathpc.report import data_card
from cathpc.report.data_card import markdown, share
from cathpc.report.html import number, words
from cathpc.train import metrics

if TYPE_CHECKING:
    from cathpc.models.template import Template
    from cathpc.record import Message

NAME = "model_card.md"
LIMITS = (
    "It is trained to do what its system prompt says, whoever writes it: whoever serves the model answers for that "
    "text. Nothing was done to make it safe; where a filter took refusals out of the data (see the data card), even "
    "less of its base's caution may be left.",
    "It was measured on prompts in English, with instructions that a program can check; manners, facts and reasoning "
    "are not measured by that.",
    "It keeps the errors of its base and of the answers that it learned from. Its answers on health are no advice.",
    "Conversations longer than the rows that it was trained on are beyond what was measured.",
)


def trained(path: Path, step: int) -> dict[str, Any]:
    """What the metrics file says of the training up to `step`."""
    rows = [row for row in metrics.by_step(path) if row["global_step"] <= step]
    steps = [row for row in rows if "loss" in row]
    held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
    return {
        "step": step,
        "epochs": steps[-1]["epoch"] + 1,
        "tokens": steps[-1]["tokens_seen"],
        "loss": steps[-1]["loss"],
        "eval_loss": held_out[-1] if held_out else None,
    }


def model_card(
    name: str,
    template: Template,
    pack: Mapping[str, Any],
    facts: Mapping[str, Any],
    folders: Mapping[str, Path],
    *,
    fidelity: Mapping[str, Any] | None = None,
) -> str:
    """The card of run `name`; `facts` are those of `trained`, `fidelity` is what evaluate wrote, if it has run.

    Of `folders` (stage -> folder) those that are finished are told of, and what is not known is said.
    """
    known = data_card.manifests(folders)
    parts = [_head(known), f"# {name}\n\n{_lead(pack, facts)}", _prompt(template), _results(facts, fidelity)]
    parts += [_data(folders), _made(known, template, pack)]
    parts.append(data_card.hashes(known, tuple(folders)))
    parts.append("## Known limits\n\n" + "\n".join(f"- {text}" for text in LIMITS))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(known: Mapping[str, Any]) -> str:
    """The front matter that model hubs read; JSON strings are YAML."""
    base = known.get("base", {}).get("config", {}).get("model", {}).get("base", "")
    hub = base if base.count("/") == 1 and not base.startswith((".", "/")) and ":" not in base else ""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [cathpc, chat]"]
    lines += [f"base_model: {json.dumps(hub)}"] if hub else []
    lines += [f"license: {json.dumps(licence)}"] if (licence := _licence(known)) else []
    return "\n".join([*lines, "---"])


def _licence(known: Mapping[str, Any]) -> str | None:
    """The base model's, as its page on the Hub stated it when it was pinned."""
    licence: str | None = known.get("base", {}).get("summary", {}).get("license")
    return licence


def _lead(pack: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    train, held_out = pack["train"], facts["eval_loss"]
    return (
        f"Fine-tuned with cathpc {__version__} on {train['records']:,} conversations ({facts['tokens']:,} tokens "
        f"in {facts['epochs']} epochs,\npacked to {pack['seq_len']:,} tokens a row, loss on the assistant's turns "
        "alone).\n"
        f"Training loss after step {facts['step']:,}: {facts['loss']:.4f} nats a token"
        f"{f', held-out loss {held_out:.4f}' if held_out is not None else ''}."
    )


def _prompt(template: Template) -> str:
    bos, stop = (template.facts[role]["token"] for role in ("bos", "stop"))
    messages: list[Message] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
    ]
    prompt = template.text(messages, generation_prompt=True)
    return f"""## Prompt

The template `{template.facts["name"]}`, with one BOS, `{bos}`, at the very start. The system message is a card that \
says who the model is.
Generation ends at `{stop}`. The text of a prompt, exactly; it ends with a line break where the template has one:

```
{prompt.rstrip()}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH", dtype="bfloat16")
messages = [
    {json.dumps(messages[0])},
    {json.dumps(messages[1])},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

As one string, for servers that take text: `{json.dumps(prompt, ensure_ascii=False)}`

The chat template adds the BOS: do not let the tokenizer add a second one to templated text
(`add_special_tokens=False`)."""


def _results(facts: Mapping[str, Any], fidelity: Mapping[str, Any] | None) -> str:
    rows = [["training loss, nats a token", None, f"{facts['loss']:.4f}"]]
    if facts["eval_loss"] is not None:
        rows.append(["held-out loss, nats a token", None, f"{facts['eval_loss']:.4f}"])
    if not fidelity:
        text = "Fidelity is measured after the export: `model_card.md` beside the run's report holds it.\n\n"
        return "## Figures\n\n" + text + markdown(["", "base", "this model"], rows)
    models: Mapping[str, Any] = fidelity["models"]
    families = {family for model in models.values() for family in model["families"]}
    for family in ("all", *sorted(families)):
        cells = [
            m["all"] if family == "all" else m["families"].get(family) for m in map(models.get, ("base", "tuned")) if m
        ]
        what = "probes passed" if family == "all" else f"of them {words(family)}"
        rows.append([what, *(share(cell) if cell else None for cell in cells)])
    change = fidelity["difference"]
    said = (
        f"Probes are system prompts whose instructions a program checks. This model minus its base: "
        f"{100 * change['share']:+.0f} percentage points (paired 95% interval {100 * change['low']:+.0f} to "
        f"{100 * change['high']:+.0f})."
    )
    return f"## Figures\n\n{said} In brackets: 95% intervals.\n\n" + markdown(["", "base", "this model"], rows)


def _data(folders: Mapping[str, Path]) -> str:
    rows = [[row[0], row[1], row[2], row[7]] for row in data_card.source_rows(folders)]
    if not rows:
        return "## Data\n\nThe sources are not known in this folder: the run's data card has them."
    return (
        f"## Data\n\nSources with their licences, and how many records of each were selected; `{data_card.NAME}` tells "
        "their origins, filters and thresholds.\n\n"
        + markdown(["source", "component", "licence", "records selected"], rows)
    )


def _made(known: Mapping[str, Any], template: Template, pack: Mapping[str, Any]) -> str:
    model = known.get("base", {}).get("config", {}).get("model", {})
    train = known.get("train", {}).get("config", {}).get("train", {})
    rows: list[list[Any]] = [["base model", f"`{model['base']}`" if model.get("base") else "not known"]]
    rows.append(
        ["its licence, which holds for this model too", _licence(known) or "not known: see where it comes from"]
    )
    for key in ("epochs", "lr", "global_batch", "optimizer", "dtype", "seed"):
        if key in train:
            rows.append([words(key), number(train[key])])
    if (train.get("lora") or {}).get("rank"):
        rows.append(["adapters", f"rank {train['lora']['rank']}"])
    rows += [["template hash", f"`{template.hash}`"], ["packed data", f"`{pack.get('digest', '–')}`"]]
    versions: dict[str, str] = {}
    for manifest in known.values():
        versions |= manifest.get("versions", {})
    rows += [[package, version] for package, version in sorted(versions.items())]
    return "## How it was made\n\n" + markdown(["", "value"], rows)
