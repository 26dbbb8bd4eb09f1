"""A simulated teacher for benchmarks and fault tests, on 127.0.0.1 only.

Run `python -m benchmarks.server`; it prints `listening on http://127.0.0.1:PORT/v1` and serves POST
/v1/chat/completions (OpenAI), /v1/messages (Anthropic), /openai/v1/chat/completions and
/openai/deployments/NAME/chat/completions (Azure), /v1beta/models/NAME:generateContent (Gemini), GET /v1/models and
/v1beta/models, and the files and batches of all four (see `benchmarks.batches_server`). Besides these there are GET
/stats, POST /reset and POST /control (JSON that sets any field of `Settings`). `benchmarks.simulated.SimulatedTeacher`
starts it from Python.

Refusals (400, 401, 404, 429) come at once; a 5xx, a page, a drop and every answer come after the drawn latency.
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
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import blake2b
from itertools import accumulate, count
from typing import Any

import orjson
from aiohttp import web

from benchmarks.batches_server import Batches
from benchmarks.counts import Bucket, Stats
from benchmarks.hostile import HOSTILE
from benchmarks.hostile import answer as hostile
from benchmarks.lies import LIES, WITHIN
from benchmarks.logprobs import logprobs_of, verdict_of
from benchmarks.model_rules import keep_rules
from benchmarks.paths import wire_at, wire_of
from benchmarks.simulated import Settings
from benchmarks.texts import Draw, Make, SchemaWriter, sketched, write
from benchmarks.tokenizers import Tokenizer, tokenizer
from benchmarks.wires import REFUSALS, Chat, Dropped, OpenAI, Refused, fail, odd, reply
from benchmarks.wires_gemini import GEMINI

MODELS = ("sim-model", "other-model")
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to go on.</body></html>"
# Written for json_object, which names no schema; the second if the messages ask for new_instructions.
JSON_OBJECT = SchemaWriter({}).build({"properties": {"answer": {}}})
JSON_INSTRUCTIONS = SchemaWriter({}).build({"properties": {"new_instructions": {"type": "array"}}})


class Simulator:
    """The state of the server and the handler of its requests."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        self.settings = settings
        self.key = key
        self.stats = Stats()
        self.in_flight = 0
        self.serial = count(1)  # numbers the items of new_instructions, over the server's whole life
        self.answers = count(1)
        self.oddities = count()
        self.buckets: dict[str, Bucket] = {}
        self.schemas: dict[bytes, Make] = {}
        self.tokens: Tokenizer = tokenizer(settings.tokenizer)
        self.batches = Batches(self)
        self.apply({"seed": settings.seed, "capacity": settings.capacity})

    def control(self, raw: bytes) -> web.Response:
        try:
            changes = orjson.loads(raw)
            self.settings.update(changes)
        except ValueError as error:
            raise Refused(400, "invalid_setting", str(error)) from None
        self.apply(changes)
        return reply(asdict(self.settings))

    def apply(self, changes: dict[str, Any]) -> None:
        """Rebuild what depends on the settings named in `changes`."""
        if "seed" in changes:
            self.latencies, self.fates = (random.Random(f"{n} {self.settings.seed}") for n in (1, 2))
            self.times: Counter[bytes] = Counter()
            self.batches.reseed()
        if "capacity" in changes:
            self.places = asyncio.Semaphore(self.settings.capacity) if self.settings.capacity else None
        if "tokenizer" in changes:
            self.tokens = tokenizer(self.settings.tokenizer)
        limits = {"requests": ("limit_per_minute", "limit_burst")}
        limits |= {"tokens": ("limit_tokens_per_minute", "limit_tokens_burst")}
        for unit, names in limits.items():
            if changes.keys() & {*names, "seed"}:
                rate, burst = (getattr(self.settings, name) for name in names)
                self.buckets.pop(unit, None)
                if rate is not None:
                    self.buckets[unit] = Bucket(unit, rate, burst)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        wire = wire_of(path)
        try:
            if wire is not None and request.method == "POST":
                return await self.chat(wire, request)
            return await self.other(request, path)
        except Refused as error:
            if error.page:
                return web.Response(body=PAGE, status=error.status, content_type="text/html")
            wire = wire or wire_at(path)
            return reply(wire.error(error), wire.status(error), error.headers)
        except (Dropped, ConnectionError, web.RequestPayloadError):
            if request.transport is not None:
                request.transport.close()
            return web.Response()  # never sent: the connection is closed

    async def other(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answer requests that are not chat."""
        route = (request.method, path)
        if route in (("GET", "/v1/models"), ("GET", "/openai/v1/models"), ("GET", "/v1beta/models")):
            self.gate(wire_at(path), request)
            if wire_at(path) is GEMINI:
                methods = ["generateContent", "batchGenerateContent"]
                models = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in MODELS]
                return reply({"models": models})
            return reply({"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]})
        if route == ("GET", "/stats"):
            return reply(self.stats.as_dict(self.in_flight))
        if route == ("POST", "/reset"):
            self.stats = Stats()
            self.stats.max_in_flight = self.in_flight
            self.batches.reset()
            return reply({})
        if route == ("POST", "/control"):
            return self.control(await request.content.read())
        if self.settings.batches and (answer := await self.batches.handle(path, request)) is not None:
            return answer
        raise Refused(404, "unknown_url", f"Unknown request URL: {' '.join(route)}")

    async def chat(self, wire: OpenAI, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one chat request; how it ends is counted in the stats that were current when it arrived."""
        stats = self.stats
        stats.first_request = stats.first_request or time.monotonic()
        stats.requests += 1
        stats.by_wire[wire.name] += 1
        self.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, self.in_flight)
        end = "disconnected"
        try:
            answer = await self.answer(wire, request, stats)
            end = str(answer.status)
            return answer
        except Refused as error:
            end = "html" if error.page and error.status == 200 else str(wire.status(error))
            raise
        except Dropped:
            end = "dropped"
            raise
        finally:
            self.in_flight -= 1
            stats.by_status[end] += 1

    async def answer(self, wire: OpenAI, request: web.BaseRequest, stats: Stats) -> web.StreamResponse:
        raw = await request.content.read()
        try:
            chat = wire.read(raw)
            make = self.maker(chat)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        keep_rules(self.settings.rules, chat.body)
        stats.repeated += chat.digest in stats.digests
        self.gate(wire, request)
        wire.admit(chat, request)
        prompt, units = self.tokens.measure(chat)
        headers = self.limited(wire, prompt + (chat.most or 0)) if self.buckets else None
        latency, fate = self.drawn(chat, headers)
        self.times[chat.digest] = times = self.times[chat.digest] + 1
        late, least = self.settings.cache_warm == "answer", self.settings.cache_minimum
        cached = stats.cached(units, least, learn=not late)
        if fate == "hang":
            stats.bill(prompt, cached, chat.most or 0)
            await asyncio.sleep(600)
            raise Dropped
        if latency:
            async with self.places or nullcontext():
                await asyncio.sleep(latency)
        self.gate(wire, request)
        if fate in ("drop", "500", "html", "html502"):
            fail(fate, wire.failed)
        if fate in HOSTILE:
            return await hostile(fate, request)
        data, spent = self.compose(wire, chat, make, times, fate, (prompt, cached))
        stats.bill(*spent)
        response = reply(data, headers=headers)  # sent here, not by aiohttp, so that only sent answers count
        await response.prepare(request)
        await response.write_eof()
        if late:
            stats.cached(units, least)
        stats.deliver(chat.digest, latency, spent)
        return response

    def compose(
        self, wire: OpenAI, chat: Chat, make: Make | None, times: int, fate: str, read: tuple[int, int]
    ) -> tuple[dict[str, Any], tuple[int, int, int]]:
        """The body of an answer, and its prompt, cached and completion tokens.

        `read` is the prompt and cached tokens. `times` is how often the messages have come so far."""
        settings = self.settings
        content, reason, completion = write(make, self.draw(chat, times), fate, chat.most, self.tokens)
        if settings.verdicts and make is None and not fate:
            content, completion = verdict_of(chat, settings.seed, settings.verdicts), 1
            reason = "length" if chat.most == 1 else "stop"
        if fate == "keytext":
            content = content.replace(" ", f" {self.key} ", 1)
        spent = (*read, completion)
        data = wire.answer(next(self.answers), chat, settings.thinking + content, reason, spent)
        if settings.logprobs and "choices" in data:
            data["choices"][0]["logprobs"] = logprobs_of(chat, content, settings.seed, settings.verdicts)
        if settings.reasoning:
            wire.think(data, settings.reasoning)
        usage = wire.usage
        if fate == "nousage":
            del data[usage]
        elif fate == "oddusage":
            data[usage] = odd(data[usage], next(self.oddities))
        elif fate == "lyingusage":
            data[usage] |= LIES["a billion"](data[usage], 0)
        elif settings.lie:
            data[usage] = (LIES | WITHIN)[settings.lie](data[usage], next(self.oddities))
        return data, spent

    def gate(self, wire: OpenAI, request: web.BaseRequest, *, keyed: bool = True) -> None:
        """Raises Dropped when the server is down, Refused when the key is wrong or has stopped working."""
        answered, settings = self.stats.answered, self.settings
        if settings.down_after is not None and answered >= settings.down_after:
            raise Dropped
        if not keyed or (self.key is None and settings.auth_fails_after is None):
            return
        sent = wire.key(request)
        wrong = self.key is not None and sent != self.key
        if wrong or (settings.auth_fails_after is not None and answered >= settings.auth_fails_after):
            raise Refused(401, "invalid_api_key", f"Incorrect API key provided: ****{sent[-4:]}.")

    def limited(self, wire: OpenAI, tokens: int) -> dict[str, str] | None:
        """The rate-limit headers of an answer (None when none are sent). Raises Refused (429) over a limit."""
        needed = {"requests": 1, "tokens": tokens}
        unit, wait = "", 0.0
        for bucket in self.buckets.values():
            if (needs := bucket.wait(needed[bucket.unit])) > wait:
                unit, wait = bucket.unit, needs
        headers: dict[str, str] = {}
        for bucket in self.buckets.values():
            bucket.left -= 0 if wait else needed[bucket.unit]
            if self.settings.rate_headers:
                headers |= wire.limits(bucket)
        if wait:
            why = ""
            if unit == "tokens":
                why = f" {tokens} tokens would exceed {self.buckets[unit].per_minute:g} tokens per minute."
            raise self.too_many(headers, max(1, math.ceil(wait)), why)
        return headers or None

    def too_many(self, headers: dict[str, str] | None, after: float | None = None, why: str = "") -> Refused:
        after = after if self.settings.retry_after is None else self.settings.retry_after
        headers = (headers or {}) | ({} if after is None else {"Retry-After": f"{after:g}"})
        return Refused(429, "rate_limit_exceeded", f"Rate limit reached.{why} Please try again later.", headers)

    def drawn(self, chat: Chat, headers: dict[str, str] | None) -> tuple[float, str]:
        """The latency (s) and the fate of a request: a name in FAULTS or "". Raises Refused for some."""
        median, faults, fate = self.settings.latency, self.settings.faults, ""
        latency = self.latencies.lognormvariate(math.log(median), self.settings.sigma) if median else 0.0
        if faults:
            at, tops = self.fates.random(), accumulate(faults.values())
            fate = next((name for name, top in zip(faults, tops, strict=True) if at < top), "")
        if self.settings.fail_stage is not None and self.settings.fail_stage in chat.system:
            fate = "malformed"
        if self.settings.filtered_text and self.settings.filtered_text in chat.text:
            fate = "filtered"
        if fate == "429":
            raise self.too_many(headers)
        if fate in REFUSALS:
            code, text = REFUSALS[fate]
            raise Refused(400, code, text.format(self.key), headers)
        return latency, fate

    def maker(self, chat: Chat) -> Make | None:
        """The writer for the requested format, or else the one that the prompt sketches (each schema is walked once);
        None for plain text."""
        if chat.schema is None and chat.form == "json_object":
            return JSON_INSTRUCTIONS if "new_instructions" in chat.text else JSON_OBJECT
        schema = sketched(chat.system) if chat.schema is None else chat.schema
        if schema is None:
            return None
        key = blake2b(orjson.dumps(schema), digest_size=16).digest()
        if key not in self.schemas:
            self.schemas[key] = SchemaWriter(schema).build(schema)
        return self.schemas[key]

    def draw(self, chat: Chat, times: int) -> Draw:
        """A draw seeded by the messages and, unless the temperature is 0, by how often they have come so far."""
        seed = int.from_bytes(chat.digest, "big") + (self.settings.seed << 128)
        if chat.fixed:
            return Draw(seed, self.settings, count(1), self.tokens, f"{chat.digest.hex()[:12]}-")
        return Draw(seed + (times << 192), self.settings, self.serial, self.tokens)


async def serve(simulator: Simulator, port: int, parent: int | None) -> None:
    """Serve until SIGTERM, SIGINT or the parent's end, then abort the requests under way."""
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
    # Everything loaded by now stays, so the garbage collector need not scan it, and it rarely finds anything.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    asyncio.run(serve(Simulator(settings, os.environ[name] if name else None), port, parent))


if __name__ == "__main__":
    main()
