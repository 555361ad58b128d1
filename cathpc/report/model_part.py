"""The report's sections on the model: training, fidelity, configuration, how to cite.

`Facts` and pictures in, the words and tables of each section out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cathpc import __version__
from cathpc.progress import duration
from cathpc.record import unit_hash
from cathpc.report.data_card import origin
from cathpc.report.gather import Facts
from cathpc.report.html import percent, words
from cathpc.report.measures import fidelity_rows
from cathpc.report.picture import Picture
from cathpc.report.sampling import SAMPLE_SEED
from cathpc.report.tables import Table, first_user, is_number, label, table

METHODS = (
    (
        "Temperature scaling of the refusal classifier: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern "
        "Neural Networks, 2017.",
        "https://arxiv.org/abs/1706.04599",
    ),
    (
        "Sharded optimizer states, gradients and parameters: Rajbhandari, Rasley, Ruwase and He, ZeRO: Memory "
        "Optimizations Toward Training Trillion Parameter Models, 2019.",
        "https://arxiv.org/abs/1910.02054",
    ),
)


def training(facts: Facts, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """What was trained on, and the curves."""
    settings, packed, summary = facts.config("train", "train"), facts.summary("pack"), facts.summary("train")
    train = packed["train"]
    text = (
        f"{train['records']:,} records, {train['tokens']:,} tokens ({train['supervised']:,} of them learned) in "
        f"{train['bins']:,} packed sequences of {packed['seq_len']:,} tokens, {percent(train['efficiency'], 1)} full; "
        f"{settings['epochs']} epochs on {summary['ranks']} ranks at a global batch of "
        f"{settings['global_batch']} sequences."
    )
    if facts.resumed:
        text += f" Training was stopped and went on after step {', '.join(map(str, facts.resumed))}."
    figures = {k: v for k, v in summary.items() if k != "line" and (is_number(v) or isinstance(v, str))}
    phases = [[words(phase), duration(seconds)] for phase, seconds in summary["seconds"].items()]
    return {
        "text": text,
        "figures": [key for key in pictures if key.startswith("train-")],
        "tables": [
            control_tokens(facts.summary("base")),
            table("Training in figures", ["", "value"], [[label(k), v] for k, v in figures.items()]),
            table("Where the time of training went (rank 0)", ["phase", "time"], phases),
        ],
    }


def control_tokens(base: dict[str, Any]) -> Table:
    """The rows of the chat template's control tokens: as the base model had them, and as training begins."""
    rows = [
        [
            token["token"],
            str(token["id"]),
            stored["tensor"],
            token["norm_before"],
            token["norm"],
            stored["trained_norm_median"],
        ]
        for stored in base["rows"]
        for token in stored["tokens"]
    ]
    head = ["token", "id", "table", "norm in the base", "norm at the start", "median of trained rows"]
    return table(f"Control tokens of the template {base['template']['name']}", head, rows)


def fidelity(facts: Facts) -> dict[str, Any]:
    """Probes passed by base and tuned, and some answers side by side."""
    rows = fidelity_rows(facts.fidelity)
    names = list(facts.fidelity["models"])
    cells = []
    for family, shares in rows:
        row: list[Any] = [words(family), _probes(facts, family)]
        for model in names:
            if model in shares:
                share, low, high = shares[model]
                row += [percent(share), f"{percent(low)}–{percent(high)}"]
            else:
                row += [None, None]
        cells.append(row)
    head = ["family", "probes", *(h for model in names for h in (model, f"{model}, 95% interval"))]
    passed = table("Probes passed, by family of instruction", head, cells)
    change = facts.fidelity["difference"]
    return {
        "text": (
            "Each probe gives the model a system prompt with instructions that a program can check, and a user's "
            "message. The same probes go to the base and to the tuned model. Tuned minus base is "
            f"{100 * change['share']:+.0f} percentage points, with a paired 95% interval from "
            f"{100 * change['low']:+.0f} to {100 * change['high']:+.0f}."
        ),
        "table": passed,
        "tables": [passed, *measured(facts.fidelity)],
        "examples": _answer_examples(facts),
    }


RATES = {
    "csr": "constraints followed",
    "isr": "instructions followed",
    "ssr": "share of a session before the first that is not",
    "sessions": "whole probes",
    "aligned": "instructions, where the user goes along with the card",
    "conflict": "instructions, where the user goes against it",
    "facts": "facts of the card told when asked",
}
"""The rates of SysBench (Qin et al. 2024, arXiv:2408.10943, section 4.2) and parts of them."""


