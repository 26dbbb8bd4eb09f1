"""Log-probabilities of the simulated server's answers, and verdicts in one token, as a judge gives them.

The probabilities of the verdicts depend on the messages alone, so that the same question has the same answer whenever
it comes, and whoever asks.
"""

from __future__ import annotations

import math
import random
from typing import Any

from benchmarks.wires import Chat

TOKEN = 4
"""Characters."""


def verdict_of(chat: Chat, seed: int, verdicts: list[str]) -> str:
    """The likeliest of the `verdicts`."""
    return max(_ranked(chat, seed, verdicts))[1]


def logprobs_of(chat: Chat, content: str, seed: int, verdicts: list[str]) -> dict[str, Any] | None:
    """The field `logprobs` of an answer with this content; None where the request did not ask for it."""
    if not chat.body.get("logprobs"):
        return None
    most = int(chat.body.get("top_logprobs") or 0)
    if verdicts:
        ranked = sorted(_ranked(chat, seed, verdicts), reverse=True)
        top = [_entry(token, math.log(share)) for share, token in ranked]
        return {"content": [{**top[0], "top_logprobs": top[:most]}], "refusal": None}
    pieces = [content[start : start + TOKEN] for start in range(0, len(content), TOKEN)]
    entries = [_entry(piece, -0.1) for piece in pieces]
    return {"content": [{**entry, "top_logprobs": [entry][:most]} for entry in entries], "refusal": None}


def _ranked(chat: Chat, seed: int, verdicts: list[str]) -> list[tuple[float, str]]:
    """Each verdict with its share."""
    rng = random.Random(f"{chat.texts} {seed}")
    drawn = [rng.expovariate(1) + 1e-9 for _ in verdicts]
    return [(each / sum(drawn), verdict) for each, verdict in zip(drawn, verdicts, strict=True)]


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
