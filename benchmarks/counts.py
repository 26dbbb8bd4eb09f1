"""What the simulated server counts: requests since the last reset, the prefix cache, and the rate-limit buckets."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

STEP = 128  # tokens in one step of the simulated prefix cache
HIDDEN = ("digests", "prefixes", "cpu_start")


class Stats:
    """Counts of chat requests from one reset to the next, with the digests and prefixes seen meanwhile.

    `answered`, `prompt_tokens`, `cached_tokens` (included in `prompt_tokens`) and `completion_tokens` cover delivered
    answers. The `billed_` counts are what a provider would charge for: every answer written, whether or not the client
    read it, and every request that hangs, with all the output it asked for. A request that is refused, or whose client
    leaves before the answer is written, is not billed.

    Batches are counted apart, and so is their bill, which a provider halves: `batches` created, `batch_files` uploaded,
    `batch_requests` answered, `batch_repeated` of them with messages answered before (in a batch or by chat). A request
    answered in a batch also makes a later one by chat `repeated`.

    `by_status` counts how requests ended: an HTTP status, or "html" (a page with status 200), "dropped" or
    "disconnected". `by_wire` counts them as they arrive.
    """

    def __init__(self) -> None:
        self.requests = self.answered = self.max_in_flight = self.repeated = 0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.billed_prompt_tokens = self.billed_cached_tokens = self.billed_completion_tokens = 0
        self.batches = self.batch_files = self.batch_requests = self.batch_repeated = 0
        self.batch_billed_prompt_tokens = self.batch_billed_completion_tokens = 0
        self.by_status: Counter[str] = Counter()
        self.by_wire: Counter[str] = Counter()
        self.first_request = self.last_answer = self.latency_sum_s = 0.0
        self.cpu_start = time.process_time()
        self.digests: set[bytes] = set()
        self.prefixes: set[int] = set()

    def as_dict(self, in_flight: int) -> dict[str, Any]:
        """Times in seconds of this process's monotonic clock; cpu_s is CPU time since the reset."""
        shown = {k: v for k, v in vars(self).items() if k not in HIDDEN}
        times = {"span_s": max(0.0, self.last_answer - self.first_request)}
        return shown | times | {"cpu_s": time.process_time() - self.cpu_start, "in_flight": in_flight}

    def cached(self, units: str | tuple[int, ...], least: int = 0, *, learn: bool = True) -> int:
        """Tokens of the longest prefix, in whole steps, that an earlier prompt had too; 0 when fewer than `least`.

        `units` is the prompt: its tokens, or its characters, four to a token. A prompt of at least `least` tokens is
        remembered, unless `learn` is false.
        """
        key = shared = 0
        hit = True
        characters = 4 if isinstance(units, str) else 1
        if len(units) < characters * least:
            return 0
        step = characters * STEP
        for end in range(step, len(units) + 1, step):
            key = hash((key, units[end - step : end]))
            hit = hit and key in self.prefixes
            shared += hit
            if learn:
                self.prefixes.add(key)
            elif not hit:
                break
        return shared * STEP if shared * STEP >= least else 0

    def batched(self, digest: bytes, prompt: int, completion: int) -> None:
        """Count and bill one batch answer to messages with that digest."""
        self.batch_requests += 1
        self.batch_repeated += digest in self.digests
        self.digests.add(digest)
        self.batch_billed_prompt_tokens += prompt
        self.batch_billed_completion_tokens += completion

    def bill(self, prompt: int, cached: int, completion: int) -> None:
        self.billed_prompt_tokens += prompt
        self.billed_cached_tokens += cached
        self.billed_completion_tokens += completion

    def deliver(self, digest: bytes, latency: float, spent: tuple[int, int, int]) -> None:
        """Count one answer sent after `latency` seconds; `spent` is its prompt, cached and completion tokens."""
        self.answered += 1
        self.last_answer = time.monotonic()
        self.latency_sum_s += latency
        self.digests.add(digest)
        self.prompt_tokens += spent[0]
        self.cached_tokens += spent[1]
        self.completion_tokens += spent[2]


class Bucket:
    """A token bucket of `unit` ("requests" or "tokens"). It starts full."""

    def __init__(self, unit: str, per_minute: float, burst: float | None) -> None:
        self.unit = unit
        self.per_minute = per_minute
        self.size = max(1.0, burst or per_minute)
        self.left = self.size
        self.last = time.monotonic()

    def wait(self, amount: int) -> float:
        """Seconds until `amount` can be taken, 0.0 if it can be taken now."""
        now = time.monotonic()
        self.left = min(self.size, self.left + (now - self.last) * self.per_minute / 60)
        self.last = now
        return max(0.0, (amount - self.left) * 60 / max(self.per_minute, 1e-9))

    def full(self) -> float:
        """Seconds until the bucket is full."""
        return (self.size - self.left) * 60 / max(self.per_minute, 1e-9)
