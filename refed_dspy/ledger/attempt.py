"""What is about to be sent to a teacher: one request, or a batch of them."""

from __future__ import annotations

from dataclasses import dataclass


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
