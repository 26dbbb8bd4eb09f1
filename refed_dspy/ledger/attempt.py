"""What is about to be sent to a teacher (one request), and what was sent (a batch of them)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request about to be sent. `worst` is the most it can cost, in picodollars; None: its price is unknown.

    A `batched` request is not sent before its batch is begun, and is written down together with it.
    """

    model: str
    endpoint: str
    worst: int | None
    batched: bool = False


@dataclass(frozen=True)
class SentBatch:
    """A batch that was begun, under `id` in the ledger. Only once it has a `name` is it known that the service took it.

    `nonce` is in the batch's metadata at the service: a process that was killed before it wrote down the name finds the
    batch by it. `numbers`: the calls in it that have no answer yet. `created`: seconds since 1970.
    """

    id: int
    nonce: str
    name: str | None
    created: float
    numbers: tuple[int, ...]
