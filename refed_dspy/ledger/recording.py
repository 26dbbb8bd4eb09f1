"""Who records the calls of the work being done: a context variable, so concurrent work keeps apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from refed_dspy.records import Call


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request about to be sent. `worst` is the most it can cost, in picodollars; None: its price is unknown.

    One that waits to be `batched` is not sent before its batch is begun: it is written down with that.
    """

    model: str
    endpoint: str
    worst: int | None
    batched: bool = False


@dataclass(frozen=True)
class SentBatch:
    """A batch that was begun, under `id` in the log: whether the service took it is known once it has a `name`.

    `nonce` is in the batch's metadata at the service, so that it is found there by whoever was killed before its name
    was written down. `numbers`: the calls in it that have no answer yet. `created`: seconds since 1970.
    """

    id: int
    nonce: str
    name: str | None
    created: float
    numbers: tuple[int, ...]


class BatchLog(Protocol):
    """Where batches are written down before they are waited for, and their answers before they are read."""

    couriers: dict[tuple[str, str], Any]
    """Who takes batches there and back, by endpoint and model: one for all engines of a model, since whoever follows
    a batch settles it."""

    @property
    def elsewhere(self) -> int:
        """Calls in flight that wait for no batch: what comes of them may want to join one."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that no batch may begin."""
        ...

    def park(self, calls: int) -> None:
        """So many more calls wait for a batch (fewer, where negative)."""
        ...

    def under_way(self, endpoint: str, model: str) -> Sequence[SentBatch]:
        """The batches of earlier starts that have not ended."""
        ...

    def begin(self, endpoint: str, model: str, nonce: str, numbers: Sequence[int]) -> SentBatch:
        """Write down that these calls are about to be sent as one batch."""
        ...

    def named(self, batch: SentBatch, name: str) -> None:
        """The service took the batch, and calls it so."""
        ...

    def arrived(self, answers: Mapping[int, str]) -> None:
        """Keep answers (call number → JSON) until they are handed over, at whichever start that is."""
        ...

    def ended(self, batch: SentBatch, how: str, free: Sequence[int] = (), lost: Sequence[int] = ()) -> None:
        """The batch has ended. Its calls without an answer: those that are `free`, of which nothing stays written
        unless they begin again, and those that are `lost`, which may have been billed."""
        ...

    def answer(self, number: int) -> str | None:
        """What arrived for a call."""
        ...

    def unclaimed(self, endpoint: str, model: str) -> Mapping[int, str]:
        """What arrived of these batches, and nobody asked for so far."""
        ...

    def has_answered(self, endpoint: str, model: str) -> bool:
        """Whether this model ever answered here, at whichever start."""
        ...

    def settle(self, call: Call) -> None:
        """What an unclaimed answer cost. It can still be claimed by a later start."""
        ...

    def tidy(self) -> None:
        """Forget what was handed over."""
        ...


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

    def let_go(self, number: int) -> None:
        """Wait no longer for a call that is in a batch. It stays charged, and whoever asks the same again adopts it."""
        ...

    @property
    def batches(self) -> BatchLog | None:
        """Where batches are written down; None: nowhere, so that none outlives this process."""
        ...

    def adopt(self, endpoint: str, model: str) -> int | None:
        """The number of this unit's call that an earlier start sent in a batch and that is not settled; None: none."""
        ...


class NoBooks:
    """The books of a program called on its own: everything is allowed, nothing is kept."""

    seed: int | None = None
    stopping = False
    batches: BatchLog | None = None

    async def reserve(self, attempt: Attempt) -> int:  # noqa: ARG002
        return 0

    def reserve_now(self, attempt: Attempt) -> int:  # noqa: ARG002
        return 0

    def report(self, call: Call) -> None:
        pass

    def not_sent(self, number: int) -> None:
        pass

    def let_go(self, number: int) -> None:
        pass

    def adopt(self, endpoint: str, model: str) -> int | None:  # noqa: ARG002
        return None


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
