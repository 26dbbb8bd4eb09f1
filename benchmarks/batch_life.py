"""The life of a batch in the simulated service, whoever's it is; a provider's shape is a subclass of `Service`.

A batch takes `batch_seconds`: a tenth validating, eight tenths in_progress, a tenth finalizing. Its requests are
answered in an order drawn by the seed, at the end of in_progress or, with batch_progressive, spread over it;
only then are they billed, apart from the interactive ones. Settings are those in force when it was created.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from aiohttp import web

from benchmarks.batch_lines import YIELD, Line
from benchmarks.model_rules import keep_rules
from benchmarks.simulated import Settings
from benchmarks.wires import FILTERED, REPEATED, Chat, Dropped, OpenAI, Refused

if TYPE_CHECKING:
    from benchmarks.server import Simulator

DAY = 24 * 3600
BROKEN = "The simulated server failed on purpose."
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True)
class Result:
    """What became of a request: answered, refused, cancelled or expired; and the line that says so."""

    line: Line
    end: str
    data: bytes


@dataclass
class Batch:
    """One batch. Its next `polls` look-ups answer 500, its next `breaks` downloads break off. `more` is what only its
    provider has of it; `total` counts its requests once they are read, `counts` those with a result, by its end."""

    id: str
    wire: OpenAI
    fate: str
    settings: Settings
    more: dict[str, Any]
    polls: int = 0
    breaks: int = 0
    status: str = "validating"
    created: float = field(default_factory=time.time)
    times: dict[str, float] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    lines: list[Line] = field(default_factory=list)
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    spent: tuple[int, int] = (0, 0)
    results: list[Result] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, status: str) -> None:
        self.status = status
        self.times[status] = time.time()

    def take(self, result: Result) -> None:
        self.results.append(result)
        self.counts[result.end] += 1

    async def wait(self, seconds: float | None) -> None:
        """Wait `seconds` (None: for ever), or until the batch is cancelled."""
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return


class Service:
    """The batches of one provider of a simulated teacher, which writes the answers."""

    most_requests: int | None = 50_000  # in a batch, unless the settings say otherwise
    most_bytes = 200_000_000  # in what holds its requests

    def __init__(self, teacher: Simulator) -> None:
        self.teacher = teacher
        self.by_id: dict[str, Batch] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.reseed()

    def place(self, path: str) -> tuple[OpenAI, list[str]] | None:
        """The wire of a path of this service and the path's segments after its base; None for any other path."""
        raise NotImplementedError

    async def handle(self, wire: OpenAI, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for a path that `place` knows. Raises Refused or Dropped as the server's handlers do."""
        raise NotImplementedError

    async def read(self, batch: Batch) -> list[dict[str, Any]]:
        """Read the requests into the batch. Returns the errors that make the whole of it fail."""
        raise NotImplementedError

    def answered(self, line: Line, body: dict[str, Any]) -> bytes:
        """The result line of a request that was answered."""
        raise NotImplementedError

    def refused(self, batch: Batch, line: Line, error: Refused) -> bytes:
        """The result line of a request that was refused."""
        raise NotImplementedError

    def unreached(self, line: Line, end: str) -> bytes:
        """The result line of a request that the batch did not get to before it was cancelled or expired."""
        raise NotImplementedError

    def keep(self, batch: Batch, end: str) -> None:
        """Put the results of a batch that ends so where clients can get them."""
        raise NotImplementedError

    def reseed(self) -> None:
        """Restart the generator of orders and faults."""
        self.lots = random.Random(f"3 {self.teacher.settings.seed}")

    def reset(self) -> None:
        """Forget every batch, those under way too."""
        for task in self.tasks:
            task.cancel()
        self.by_id = {}

    def limits(self, settings: Settings) -> tuple[int | None, int]:
        """The most requests of a batch (None: any number) and the most bytes of what holds them."""
        return settings.batch_max_requests or self.most_requests, settings.batch_max_bytes or self.most_bytes

    def fails_upload(self) -> None:
        """Raises Refused when the next upload is to fail."""
        fates = self.teacher.settings.batch_fates
        if fates[:1] == ["upload500"]:
            fates.pop(0)
            raise Refused(500, "server_error", BROKEN)

    def start(self, wire: OpenAI, name: str, more: dict[str, Any]) -> Batch:
        """A new batch, which takes its fate from the front of batch_fates. Raises Refused or Dropped for the fates
        by which its client does not hear of it."""
        fates = self.teacher.settings.batch_fates
        fate = fates.pop(0) if fates else "ok"
        batch = Batch(name, wire, fate, self.teacher.settings.copy(), more)
        batch.polls, batch.breaks = 3 * (fate == "poll500"), int(fate == "download_drop")
        self.by_id[batch.id] = batch
        self.teacher.stats.batches += 1
        task = asyncio.create_task(self.run(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if fate == "create500":
            raise Refused(500, "server_error", BROKEN)
        if fate == "createdrop":
            raise Dropped
        return batch

    def get(self, name: str) -> Batch:
        if name not in self.by_id:
            raise Refused(404, "not_found", f"No batch found with id '{name}'.")
        return self.by_id[name]

    def look(self, name: str) -> Batch:
        """The batch that a client asks after. Raises Refused while its look-ups fail."""
        batch = self.get(name)
        if batch.polls:
            batch.polls -= 1
            raise Refused(500, "server_error", BROKEN)
        return batch

    def cancel(self, batch: Batch) -> None:
        if batch.status != "cancelling":
            batch.enter("cancelling")
            batch.stop.set()

    async def run(self, batch: Batch) -> None:
        """Take one batch from validating to its end state."""
        beat = batch.settings.batch_seconds / 10
        errors = await self.read(batch)
        batch.total = len(batch.lines)
        await batch.wait(beat)
        if errors and not batch.stop.is_set():
            batch.errors = errors
            batch.enter("failed")
            return
        if not batch.stop.is_set():
            batch.enter("in_progress")
        self.lots.shuffle(batch.lines)
        rest = await self.execute(batch, batch.lines, 8 * beat)
        batch.lines = []
        await self.finish(batch, rest, beat)

    async def execute(self, batch: Batch, lines: list[Line], span: float) -> list[Line]:
        """Answer the requests in that order within `span` seconds. Returns those it did not get to."""
        if batch.fate == "stuck":
            await batch.wait(None)
        many = len(lines) // 2 if batch.fate in ("expired", "cancelled") else len(lines)
        spread = batch.settings.batch_progressive
        start = time.monotonic()
        if not spread:
            await batch.wait(span)
        for done, line in enumerate(lines[:many]):
            left = start + span * (done + 1) / len(lines) - time.monotonic() if spread else 0.0
            if left > 0.001:
                await batch.wait(left)
            elif done % (YIELD // 4) == 0:
                await asyncio.sleep(0)
            if batch.stop.is_set():
                return lines[done:]
            self.answer(batch, line)
        return lines[many:]

    async def finish(self, batch: Batch, rest: list[Line], beat: float) -> None:
        """Write the results of a batch after another `beat` seconds and end it."""
        end = "expired" if batch.fate == "expired" else "completed"
        if batch.stop.is_set() or batch.fate == "cancelled":
            end = "cancelled"
        if end == "completed":
            batch.enter("finalizing")
        elif end == "cancelled" and batch.status != "cancelling":
            batch.enter("cancelling")
        await asyncio.sleep(beat)
        for line in rest:
            batch.take(Result(line, end, self.unreached(line, end)))
        self.keep(batch, end)
        batch.results = []  # now with what is kept
        batch.enter(end)

    def answer(self, batch: Batch, line: Line) -> None:
        """Answer and bill one request, or fail it as its fate says."""
        fate, faults = "", batch.settings.batch_faults
        if faults:
            at, tops = self.lots.random(), accumulate(faults.values())
            fate = next((name for name, top in zip(faults, tops, strict=True) if at < top), "")
        if fate == "missing":
            return
        try:
            if fate in REFUSALS:
                self.refuse(fate)
            chat, body, spent = self.written(batch, line, fate)
        except Refused as error:
            batch.take(Result(line, "refused", self.refused(batch, line, error)))
            return
        self.teacher.stats.batched(chat.digest, *spent)
        batch.spent = (batch.spent[0] + spent[0], batch.spent[1] + spent[1])
        made = self.answered(line, body)
        batch.take(Result(line, "answered", made[: len(made) * 2 // 3] if fate == "garbage" else made))

    def refuse(self, fate: str) -> NoReturn:
        status, code, text = REFUSALS[fate]
        raise Refused(status, code, text.format(self.teacher.key))

    def written(self, batch: Batch, line: Line, fate: str) -> tuple[Chat, dict[str, Any], tuple[int, int]]:
        """A request, the body of its answer, and the answer's prompt and completion tokens."""
        wire = batch.wire
        try:
            chat = wire.read(orjson.dumps(line.body))
            make = self.teacher.maker(chat)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        chat.model = batch.model or chat.model
        wire.exists(chat.model)
        keep_rules(self.teacher.settings.rules, chat.body)
        prompt, _ = self.teacher.tokens.measure(chat)
        self.teacher.times[chat.digest] = times = self.teacher.times[chat.digest] + 1
        body, (_, _, completion) = self.teacher.compose(wire, chat, make, times, fate, (prompt, 0))
        return chat, body, (prompt, completion)


REFUSALS: dict[str, tuple[int, str, str]] = {
    "400": (400, "content_filter", FILTERED),
    "429": (429, "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    "500": (500, "server_error", BROKEN),
    "keyerror": (400, "invalid_header", REPEATED),
}


def stamp(moment: float) -> str:
    """A time as RFC 3339 has it."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