def measured(fidelity: dict[str, Any]) -> list[Table]:
    """Tables of what else was measured of both models, as far as it was: rates, families unseen in training, refusals,
    perplexity and lengths."""
    base, tuned, change = (fidelity.get(key) or {} for key in ("base", "tuned", "difference"))
    head = ["", "base", "tuned", "difference", "95% interval"]
    rates = [
        _compared(words_, base.get(key), tuned.get(key), change.get(key))
        for key, words_ in RATES.items()
        if base.get(key)
    ]
    for key, what in (
        ("taught", "instructions, families in the training"),
        ("unseen", "instructions, unseen families"),
    ):
        part = fidelity.get(key) or {}
        if part:
            rates.append(_compared(what, *(part[of]["isr"] for of in ("base", "tuned", "difference"))))
    refused = [
        _compared(f"{words(kind)} requests refused", *(part.get(of) for of in ("base", "tuned", "difference")))
        for kind, part in (fidelity.get("refusal") or {}).items()
    ]
    other = [
        [what, *(_deep(model, path) for model in (base, tuned))]
        for what, path in (
            ("perplexity of answers under the reference GPT", ("perplexity", "perplexity")),
            ("words of an answer, mean", ("style", "words", "mean")),
            ("chain of thought where the card asks for it", ("style", "thought", "asked", "share")),
            ("chain of thought where it does not", ("style", "thought", "unasked", "share")),
            ("empty answers", ("style", "empty")),
            ("answers cut at the limit", ("style", "cut")),
        )
    ]
    return [
        table("What is followed, paired over the same probes", head, rates),
        table("Refusals, by the refusal classifier", head, refused),
        table("Answers", ["", "base", "tuned"], [row for row in other if any(value is not None for value in row[1:])]),
    ]


def _compared(what: str, base: Any, tuned: Any, change: Any) -> list[Any]:
    both = [percent(share["share"]) if share else None for share in (base, tuned)]
    if not change:
        return [what, *both, None, None]
    share, low, high = (f"{100 * change[key]:+.0f}" for key in ("share", "low", "high"))
    return [what, *both, f"{share} points", f"{low} to {high}"]


def _deep(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def config(facts: Facts) -> dict[str, Any]:
    """Fingerprints, versions and the configuration of each stage."""
    stages = [[name, m["fingerprint"], m["summary"].get("line", "")] for name, m in facts.manifests.items()]
    versions: dict[str, str] = {}
    for manifest in facts.manifests.values():
        versions.update(manifest["versions"])
    sections = [
        (name, json.dumps(m["config"], indent=1, ensure_ascii=False))
        for name, m in facts.manifests.items()
        if m["config"]
    ]
    return {
        "stages": table("Stages", ["stage", "fingerprint", "result"], stages),
        "versions": table("Versions", ["package", "version"], sorted(versions.items())),
        "sections": sections,
    }


def cite(facts: Facts, name: str) -> dict[str, Any]:
    """BibTeX of this run, licences of the data, methods."""
    fingerprint = facts.manifests["train"]["fingerprint"]
    bibtex = (
        f"@software{{cathpc_{name.replace('-', '_').replace('.', '_')},\n"
        "  title   = {cathpc: from public instruction data to a chat model that obeys its system prompt},\n"
        f"  version = {{{__version__}}},\n"
        f"  note    = {{Experiment {name}, training fingerprint {fingerprint}}}\n}}"
    )
    rows = [[key, s["component"], s["license"], s["kept"], origin(s["origin"])] for key, s in facts.sources.items()]
    return {
        "bibtex": bibtex,
        "sources": table("Sources", ["source", "component", "licence", "records", "origin"], rows),
        "methods": METHODS,
    }


def _answer_examples(facts: Facts, most: int = 6) -> list[dict[str, Any]]:
    """Probes with the answers of all models, those on which the models differ first, spread over the families."""
    by_probe: dict[str, list[dict[str, Any]]] = {}
    for answer in facts.answers:
        by_probe.setdefault(answer["probe"], []).append(answer)
    whole = [answers for answers in by_probe.values() if len(answers) == len(facts.fidelity["models"])]
    whole.sort(key=lambda a: (len({x["passed"] for x in a}) < 2, unit_hash(a[0]["probe"], SAMPLE_SEED)))
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, list[dict[str, Any]]]] = []
    for answers in whole:
        family = answers[0]["family"]
        ranked.append((seen[family], len(ranked), answers))
        seen[family] += 1
    ranked.sort(key=lambda item: item[:2])
    return [
        {
            "family": answers[0]["family"],
            "headline": first_user(answers[0]["messages"]),
            "messages": [m for m in answers[0]["messages"] if m["role"] != "assistant"],
            "answers": [
                {"model": a["model"], "passed": a["passed"], "texts": a["answers"], "why": a.get("why", "")}
                for a in answers
            ],
        }
        for _, _, answers in ranked[:most]
    ]


def _probes(facts: Facts, family: str) -> int:
    return len({a["probe"] for a in facts.answers if family in ("all", a["family"])})
