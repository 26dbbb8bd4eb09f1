"""Errors that no command expects, yet no bug of this package: names that the system cannot use, rights, memory, a full
disk under stdout. Each is a line and an exit code; anything else stays a traceback.

Imports nothing that takes time or memory: it may run where there is none.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

from refed_dspy.errors import one_line

_OF_NAMES = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG", "EINVAL")
}
"""What the system says to a name that it cannot use: a mistake of whoever gave it, before anything was paid for."""
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")


def told(error: BaseException) -> int | None:
    """Say what went wrong, on one line of stderr. Returns the exit code; None where it may be a bug, and says nothing.

    A pipe whose reader has gone says nothing either, as everywhere: 1.
    """
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return 1
    if (found := _line(error)) is None:
        return None
    line, code = found
    with suppress(OSError, ValueError):  # stderr may be full, too
        sys.stderr.write(f"refed: {line}\n")
        sys.stderr.flush()
    return code


def _line(error: BaseException) -> tuple[str, int] | None:
    """What to say of `error`, and the exit code."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return "there is not enough memory, or there are too many threads (ulimit -v, ulimit -u)", 1
    if isinstance(error, UnicodeEncodeError):
        return f"{one_line(ascii(error.object), 200)}: contains bytes that are not UTF-8; give it another name", 2
    if isinstance(error, RuntimeError) and text.startswith("symlink loop"):  # `Path.resolve`, before Python 3.13
        return f"{one_line(error)}: links in a circle; give it another name", 2
    if isinstance(error, ImportError):
        return f"a library cannot be loaded: {one_line(error)}; install refed again", 1
    if not isinstance(error, OSError):
        return None
    why = one_line(error.strerror or error)
    if error.filename is None:
        return f"cannot write: {why}", 1
    return f"{one_line(os.fsdecode(error.filename), 200)}: {why}", 2 if error.errno in _OF_NAMES else 1


def flushed(code: int) -> int:
    """Write out what was printed. Returns `code`, or 1 in place of 0 where that cannot be done, which stderr says."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # else Python tries again as it ends, and says so in its own words
            os.close(null)
            code = code or told(error) or 1
    return code
