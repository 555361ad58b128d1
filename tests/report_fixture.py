"""Writes the folders that a finished run leaves, small and without any model, for the tests of the report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.config import Config
from cathpc.pipeline import BY_NAME
from cathpc.record import RECORD_SCHEMA, SCORE_SCHEMA, VERDICT_SCHEMA
from cathpc.report.config import ReportConfig
from cathpc.schema import identity
from cathpc.tracking.config import TrackerConfig, WandbMode
from cathpc.train.metrics import Log

STAGES = (
    "pull", "base", "reference", "pool", "refusal", "score", "select", "cards", "pack", "train", "export", "evaluate",
)  # fmt: skip
COMPONENTS = ("general", "reasoning", "health", "roleplay")
ATTACK = "<script>alert('x')</script>"
THOUGHT = "Somebody says hello; a cat answers in kind."
STEPS = 48
RESUMED_AFTER = 24
"""The first attempt logged steps past its last checkpoint; the second took them again from here."""
QUALITY_CUTS = dict(zip(COMPONENTS, (0.05, 0.08, -0.02, 0.11), strict=True))


def config(**tracker: Any) -> Config:
    """The config that the stage sees; W&B is off unless said otherwise."""
    return Config(name="demo", report=ReportConfig(), tracker=TrackerConfig(**({"mode": WandbMode.disabled} | tracker)))


def build(root: Path, *, count: int = 400) -> dict[str, Path]:
    """Write a run of `count` records below `root`; stage -> folder."""
    folders = {name: root / name / f"{number:016x}" for number, name in enumerate(STAGES)}
    for folder in folders.values():
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    records, scores, verdicts = _rows(rng, count)
    summaries = {
        "pull": _pull(folders["pull"], records),
        "base": _base(),
        "reference": _gpt("gpt-4", 14.2, 11.9),
        "pool": _gpt("vicuna-13b", 13.1, 10.4),
        "refusal": _refusal(folders["refusal"], rng),
        "score": {"line": f"{count} records scored"},
        "select": _select(folders["select"], verdicts),
        "cards": _cards(folders["cards"], [r for r, v in zip(records, verdicts, strict=True) if v["kept"]]),
        "pack": {
            "line": "64 records in 30 rows", "seq_len": 512, "records": 64, "aside": {},
            "train": {"records": 60, "bins": 28, "tokens": 13_400, "supervised": 8_100, "efficiency": 0.935},
            "eval": {"records": 4, "bins": 2, "tokens": 900, "supervised": 500, "efficiency": 0.88},
        },
        "train": _train(folders["train"], rng),
        "export": {"line": "269 MB in 1 file"},
        "evaluate": _evaluate(folders["evaluate"], rng),
    }  # fmt: skip
    for start, (name, generator) in enumerate((("reference", "gpt-4"), ("pool", "vicuna-13b"))):
        mine = [record["id"] for number, record in enumerate(records) if number // 4 % 2 == start]
        mine = mine[:400]  # as the stages do: their number has a bound
        held = {"id": mine, "generator": [generator] * len(mine)}
        pq.write_table(pa.table(held), folders[name] / "heldout.parquet")
    (folders["score"] / "scores").mkdir()
    _parquet(folders["score"] / "scores" / "scores-00000.parquet", scores, SCORE_SCHEMA)
    for number, (name, folder) in enumerate(folders.items()):
        section = {"base": "model", "reference": "gpt", "pool": "gpt", "pull": "dataset", "export": ""}.get(name, name)
        manifest = {
            "stage": name,
            "fingerprint": f"{number:016x}",
            "digest": "d" * 16,
            "inputs": {i: {"fingerprint": folders[i].name, "digest": "d" * 16} for i in BY_NAME[name].inputs},
            "config": {section: identity(getattr(Config(), section))} if section else {},
            "summary": summaries[name],
            "seconds": 4.0 + 17.0 * number,
            "versions": {"cathpc": "0.1.0", "torch": "2.13.0"},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folders


def _base() -> dict[str, Any]:
    norms = {"norm_before": 0.0001, "norm": 0.25, "initialised": True}
    tokens = [{"token": f"<|im_{end}|>", "id": 1002 + i, **norms} for i, end in enumerate(("start", "end"))]
    rows = [{"tensor": name, "trained_norm_median": 1.5, "tokens": tokens} for name in ("embed_tokens", "lm_head")]
    return {"line": "random:llama, template chatml", "template": {"name": "chatml"}, "rows": rows}


def _rows(
    rng: np.random.Generator, count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    records, scores, verdicts = [], [], []
    for number in range(count):
        component = COMPONENTS[number % 4]
        key = f"{number:016x}"
        question = f"What is the best way to learn the subject number {number}, when time is short?"
        if number % 50 == 0:
            question = f"{ATTACK} {question}"
        messages = [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": "First, a plan. Therefore, begin early.\n\n" + "Then go on, step by step. " * (number % 30),
            },
        ]
        records.append(
            {
                "id": key, "source": f"{component}_set", "component": component, "generator": "gpt-4",
                "license": "cc-by-4.0", "origin": f"{component}.jsonl:{number}", "label": None, "messages": messages,
            }
        )  # fmt: skip
        refusal = float(rng.beta(0.3, 3) if rng.random() < 0.85 else rng.beta(5, 1))
        contrast = float(rng.normal(0.15, 0.2))
        tokens = int(rng.lognormal(4.8, 0.8)) + 2
        broken = number % 97 == 96
        scores.append(
            {
                "id": key, "status": "too_long" if broken else "ok", "nll": None if broken else 2.0,
                "pool_nll": None if broken else 2.0 + contrast, "perplexity": None if broken else 7.4,
                "contrast": None if broken else contrast, "refusal": None if broken else refusal, "tokens": tokens + 20,
                "answer_tokens": tokens, "correlatives": number % 3, "steps": number % 5, "language": "en",
                "turn_tokens": float(tokens), "diagnosis": number % 7 / 6,
            }
        )  # fmt: skip
        verdicts.append(
            {"id": key, "source": f"{component}_set", "component": component} | _verdict(scores[-1], component)
        )
    return records, scores, verdicts


def _verdict(score: dict[str, Any], component: str) -> dict[str, Any]:
    least = {"reasoning": 50, "health": 100}.get(component, 10)
    short = {"reasoning": "cot_short", "health": "health_short"}.get(component, "too_short")
    rules = (
        ("status", None if score["status"] == "ok" else 1.0, None, True),
        ("refusal", score["refusal"], 0.2, (score["refusal"] or 0) > 0.2),
        (short, float(score["answer_tokens"]), float(least), score["answer_tokens"] <= least),
        ("quality", score["contrast"], QUALITY_CUTS[component], (score["contrast"] or 0) < QUALITY_CUTS[component]),
    )
    for rule, value, threshold, broken in rules:
        if value is not None and broken:
            return {"kept": False, "rule": rule, "value": value, "threshold": threshold}
    return {"kept": True, "rule": "", "value": None, "threshold": None}


def _pull(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    sources = {}
    for component in COMPONENTS:
        kept = sum(r["component"] == component for r in records)
        rejected = {"duplicate": 6, "not_json": 2}
        sources[f"{component}_set"] = {
            "rows": kept + 8, "kept": kept, "rejected": rejected, "component": component, "format": "messages",
            "license": "cc-by-4.0", "origin": {"file": f"{component}.jsonl", "sha256": "ab" * 32},
        }  # fmt: skip
    (folder / "sources.json").write_text(json.dumps(sources))
    (folder / "records").mkdir()
    half = len(records) // 2
    for shard, rows in enumerate((records[:half], records[half:])):
        _parquet(folder / "records" / f"records-{shard:05d}.parquet", rows, RECORD_SCHEMA)
    return {
        "line": f"{len(records)} records", "rows": len(records) + 32 + 80, "records": len(records), "labels": 80,
        "set_aside": 32, "reasons": {"duplicate": 24, "not_json": 8}, "sources": sources,
    }  # fmt: skip


def _gpt(generator: str, before: float, after: float) -> dict[str, Any]:
    return {
        "records": 50, "train_tokens": 12_030, "heldout_records": 9, "heldout_tokens": 1_800,
        "heldout_ppl_before": before, "heldout_ppl_after": after, "generators": {generator: 210}, "line": "50 records",
    }  # fmt: skip


def _refusal(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    probability = np.concatenate([rng.beta(0.5, 6, 60), rng.beta(6, 0.8, 40)])
    label = (rng.random(100) < probability).astype(float)
    table = {"id": [f"{i:016x}" for i in range(100)], "label": label, "probability": probability}
    pq.write_table(pa.table(table), folder / "heldout.parquet")
    return {
        "heldout": 100, "heldout_refusals": 40, "folds": 3, "examples": 105, "unlabelled": 300, "suspects": 4,
        "threshold": 0.91, "cutoff": 0.2, "precision": 0.88, "recall": 0.951, "f1": 0.914, "auroc": 0.972, "ece": 0.041,
        "bands": {"precision": (0.81, 0.94), "recall": (0.9, 0.99), "f1": (0.86, 0.95), "ece": (0.03, 0.09),
                  "best_cutoff": (0.12, 0.55)},
        "temperature": 1.31, "bias": -0.2, "line": "100 labelled answers",
    }  # fmt: skip


def _parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _train(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    path = folder / "metrics.jsonl"
    attempts = ((0, RESUMED_AFTER + 5, (0, 12, 24), 1e9), (RESUMED_AFTER, STEPS, (36, 48), 1e9 + 5000))
    for first, last, evaluated, began in attempts:
        now = began + 9.0
        log = Log(path, first, began=began)
        if 0 in evaluated:
            log.write({"global_step": 0, "eval_loss": 2.31, "seconds": {"eval": 1.0}})
        for step in range(first + 1, last + 1):
            now += 4.4
            row = {
                "step_s": 4.2, "time": now,
                "global_step": step, "epoch": (step - 1) // 12, "loss": 2.3 * 0.985**step + float(rng.normal(0, 0.03)),
                "lr": 2e-5 * min(step / 4, 1 - 0.9 * step / STEPS), "grad_norm": 1.4, "tokens": 1024,
                "supervised_tokens": 600, "tokens_seen": 1024 * step, "tokens_per_s": 240.0 + float(rng.normal(0, 8)),
                "seconds": {"data": 0.0, "forward": 1.2, "backward": 2.4, "step": 0.6}, "memory_gb": 3.1,
            }  # fmt: skip
            log.write(row)
            if step in evaluated:
                log.write({"global_step": step, "eval_loss": 2.31 * 0.992**step, "seconds": {"eval": 1.1}})
        log.close()
    return {
        "line": f"{STEPS} steps", "steps": STEPS, "ranks": 4,
        "tokens": 49_152, "first_loss": 2.28, "loss": 1.12, "attempts": 2,
        "seconds": {"data": 0.4, "forward": 61.2, "backward": 118.0, "step": 29.5, "eval": 5.2, "save": 8.1},
    }  # fmt: skip


def _select(folder: Path, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    schema = pa.schema([*VERDICT_SCHEMA, ("source", pa.string()), ("component", pa.string())])
    _parquet(folder / "verdicts.parquet", verdicts, schema)
    cuts = {component: {"quality": cut} for component, cut in QUALITY_CUTS.items()}
    (folder / "flow.json").write_text(json.dumps({"cuts": cuts}))
    dropped = Counter(v["rule"] for v in verdicts if not v["kept"])
    return {"line": "some kept", "in": len(verdicts), "kept": len(verdicts) - dropped.total(), "dropped": dict(dropped)}


def _cards(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for number, record in enumerate(records):
        plain = number % 5 == 0
        card = {"scene": "Dr. Ada Quill, a patient tutor, in a quiet library."}
        rule = {"name": "max_words", "params": {"words": 100}, "sentence": "Use fewer than 100 words."}
        checks = (
            {"fields": "", "length": "", "leak": "the answer's words 'begin early'"}
            if plain
            else {"fields": "", "leak": ""}
        )
        rows.append(
            {
                "id": record["id"], "verdict": "plain" if plain else "verified", "card": card, "rules": [rule],
                "checks": checks, "attempts": 1 + number % 2,
            }
        )  # fmt: skip
        system = {"role": "system", "content": f"{card['scene']}\nRules:\n- {rule['sentence']}"}
        record["messages"] = [system, *record["messages"]]
    (folder / "cards.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _parquet(folder / "carded.parquet", records, RECORD_SCHEMA)
    return {"line": f"{len(rows)} cards", "rules": {"max_words": len(rows)}, "refused_by_check": {"leak": 7}}


def _evaluate(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    families = ("format", "length", "persona", "ending")
    answers, models = [], {}
    for model, chance in (("base", 0.4), ("tuned", 0.75)):
        passed = {family: rng.random(6) < chance for family in families}
        every = np.concatenate(list(passed.values()))
        models[model] = {"all": _share(every), "families": {f: _share(p) for f, p in passed.items()}}
        for family, outcomes in passed.items():
            for number, outcome in enumerate(outcomes):
                answers.append(
                    {
                        "probe": f"{family}-{number}", "family": family, "model": model, "passed": bool(outcome),
                        "messages": [
                            {"role": "system", "content": "You are Captain Mara. End each answer with 'Fair winds!'"},
                            {"role": "user", "content": f"Where to, question {number} of {family}? {ATTACK}"},
                        ],
                        "answer": "North, where the ice is thin. Fair winds!" if outcome else "I do not know. " * 12,
                        "why": "" if outcome else "ends_with in turn 1",
                    }
                )  # fmt: skip
    for answer in answers:
        answer["answers"] = [answer["answer"]]
    (folder / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (folder / "fidelity.json").write_text(
        json.dumps({"models": models, "difference": {"share": 0.45, "low": 0.2, "high": 0.7}, **_rates(rng)})
    )
    talk = [{"role": "system", "content": "You are a cat with two degrees."}, {"role": "user", "content": "Hello!"}]
    shown = {"name": "hello", "model": "tuned", "messages": talk, "thoughts": THOUGHT, "answer": "Hello! Nyan"}
    (folder / "showcase.jsonl").write_text(json.dumps(shown) + "\n")
    return {"line": "24 probes"}


def _rates(rng: np.random.Generator) -> dict[str, Any]:
    """What of evaluate's figures is there beside the shares by family."""

    def rates(chance: float) -> dict[str, Any]:
        return {key: _share(rng.random(40) < chance) for key in ("csr", "isr", "ssr", "sessions")}

    style = {"thought": {"asked": _share(rng.random(9) < 0.6), "unasked": None}, "words": {"mean": 41.5}, "empty": 1}
    perplexity = {"perplexity": 9.5, "low": 8.8, "high": 10.4, "answers": 40}
    change = {"share": 0.31, "low": 0.18, "high": 0.44}
    benign = {"base": _share(rng.random(30) < 0.2), "tuned": _share(rng.random(30) < 0.1), "difference": change}
    return {
        "base": {**rates(0.4), "style": style, "perplexity": perplexity},
        "tuned": {**rates(0.75), "style": style, "perplexity": None},
        "refusal": {"benign": benign},
        "milestones": [{"step": step, "probes": 40, **rates(0.3 + step / 100)} for step in (12, 24, 36, 48)],
    }


def _share(passed: np.ndarray) -> dict[str, float]:
    mean = float(passed.mean())
    return {"share": mean, "low": max(0.0, mean - 0.2), "high": min(1.0, mean + 0.18), "probes": int(passed.size)}
