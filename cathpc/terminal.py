"""What people see in a terminal: one console, one look of errors, plain lines where nobody looks.

Lively is a terminal that may be drawn on; a file, a pipe, a dumb terminal and whoever sets NO_COLOR get plain lines.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

NAME = "cathpc"


def console(*, stderr: bool = False) -> Console:
    """Where an act prints: long lines stay whole, for the shell and for grep."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, emoji=False, stderr=stderr)


def lively(where: Console) -> bool:
    """Whether bars and full screens may be drawn there."""
    return where.is_terminal and not where.is_dumb_terminal and not os.environ.get("NO_COLOR")


def complain(message: str, code: int) -> int:
    """Print an error as all errors are printed: its first line behind the name, the others under it; returns `code`."""
    first, *others = message.splitlines() or [""]
    lines = [first, *(line if line.startswith(" ") else f"  {line}" for line in others)]
    text = "\n".join(lines)
    try:
        if sys.stderr.isatty():
            from rich.text import Text

            where = console(stderr=True)
            where.print(Text.assemble((f"{NAME}: ", "bold red" if code != 130 else "bold"), text))
        else:
            print(f"{NAME}: {text}", file=sys.stderr)
    except OSError:  # nobody is there to read it
        pass
    return code


def repeat(where: Console, look: Callable[[], tuple[Any, bool]], every_s: float) -> None:
    """Show what `look` gives until it says that it is the last, on a quiet full screen (q or Ctrl-C leaves it).

    `look` returns (what to print, whether anything may still change). Where the screen cannot be drawn on, text is
    printed again only when it differs from what was printed last.
    """
    shown, goes_on = look()
    if not lively(where):
        before = _plain(where, shown)
        where.print(shown)
        while goes_on:
            wait(every_s)
            shown, goes_on = look()
            if (now := _plain(where, shown)) != before:
                before = now
                where.print(shown)
        return
    from rich.live import Live

    live = Live(shown, console=where, screen=True, auto_refresh=False, vertical_overflow="crop")
    with keys() as pressed:
        try:
            live.start(refresh=True)
            while goes_on and not pressed(every_s):
                shown, goes_on = look()
                live.update(shown, refresh=True)
        finally:  # also of a Ctrl-C while it starts, which `with live` would not leave the screen for
            live.stop()
    where.print(shown)


def wait(seconds: float) -> None:
    """Sleep; a name of its own, for tests that have no time."""
    import time

    time.sleep(seconds)


@contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds and says whether q was pressed, or the terminal is gone; without a keyboard
    it waits."""
    import termios
    import tty

    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield _unpressed
        return
    tty.setcbreak(descriptor)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            return False
        try:
            typed = os.read(descriptor, 64)
        except OSError:
            typed = b""
        return not typed or typed.lower().startswith(b"q")  # nothing to read: the terminal is gone

    try:
        yield pressed
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _unpressed(seconds: float) -> bool:
    wait(seconds)
    return False


def _plain(where: Console, shown: Any) -> str:
    """What would be printed."""
    with where.capture() as captured:
        where.print(shown)
    return captured.get()
