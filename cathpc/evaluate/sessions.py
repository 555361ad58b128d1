"""Sessions: the conversations of the probes, held with a model turn by turn.

In: a model folder and probes. Out: rows of `answers.jsonl`. Greedy decoding; time grows with probes x turns x
`evaluate.max_new_tokens`, memory with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc.evaluate import generate
from cathpc.evaluate.checkers import judge
from cathpc.evaluate.config import EvaluateConfig
from cathpc.evaluate.probes import Probe
from cathpc.models import talk
from cathpc.models.precision import usable
from cathpc.record import Message


@dataclass
class Session:
    """One probe with the answers of one model."""

    probe: Probe
    talk: list[Message] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    """Tokens of the answers."""
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
            "conflicts": self.probe.conflicts,
            "tokens": self.tokens,
            "cut": self.cut,
        }


def ask(
    folder: Path, chosen: Sequence[Probe], config: EvaluateConfig, progress: Callable[[int], None] = lambda done: None
) -> list[Session]:
    """Hold all `chosen` conversations with the model in `folder`, turn by turn, in batches of like length.

    An answer whose prompt leaves no room in the model's window stays empty and passes no check. `progress` hears the
    number of answers so far. Raises `UserError` for a folder that holds no model to talk to.
    """
    model = talk.load(folder, usable(config.dtype))
    language = talk.language(folder, model)
    room = generate.window(model.config)
    sessions = [Session(p, [p.messages[0]]) for p in chosen]
    done = 0
    for turn in range(1, max((p.turns for p in chosen), default=0) + 1):
        waiting = []
        for session in (s for s in sessions if s.probe.turns >= turn):
            session.talk.append(session.probe.messages[turn])
            waiting.append((language.encode(session.talk), session))
        waiting.sort(key=lambda pair: (len(pair[0]), pair[1].probe.id))
        for start in range(0, len(waiting), config.batch_size):
            batch = waiting[start : start + config.batch_size]
            fits = [(ids, session) for ids, session in batch if len(ids) + config.max_new_tokens <= room]
            written = generate.generate(
                model,
                [ids for ids, _ in fits],
                stop_id=language.stops,
                pad_id=language.pad_id,
                max_new_tokens=config.max_new_tokens,
            )
            answers = {id(session): ids for (_, session), ids in zip(fits, written, strict=True)}
            for _, session in batch:
                tokens = answers.get(id(session))
                answer = language.decode(tokens).strip() if tokens is not None else ""
                session.tokens += len(tokens or ())
                session.cut += tokens is None or len(tokens) >= config.max_new_tokens
                session.answers.append(answer)
                session.talk.append({"role": "assistant", "content": answer})
            done += len(batch)
            progress(done)
    return sessions
