"""The simulated server from outside: its settings, and the process that runs it.

`SimulatedTeacher` starts `benchmarks.server` in a process of its own and talks to its control endpoints, which take
`Settings`. The answers' text comes from `benchmarks.texts`, the providers' formats from `benchmarks.wires`.
"""

from __future__ import annotations

import http.client
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from benchmarks.lies import LIES, WITHIN

FAULTS = {"400", "429", "500", "malformed", "cut", "drop", "hang", "refusal", "empty"}
FAULTS |= {"html", "html502", "filtered", "nousage", "oddusage", "keyerror", "keytext"}
FAULTS |= {"lyingusage", "redirect", "controls", "deep", "bomb", "endless", "short", "pause"}
BATCH_FAULTS = {"400", "429", "500", "missing", "malformed", "cut", "refusal", "garbage", "nousage"}
BATCH_FAULTS |= {"keyerror", "keytext"}
FATES = {"ok", "failed", "token_limit", "expired", "cancelled", "stuck"}
FATES |= {"upload500", "create500", "createdrop", "poll500", "download_drop"}
RULES = {"no max_tokens", "no max_completion_tokens", "default temperature", "no temperature", "no bounds", "no schema"}
RULES |= {"no reasoning", "thinks at temperature 1", "no logprobs"}
OPTIONAL = {"retry_after", "limit_per_minute", "limit_burst", "limit_tokens_per_minute", "limit_tokens_burst"}
OPTIONAL |= {"auth_fails_after", "down_after", "fail_stage", "capacity", "batch_max_requests", "batch_max_bytes"}
WHOLE = {"items", "seed", "response_words", "auth_fails_after", "down_after", "cache_minimum", "capacity"}
WHOLE |= {"batch_max_requests", "batch_max_bytes"}


@dataclass
class Settings:
    """What POST /control can set; null turns an optional setting off.

    latency (s) is the median of a lognormal whose logarithm has standard deviation sigma, so its mean is
    latency * exp(sigma**2 / 2). It answers capacity requests at once (null: any number), so at most capacity over the
    mean latency a second; the others wait. duplicates and the faults are fractions in 0..1. A request takes 1 from
    limit_per_minute and its prompt tokens plus its max_tokens from limit_tokens_per_minute; the bursts are the sizes
    of these buckets (null: a minute's worth). With rate_headers false, Retry-After is the only rate-limit header. Each
    text written begins with the signature and a space, unless the signature is empty. The `_after` settings count
    answered requests since the last reset. A new seed restarts the generators of latency, faults and text and fills
    the buckets.

    The faults: 400 (a parameter that the model does not take), 429, 500 (529 on Anthropic's wire, 503 on Gemini's),
    filtered (400 content_filter; on Gemini's wire an answer without a candidate), html502 (502 and a page), html (200
    and a page), drop (the connection is closed), hang (no answer for ten minutes); and spoiled answers: malformed (not
    JSON), cut, empty, refusal, nousage (no usage object), oddusage (counts that are strings, fractions or negative,
    alternating). As a debugging proxy does, keyerror repeats the key in the message of a 400, and keytext in the text
    of an answer. lyingusage claims a billion tokens each. The rest are in `benchmarks.hostile`. lie, a name in
    `benchmarks.lies`, is what every usage says in place of the bill.

    tokenizer is "" (a token is four characters) or "o200k_base". The prefix cache works in steps of 128 tokens; a
    prompt or a match of fewer than cache_minimum tokens (OpenAI's is 1024) is not cached. cache_warm says when a prompt
    enters the cache: at its "arrival", or when its "answer" was sent, as at a provider. thinking is written before each
    answer, in its text; reasoning is sent with each, in the field that a reasoning parser fills. verdicts are tokens:
    where there are any, a request without a schema is answered by one of them, which its messages decide, and the
    log-probabilities that it may ask for are theirs. With logprobs false none are given. rules are names of
    `benchmarks.model_rules.RULES`, by which requests are refused. A request with filtered_text in its messages is
    filtered. field_tokens: top-level property of an answer -> the tokens of its text, divided over the texts of a list
    or an object; for new_instructions, the tokens of each item.

    With batches false the endpoints of files and batches do not exist. A batch takes batch_seconds and answers (and
    bills) its requests at the end, or, with batch_progressive, all along. batch_max_requests and batch_max_bytes bound
    its file (null: the provider's own bounds): more requests fail the batch, more bytes the upload (413). The chat
    faults do not apply to batches; batch_faults are fractions of their requests: 400, 429, 500, keyerror (an error line
    with that status) and missing (in no file), which are neither answered nor billed; and malformed, cut, refusal,
    nousage, keytext and garbage (the output line is not JSON), which are both. Each new batch takes its fate from the
    front of batch_fates: ok, failed (a validation error), token_limit (failed for the limit of enqueued tokens),
    expired and cancelled (half of it answered), stuck (in_progress until it is cancelled), create500 and createdrop
    (created, but the client gets a 500 or no answer), poll500 (the first three look-ups fail) and download_drop (the
    first download of the output breaks off halfway). upload500 makes the next upload fail, which removes it from the
    list.

    What a provider does not have is the nearest that it has. Anthropic takes the requests with the batch, so too many,
    too many bytes and upload500 are refused when it is created; a failed batch there is one with each request errored.
    On Gemini it is one in BATCH_STATE_FAILED. On both, token_limit is a 429 at creation. An expired or cancelled batch
    has no results at all on Gemini, although the half that was answered is billed.
    """

    latency: float = 0.2
    sigma: float = 0.5
    items: int = 10
    seed: int = 0
    response_words: int = 40
    duplicates: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    retry_after: float | None = None
    limit_per_minute: float | None = None
    limit_burst: float | None = None
    limit_tokens_per_minute: float | None = None
    limit_tokens_burst: float | None = None
    rate_headers: bool = True
    signature: str = ""
    lie: str = ""
    auth_fails_after: int | None = None
    down_after: int | None = None
    fail_stage: str | None = None
    filtered_text: str = ""
    capacity: int | None = None
    tokenizer: str = ""
    cache_minimum: int = 0
    cache_warm: str = "arrival"
    thinking: str = ""
    reasoning: str = ""
    verdicts: list[str] = field(default_factory=list)
    logprobs: bool = True
    rules: list[str] = field(default_factory=list)
    field_tokens: dict[str, int] = field(default_factory=dict)
    batches: bool = True
    batch_seconds: float = 0.2
    batch_progressive: bool = False
    batch_faults: dict[str, float] = field(default_factory=dict)
    batch_fates: list[str] = field(default_factory=list)
    batch_max_requests: int | None = None
    batch_max_bytes: int | None = None

    def copy(self) -> Settings:
        """The settings in force now; later changes do not affect the copy."""
        return replace(self)

    def update(self, changes: Any) -> None:
        """Apply every change, or none. The ValueError says which one is wrong."""
        if not isinstance(changes, dict):
            raise ValueError("the body must be a JSON object of settings")
        for name, value in changes.items():
            if name not in vars(self):
                raise ValueError(f"{name} is not a setting; use one of {', '.join(vars(self))}")
            if not (_fits(name, value) or (value is None and name in OPTIONAL)):
                raise ValueError(f"{name} cannot be {value!r}; see benchmarks.simulated.Settings")
        vars(self).update(changes)


