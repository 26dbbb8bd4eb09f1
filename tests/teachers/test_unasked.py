"""What an endpoint sends without being asked is never read as the answer to another question."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.gateway import KINDS, Gateway
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.connections import Connections, NotConnected
from tests.teachers.test_rate_limits_http import ANSWER
from tests.teachers.test_transport import answers_to


def request(number: int) -> bytes:
    message = {"role": "user", "content": f"Say something about topic {number}."}
    return json.dumps({"model": "sim-model", "messages": [message], "temperature": 0}).encode()


async def text(connections: Connections, address: str, number: int) -> str:
    """The text of the first whole answer to question `number`."""
    headers = [("Content-Type", "application/json")]
    for _ in range(20):
        async with connections.ask(
            "POST", f"{address}/chat/completions", headers, request(number), most=10**6
        ) as reply:
            body = await reply.read()
        if reply.status == 200 and body:
            return str(json.loads(body)["choices"][0]["message"]["content"])
    raise AssertionError("no answer")


@pytest.mark.parametrize("kind", KINDS)
async def test_each_answer_belongs_to_its_question(kind: str, server: SimulatedTeacher) -> None:
    gateway = Gateway(server.base_url, KINDS[kind])
    connections, numbers = Connections(), range(20)
    async with await asyncio.start_server(gateway.serve, "127.0.0.1", 0) as there, gateway.session:
        odd = f"http://127.0.0.1:{there.sockets[0].getsockname()[1]}/v1"
        wanted = [await text(connections, server.base_url, number) for number in numbers]
        came = await asyncio.gather(*(text(connections, odd, number) for number in numbers))
        await connections.aclose()
        there.close()
    assert len(set(wanted)) == len(wanted) and came == wanted


async def test_a_protocol_that_nobody_asked_for_is_no_answer() -> None:
    answers, calls = await answers_to(ANSWER, "Upgrade: websocket", "Connection: upgrade", status=101)
    assert all(isinstance(answer, Exception) for answer in answers) and {call.outcome for call in calls} != {"ok"}


async def test_an_answer_in_another_character_set_is_read() -> None:
    answer = json.loads(ANSWER)
    answer["choices"][0]["message"]["content"] = json.dumps({"response": "Größe"}, ensure_ascii=False)
    body = json.dumps(answer, ensure_ascii=False)
    for charset in ("iso-8859-1", "utf-8", "utf-16"):
        header = f"Content-Type: application/json; charset={charset}"
        answers, _ = await answers_to(body.encode(charset), header)
        assert [each.response for each in answers] == ["Größe"] * 3, charset


async def test_a_connection_that_is_never_made_is_told_as_such() -> None:
    connections = Connections()
    left: list[bool] = []
    with pytest.raises(NotConnected):
        async with connections.ask("GET", "http://127.0.0.1:1/v1", [], leaves=lambda: left.append(True)):
            pass
    await connections.aclose()
    assert not left
