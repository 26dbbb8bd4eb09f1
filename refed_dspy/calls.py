"""Who is told about a call: the seam between a teacher, which makes it, and the books, which keep it.

A teacher reports each attempt; whoever opened `collecting()` around the work receives it. The list is
held in a context variable, so concurrent work keeps apart without being handed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dspy.utils.exceptions import LMError, LMTransportError

from refed_dspy.records import Call


class AnswerCut(LMError):
    """Raised by a teacher's engine: the answer ended at the token limit. DSPy alone would accept it."""


class NotReached(LMTransportError):
    """Raised by a teacher's engine: no connection could be made, so nothing was sent."""


class AnswerRefused(LMError):
    """Raised by a teacher's engine: a content filter, or the model, declined."""


_sink: ContextVar[list[Call] | None] = ContextVar("refed_calls", default=None)
_seed: ContextVar[int | None] = ContextVar("refed_call_seed", default=None)
_stopping: ContextVar[Callable[[], bool]] = ContextVar("refed_stopping", default=lambda: False)


@contextmanager
def collecting(seed: int | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[list[Call]]:
    """Collect every call reported inside the block.

    `seed` is what a teacher that takes one should send; once `stopping()` is true, no further attempt is made.
    """
    calls: list[Call] = []
    sink, seeded, stops = _sink.set(calls), _seed.set(seed), _stopping.set(stopping)
    try:
        yield calls
    finally:
        _sink.reset(sink)
        _seed.reset(seeded)
        _stopping.reset(stops)


def report(call: Call) -> None:
    """Tell whoever collects about one attempt; nobody does when a program is called on its own."""
    if (calls := _sink.get()) is not None:
        calls.append(call)


def stopping() -> bool:
    """Whether the run is ending, so that nothing further may be sent."""
    return _stopping.get()()


def call_seed() -> int | None:
    """The seed of the call being made, or None outside a run."""
    return _seed.get()
