"""What a round of chaos draws: how hostile the endpoint is, the caps, and what happens to each start of the command."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lies import LIES
from benchmarks.simulated import FAULTS

FATES = ["ok", "failed", "expired", "cancelled", "create500", "createdrop", "poll500", "download_drop", "upload500"]
BATCH_FAULTS = ["429", "500", "missing", "malformed", "cut", "refusal", "garbage", "nousage"]
EVENTS = ["kill", "interrupt", "terminate", "full disk"]
CLUSTER_EVENTS = [*EVENTS, "node", "node", "node"]
LIED = sorted(LIES.keys() - {"more cached than read"})
"""What is said of usage. That one is taken for a count apart, so the books have more than the bill."""
PRICE = {"prompt": 0.15, "completion": 0.6}


@dataclass(frozen=True)
class Event:
    """What happens to one start: a signal, a disk on which only `room` bytes more fit, or a cluster's node that is
    killed; `after` so many more requests and `seconds` then, or `after` None: `seconds` from its beginning."""

    what: str
    after: int | None = None
    seconds: float = 0.0
    room: int = 0


def endpoint(rng: random.Random) -> dict[str, Any]:
    """Settings of the simulated server (`benchmarks.simulated.Settings`)."""
    kinds = [name for name in sorted(FAULTS) if rng.random() < 0.3]
    settings: dict[str, Any] = {
        "seed": rng.randrange(10**6),
        "latency": rng.choice([0.0, 0.02, 0.1, 0.3]),
        "sigma": rng.choice([0.0, 0.5, 1.0]),
        "response_words": rng.choice([8, 40]),
        "items": rng.choice([3, 10]),
        "duplicates": rng.choice([0.0, 0.1, 0.5]),
        "faults": {name: round(rng.uniform(0, 0.03 if name == "hang" else 0.06), 3) for name in kinds},
        "retry_after": rng.choice([None, 0.2, 1.0]),
        "rate_headers": rng.random() < 0.5,
        "batch_seconds": rng.choice([0.0, 0.3, 1.5]),
        "batch_progressive": rng.random() < 0.5,
        "batch_faults": {name: round(rng.uniform(0, 0.06), 3) for name in BATCH_FAULTS if rng.random() < 0.4},
        "batch_fates": rng.choices(FATES, k=rng.randint(0, 4)),
        "thinking": rng.choice(["", "", "<think>first this, then that</think>"]),
        "capacity": rng.choice([None, None, 6]),
        "lie": rng.choice(["", "", "", rng.choice(LIED)]),
    }
    if rng.random() < 0.25:
        settings |= {"limit_per_minute": rng.choice([600, 3000]), "limit_burst": rng.choice([5, 40])}
    if rng.random() < 0.15:
        settings |= {"auth_fails_after": rng.randint(0, 60)}
    elif rng.random() < 0.1:
        settings |= {"down_after": rng.randint(0, 60)}
    return settings


def recovered() -> dict[str, Any]:
    """The settings of an endpoint that works again."""
    return {"lie": "", "faults": {}, "batch_faults": {}, "batch_fates": [], "auth_fails_after": None,
            "down_after": None, "limit_per_minute": None, "limit_burst": None, "latency": 0.02,
            "sigma": 0.0}  # fmt: skip


def teacher(rng: random.Random, base_url: str, key_name: str) -> dict[str, Any]:
    """A teacher's settings; all models cost the same, so that the server's bill can be told in dollars."""
    return {
        "model": "sim/sim-model",
        "api_base": base_url,
        "api_key_env": key_name,
        "price": PRICE,
        "concurrency": rng.choice([3, 16, 40]),
        "timeout": rng.choice([1.0, 3.0]),
        "retries": rng.randint(0, 4),
        "max_tokens": rng.choice([256, 1024, 2048]),
    }


def caps(rng: random.Random, longest: float) -> dict[str, Any]:
    """None in a half of all rounds. `longest`: dollars of an answer of max_tokens; a cap has room for 2 to 100 of them,
    so that the work comes to it by what it really costs, too."""
    drawn = rng.random()
    if drawn < 0.3:
        return {"max_cost": round(longest * 10 ** rng.uniform(0.3, 2.0), 6)}
    return {"max_calls": round(10 ** rng.uniform(0.0, 2.4))} if drawn < 0.5 else {}


def events(rng: random.Random, size: int, kinds: Sequence[str]) -> list[Event]:
    """What happens to the first starts of a command that makes about `size` requests: events of these kinds."""
    return [_event(rng, size, rng.choice(kinds)) for _ in range(rng.randint(1, 4))]


def _event(rng: random.Random, size: int, what: str) -> Event:
    room = rng.choice([0, rng.randint(0, 300_000)])
    if rng.random() < 0.3:
        return Event(what, None, rng.uniform(0.1, 4.0), room)
    return Event(what, 1 + int(size * rng.random() ** 2), rng.uniform(0.0, 0.5), room)  # many end early, at a cap, say


def while_writing(rng: random.Random) -> Event:
    """What happens to a command that writes one file, or a folder: soon after something of it is there."""
    return Event(rng.choice(EVENTS), 1, rng.choice([0.0, rng.uniform(0.0, 0.03)]), rng.choice([0, 4096]))


def key(rng: random.Random) -> str:
    """Of any length that providers use."""
    return "sk-chaos-" + "".join(rng.choices("abcdefghijkmnpqrstuvwxyz23456789", k=rng.choice([24, 150, 400])))
