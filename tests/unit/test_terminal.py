"""What is printed where: bars and full screens on a terminal, plain lines elsewhere, errors in one look."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cathpc import terminal
from cathpc.__main__ import main
from cathpc.acts import status
from cathpc.config import compose
from cathpc.dispatch.show import Show
from cathpc.dispatch.status import StageStatus
from cathpc.errors import UserError

ROOT = Path(__file__).parents[2]


def printed(**options: Any) -> Console:
    return Console(file=io.StringIO(), highlight=False, emoji=False, width=120, **options)


def text(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_an_error_is_one_message_behind_the_name_with_what_follows_under_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.complain("a key is wrong\nValid: a, b\n    deeper", 2) == 2
    assert capsys.readouterr().err == "cathpc: a key is wrong\n  Valid: a, b\n    deeper\n"


@pytest.mark.parametrize("words", [["--help"], ["plan", "+experiment=smoke", "--cfg"]])
def test_output_that_nobody_reads_ends_quietly(words: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cathpc", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_every_error_of_an_act_is_printed_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["statsu"]) == 2
    assert re.fullmatch(r"cathpc: there is no act 'statsu'\. Did you mean 'status'\?.*\n", capsys.readouterr().err)

    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "main", interrupted)
    assert main(["status", "+experiment=smoke"]) == 130
    assert capsys.readouterr().err == "cathpc: stopped\n"

    def failing(_: Any) -> int:
        raise UserError("no\nyes")

    monkeypatch.setattr(status, "main", failing)
    assert main(["status", "+experiment=smoke"]) == 2
    assert capsys.readouterr().err == "cathpc: no\n  yes\n"


def test_only_a_terminal_without_no_color_is_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.lively(printed(force_terminal=True)) and not terminal.lively(printed())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.lively(printed(force_terminal=True))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.lively(printed(force_terminal=True))


def test_a_walk_prints_plain_lines_without_a_terminal() -> None:
    console = printed()
    show = Show(console)
    show.started("pull")
    show.done("pull", {"seconds": 2.0, "summary": {"line": "3 records [x]"}})
    show.failed("base")
    show.note("waits [for] it")
    show.close()
    assert text(console).splitlines() == [
        "✓ pull              2.0 s  3 records [x]", "✗ base             failed", "  waits [for] it"
    ]  # fmt: skip
    assert "\x1b" not in text(console)


STATES = {
    "pull": StageStatus("done", line="372 records"),
    "train": StageStatus(
        "running",
        progress={"done": 3, "total": 12, "unit": "steps"},
        training={"step": 3, "steps": 12, "loss": 2.5, "tokens_per_s": 1000.0, "left_s": 90.0},
    ),
}


def test_status_is_a_plain_table_in_a_file_and_has_bars_on_a_terminal() -> None:
    config = compose(["+experiment=smoke"])
    plain, drawn = printed(), printed(force_terminal=True)
    plain.print(status.view(config, STATES, ""))
    assert "step 3 of 12; loss 2.500, 1,000 tokens/s; 1 min 30 s left" in text(plain) and "\x1b" not in text(plain)
    assert "━" not in text(plain)
    drawn.print(status.view(config, STATES, "", bars=True))
    assert "━" in text(drawn) and "\x1b" in text(drawn)


def test_watching_a_file_repeats_the_text_only_where_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "wait", lambda seconds: None)
    seen = iter([("one", True), ("one", True), ("two", True), ("two", True), ("three", False)])
    console = printed()
    terminal.repeat(console, lambda: next(seen), 5.0)
    assert text(console).split() == ["one", "two", "three"]


def watched(keys: bytes, tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of `status --watch` on a terminal of its own, at which some keys are pressed."""
    ours, theirs = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    output = b""
    deadline = time.monotonic() + 120
    pressed = False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            output += os.read(ours, 65536) if ready else b""
        except OSError:  # the other side is gone
            break
        if not pressed and b"waits here" in output:
            pressed = True
            if keys == b"\x03":
                os.kill(process.pid, signal.SIGINT)
            else:
                os.write(ours, keys)
    os.close(ours)
    return process.wait(10), output.decode()


WATCHED = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell that runs the tests may have it ignored
from cathpc import terminal
from cathpc.errors import CathpcError
console = terminal.console()
try:
    terminal.repeat(console, lambda: ("waits here", True), 60.0)
except KeyboardInterrupt:
    sys.exit(terminal.complain("stopped", 130))
console.print("left")
"""


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"Q", 0), (b"\x03", 130)])
def test_watch_fills_the_screen_and_leaves_it_as_it_was(key: bytes, code: int, tmp_path: Path) -> None:
    found, output = watched(key, tmp_path)
    assert found == code
    entered, left = output.index("\x1b[?1049h"), output.index("\x1b[?1049l")
    assert entered < output.index("waits here") < left
    assert "left" in output[left:] if code == 0 else "stopped" in output[left:]


def test_a_stop_while_the_screen_is_drawn_for_the_first_time_leaves_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Stopped:
        def __rich_console__(self, console: Console, options: Any) -> Any:
            raise KeyboardInterrupt

    screen = printed(force_terminal=True, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt):
        terminal.repeat(screen, lambda: (Stopped(), True), 60.0)
    assert text(screen).index("\x1b[?1049h") < text(screen).index("\x1b[?1049l")


def test_watch_ends_with_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        with terminal.keys() as pressed:
            os.close(ours)
            assert pressed(60.0) is True


def test_a_keyboard_that_is_none_is_waited_on_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(terminal, "wait", waited.append)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with terminal.keys() as pressed:
        assert pressed(3.0) is False
    assert waited == [3.0]
