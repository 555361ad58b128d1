"""The errors that a user sees, each with the exit code of the process that ends with it.

A message names the file, the row or the key, the value seen, what was expected and what to do next. Anything else that
is raised is a bug of ours: it keeps its traceback and exits with 1.
"""

from __future__ import annotations

import errno

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
"""What a disk says that is full, read-only or failing."""

EXIT_DONE = 0
EXIT_OURS = 1
EXIT_USER = 2
EXIT_FENCED = 3
EXIT_DATA = 65
EXIT_DISK = 74
EXIT_AGAIN = 75
EXIT_CHANGED = 78
EXIT_REQUEUE = 85


class CathpcError(Exception):
    """A failure that is explained in one message; `exit_code` is what a job that ends with it returns."""

    exit_code = EXIT_OURS


class UserError(CathpcError):
    """The command, the configuration or a file that it names is wrong."""

    exit_code = EXIT_USER


class FencedError(CathpcError):
    """Another owner holds the run or the stage; this process must not write."""

    exit_code = EXIT_FENCED


class DataError(CathpcError):
    """Data cannot be used (every checkpoint broken, a shard that nothing can read)."""

    exit_code = EXIT_DATA


class DiskError(CathpcError):
    """A disk is full, read-only or failing."""

    exit_code = EXIT_DISK


class TryAgainError(CathpcError):
    """A passing fault; the same attempt may succeed later."""

    exit_code = EXIT_AGAIN


class LostError(CathpcError):
    """Another rank, or the network between ranks, is gone."""

    exit_code = EXIT_REQUEUE


class ChangedError(CathpcError):
    """Bytes under an existing fingerprint are not those that were recorded."""

    exit_code = EXIT_CHANGED
