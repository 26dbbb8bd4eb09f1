"""Progress as a person sees it on a terminal: one picture, renewed."""

from __future__ import annotations

import threading
from io import StringIO

import pytest
from rich.console import Console

from refed_dspy.cli import ending
from refed_dspy.cli.display import Display, rows_shown
from refed_dspy.teachers.progress import CompileProgress, Progress
from tests.support.clocks import until
from tests.support.command_line import refed, refusal
from tests.support.said import Said


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=120)


def seen(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(size=10, kept=4), "4/10"),
        (made := CompileProgress(phase="optimizing", evaluations=3, expected=9, candidates=2), str(made)),
    ],
)
def test_work_on_a_terminal_is_a_line_that_is_renewed(progress: Progress | CompileProgress, line: str) -> None:
    console = terminal()
    with Display(console).showing() as display:
        until(lambda: "starting" in seen(console))
        display.watch(progress)
        until(lambda: line.partition(" · $")[0] in seen(console))


def test_stopping_is_said_above_the_bar(said: Said) -> None:
    console = terminal()
    with Display(console).showing():
        ending._say_stopping()
    said(seen(console))


def test_rows_are_counted_on_a_terminal_and_nowhere_else() -> None:
    for total, shown in ((3, "3/3"), (None, "3/?")):
        console = terminal()
        with rows_shown(console) as through:
            assert list(through((letter for letter in "abc"), total)) == ["a", "b", "c"]
            ending._say_stopping()
        assert shown in seen(console) and "stopping" in seen(console)
    plain = Console(file=StringIO(), force_terminal=False)
    with rows_shown(plain) as through:
        assert list(through(iter("abc"), 3)) == ["a", "b", "c"]
    assert not seen(plain)


def test_the_best_score_is_shown_once_there_is_one(said: Said) -> None:
    said([str(CompileProgress(phase="optimizing", best=best, baseline=0.5)) for best in (0.75, None)])


def test_weights_of_an_unknown_name_are_refused(said: Said) -> None:
    said(refusal(refed("teacher", "fetch", "embeded")))


class Full(StringIO):
    """A stream that nothing can be written to."""

    def write(self, _: str) -> int:
        raise OSError(24, "Too many open files")


def test_lines_that_cannot_be_printed_end_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `ulimit -n` the work goes on without its progress."""
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    display = Display(Console(file=Full()))
    display.watch(Progress(size=10, kept=4))
    with display.showing():
        until(lambda: not any(thread.name == "refed-progress" for thread in threading.enumerate()))
    assert not raised


def test_the_work_goes_on_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Display(Console(file=StringIO())).showing() as display:
        assert display.progress is None
