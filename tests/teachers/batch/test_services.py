"""The services that batches are sent to: each has its own shapes, and all must keep the same promises."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from dspy.lm15 import Config, Message, Request

from benchmarks.batch_kills import KEY, SERVICES, teacher
from benchmarks.folder_answers import answer_files
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import TeacherError
from refed_dspy.teachers.batch.engine import BatchEngine
from refed_dspy.teachers.batch.service import PendingRequest, current_request, open_service
from refed_dspy.teachers.prices import in_batches, price_of
from refed_dspy.teachers.route import resolve
from refed_dspy.teachers.usage import Used
from tests.support.scripted_batches import ScriptedService, ask_all, calls, recorded_teacher, states, until

pytestmark = pytest.mark.slow
OVER_HTTP = [service for service in SERVICES if service != "folder"]
OWN_SHAPE = ["anthropic", "gemini"]
QUESTIONS = [f"What is {n}?" for n in range(6)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "a-key-for-all-of-them-0123456789")


@pytest.fixture
def there(server: SimulatedTeacher) -> Iterator[SimulatedTeacher]:
    server.control(batch_seconds=0.2)
    yield server


def settings(service: str, server: SimulatedTeacher, folder: Path, **more: Any) -> TeacherConfig:
    values = teacher(service, server, folder) | {"max_tokens": 2048, "retries": 2}
    values["batch"] |= {"quiet": 0.05, "poll": 0.05}
    return TeacherConfig.model_validate(values | more)


# --- what becomes of a batch

PASSING = [("poll500", 1), ("create500", 1), ("createdrop", 1), ("download_drop", 1)]


@pytest.mark.parametrize("service", OVER_HTTP)
@pytest.mark.parametrize(("fate", "batches"), [("ok", 1), *PASSING])
async def test_every_request_is_answered_once(
    tmp_path: Path, there: SimulatedTeacher, service: str, fate: str, batches: int
) -> None:
    there.control(batch_fates=[fate])
    async with recorded_teacher(tmp_path, settings(service, there, tmp_path / "folder")) as recorded:
        answers = await ask_all(recorded, QUESTIONS)
    assert all(isinstance(answer, str) for answer in answers), answers
    stats = there.stats()
    assert (stats["batch_requests"], stats["batch_repeated"], stats["batches"]) == (6, 0, batches)
    assert states(tmp_path) == ["completed"] and sum(cost or 0 for _, cost in calls(tmp_path).elements()) > 0


@pytest.mark.parametrize("service", OVER_HTTP)
@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_what_a_batch_left_out_is_asked_again(
    tmp_path: Path, there: SimulatedTeacher, service: str, end: str
) -> None:
    """Answers that were billed and are not given out, as by Gemini, are charged and asked for again."""
    there.control(batch_fates=[end])
    async with recorded_teacher(tmp_path, settings(service, there, tmp_path / "folder")) as recorded:
        answers = await ask_all(recorded, QUESTIONS)
    assert all(isinstance(answer, str) for answer in answers), answers
    withheld = 3 if service == "gemini" else 0
    stats, taken = there.stats(), calls(tmp_path)
    assert (stats["batch_requests"], stats["batch_repeated"]) == (6 + withheld, withheld)
    assert states(tmp_path) == [end, "completed"]
    unanswered = sum(count for (how, cost), count in taken.items() if how == "no answer" and cost)
    assert unanswered >= withheld, "no less than what was billed"


@pytest.mark.parametrize("service", OWN_SHAPE)
async def test_a_queue_without_room_gets_smaller_batches(
    tmp_path: Path, there: SimulatedTeacher, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refed_dspy.teachers.batch.http.BUSY", 0)
    monkeypatch.setattr("refed_dspy.teachers.batch.tracker.SMALL", 2)
    there.control(batch_fates=["token_limit"])
    async with recorded_teacher(tmp_path, settings(service, there, tmp_path / "folder")) as recorded:
        answers = await ask_all(recorded, QUESTIONS)
    assert all(isinstance(answer, str) for answer in answers), answers
    assert states(tmp_path)[0] == "no room" and states(tmp_path)[1:] == ["completed"] * 2
    assert there.stats()["batch_repeated"] == 0


@pytest.mark.parametrize("service", OVER_HTTP)
async def test_faults_of_single_requests_are_those_of_interactive_ones(
    tmp_path: Path, there: SimulatedTeacher, service: str
) -> None:
    there.control(batch_faults={"429": 0.25, "500": 0.25, "missing": 0.1}, seed=3)
    async with recorded_teacher(tmp_path, settings(service, there, tmp_path / "folder", retries=12)) as recorded:
        answers = await ask_all(recorded, [f"Why {n}?" for n in range(30)])
    assert all(isinstance(answer, str) for answer in answers), answers
    outcomes = {how for how, _ in calls(tmp_path)}
    assert {"ok", "http 429"} <= outcomes and outcomes & {"http 500", "http 529", "http 503"}
    assert not any(cost for how, cost in calls(tmp_path) if how.startswith("http")), "errors are not billed"


# --- a batch is found again


@pytest.mark.parametrize("service", OVER_HTTP)
async def test_a_batch_is_found_by_its_nonce_alone(tmp_path: Path, there: SimulatedTeacher, service: str) -> None:
    """Another one of as many requests is not taken for it, nor is one that is followed already."""
    config = settings(service, there, tmp_path)
    route, now = resolve(config), time.time()
    nonces = [f"{n:032x}" for n in (1, 2)]
    async with _opened(config, route) as first, _opened(config, route) as second:
        names = []
        for nonce in nonces:
            requests = await _written(first, config)
            made = await first.create(await first.prepare(requests), requests, nonce, now)
            names.append(made.name)
        for nonce, name in zip(nonces, names, strict=True):
            found = await second.find(nonce, now, 2)
            assert found is not None and found.name == name
        assert await second.find(f"{3:032x}", now - 120, 2) is None
        second.known.update(names)
        assert await second.find(nonces[0], now - 120, 2) is None, "it is followed"


async def test_results_that_are_gone_are_not_looked_into(tmp_path: Path, service: ScriptedService) -> None:
    """A batch of a month ago with as many requests: to ask for its results would end the run."""
    gone: dict[str, Any] = {"id": "msgbatch_1", "processing_status": "ended", "created_at": "2026-01-01T00:00:00Z"}
    gone |= {"request_counts": {"succeeded": 2}, "archived_at": "2026-02-01T00:00:00Z"}
    values = {"model": "anthropic/m", "api_base": service.url, "mode": "batch"}
    config = TeacherConfig.model_validate(values)
    service.hooks["list"] = [lambda: web.json_response({"data": [gone]})]
    async with _opened(config, resolve(config)) as opened:
        opened._base = f"{service.url}/batches"
        assert await opened.find("0" * 32, time.time() - 120, 2) is None
    assert service.calls == {"list": 1}


@asynccontextmanager
async def _opened(config: TeacherConfig, route: Any) -> AsyncIterator[Any]:
    service = open_service(config, route, patience=5)
    try:
        yield service
    finally:
        await service.aclose()


class _Seen:
    """What lm15 would send, kept instead."""

    def __init__(self) -> None:
        self.request: Any = None

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[Any]:
        self.request = request
        raise ConnectionAbortedError
        yield


async def _would_send(config: TeacherConfig, question: str = "Why?") -> Any:
    seen, route = _Seen(), resolve(config)
    asked = Request(model=route.model, messages=(Message.user(question),), config=Config(max_tokens=64))
    with pytest.raises(ConnectionAbortedError):
        await route.async_lm(seen).complete(asked)
    return seen.request


async def _written(service: Any, config: TeacherConfig) -> list[PendingRequest]:
    sent = await _would_send(config)
    return [PendingRequest(number, line=service.line(number, sent)) for number in (1, 2)]


# --- the request is the one that is sent interactively


@pytest.mark.parametrize("service", OVER_HTTP)
async def test_a_request_in_a_batch_is_the_interactive_one(tmp_path: Path, service: str) -> None:
    asked: list[tuple[str, dict[str, str], bytes]] = []

    async def keep(request: web.Request) -> web.StreamResponse:
        asked.append((request.path, dict(request.headers), await request.read()))
        if request.headers.get("X-Goog-Upload-Command") == "start":
            return web.Response(headers={"X-Goog-Upload-URL": "https://elsewhere.invalid/up?upload_id=7"})
        if request.method == "GET":
            return web.json_response({"data": []})
        if request.path == "/up":
            return web.json_response({"file": {"name": "files/1", "state": "ACTIVE"}})
        if request.path.endswith("/files"):
            return web.json_response({"id": "f", "object": "file", "status": "processed"})
        return web.json_response({"error": {"message": "that is enough"}}, status=400)

    class Here:
        async def __aenter__(self) -> str:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", keep)
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

        async def __aexit__(self, *_: object) -> None:
            await self.runner.cleanup()

    async with Here() as root:
        server: Any = type("At", (), {"root": root, "base_url": f"{root}/v1"})
        server.anthropic_url, server.gemini_url = f"{root}/v1", f"{root}/v1beta"
        for mode in ("interactive", "batch"):
            config = settings(service, server, tmp_path / "f", mode=mode, params={"top_p": 0.5})
            async with recorded_teacher(tmp_path / mode, config) as recorded:
                await ask_all(recorded, ["Why?"])
    [(_, headers, body), *batch] = asked
    interactive = json.loads(body)
    [line] = [json.loads(part) for _, _, sent in batch for part in _requests(service, sent)]
    written = line.get("body") or line.get("params") or line["request"]
    assert written == ({**interactive, "model": "sim-model"} if service == "azure" else interactive)
    versions = {name.lower(): value for name, value in headers.items() if name.lower().startswith("anthropic-")}
    for _, sent_headers, _ in batch:
        assert versions.items() <= {name.lower(): value for name, value in sent_headers.items()}.items()


def _requests(service: str, sent: bytes) -> list[bytes]:
    """The requests in what was sent."""
    if service == "anthropic":
        return [json.dumps(each).encode() for each in json.loads(sent or b'{"requests": []}')["requests"]]
    return [line for line in sent.splitlines() if line.startswith((b'{"key"', b'{"custom_id"'))]


# --- money


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"])
def test_a_batch_costs_half(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeacherConfig(model=model, mode="batch")
    plain = price_of(config, "")
    half = in_batches(config, plain)
    assert plain is not None and half is not None
    assert (2 * half.rates.prompt, 2 * half.rates.completion) == (plain.rates.prompt, plain.rates.completion)


def test_whoever_answers_a_folder_gives_no_rebate(tmp_path: Path) -> None:
    config = TeacherConfig.model_validate(
        {"model": "openai/gpt-4o-mini", "mode": "folder", "batch": {"folder": tmp_path}, "price": None}
    )
    assert price_of(config, "") is None, "the table does not know who answers"
    priced = config.model_copy(update={"price": {"prompt": 1.0, "completion": 2.0}})
    priced = TeacherConfig.model_validate(priced.model_dump())
    assert in_batches(priced, price_of(priced, "")) == price_of(priced, "") is not None


BODIES = {
    "anthropic": (
        {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Yes"}],
         "stop_reason": "end_turn", "usage": {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 7}},
        Used(100, 10, None, 7),
    ),
    "gemini": (
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "Yes"}]}, "finishReason": "STOP"}],
         "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 7, "thoughtsTokenCount": 5}},
        Used(100, None, None, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("service", OWN_SHAPE)
async def test_an_answer_that_nobody_asked_for_is_charged_by_its_own_usage(
    tmp_path: Path, there: SimulatedTeacher, service: str
) -> None:
    config = settings(service, there, tmp_path)
    engine = BatchEngine(config, resolve(config), None, None)
    lm, (body, used) = resolve(config).async_lm(_Canned()), BODIES[service]
    assert (await engine._used(lm, 200, body)) == used
    assert (await engine._used(lm, 529, {"error": {}})) == Used(0, 0, 0, 0)
    assert (await engine._used(lm, 200, {"odd": 1})) is None


class _Canned:
    """The seam of lm15, over which an answer that is here already is read."""

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[Any]:
        from refed_dspy.teachers.transport import CannedResponse, current_reading

        reading = current_reading.get()
        assert reading is not None and reading.instead is not None and current_request.get() is None
        yield CannedResponse(200, reading.instead)


# --- limits


def test_no_batch_is_larger_than_its_service_takes(tmp_path: Path, there: SimulatedTeacher) -> None:
    async def largest(service: str) -> tuple[int, int]:
        config = settings(service, there, tmp_path)
        async with _opened(config, resolve(config)) as opened:
            return opened.most_requests, opened.most_bytes

    assert asyncio.run(largest("anthropic")) == (100_000, 250_000_000)
    assert asyncio.run(largest("gemini"))[1] == 2_000_000_000


# --- a folder


async def _answered(folder: Path, server: SimulatedTeacher) -> None:
    await until(lambda: list(folder.glob("*.requests.jsonl")))
    await asyncio.to_thread(answer_files, folder, server.base_url, 0.0)


async def test_a_folder_is_answered_by_something_else(tmp_path: Path, there: SimulatedTeacher) -> None:
    folder, run = tmp_path / "folder", tmp_path / "run"
    async with recorded_teacher(run, settings("folder", there, folder)) as recorded:
        answers, _ = await asyncio.gather(ask_all(recorded, QUESTIONS), _answered(folder, there))
    assert all(isinstance(answer, str) for answer in answers), answers
    assert states(run) == ["completed"] and there.stats()["answered"] == 6
    [requests] = folder.glob("*.requests.jsonl")
    line = json.loads(requests.read_text().splitlines()[0])
    assert (line["method"], line["url"], line["body"]["model"]) == ("POST", "/v1/chat/completions", "sim-model")


async def test_a_start_without_answers_ends_and_the_next_takes_them_up(tmp_path: Path, there: SimulatedTeacher) -> None:
    folder, run = tmp_path / "folder", tmp_path / "run"
    for _ in range(2):  # any number of times
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0), recorded_teacher(run, settings("folder", there, folder)) as recorded:
                await ask_all(recorded, QUESTIONS)
    assert len(list(folder.glob("*.requests.jsonl"))) == 1 and states(run) == [None]
    await _answered(folder, there)
    async with recorded_teacher(run, settings("folder", there, folder)) as recorded:
        answers = await ask_all(recorded, QUESTIONS)
    assert all(isinstance(answer, str) for answer in answers), answers
    assert there.stats()["answered"] == 6 and len(list(folder.glob("*.requests.jsonl"))) == 1


async def test_what_a_file_of_answers_lacks_is_written_out_again(
    tmp_path: Path, there: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refed_dspy.teachers.batch.folder.STILL", 0.3)
    folder, run = tmp_path / "folder", tmp_path / "run"

    async def half_then_all() -> None:
        await _answered(folder, there)
        [answers] = folder.glob("*.answers.jsonl")
        lines = answers.read_text().splitlines(keepends=True)
        answers.write_text("".join(lines[:3]) + lines[3][:20])
        await until(lambda: len(list(folder.glob("*.requests.jsonl"))) == 2)
        await asyncio.to_thread(answer_files, folder, there.base_url, 0.0)

    async with recorded_teacher(run, settings("folder", there, folder)) as recorded:
        texts, _ = await asyncio.gather(ask_all(recorded, QUESTIONS), half_then_all())
    assert all(isinstance(text, str) for text in texts), texts
    assert states(run) == ["expired", "completed"]


async def test_a_folder_that_cannot_be_made_ends_the_run(tmp_path: Path, there: SimulatedTeacher) -> None:
    (tmp_path / "file").write_text("")
    async with recorded_teacher(tmp_path, settings("folder", there, tmp_path / "file" / "in")) as recorded:
        [error] = await ask_all(recorded, ["Why?"])
    assert isinstance(error, TeacherError) and "cannot be made" in str(error)


@pytest.mark.parametrize("service", OVER_HTTP)
async def test_a_wrong_key_ends_the_run_before_anything_is_made(
    tmp_path: Path, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHT_KEY", "the-right-key-of-the-server-98765")
    with SimulatedTeacher(latency=0, key="RIGHT_KEY") as locked:
        async with recorded_teacher(tmp_path, settings(service, locked, tmp_path / "f", api_key_env=KEY)) as recorded:
            [error] = await ask_all(recorded, ["Why?"])
        assert isinstance(error, TeacherError) and "api_key_env" in str(error), error
        assert "0123456789" not in str(error) and locked.stats()["batches"] == 0 and not calls(tmp_path)
