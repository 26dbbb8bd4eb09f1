"""A simulated OpenAI-compatible teacher for benchmarks and fault tests, served on 127.0.0.1 only.

Run `python -m benchmarks.server`; it prints `listening on http://127.0.0.1:PORT/v1` and serves
POST /v1/chat/completions and GET /v1/models. Outside /v1 are GET /stats, POST /reset and POST /control
(JSON that sets any field of `Settings`). `benchmarks.simulated.SimulatedTeacher` starts it from Python.

Refusals (400, 401, 404, 429) come at once; a 500, a drop and every 200 come after the drawn latency.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import os
import random
import signal
import time
from collections import Counter
from dataclasses import asdict
from hashlib import blake2b
from itertools import accumulate, count
from typing import Any

import orjson
from aiohttp import web

from benchmarks.simulated import Chat, Draw, Make, SchemaWriter, Settings, write

STEP = 512  # characters in one step (128 tokens) of the simulated prefix cache
MODELS = ("sim-model", "other-model")
# What json_object gets, which names no schema; the second when the messages ask for new_instructions.
JSON_OBJECT = SchemaWriter({}).build({"properties": {"answer": {}}})
JSON_INSTRUCTIONS = SchemaWriter({}).build({"properties": {"new_instructions": {"type": "array"}}})


class Stats:
    """Counts of chat requests from one reset to the next, with the digests and prefixes seen meanwhile."""

    def __init__(self) -> None:
        self.requests = self.answered = self.max_in_flight = self.repeated = 0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.by_status: Counter[str] = Counter()
        self.first_request = self.last_answer = self.latency_sum_s = 0.0
        self.cpu_start = time.process_time()
        self.digests: set[bytes] = set()
        self.prefixes: set[int] = set()

    def as_dict(self, in_flight: int) -> dict[str, Any]:
        """Times in seconds of this process's monotonic clock; cpu_s is CPU time since the reset."""
        known = {k: v for k, v in vars(self).items() if k not in ("digests", "prefixes", "cpu_start")}
        times = {"span_s": max(0.0, self.last_answer - self.first_request)}
        return known | times | {"cpu_s": time.process_time() - self.cpu_start, "in_flight": in_flight}

    def cached(self, text: str) -> int:
        """Tokens of the longest prefix (in whole steps) shared with an earlier text, which this one joins."""
        key = shared = 0
        hit = True
        for end in range(STEP, len(text) + 1, STEP):
            key = hash((key, text[end - STEP : end]))
            hit = hit and key in self.prefixes
            shared += hit
            self.prefixes.add(key)
        return shared * (STEP // 4)


class Bucket:
    """A token bucket of requests, full at first."""

    def __init__(self, per_minute: float, burst: float | None) -> None:
        self.per_minute = per_minute
        self.size = max(1.0, burst or per_minute)
        self.tokens = self.size
        self.last = time.monotonic()

    def take(self) -> float:
        """0.0 and one token less, or the seconds until there is a token."""
        now = time.monotonic()
        self.tokens = min(self.size, self.tokens + (now - self.last) * self.per_minute / 60)
        self.last = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) * 60 / max(self.per_minute, 1e-9)

    def headers(self) -> dict[str, str]:
        full = (self.size - self.tokens) * 60 / max(self.per_minute, 1e-9)
        shown = {"limit": int(self.per_minute), "remaining": int(self.tokens), "reset": f"{full:.3f}s"}
        return {f"x-ratelimit-{name}-requests": str(value) for name, value in shown.items()}


