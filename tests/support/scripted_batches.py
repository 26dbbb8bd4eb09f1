"""A Batch API that answers as a test scripts it, and questions asked there through a ledger."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dspy
from aiohttp import web

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.jobs.session import LEAN
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.fast_path import Engine
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.batch.openai import OpenAIService
from refed_dspy.teachers.batch.service import PendingRequest
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.recorded import RecordedTeacher, recorded_lm
from refed_dspy.teachers.route import resolve
from tests.support.asking import ask as ask_as_stage

PRICE = {"prompt": 2.0, "completion": 4.0}
"""Dollars a million tokens; a batch halves them."""
USED = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
COST = 100 * 1_000_000 + 10 * 2_000_000
"""Picodollars of one answer in a batch."""
PATIENCE = 30.0
"""Seconds after which whatever still waits is taken to hang; a first question needs some of them for imports."""
FULL = [{"code": "token_limit_exceeded", "message": "full"}]
"""The errors of a batch for which a provider's queue has no room."""
Line = Mapping[str, Any]
BatchFiles = tuple[bytes | None, bytes | None]
"""An output file and an error file."""
Hook = Callable[[], web.StreamResponse | None]


def asked(line: Line) -> str:
    """The question that a line of a batch asks."""
    return str(line["body"]["messages"][-1]["content"]).partition("<question>\n")[2].partition("\n</>")[0]


def body(text: str, usage: Any = USED, reason: str = "stop") -> dict[str, Any]:
    """An answer that says `text`."""
    message = {"role": "assistant", "content": json.dumps({"answer": text}, ensure_ascii=False)}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def line(custom_id: Any, content: Any, status: Any = 200) -> dict[str, Any]:
    """A line of an output file."""
    return {"id": "r", "custom_id": custom_id, "response": {"status_code": status, "body": content}, "error": None}


def spared(custom_id: str, code: str = "batch_expired") -> dict[str, Any]:
    return {"id": "r", "custom_id": custom_id, "response": None, "error": {"code": code, "message": "not executed"}}


def written(*lines: Any) -> bytes:
    """A file of JSON lines, with Unicode unescaped; bytes are written as they are."""
    raw = (item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=False).encode() for item in lines)
    return b"".join(item + b"\n" for item in raw)


def well(lines: Sequence[Line]) -> BatchFiles:
    """Every request is answered with its own question."""
    return written(*(line(request["custom_id"], body(asked(request))) for request in lines)), None


