"""How a command ends: by Ctrl-C, a SIGTERM or SIGHUP as Ctrl-C, a second one at once; by an error that no command
expects, yet no bug of this package; or well.

Imports nothing that takes time or memory: it is the first that runs, and may run where there is none.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from refed_dspy.errors import one_line

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_received = [signal.SIGINT]
_handler_before: list[Any] = []
"""What Ctrl-C did when the first signal came."""
_print_line: list[Callable[[str], object]] = []
"""How a line is printed while a display is on the terminal."""
_FIRST_CAME = signal.SIGURG
"""The watching thread has the main one run a handler by it. Ignored by default, and sent by nobody else."""
_STOPPING = "refed: stopping; press Ctrl-C again to stop at once"
_OF_NAMES = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG", "EINVAL")
}
"""What the system says to a name that it cannot use: a mistake of whoever gave it, before anything was paid for."""
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")

# --- signals


def stop_on_signals() -> None:
    """From now on SIGTERM and SIGHUP do what Ctrl-C does. A signal that whoever started this process had ignored stays
    ignored."""
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _as_ctrl_c)
    signal.signal(_FIRST_CAME, _no_second)
    arrived, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    _thread.start_new_thread(_watch, (arrived,))
    atexit.register(_over)  # the first to be registered is the last to run


def _open_closed_streams() -> None:
    """Give /dev/null to each standard stream that was closed (`>&-`). Else the next file opened, a ledger say, would
    have its number, and get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


@contextmanager
def lines_printed_by(print_line: Callable[[str], object]) -> Iterator[None]:
    """Inside the block, what is said at the first signal is said by `print_line`, above what a display shows."""
    _print_line.append(print_line)
    try:
        yield
    finally:
        _print_line.remove(print_line)


def say_no_more() -> None:
    """The command has stopped, and says so itself."""
    _print_line.append(lambda _: None)


def command_over() -> None:
    """The command's function has ended, and nothing is left to stop: a signal changes nothing from now on. Click would
    print an empty line and exit with 130, whatever the signal."""
    if signal.getsignal(_FIRST_CAME) is not _no_second:  # called by a program that sees to its signals itself
        return
    signal.set_wakeup_fd(-1)
    _from_now_on(lambda *_: None)


def end_process(code: int) -> None:
    """The command has ended with `code`. After a signal the process ends here: all is cleaned up, and Python's own end
    would wait for threads of libraries, and take a second on a busy machine. So it does where such a thread was left
    alone. A signal from now on ends it as well."""
    concurrency = sys.modules.get("refed_dspy.concurrency")
    if _handler_before or (concurrency is not None and concurrency.left_alone()):
        os._exit(code)
    signal.set_wakeup_fd(-1)  # also where no command began, as for --help: there is nothing to stop
    _from_now_on(lambda *_: os._exit(code))


def _from_now_on(handler: Callable[..., object]) -> None:
    """Each of the signals that is not ignored is handled so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def exit_code() -> int:
    """128 and the signal's number, as shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + _received[-1]


def _watch(arrived: int) -> None:
    """In a thread of its own, told of each signal: the first one's handler begins the end, any further one is the end.

    Python's own handlers, asyncio's too, would raise a second KeyboardInterrupt in the middle of the cleaning up.
    """
    first = 0
    while True:
        number = os.read(arrived, 1)[0]
        if number not in _SIGNALS:
            continue
        if not first:
            first = number
            with suppress(RuntimeError):  # in its own thread: a terminal that takes nothing must not block this one
                _thread.start_new_thread(_say_stopping, ())
            _thread.interrupt_main(_FIRST_CAME)  # handled after those of lower numbers, as these three are
        elif not first == number == signal.SIGHUP:  # a terminal that goes away may send two
            with suppress(OSError):
                show_cursor = b"\x1b[?25h\n" if os.isatty(2) else b""
                os.write(2, show_cursor + b"refed: stopped at once; everything made so far is kept\n")
            os._exit(128 + number)


def _say_stopping() -> None:
    """Say that the first signal was heard."""
    with suppress(OSError, ValueError):
        if _print_line:
            _print_line[-1](_STOPPING)
        else:
            os.write(2, f"{_STOPPING}\n".encode())


def _no_second(*_: object) -> None:
    """Nothing more is done by Python's handlers. This one may run inside `_as_ctrl_c`, before its first line."""
    _handler_before.append(signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, lambda *_: None)


def _over() -> None:
    """The exit code is settled. Python itself would give the signals back their defaults, which end it with others."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    if number == signal.SIGHUP:
        _leave_terminal()
    handler = next(iter(_handler_before), signal.getsignal(signal.SIGINT))  # asyncio's own, while it runs
    if callable(handler):
        handler(signal.SIGINT, frame)


def _leave_terminal() -> None:
    """The terminal is gone: what is still printed there goes nowhere, and is no error."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


# --- errors


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
    if isinstance(error, KeyboardInterrupt):
        return "stopped before it began", exit_code()
    if _for_want_of_memory(error):
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


def _for_want_of_memory(error: BaseException | None) -> bool:
    """Whether that is what `error` was raised from: NumPy before 2.4 has words of its own for a library that did not
    fit."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


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
