"""A command that ends with its parent: `python -m cathpc.serving.guard COMMAND ...`.

In: a command, and a pipe from the parent as standard input, which nobody writes to. When the parent goes, whatever the
reason (kill -9 included), the pipe closes, and the command and all that it started are told to end, then killed. They
share one process group with this process, which its parent made (`start_new_session`). Standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE_S = 10.0


def main(command: list[str]) -> int:
    """Run `command` to its end; returns its exit code (negative: the signal that ended it)."""
    if os.getpgrp() != os.getpid():
        raise SystemExit("cathpc.serving.guard must lead a process group of its own")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the command gets them too; it ends, and then this does
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, daemon=True).start()
    return child.wait()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