class Refused(Exception):
    """An answer that is an error in OpenAI's form."""

    def __init__(self, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers
        kind = {429: "requests", 500: "server_error"}.get(status, "invalid_request_error")
        self.error = {"message": text, "type": kind, "param": None, "code": code}


class Dropped(Exception):
    """The connection is to be closed without an answer."""


def reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = orjson.dumps(data)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


class Simulator:
    """The state of the server and the handler of its requests."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        self.settings = settings
        self.key = key
        self.stats = Stats()
        self.in_flight = 0
        self.serial = count(1)  # numbers the items of new_instructions over the whole life
        self.answers = count(1)
        self.schemas: dict[bytes, Make] = {}
        self.apply({"seed": settings.seed})

    def control(self, raw: bytes) -> web.Response:
        try:
            changes = orjson.loads(raw)
            self.settings.update(changes)
        except ValueError as error:
            raise Refused(400, "invalid_setting", str(error)) from None
        self.apply(changes)
        return reply(asdict(self.settings))

    def apply(self, changes: dict[str, Any]) -> None:
        """Start afresh what depends on the settings named in `changes`."""
        if "seed" in changes:
            self.latencies, self.fates = (random.Random(f"{n} {self.settings.seed}") for n in (1, 2))
            self.times: Counter[bytes] = Counter()
        if {"limit_per_minute", "limit_burst", "seed"} & changes.keys():
            limit = self.settings.limit_per_minute
            self.bucket = None if limit is None else Bucket(limit, self.settings.limit_burst)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = (request.method, request.raw_path.partition("?")[0])
        try:
            if route == ("POST", "/v1/chat/completions"):
                return await self.chat(request)
            if route == ("GET", "/v1/models"):
                self.gate(request)
                return reply({"object": "list", "data": [{"id": one, "object": "model"} for one in MODELS]})
            if route == ("GET", "/stats"):
                return reply(self.stats.as_dict(self.in_flight))
            if route == ("POST", "/reset"):
                self.stats = Stats()
                self.stats.max_in_flight = self.in_flight
                return reply({})
            if route == ("POST", "/control"):
                return self.control(await request.content.read())
            raise Refused(404, "unknown_url", f"Unknown request URL: {' '.join(route)}")
        except Refused as error:
            return reply({"error": error.error}, error.status, error.headers)
        except (Dropped, ConnectionError, web.RequestPayloadError):
            if request.transport is not None:
                request.transport.close()
            return web.Response()  # goes nowhere: the connection is closed

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one chat request, counting how it ends in the stats that were current when it came."""
        stats = self.stats
        stats.first_request = stats.first_request or time.monotonic()
        stats.requests += 1
        self.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, self.in_flight)
        end = "disconnected"
        try:
            answer = await self.answer(request, stats)
            end = "200"
            return answer
        except Refused as error:
            end = str(error.status)
            raise
        except Dropped:
            end = "dropped"
            raise
        finally:
            self.in_flight -= 1
            stats.by_status[end] += 1

    async def answer(self, request: web.BaseRequest, stats: Stats) -> web.StreamResponse:
        raw = await request.content.read()
        try:
            chat = Chat(raw)
            make = self.maker(chat)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        stats.repeated += chat.digest in stats.digests
        self.gate(request)
        if chat.model.startswith("missing"):
            raise Refused(404, "model_not_found", f"The model {chat.model} does not exist.")
        headers = self.limited()
        latency, fate = self.drawn(chat, headers)
        self.times[chat.digest] = times = self.times[chat.digest] + 1
        cached = stats.cached(chat.text)
        if fate == "hang":
            await asyncio.sleep(600)
            raise Dropped
        if latency:
            await asyncio.sleep(latency)
        self.gate(request)
        if fate == "drop":
            raise Dropped
        if fate == "500":
            raise Refused(500, "server_error", "The simulated server failed on purpose.")
        content, reason = write(make, self.draw(chat, times), fate)
        data = self.envelope(chat, content, reason, cached)
        response = reply(data, headers=headers)  # sent here, not by aiohttp, so that only sent ones count
        await response.prepare(request)
        await response.write_eof()
        stats.answered += 1
        stats.last_answer = time.monotonic()
        stats.latency_sum_s += latency
        stats.digests.add(chat.digest)
        stats.prompt_tokens += data["usage"]["prompt_tokens"]
        stats.completion_tokens += data["usage"]["completion_tokens"]
        stats.cached_tokens += cached
        return response

    def gate(self, request: web.BaseRequest) -> None:
        """Dropped when the server is down, Refused when the key is wrong or has stopped working."""
        answered, settings = self.stats.answered, self.settings
        if settings.down_after is not None and answered >= settings.down_after:
            raise Dropped
        if self.key is None and settings.auth_fails_after is None:
            return
        sent = request.headers.get("Authorization", "")
        wrong = self.key is not None and sent != f"Bearer {self.key}"
        if wrong or (settings.auth_fails_after is not None and answered >= settings.auth_fails_after):
            raise Refused(401, "invalid_api_key", f"Incorrect API key provided: ****{sent[-4:]}.")

    def limited(self) -> dict[str, str] | None:
        """The x-ratelimit headers of an answer (None without a limit); Refused (429) over the limit."""
        if self.bucket is None:
            return None
        wait, headers = self.bucket.take(), self.bucket.headers()
        if wait:
            raise self.too_many(headers, max(1, math.ceil(wait)))
        return headers

    def too_many(self, headers: dict[str, str] | None, after: float | None = None) -> Refused:
        after = after if self.settings.retry_after is None else self.settings.retry_after
        headers = (headers or {}) | ({} if after is None else {"Retry-After": f"{after:g}"})
        return Refused(429, "rate_limit_exceeded", "Rate limit reached. Please try again later.", headers)

    def drawn(self, chat: Chat, headers: dict[str, str] | None) -> tuple[float, str]:
        """The latency (s) and the fate of a request: a name in FAULTS or "". Refused for the fate 429."""
        median, faults, fate = self.settings.latency, self.settings.faults, ""
        latency = self.latencies.lognormvariate(math.log(median), self.settings.sigma) if median else 0.0
        if faults:
            at, tops = self.fates.random(), accumulate(faults.values())
            fate = next((name for name, top in zip(faults, tops, strict=True) if at < top), "")
        if self.settings.fail_stage is not None and self.settings.fail_stage in chat.system:
            fate = "malformed"
        if fate == "429":
            raise self.too_many(headers)
        return latency, fate

    def maker(self, chat: Chat) -> Make | None:
        """The writer of the form asked for (a schema is walked once); None for plain text."""
        if chat.schema is None:
            if chat.form.get("type") != "json_object":
                return None
            return JSON_INSTRUCTIONS if "new_instructions" in chat.text else JSON_OBJECT
        key = blake2b(orjson.dumps(chat.schema), digest_size=16).digest()
        if key not in self.schemas:
            self.schemas[key] = SchemaWriter(chat.schema).build(chat.schema)
        return self.schemas[key]

    def draw(self, chat: Chat, times: int) -> Draw:
        """Seeded by the messages and, unless the temperature is 0, by how often they came so far."""
        seed = int.from_bytes(chat.digest, "big") + (self.settings.seed << 128)
        if chat.fixed:
            return Draw(seed, self.settings, count(1), f"{chat.digest.hex()[:12]}-")
        return Draw(seed + (times << 192), self.settings, self.serial)

    def envelope(self, chat: Chat, content: str, reason: str, cached: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": content, "refusal": None}
        usage = {"prompt_tokens": len(chat.text) // 4, "completion_tokens": len(content) // 4}
        details = {"total_tokens": sum(usage.values()), "prompt_tokens_details": {"cached_tokens": cached}}
        return {
            "id": f"chatcmpl-{next(self.answers):08x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": usage | details,
        }


async def serve(simulator: Simulator, port: int, parent: int | None) -> None:
    """Serve until SIGTERM, SIGINT or the end of the parent, then abort what is under way."""
    loop = asyncio.get_running_loop()
    server = web.Server(simulator.handle, handler_cancellation=True, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", port, backlog=4096)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(f"listening on http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", flush=True)
    while alive(parent):
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
            break
        except TimeoutError:
            continue
    listener.close()
    await server.shutdown(0.1)


def alive(pid: int | None) -> bool:
    try:
        os.kill(pid or os.getpid(), 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's process, but there
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description="Simulated teacher.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", metavar="NAME", help="environment variable with the key clients must send")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process has ended")
    for name in ("latency", "sigma", "seed", "items", "response_words"):
        default = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    port, parent, name = options.pop("port"), options.pop("parent"), options.pop("key")
    if name and not os.environ.get(name):
        raise SystemExit(f"the environment variable {name} is not set; set it to the key or leave --key out")
    settings = Settings()
    try:
        settings.update(options)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    # What is loaded by now stays: the collector need not look at it, and rarely has anything to find.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    asyncio.run(serve(Simulator(settings, os.environ[name] if name else None), port, parent))


if __name__ == "__main__":
    main()
