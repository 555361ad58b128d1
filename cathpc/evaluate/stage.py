"""The stage `evaluate`: does the model obey its system prompt? Base and tuned side by side on the same probes.

In: `base/model` and `export/model` (Hugging Face folders with a template). Out: `answers.jsonl` (every answer of both
with its verdicts) and `fidelity.json` (rates by family with bootstrap intervals). Greedy decoding; time grows with
probes x turns x `evaluate.max_new_tokens`, memory with the batch. The same config gives the same files.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cathpc.evaluate import generate, probes
from cathpc.evaluate.checkers import judge
from cathpc.models.weights import write_text
from cathpc.progress import counter
from cathpc.record import Message

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.evaluate.config import EvaluateConfig
    from cathpc.evaluate.probes import Probe

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Session:
    """One probe with the answers of one model."""

    probe: Probe
    talk: list[Message]
    answers: list[str]
    cut: int = 0
    """Answers that ended at the token limit or for want of room in the window."""

    def row(self, model: str) -> dict[str, Any]:
        """The session as a row of `answers.jsonl`; `messages` is what stood before the last answer."""
        checks = judge(self.probe.checks, self.answers)
        failed = [f"{c['type']} in turn {c['turn']}" for c in checks if not c["passed"]]
        return {
            "probe": self.probe.id,
            "family": self.probe.family,
            "model": model,
            "passed": not failed,
            "why": "; ".join(failed),
            "messages": self.talk[:-1],
            "answer": self.answers[-1],
            "answers": self.answers,
            "checks": checks,
            "cut": self.cut,
        }


def ask(
    folder: Path, chosen: list[Probe], config: EvaluateConfig, progress: Callable[[int], None] = lambda answers: None
) -> list[Session]:
    """Hold all `chosen` conversations with the model in `folder`, turn by turn, in batches of like length.

    An answer whose prompt leaves no room in the model's window stays empty and passes no check. `progress` hears the
    number of answers so far.
    """
    model, template = generate.load(folder, config.dtype)
    room = generate.window(model.config)
    sessions = [Session(p, [p.messages[0]], []) for p in chosen]
    done = 0
    for turn in range(1, max(p.turns for p in chosen) + 1):
        waiting = []
        for session in (s for s in sessions if s.probe.turns >= turn):
            session.talk.append(session.probe.messages[turn])
            ids, _ = template.encode(session.talk, generation_prompt=True)
            waiting.append((ids, session))
        waiting.sort(key=lambda pair: (len(pair[0]), pair[1].probe.id))
        for start in range(0, len(waiting), config.batch_size):
            batch = waiting[start : start + config.batch_size]
            fits = [(ids, session) for ids, session in batch if len(ids) + config.max_new_tokens <= room]
            written = generate.generate(
                model,
                [ids for ids, _ in fits],
                stop_id=template.stop_id,
                pad_id=template.pad_id,
                max_new_tokens=config.max_new_tokens,
            )
            answers = {id(session): ids for (_, session), ids in zip(fits, written, strict=True)}
            for _, session in batch:
                tokens = answers.get(id(session))
                answer = template.decode(tokens).strip() if tokens is not None else ""
                session.cut += tokens is None or len(tokens) >= config.max_new_tokens
                session.answers.append(answer)
                session.talk.append({"role": "assistant", "content": answer})
            done += len(batch)
            progress(done)
    return sessions


def interval(values: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the mean of `values` (Efron 1979)."""
    draws = np.random.default_rng(seed).integers(0, values.size, size=(resamples, values.size))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _share(passed: list[bool], config: EvaluateConfig) -> dict[str, float]:
    values = np.array(passed, dtype=np.float64)
    low, high = interval(values, config.resamples, config.seed)
    return {"share": float(values.mean()), "low": low, "high": high, "probes": len(passed)}


def fidelity(rows: dict[str, list[dict[str, Any]]], config: EvaluateConfig) -> dict[str, Any]:
    """Shares of probes passed, all and by family, and the paired difference tuned - base; `rows` by model."""
    models: dict[str, Any] = {}
    for model, answers in rows.items():
        families = sorted({a["family"] for a in answers})
        verdicts = [c["passed"] for a in answers for c in a["checks"]]
        models[model] = {
            "all": _share([a["passed"] for a in answers], config),
            "families": {f: _share([a["passed"] for a in answers if a["family"] == f], config) for f in families},
            "checks": {"share": float(np.mean(verdicts)), "checks": len(verdicts)},
            "cut_answers": sum(a["cut"] for a in answers),
        }
    pairs = zip(rows["tuned"], rows["base"], strict=True)
    change = np.array([float(tuned["passed"]) - float(base["passed"]) for tuned, base in pairs])
    low, high = interval(change, config.resamples, config.seed)
    return {"models": models, "difference": {"share": float(change.mean()), "low": low, "high": high}}


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Run the stage; raises `UserError` for a bad file of probes."""
    settings = config.evaluate
    every = probes.read(Path(settings.probes) if settings.probes else probes.SHIPPED)
    chosen = probes.choose(every, settings.max_probes, settings.seed)
    turns = sum(p.turns for p in chosen)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, (name, stage) in enumerate((("base", "base"), ("tuned", "export"))):
        before = number * turns
        sessions = ask(
            inputs[stage] / "model",
            chosen,
            settings,
            counter(out, before, 2 * turns, "answers"),
        )
        rows[name] = [session.row(name) for session in sessions]
        gc.collect()  # the first model leaves before the second comes
    result = fidelity(rows, settings)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for name in rows for row in rows[name]]
    write_text(out / "answers.jsonl", "".join(lines))
    write_text(out / "fidelity.json", json.dumps(result, indent=1) + "\n")
    base, tuned, change = result["models"]["base"]["all"], result["models"]["tuned"]["all"], result["difference"]
    return {
        **result,
        "probes": len(chosen),
        "turns": turns,
        "line": (
            f"{len(chosen)} probes: base passes {base['share']:.0%}, tuned {tuned['share']:.0%} "
            f"(difference {change['share']:+.0%}, 95% interval {change['low']:+.0%} to {change['high']:+.0%})"
        ),
    }
