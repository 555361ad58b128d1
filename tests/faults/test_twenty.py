"""Twenty faults in one training: kills, signals, saves torn by a kill and checkpoints damaged afterwards, at random
(seeded) steps. In the end every loss and every weight is that of a training to which nothing happened, bit for bit.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cathpc.errors import EXIT_AGAIN
from cathpc.train import history, metrics
from tests.e2e.ranks import assert_same_training, flip, launch, losses, settings, trained, world

__all__ = ["world"]  # a fixture

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

STEPS, EPOCHS, INTERVAL = 60, 20, 2
FAULTS = 20


def test_twenty_faults_in_one_training_change_nothing(world: SimpleNamespace, tmp_path: Path) -> None:
    plain = settings(epochs=EPOCHS, save_every_steps=INTERVAL, keep_checkpoints=2, eval_every_steps=1000)
    calm = trained(world, tmp_path / "calm", plain)
    out, dice = tmp_path / "out", random.Random(1)
    kinds = ["kill", "signal", "torn", "damaged"] * (FAULTS // 4)
    dice.shuffle(kinds)
    met: Counter[str] = Counter()
    lost = 0
    for kind in kinds:
        folder = out / "checkpoints"
        before = max(losses(out), default=0) if out.exists() else 0
        scratch = dice.random() < 0.5
        event: dict[str, Any] = {"rank": dice.randrange(2), "do": "kill"}
        if kind == "signal":
            event |= {"at": dice.randint(1, 4), "do": dice.choice(["SIGUSR2", "SIGTERM"])}
        elif kind == "torn":
            event |= {"hook": "cathpc.train.states:HashedWriter.write", "call": dice.randint(1, 300)}
        else:
            event |= {"at": dice.randint(2, 5)}
        results = launch(world, out, plain | {"save_through_scratch": scratch}, **event)
        codes = [r.returncode for r in results]
        said = "\n".join(r.stderr for r in results)
        if kind == "signal":
            assert codes == [EXIT_AGAIN] * 2, said
            assert history.step_of(history.committed(folder)[0]) == max(losses(out)), "no step is lost"
        else:
            assert codes[event["rank"]] == -signal.SIGKILL, said
            assert codes[1 - event["rank"]] != 0, said
        sound = history.committed(folder)
        if kind == "damaged" and len(sound) > 1:
            victim = dice.choice(sorted((sound[0] / "deepspeed").iterdir()))
            if dice.random() < 0.5:
                flip(victim)
            else:
                os.truncate(victim, victim.stat().st_size - 1)
            met["checkpoints damaged"] += 1
        done = max(losses(out), default=0)
        assert done > before - 3 * INTERVAL, "the training comes on"
        met[kind] += 1
    rows = [row for row in metrics.lines(out / metrics.METRICS) if "loss" in row]
    trained(world, out, plain)
    assert_same_training(out, calm, STEPS)
    assert set(metrics.consumed(out / metrics.SAMPLES).values()) == {EPOCHS}
    lost = len(rows) - len({row["global_step"] for row in rows})
    print(f"{dict(met)}; reached step {max(row['global_step'] for row in rows)} so, with {lost} steps taken twice")
    assert sum(met[kind] for kind in set(kinds)) == FAULTS
