"""An endpoint with limits of its own: rows are not lost to it. Against a real server process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.programs.lm_errors import StillLimited
from refed_dspy.records import Call
from tests.support.recording_endpoint import openai_answer
from tests.teachers.test_engine import ask as ask_teacher

# --- the engine, on a real server


def ask(server_at: str, times: int, **settings: Any) -> tuple[list[Any], list[Call]]:
    """Ask so many questions at once, without retries: answers or errors, and the calls reported."""
    values = {"model": "sim/sim-model", "api_base": server_at, "retries": 0, **settings}
    return ask_teacher(TeacherConfig.model_validate(values), times)


@pytest.mark.parametrize(("retry_after", "times"), [(0.02, 15), (None, 2)])
def test_no_row_is_lost_to_429s(server: SimulatedTeacher, retry_after: float | None, times: int) -> None:
    server.control(faults={"429": 0.3}, retry_after=retry_after, seed=11)
    answers, calls = ask(server.base_url, times)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    outcomes = [call.outcome for call in calls]
    assert outcomes.count("ok") == times and outcomes.count("http 429") == len(calls) - times > 0


def test_a_limit_told_in_headers_is_kept_to(server: SimulatedTeacher) -> None:
    server.control(limit_per_minute=3000, limit_burst=20, retry_after=0.05)
    try:
        answers, _ = ask(server.base_url, 40)
        refused = server.stats()["by_status"].get("429", 0)
    finally:
        server.control(limit_burst=None)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert refused <= 20, "those sent before the first answer told the limit, and hardly any later"


def test_the_settings_own_limit_needs_no_headers(server: SimulatedTeacher) -> None:
    server.control(limit_per_minute=1200, limit_burst=30, rate_headers=False)
    try:
        answers, _ = ask(server.base_url, 30, requests_per_minute=1200)
        refused = server.stats()["by_status"].get("429", 0)
    finally:
        server.control(limit_burst=None, rate_headers=True)
    assert refused == 0 and not [answer for answer in answers if isinstance(answer, Exception)]


PAGE = b"<html><body>Too Many Requests</body></html>"
ANSWER = json.dumps(openai_answer('{"response":"r"}')).encode()


async def one_request(reader: asyncio.StreamReader) -> bool:
    """Read one request to its end; False at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
    except asyncio.IncompleteReadError:
        return False
    await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    return True


async def test_a_429_with_a_web_page_is_a_429() -> None:
    refusals = [True, True, False]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await one_request(reader):
            page = refusals.pop(0) if refusals else False
            status, kind, body = (b"429 No", b"text/html", PAGE) if page else (b"200 OK", b"application/json", ANSWER)
            head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % (status, kind, len(body)) + body)
            await writer.drain()
        writer.close()

    gateway = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with gateway:
        port = gateway.sockets[0].getsockname()[1]
        answers, _ = await asyncio.to_thread(ask, f"http://127.0.0.1:{port}/v1", 1)
    assert answers[0].response == "r" and not refusals


@pytest.mark.slow
def test_a_run_of_refusals_ends_the_work(server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refed_dspy.teachers.rate_limits.PATIENCE", 0.0)
    server.control(faults={"429": 1})
    (error,), calls = ask(server.base_url, 1)
    assert isinstance(error, StillLimited) and server.base_url in str(error)
    assert {call.outcome for call in calls} == {"http 429"} and {call.cost for call in calls} <= {0, None}
