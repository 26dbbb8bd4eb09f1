"""The seam between a teacher, which makes calls, and the books, which keep them.

Before it sends anything a teacher asks the books for leave, and afterwards tells them what came of it. The books are
held in a context variable, so concurrent work keeps apart without being handed anything. A program called on its
own has none, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dspy.utils.exceptions import LMConfigurationError, LMError, LMTransportError

from refed_dspy.records import Call


class AnswerCut(LMError):
    """Raised by a teacher's engine: the answer ended at the token limit. DSPy alone would accept it."""


class AnswerRefused(LMError):
    """Raised by a teacher's engine: a content filter, or the model, declined."""


class NotReached(LMTransportError):
    """Raised by a teacher's engine: no connection could be made, so nothing was sent."""


class NotAnApi(LMError):
    """Raised by a teacher's engine: a web page came back where an API should be."""


class StillLimited(LMError):
    """Raised by a teacher's engine: the endpoint has refused everything for its rate limit, for minutes."""


class NotAnswering(LMConfigurationError):
    """A model that is not there, or not there any more: for whoever asks it, like a wrong setting."""


class NoMoneyLeft(LMError):
    """Raised by the books: a further call could pass a cap. An LMError, since DSPy lets those through as they are."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request about to be sent. `worst` is the most it can cost, in picodollars; None: its price is unknown."""

    model: str
    endpoint: str
    worst: int | None


class Books(Protocol):
    """Who is asked before a call and told after it."""

    seed: int | None
    """What a teacher that takes a seed should send."""

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that nothing further may be sent."""
        ...

    async def reserve(self, attempt: Attempt) -> int:
        """Set aside and write down the attempt's worst case; returns its number. Waits while others may give back.

        Raises NoMoneyLeft where it could pass a cap.
        """
        ...

    def reserve_now(self, attempt: Attempt) -> int:
        """The same without an event loop: what does not fit at once is refused."""
        ...

    def report(self, call: Call) -> None:
        """Settle an attempt that has ended."""
        ...

    def not_sent(self, number: int) -> None:
        """Give back the reservation of an attempt that was never sent."""
        ...


class NoBooks:
    """The books of a program called on its own: everything is allowed, nothing is kept."""

    seed: int | None = None
    stopping = False

    async def reserve(self, attempt: Attempt) -> int:  # noqa: ARG002
        return 0

    def reserve_now(self, attempt: Attempt) -> int:  # noqa: ARG002
        return 0

    def report(self, call: Call) -> None:
        pass

    def not_sent(self, number: int) -> None:
        pass


_NO_BOOKS = NoBooks()
_books: ContextVar[Books] = ContextVar("refed_books", default=_NO_BOOKS)


B = TypeVar("B", bound=Books)


@contextmanager
def booked(books: B) -> Iterator[B]:
    """Have `books` asked and told about every call inside the block."""
    token = _books.set(books)
    try:
        yield books
    finally:
        _books.reset(token)


def current_books() -> Books:
    """The books of the work being done."""
    return _books.get()
