"""How a command ends early: Ctrl-C, also while its modules are still being imported, and SIGTERM and SIGHUP as Ctrl-C.
A second one ends it at once.

Imports nothing that takes time: it is the first that runs.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_received = [signal.SIGINT]
_in_command: list[str] = []
_handler_before: list[Any] = []
"""What Ctrl-C did when the first signal came."""
_print_line: list[Callable[[str], object]] = []
"""How a line is printed while a display is on the terminal."""
_FIRST_CAME = signal.SIGURG
"""The watching thread has the main one run a handler by it. Ignored by default, and sent by nobody else."""
_STOPPING = "refed: stopping; press Ctrl-C again to stop at once"


def stop_on_signals() -> None:
    """From now on SIGTERM and SIGHUP do what Ctrl-C does. A signal that whoever started this process had ignored stays
    ignored."""
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, _while_starting)
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


def in_command(name: str) -> None:
    """A command runs: outside of imports, Ctrl-C is KeyboardInterrupt from now on."""
    _in_command.append(name)


def at_work() -> None:
    """The command's own imports are over: Ctrl-C ends what is under way cleanly, also inside a later import. Every
    command that writes or sends anything calls it first. asyncio sees to Ctrl-C where this handler is set."""
    if signal.getsignal(signal.SIGINT) is _while_starting:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def end_process(code: int) -> None:
    """The command has ended with `code`. After a signal the process ends here: all is cleaned up, and Python's own end
    would wait for threads of libraries, and take a second on a busy machine. So it does where such a thread was left
    alone. A signal from now on ends it as well."""
    concurrency = sys.modules.get("refed_dspy.concurrency")
    if _handler_before or (concurrency is not None and concurrency.left_alone()):
        os._exit(code)
    signal.set_wakeup_fd(-1)  # also where no command began, as for --help: there is nothing to stop
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(code))


def exit_code() -> int:
    """128 and the signal's number, as shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + _received[-1]


def _while_starting(number: int, frame: FrameType | None) -> None:
    """Before the command runs, or inside an import: an exception would end anywhere (in a library's own `except`, or as
    another error), and nothing was begun, so the process ends at once."""
    inner, importing = frame, False
    while inner is not None:
        importing = importing or inner.f_code.co_filename.startswith("<frozen importlib")
        inner = inner.f_back
    if importing or not _in_command:
        os.write(2, b"refed: stopped\n")
        os._exit(exit_code())
    signal.default_int_handler(number, frame)


def _watch(arrived: int) -> None:
    """In a thread of its own, told of each signal: the first one's handler begins the end, any further one is the end.

    Python's own handlers, asyncio's too, would raise a second KeyboardInterrupt in the middle of the cleaning up.
    """
    first = 0
    while True:
        number = os.read(arrived, 1)[0]
        if number not in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:
            continue
        if not first:
            first = number
            if signal.getsignal(signal.SIGINT) is not _while_starting:  # there is something to clean up
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
