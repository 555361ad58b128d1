"""`python -m cathpc [ACT] [--options] [overrides]`: pick the act, compose, validate, act."""

from __future__ import annotations

import os
import sys

from cathpc import acts
from cathpc.dispatch.work import explain
from cathpc.errors import EXIT_AGAIN, EXIT_OURS, EXIT_USER, CathpcError
from cathpc.terminal import complain

_TOLD = (EXIT_OURS, EXIT_AGAIN, 130)
"""The codes of errors that the command's own code tells apart; every other one is the user's to mend."""


_PIPE = 128 + 13
"""What a shell says of a program that SIGPIPE ended."""


def main(argv: list[str] | None = None) -> int:
    """Run one act; returns the exit code: 0 done, 2 the user's mistake, 75 try again, 1 ours."""
    os.umask(0o077)  # everything a run writes is private
    try:
        act, arguments = acts.pick(sys.argv[1:] if argv is None else argv)
        code = int(act.main(arguments))
        sys.stdout.flush()
        return code
    except CathpcError as error:
        return complain(str(error), error.exit_code if error.exit_code in _TOLD else EXIT_USER)
    except BrokenPipeError:  # whoever read what is printed has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE
    except OSError as error:
        from pathlib import Path

        code, message = explain(error, Path.cwd())
        if code == EXIT_OURS:
            raise
        return complain(message, EXIT_USER)
    except KeyboardInterrupt:
        return complain("stopped", 130)


if __name__ == "__main__":
    sys.exit(main())