class ScriptedService:
    """Files and Batches. `answers` makes the files of the next batches, the last one of all further ones.

    `hooks`: of an operation (upload, create, created, list, look, download), what the next calls do first; a response
    that a hook returns is sent in place of the usual one.
    """

    def __init__(self) -> None:
        self.answers: list[Callable[[Sequence[Line]], BatchFiles]] = [well]
        self.status: list[str] = ["completed"]
        self.errors: list[Any] = [None]
        self.hooks: dict[str, list[Hook | None]] = {}
        self.ready = True
        """Whether batches end when they are looked at."""
        self.clock = 0.0
        """Seconds that its clock is ahead."""
        self.sent: list[list[Line]] = []
        """The requests of each batch that was run."""
        self.made: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.paid: Counter[str] = Counter()
        self.url, self.port = "", 0

    @property
    def repeated(self) -> int:
        """Requests that were answered, and so paid for, more than once."""
        return sum(count - 1 for count in self.paid.values())

    def _hooked(self, name: str) -> web.StreamResponse | None:
        self.calls[name] += 1
        waiting = self.hooks.get(name)
        hook = waiting.pop(0) if waiting else None
        return hook() if hook is not None else None

    async def upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if (instead := self._hooked("upload")) is not None:
            return instead
        name = self._stored(form["file"].file.read())  # type: ignore[union-attr]
        return web.json_response({"id": name, "object": "file", "status": "processed", "created_at": 1})

    def _stored(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    async def create(self, request: web.Request) -> web.StreamResponse:
        request_body = await request.json()
        if (instead := self._hooked("create")) is not None:
            return instead
        batch = {
            "id": f"batch-{len(self.made)}",
            "object": "batch",
            "status": "in_progress",
            "errors": None,
            "created_at": int(time.time() + self.clock),
            "input_file_id": request_body["input_file_id"],
            "metadata": request_body.get("metadata"),
            "output_file_id": None,
            "error_file_id": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        self.made[str(batch["id"])] = batch
        return self._hooked("created") or web.json_response(batch)

    async def list(self, request: web.Request) -> web.StreamResponse:
        if (instead := self._hooked("list")) is not None:
            return instead
        names = [*self.made][::-1]
        first = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        some = names[first : first + int(request.query.get("limit", 20))]
        more = names[-1:] != some[-1:]
        return web.json_response({"object": "list", "data": [self.made[name] for name in some], "has_more": more})

    async def look(self, request: web.Request) -> web.StreamResponse:
        instead, name = self._hooked("look"), request.match_info["name"]
        if instead is not None:
            return instead
        if name not in self.made:
            return refused(404, "no such batch")
        if self.ready and self.made[name]["status"] == "in_progress":
            self._run(self.made[name])
        return web.json_response(self.made[name])

    def _run(self, batch: dict[str, Any]) -> None:
        batch["status"], errors = _next(self.status), _next(self.errors)
        if errors is not None:
            batch["errors"] = {"object": "list", "data": errors}
            return
        lines = [json.loads(request) for request in self.files[batch["input_file_id"]].splitlines()]
        self.sent.append(lines)
        for kind, content in zip(("output_file_id", "error_file_id"), _next(self.answers)(lines), strict=True):
            batch[kind] = None if content is None else self._stored(content)
            named = re.findall(r'"(call-[0-9]+)", "response": {"status_code": 200', (content or b"").decode())
            good = set(named)
            self.paid.update(asked(request) for request in lines if request["custom_id"] in good)

    async def download(self, request: web.Request) -> web.StreamResponse:
        if (instead := self._hooked("download")) is not None:
            return instead
        return web.Response(body=self.files[request.match_info["name"]])

    @asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[ScriptedService]:
        """It listens inside the block; at a free port without `port`."""
        app = web.Application(client_max_size=10**9)
        app.add_routes(
            [
                web.post("/v1/files", self.upload),
                web.post("/v1/batches", self.create),
                web.get("/v1/batches", self.list),
                web.get("/v1/batches/{name}", self.look),
                web.get("/v1/files/{name}/content", self.download),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def _next(values: list[Any]) -> Any:
    return values.pop(0) if len(values) > 1 else values[0]


def refused(status: int, message: str, code: str | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


def teacher_config(service: ScriptedService, **settings: Any) -> TeacherConfig:
    values = {"model": "odd/m", "api_base": service.url, "price": PRICE, "max_tokens": 64, "mode": "batch"}
    values |= {"batch": {"quiet": 0.02, "poll": 0.02}, "retries": 2}
    return TeacherConfig.model_validate({**values, **settings})


def simulated(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    """A teacher in batches at the simulated server."""
    values: dict[str, Any] = {"model": "sim/sim-model", "api_base": server.base_url, "mode": "batch"}
    values |= {"price": {"prompt": 0.15, "completion": 0.6, "cached": 0.075}, "max_tokens": 2048}
    values |= {"batch": {"quiet": 0.05, "poll": 0.05}}
    return TeacherConfig.model_validate({**values, **settings})


def bill(server: SimulatedTeacher) -> float:
    """Dollars that the server charges for its batches, which cost half of that, whatever its cache had."""
    stats = server.stats()
    return float(stats["batch_billed_prompt_tokens"] * 0.075 + stats["batch_billed_completion_tokens"] * 0.3) / 1e6


def pending(lines: bytes) -> list[PendingRequest]:
    """Requests that a service sends as `lines`."""
    return [PendingRequest(number, line=line) for number, line in enumerate(lines.splitlines(keepends=True) or [b""])]


@asynccontextmanager
async def client(config: TeacherConfig, patience: float = 10.0) -> AsyncIterator[OpenAIService]:
    """A client of a Batch API that retries for `patience` seconds."""
    made = OpenAIService(config, resolve(config), patience=patience)
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def recorded_teacher(
    folder: Path, config: TeacherConfig | Teacher, caps: Caps | None = None
) -> AsyncIterator[RecordedTeacher]:
    """The recorded teacher of one start on the ledger in `folder`."""
    teacher = open_teacher(config)
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        run = RunRecorder(ledger, caps or Caps(), spent(ledger))
        async with running_at(ledger, run, teacher) as recorded:
            try:
                yield recorded
            finally:
                run.stopping = True
        run.batches.tidy()
        run.group.close()


@asynccontextmanager
async def running_at(ledger: Ledger, run: RunRecorder, teacher: Teacher) -> AsyncIterator[RecordedTeacher]:
    """A recorded teacher that runs inside the block."""
    recorded = RecordedTeacher(ledger, run, teacher, Progress(0))
    async with teacher.running() as recorded.engine:
        yield recorded


PREDICTOR = dspy.Predict("question -> answer")


async def ask(recorded: RecordedTeacher, text: str) -> str:
    """The answer to `text`."""
    return await asyncio.wait_for(ask_engine(recorded.teacher, recorded, text), PATIENCE)


async def ask_engine(teacher: Teacher, engine: Engine, text: str) -> str:
    """`ask`, without a limit, where `engine` answers in the teacher's place."""
    with dspy.context(lm=recorded_lm(teacher, engine), adapter=SchemaAdapter(), **LEAN):
        return str((await ask_as_stage("stage", text, PREDICTOR, question=text)).answer)


async def ask_all(recorded: RecordedTeacher, texts: Sequence[str]) -> list[str | BaseException]:
    return await asyncio.gather(*(ask(recorded, text) for text in texts), return_exceptions=True)


async def one_start(
    folder: Path, service: ScriptedService, texts: Sequence[str], **settings: Any
) -> list[str | BaseException]:
    """What a start on the ledger in `folder`, which asks these questions at once, is answered."""
    async with recorded_teacher(folder, teacher_config(service, **settings)) as recorded:
        return await ask_all(recorded, texts)


async def until(done: Callable[[], Any]) -> None:
    """Waits for what has no event: counts and tables."""
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def calls(folder: Path) -> Counter[tuple[str, int | None]]:
    """(outcome, cost) of the calls in a ledger."""
    with Ledger.read(folder) as ledger:
        return Counter(ledger.db.execute("SELECT outcome, cost FROM calls").fetchall())


def batched(folder: Path) -> int:
    """Calls that are in batches, as the ledger has it."""
    with Ledger.read(folder) as ledger:
        return int(ledger.db.execute("SELECT count(*) FROM batched").fetchone()[0])


def states(folder: Path) -> list[str | None]:
    """How the batches ended."""
    with Ledger.read(folder) as ledger:
        return [state for (state,) in ledger.db.execute("SELECT state FROM batches ORDER BY id")]


def stored(folder: Path) -> bytes:
    """Everything in the files of a folder."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def as_killed(folder: Path, to: Path) -> Path:
    """The folder as a SIGKILL in this moment would leave it."""
    shutil.copytree(folder, to)
    return to