def _fits(name: str, value: Any) -> bool:
    if name in CHECKS:
        return CHECKS[name](value)
    return _fraction(value, 1 if name == "duplicates" else math.inf) and (isinstance(value, int) or name not in WHOLE)


def _fractions(names: set[str]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        good = isinstance(value, dict) and all(k in names and _fraction(v) for k, v in value.items())
        return good and sum(value.values()) <= 1 + 1e-9

    return fits


def _tokens(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(count, int) and count > 0 for count in value.values())


def _fraction(value: Any, top: float = 1.0) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= top


CHECKS: dict[str, Callable[[Any], bool]] = {
    "faults": _fractions(FAULTS),
    "batch_faults": _fractions(BATCH_FAULTS),
    "batch_fates": lambda value: isinstance(value, list) and set(map(str, value)) <= FATES,
    "field_tokens": _tokens,
    "rules": lambda value: isinstance(value, list) and set(map(str, value)) <= RULES,
    **dict.fromkeys(("signature", "thinking", "reasoning", "filtered_text"), lambda value: isinstance(value, str)),
    "fail_stage": lambda value: isinstance(value, str) and value != "",
    "tokenizer": lambda value: value in ("", "o200k_base"),
    "lie": lambda value: isinstance(value, str) and (not value or value in LIES | WITHIN),
    "cache_warm": lambda value: value in ("arrival", "answer"),
    "verdicts": lambda value: isinstance(value, list) and all(isinstance(one, str) and one for one in value),
} | {
    name: lambda value: isinstance(value, bool) for name in ("rate_headers", "batches", "batch_progressive", "logprobs")
}


class SimulatedTeacher:
    """The simulated server in a process of its own, from construction until `stop` or the end of the `with` block.

    latency (s) is a median and sigma the standard deviation of its logarithm; items is the length of new_instructions;
    key is the NAME of the environment variable with the key that clients must send (None: no key). `root` is the
    address without a path (Azure's endpoint), `base_url` the one with /v1 (OpenAI's); `anthropic_url` and `gemini_url`
    are an api_base for those. Raises
    RuntimeError when the server does not start or a control call is refused.
    """

    def __init__(
        self,
        *,
        latency: float = 0.2,
        sigma: float = 0.5,
        seed: int = 0,
        items: int = 10,
        key: str | None = None,
        response_words: int = 40,
        port: int = 0,
    ) -> None:
        command = [sys.executable, "-m", "benchmarks.server", f"--port={port}", f"--parent={os.getpid()}"]
        command += [f"--latency={latency}", f"--sigma={sigma}", f"--seed={seed}", f"--items={items}"]
        command += [f"--response-words={response_words}"] + ([f"--key={key}"] if key else [])
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.stop()
            raise RuntimeError("the simulated server did not start; its stderr says why")
        self.base_url = line.split()[-1]
        self.root = self.base_url.removesuffix("/v1")
        self.port = int(self.root.rpartition(":")[2])

    def __enter__(self) -> SimulatedTeacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def anthropic_url(self) -> str:
        return f"{self.root}/v1"

    @property
    def gemini_url(self) -> str:
        return f"{self.root}/v1beta"

    def stats(self) -> dict[str, Any]:
        """The counts since the start or the last reset, from GET /stats."""
        return self._call("GET", "/stats")

    def reset(self) -> None:
        """Clear the counts, the digests of answered messages, the prefix cache, and all files and batches, those under
        way too. Settings stay."""
        self._call("POST", "/reset")

    def control(self, **settings: Any) -> dict[str, Any]:
        """Set any fields of `Settings`. Returns all settings then in force."""
        return self._call("POST", "/control", orjson.dumps(settings))

    def stop(self) -> None:
        """End the process; calling it again does nothing."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = orjson.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(answer["error"]["message"])
        return answer
