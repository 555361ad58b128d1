"""Servers of models: they start, are private, answer, and end in all cases; `chat` talks to them without torch."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cathpc.acts import chat as act
from cathpc.errors import UserError
from cathpc.record import Message
from cathpc.serving import served
from cathpc.serving.config import Engine, ServingConfig, faults_of_serving
from cathpc.serving.remote import Remote
from cathpc.serving.server import Endpoint, Server, _get, _members, healthy
from tests.model_server import Proxy, answer

ROOT = Path(__file__).parents[2]
WAIT = ServingConfig(start_s=240)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    return Path(shutil.copytree(tiny_llama, folder))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with Server(model, "tiny", engine=Engine.transformers, serving=WAIT, log=log) as running:
        yield running


def port(endpoint: Endpoint) -> int:
    return int(endpoint.url.split(":")[2].split("/")[0])


def voice(endpoint: Endpoint, **options: object) -> Remote:
    settings = {"key_from": "a file", "max_new_tokens": 8, "temperature": 0.0, "seed": 1} | options
    return Remote(endpoint, **settings)  # type: ignore[arg-type]


def test_a_folder_of_safetensors_is_served_in_the_very_ids_of_chat(server: Server, model: Path) -> None:
    messages = [{"role": "system", "content": "You are a cat."}, {"role": "user", "content": "Hello!"}]
    speaker = act.Speaker(model, max_new_tokens=8, temperature=0, seed=0)
    remote = voice(server.endpoint)
    try:
        assert "".join(remote.stream(messages)) == "".join(speaker.stream(messages)) != ""
    finally:
        remote.close()


def test_nothing_but_health_is_open_to_who_has_no_key(server: Server) -> None:
    at = port(server.endpoint)
    assert _get("127.0.0.1", at, "/health", "", 5) is not None
    for path in ("/v1/models", "/openapi.json", "/docs", "/version"):
        assert _get("127.0.0.1", at, path, "", 5) is None and _get("127.0.0.1", at, path, "wrong", 5) is None
    assert _get("127.0.0.1", at, "/openapi.json", server.endpoint.key, 5) is None
    assert healthy(port=at, key=server.endpoint.key, model="tiny")
    assert not healthy(port=at, key="wrong", model="tiny") and not healthy(
        port=at, key=server.endpoint.key, model="other"
    )
    listening = {c.laddr.ip for p in _members(server._process.pid) for c in p.net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_the_key_stands_in_no_argument_no_log_and_no_representation(server: Server) -> None:
    key = server.endpoint.key
    for process in _members(server._process.pid):
        assert key not in " ".join(process.cmdline())
    assert key not in server._log.read_text() and key not in repr(server.endpoint)
    assert stat.S_IMODE(server._log.stat().st_mode) == 0o600


def test_a_refused_key_names_where_it_came_from_and_not_itself(server: Server) -> None:
    wrong = voice(Endpoint(server.endpoint.url, "tiny", "sk-canary-77"))
    with pytest.raises(UserError, match=r"refuses the key.*a file") as caught:
        list(wrong.stream([{"role": "user", "content": "Hi"}]))
    wrong.close()
    assert "canary" not in str(caught.value)


def test_the_only_model_of_an_endpoint_needs_no_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cathpc.__main__ import main

    monkeypatch.setenv("MY_KEY", server.endpoint.key)
    asked = ["chat", "--url", server.endpoint.url, "--key-env", "MY_KEY", "--max-new-tokens", "4", "--temperature", "0"]
    assert main([*asked, "--prompt", "Hello!"]) == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.delenv("MY_KEY")
    assert main([*asked, "--prompt", "Hello!"]) == 2
    assert "MY_KEY, which is not set" in capsys.readouterr().err
    assert main(["chat", "--url", "http://127.0.0.1:9/v1", "--prompt", "Hello!"]) == 2
    assert "does not answer" in capsys.readouterr().err


CHAT = """
import sys
for name in ("torch", "transformers", "datasets"):
    sys.modules[name] = None
