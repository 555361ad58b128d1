"""W&B in reach, out of it and back (faults 39 and 40 of a run): a real client, and a server on loopback in W&B's place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cathpc.pipeline import BY_NAME
from cathpc.store import INPUTS, Place, read_json, write_json
from cathpc.tracking import beside, send
from cathpc.tracking.config import TrackerConfig, WandbMode
from cathpc.tracking.described import describe
from cathpc.train import metrics
from tests import report_fixture
from tests.wandb_server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"
UNTIL = Callable[[], object]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with Server() as found:
        reach(monkeypatch, tmp_path, found.url)
        yield found


def reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.5")
    monkeypatch.setenv("HOME", str(tmp_path))


def wait(ready: UNTIL, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


TRAINING = """
import sys, time
from pathlib import Path
from cathpc.train import metrics
folder, after, until, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
log = metrics.Log(folder / metrics.METRICS, after)
for step in range(after + 1, until + 1):
    log.write({"global_step": step, "loss": 3.0 / step, "step_s": pause, "seconds": {}, "time": time.time()})
    time.sleep(pause)
log.close()
"""


class Training:
    """A stage `train` that does no more than log steps, each attempt in a process of its own."""

    def __init__(self, root: Path, **tracker: Any) -> None:
        self.folder = root / "train" / "0123456789abcdef"
        self.folder.mkdir(parents=True)
        write_json(self.folder / INPUTS, {})
        self.config = report_fixture.config(mode=WandbMode.online, **{"every_s": 0.2, "wait_s": 300.0} | tracker)
        self.place = Place(BY_NAME["train"], self.folder.name, self.folder, {})
        self.id = describe("demo", "train", self.folder, {}).id

    def attempt(self, after: int, until: int, pause: float = 0.01) -> None:
        """Log the steps after one, up to another."""
        arguments = [str(self.folder), str(after), str(until), str(pause)]
        subprocess.run([sys.executable, "-c", TRAINING, *arguments], check=True)

    def commit(self, digest: str = "d" * 16) -> None:
        """What the store writes when a stage is finished."""
        steps = metrics.by_step(self.folder / metrics.METRICS)
        summary = {"steps": len(steps), "loss": steps[-1]["loss"], "line": "done"}
        manifest = {"fingerprint": self.folder.name, "digest": digest, "config": {}, "inputs": {}, "summary": summary}
        write_json(self.folder / "manifest.json", manifest)

    def note(self) -> dict[str, Any]:
        """What was noted as sent."""
        return read_json(self.folder / ".tracking" / "note.json") or {}

    def follower(self) -> subprocess.Popen[bytes]:
        """The process beside an attempt."""
        return beside.start(beside.spec(self.config, [("train", self.folder)], follow=True))

    def sync(self) -> dict[str, Any]:
        """Send from another process, as the act does; what it said."""
        sender = beside.start(beside.spec(self.config, [("train", self.folder)]), stdout=subprocess.PIPE)
        said, _ = sender.communicate(timeout=300)
        told: dict[str, Any] = json.loads(said)
        return told


def leave(follower: subprocess.Popen[bytes]) -> None:
    """What the end of the job does to the process beside it."""
    beside.end(follower)
    assert follower.stdin is not None
    follower.stdin.close()


def test_steps_appear_while_the_training_runs_and_the_rest_at_its_end(server: Server, tmp_path: Path) -> None:
    training = Training(tmp_path)
    with beside.tracked(training.config, training.place):
        training.attempt(0, 5)
        wait(lambda: training.note().get("step") == 4)
        training.attempt(5, 9)
        training.commit()
    assert server.steps(training.id) == list(range(1, 10))
    assert server.summary[training.id]["line"] == "done" and training.id in server.finished
    run = server.runs[training.id]
    assert (run["groupName"], run["jobType"], run["project"]) == ("demo", "train", "cathpc")
    assert server.artifacts["demo-train"]["artifactTypeName"] == "checkpoint"


def test_w_and_b_ahead_of_the_checkpoint_gets_every_step_once(server: Server, tmp_path: Path) -> None:
    """Fault 40: killed after logging steps that the next attempt takes again, three times."""
    training = Training(tmp_path)
    for after, until in ((0, 8), (5, 12), (10, 11)):
        follower = training.follower()
        training.attempt(after, until)
        wait(lambda seen=until - 1: max(server.steps(training.id), default=0) >= min(seen, 11))
        leave(follower)
    with beside.tracked(training.config, training.place):
        training.attempt(10, 15)
        training.commit()
    assert server.steps(training.id) == list(range(1, 16))
    assert set(server.runs) == {training.id}, "one run went on through all attempts"
    again = training.sync()
    assert again["steps"] == 0 and "failure" not in again
    server.asked.clear()
    assert training.sync()["up_to_date"] and server.asked == [], "what is noted as whole costs no word"
    assert server.steps(training.id) == list(range(1, 16))


@pytest.mark.parametrize("mode", ["hang", "error", "refuse"])
def test_w_and_b_out_of_reach_and_back(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault 39: the stage ends as it would, on time, with the same files; later `sync` sends every step once."""
    with Server() as server:
        reach(monkeypatch, tmp_path, server.url)
        server.mode = mode
        if mode == "refuse":
            with socket.socket() as probe:  # a port where nobody listens
                probe.bind(("127.0.0.1", 0))
                monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
        training = Training(tmp_path, wait_s=3.0)
        with beside.tracked(training.config, training.place):
            training.attempt(0, 6)
            training.commit()
        truth = (training.folder / metrics.METRICS).read_bytes()
        said = capfd.readouterr().out
        assert server.steps(training.id) == [] and said.count("\n") <= 1
        assert "Traceback" not in said
        server.mode = "good"
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        told = training.sync()
        assert told["steps"] == 6 and server.steps(training.id) == list(range(1, 7))
        assert training.sync()["up_to_date"]
        assert (training.folder / metrics.METRICS).read_bytes() == truth
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"