from cathpc.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_served_is_talked_to_without_torch_and_a_dead_server_is_told(
    server: Server, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "demo-named"
    record = served.here("tiny", "transformers", server.endpoint)
    served.write(run, record)
    assert stat.S_IMODE((run / served.FILE).stat().st_mode) == 0o600
    assert served.read(run) == record and record.answers and served.runs(record)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    overrides = ["+experiment=demo", f"paths.runs={tmp_path / 'runs'}"]
    from cathpc.config import compose
    from cathpc.runs import run_folder

    shutil.move(run, run_folder(compose(overrides), overrides))
    command = [sys.executable, "-c", CHAT, "chat", *overrides, "--prompt", "Hello!", "--max-new-tokens", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    gone = served.Served("tiny", "transformers", "http://127.0.0.1:9/v1", "k", process={**record.process, "pid": 1})
    served.write(run_folder(compose(overrides), overrides), gone)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "does not answer" in done.stderr and "--local" in done.stderr
    assert not served.runs(gone)


def test_a_record_that_others_can_read_is_not_trusted(tmp_path: Path) -> None:
    served.write(tmp_path, served.Served("m", "vllm", "http://x:1/v1", "k"))
    (tmp_path / served.FILE).chmod(0o644)
    with pytest.raises(UserError, match="open to others"):
        served.read(tmp_path)
    assert "'k'" not in repr(served.Served("m", "vllm", "http://x:1/v1", "k"))


HELD = """
import sys
from pathlib import Path
from cathpc.serving.config import Engine, ServingConfig
from cathpc.serving.job import hold
sys.exit(hold(Path(sys.argv[1]), "tiny", Engine.vllm, ServingConfig(environment=sys.argv[2], start_s=60),
              Path(sys.argv[3]), host="127.0.0.1", gpus=2))
"""

FAKE_VLLM = """#!/usr/bin/env -S {python} -P
# Answers as vLLM does where cathpc looks, behind the middleware that it is told to load; it takes its time to end.
import asyncio, importlib, json, os, signal, sys
argv = sys.argv[1:]
assert argv[0] == "serve" and "--trust-remote-code" not in argv, argv
value = lambda name: argv[argv.index(name) + 1]
assert value("--tensor-parallel-size") == "2" and value("--load-format") == "safetensors"
module, _, name = value("--middleware").partition(".")
async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"{{}}"}})
app = getattr(importlib.import_module(module), name)(app)
assert "cathpc" not in sys.modules
import uvicorn
uvicorn.run(app, host=value("--host"), port=int(value("--port")), log_level="warning")
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """What `slurm/vllm-env` leaves, as far as cathpc looks at it: a stand-in for vLLM, which needs a GPU."""
    command = tmp_path / "vllm" / "bin" / "vllm"
    command.parent.mkdir(parents=True)
    command.write_text(FAKE_VLLM.format(python=sys.executable))
    command.chmod(0o755)
    return tmp_path / "vllm"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_whoever_started_it(
    model: Path, environment: Path, tmp_path: Path, end: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HELD, str(model), str(environment), str(run)]
    process = subprocess.Popen(command, cwd=ROOT)
    while (known := served.read(run) if run.is_dir() else None) is None and process.poll() is None:
        time.sleep(0.05)
    assert known and known.answers and known.engine == "vllm" and served.runs(known)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    assert known.key not in json.dumps([c.cmdline() for c in children])
    os.kill(process.pid, end)
    code = process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == [] and not known.answers
    if end == signal.SIGKILL:
        assert code == -end and served.read(run) == known and not served.runs(known)
    else:
        assert code == 0 and served.read(run) is None


def test_stop_ends_it_from_elsewhere(model: Path, environment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HELD, str(model), str(environment), str(run)], cwd=ROOT)
    while (known := served.read(run) if run.is_dir() else None) is None and process.poll() is None:
        time.sleep(0.05)
    assert known is not None
    served.end(known)
    assert process.wait(5) == 0 and not served.runs(known) and served.read(run) is None


def test_a_server_that_cannot_start_shows_the_end_of_its_log(model: Path, tmp_path: Path) -> None:
    command = tmp_path / "vllm" / "bin" / "vllm"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\necho 'CUDA out of memory' >&2\nexit 3\n")
    command.chmod(0o755)
    serving = ServingConfig(environment=str(tmp_path / "vllm"), start_s=60)
    with pytest.raises(UserError, match=r"ended with code 3(.|\n)*CUDA out of memory"):
        Server(model, "tiny", engine=Engine.vllm, serving=serving, log=tmp_path / "log")
    with pytest.raises(UserError, match="slurm/vllm-env"):
        Server(model, "tiny", engine=Engine.vllm, serving=ServingConfig(), log=tmp_path / "log")


def test_arguments_that_would_open_the_server_are_refused() -> None:
    for argument in ("--trust-remote-code", "--trust_remote_code", "--api-key=x", "--host=0.0.0.0"):
        assert faults_of_serving(ServingConfig(arguments=[argument]))
    assert not faults_of_serving(ServingConfig(arguments=["--max-model-len", "8192"]))


def test_the_act_serves_says_where_and_stops(model: Path, tmp_path: Path, environment: Path) -> None:
    run = [sys.executable, "-m", "cathpc", "serve", "--model", str(model), f"paths.runs={tmp_path / 'runs'}"]
    run += [f"serving.environment={environment}", "--gpus", "2"]

    def told(*more: str) -> tuple[int, str]:
        done = subprocess.run([*run, *more], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert told("--status") == (1, "serve-model is not served\n")
    serving = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs" / "serve-model"
    while (known := served.read(folder) if folder.is_dir() else None) is None and serving.poll() is None:
        time.sleep(0.05)
    assert known is not None
    code, text = told("--status")
    assert code == 0 and known.url in text and "it answers" in text and known.key not in text
    assert told()[0] == 0  # the same command again starts no second one
    assert told("--stop") == (0, "serve-model: stopped\n") and serving.wait(30) == 0
    assert told("--status")[0] == 1


def test_a_served_folder_is_talked_to_by_the_line_that_status_prints(
    server: Server, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cathpc.__main__ import main

    runs = f"paths.runs={tmp_path / 'runs'}"
    record = served.here("tiny", "transformers", server.endpoint, folder=str(model.resolve()))
    served.write(tmp_path / "runs" / "serve-model", record)
    assert main(["serve", "--model", str(model), runs, "--status"]) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("  chat  "))
    words = shlex.split(line.removeprefix("  chat  "))
    command = [sys.executable, "-c", CHAT, *words[words.index("chat") :], "--prompt", "Hello!", "--max-new-tokens", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr

    loaded: list[Path] = []
    monkeypatch.setattr(act, "chat", lambda folder, **_: loaded.append(folder))
    other = Path(shutil.copytree(model, tmp_path / "other" / "model"))
    assert main(["chat", "--model", str(other), runs]) == 0  # of the same name, and not what is served
    assert main(["chat", "--model", str(model), runs, "--local"]) == 0
    assert loaded == [other, model]
    capsys.readouterr()
    assert main(["serve", "--model", str(other), runs]) == 2 and "end that server first" in capsys.readouterr().err
    assert main(["serve", "--model", str(other), runs, "--status"]) == 1
    assert served.read(tmp_path / "runs" / "serve-model") == record


@pytest.mark.parametrize(
    ("url", "named", "sent"),
    [
        ("http://node7:8000/v1", None, False),
        ("http://127.0.0.1.elsewhere.org/v1", None, False),
        ("http://127.0.0.1@elsewhere.org/v1", None, False),
        ("http://node7:8000/v1", "OPENAI_API_KEY", True),
        ("http://127.0.0.1:8000/v1", None, True),
        ("http://[::1]:8000/v1", None, True),
        ("https://api.openai.com/v1", None, True),
    ],
)
def test_the_usual_key_goes_over_no_network_in_clear_text_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, named: str | None, sent: bool
) -> None:
    from cathpc.__main__ import main

    asked: list[tuple[Endpoint, str]] = []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-41")
    monkeypatch.setattr(act, "_remote", lambda endpoint, where, *_: asked.append((endpoint, where)))
    assert main(["chat", "--url", url, *(["--key-env", named] if named else []), "--prompt", "Hello!"]) == 0
    ((endpoint, where),) = asked
    assert endpoint.key == ("sk-canary-41" if sent else "")
    assert ("--key-env" in where) == (not sent) and "OPENAI_API_KEY" in where


BEGUN = b'data: {"choices": [{"index": 0, "delta": {"content": "Meow"}}]}\n\n'


@pytest.mark.parametrize(
    "rest", [b'data: {"choices": [{"ind\n\n', b'data: {"choices": [7]}\n\n', b"data: \xff\xfe\n\n"]
)
def test_a_stream_that_breaks_off_costs_an_answer_and_not_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rest: bytes
) -> None:
    proxy, answers = Proxy(9), [BEGUN + b"data: [DONE]\n\n", BEGUN + rest, BEGUN + b"data: [DONE]\n\n"]
    proxy.faults.append(lambda handler, *_: answer(handler, 200, answers.pop(0), Content_Type="text/event-stream"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\nHow are you?\nAnd now?\n"))
    remote = voice(Endpoint(proxy.url, "tiny", "k"))
    try:
        act.talk(remote)
    finally:
        remote.close()
        proxy.close()
    out = capsys.readouterr().out
    assert out.count("Meow") == 3 and out.count("broke off its answer") == 1
    said = [(m["role"], m["content"]) for m in proxy.seen[-1][1]["messages"]]
    assert said == [("user", "Hello!"), ("assistant", "Meow"), ("user", "And now?")]


def test_an_endpoint_that_lists_no_models_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(9)
    monkeypatch.setattr(proxy, "ask", lambda *_: (200, b"<html>welcome</html>"))
    try:
        with pytest.raises(UserError, match="does not say which models it has"):
            voice(Endpoint(proxy.url, "", "k"))
    finally:
        proxy.close()


def test_a_server_that_died_says_how(model: Path, environment: Path, tmp_path: Path) -> None:
    serving = ServingConfig(environment=str(environment), start_s=60)
    with Server(model, "tiny", engine=Engine.vllm, serving=serving, log=tmp_path / "log", gpus=2) as server:
        assert server.fault == ""
        os.killpg(server._process.pid, signal.SIGKILL)
        server.wait()
        assert server.fault.startswith("ended with code -9.") and str(tmp_path / "log") in server.fault


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_thoughts_are_grey_on_a_terminal_and_as_they_come_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cat:
        def stream(self, messages: list[Message]) -> Iterator[str]:
            yield from ("<thi", "nk>3 x 14", " - 5</think>\n\n", "37 fish. ", "Nyan")

    act.talk(Cat(), prompt="How many fish?")
    assert capsys.readouterr().out == "<think>3 x 14 - 5</think>\n\n37 fish. Nyan\n"
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    act.talk(Cat(), prompt="How many fish?")
    shown = screen.getvalue()
    thought, _, answer = shown.partition("\n\n")
    assert "think" not in shown and "3 x 14" in thought and thought.startswith("\x1b[38;5;")
    assert answer == "37 fish. Nyan\n"