def test_a_server_that_goes_away_in_the_middle_loses_nothing(server: Server, tmp_path: Path) -> None:
    training = Training(tmp_path)
    follower = training.follower()
    training.attempt(0, 4)
    wait(lambda: server.steps(training.id) == [1, 2, 3])
    server.mode = "error"
    training.attempt(4, 8)
    time.sleep(1.0)
    leave(follower)  # the job ends while the server is away
    server.mode = "good"
    training.commit()
    assert training.sync()["steps"] == 5
    assert server.steps(training.id) == list(range(1, 9))


def test_a_training_that_is_followed_is_not_sent_by_a_second_process(server: Server, tmp_path: Path) -> None:
    training = Training(tmp_path)
    follower = training.follower()
    wait(lambda: list((training.folder / ".tracking").glob("claim-*.json")))
    assert training.sync()["followed"]
    leave(follower)
    training.attempt(0, 3)
    assert training.sync()["steps"] == 2, "who held it is gone; the last step is not final yet"


def test_the_sender_ends_when_its_training_is_killed(server: Server, tmp_path: Path) -> None:
    training = Training(tmp_path)
    code = (
        "import sys; from cathpc.tracking import beside; from tests.e2e.test_tracking_online import Training\n"
        "from pathlib import Path; import os, time\n"
        "t = Training(Path(sys.argv[1])); print(t.follower().pid, flush=True); time.sleep(600)\n"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "other")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert job.stdout is not None
    pid = int(job.stdout.readline())
    other = Path(f"/proc/{pid}")
    assert other.exists()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    job.stdout.close()
    wait(lambda: not other.exists() or "Z" in (other / "stat").read_text().rpartition(")")[2][:3])
    assert training.folder.exists()


def test_a_stage_of_data_is_sent_with_its_lineage(server: Server, tmp_path: Path) -> None:
    folders = report_fixture.build(tmp_path / "store", count=40)
    config = report_fixture.config(mode=WandbMode.online, wait_s=300.0)
    place = Place(BY_NAME["select"], folders["select"].name, folders["select"], {})
    with beside.tracked(config, place):
        pass
    described = describe("demo", "select", folders["select"], {})
    (row,) = server.history[described.id]
    assert any(key.startswith("figures/dropped") for key in row)
    assert sorted(name for run, name in server.used if run == described.id) == ["demo-pull", "demo-score"]
    assert server.artifacts["demo-select"]["artifactTypeName"] == "dataset"
    config_sent = server.runs[described.id]["config"]
    assert config_sent["fingerprint"]["value"] == described.folder.name and "select" in config_sent


def test_the_key_is_in_no_argument_of_the_process(tmp_path: Path, server: Server) -> None:
    training = Training(tmp_path)
    follower = training.follower()
    words = Path(f"/proc/{follower.pid}/cmdline").read_bytes()
    leave(follower)
    assert KEY.encode() not in words and words.endswith(b"cathpc.tracking.send\0")
    assert KEY.encode() not in send.line(beside.spec(training.config, [("train", training.folder)]))


def test_nothing_is_started_where_tracking_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    training.config.tracker = TrackerConfig(mode=WandbMode.disabled)
    started: list[object] = []
    monkeypatch.setattr(beside, "start", lambda *a, **k: started.append(a))
    with beside.tracked(training.config, training.place):
        training.attempt(0, 1)
    assert started == [] and not (training.folder / ".tracking").exists()
