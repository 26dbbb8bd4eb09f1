"""Message Batches of the simulated server, as the client of `anthropic` sees them. It checks each answer strictly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY

ENDS = ("succeeded", "errored", "canceled", "expired")


@cache
def connections() -> httpx2.Client:
    """A client shared by all tests: reading the certificates for each would take most of the time."""
    return anthropic.DefaultHttpxClient(verify=False)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    connections().close()


def client(server: SimulatedTeacher, key: str = "k") -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.root,
        api_key=key,
        max_retries=0,
        http_client=connections(),
        _strict_response_validation=True,
    )


def one(name: str, text: str = "hello", **params: Any) -> Any:
    sent = {"model": "some-model", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": name, "params": {key: value for key, value in (sent | params).items() if value is not None}}


def some(count: int) -> list[Any]:
    return [one(f"r{place}", f"question {place}") for place in range(count)]


def ended(asked: anthropic.Anthropic, batch: MessageBatch) -> MessageBatch:
    while batch.processing_status != "ended":
        time.sleep(0.01)
        batch = asked.messages.batches.retrieve(batch.id)
    return batch


def done(asked: anthropic.Anthropic, requests: list[Any]) -> MessageBatch:
    return ended(asked, asked.messages.batches.create(requests=requests))


def results(asked: anthropic.Anthropic, batch: MessageBatch) -> dict[str, Any]:
    """The result of each request, by its custom_id, checked by the provider's types."""
    assert batch.results_url is not None
    raw = asked.get(batch.results_url.removeprefix(str(asked.base_url)), cast_to=httpx2.Response).text
    found = [MessageBatchIndividualResponse.model_validate_json(line, strict=True) for line in raw.splitlines()]
    assert len({result.custom_id for result in found}) == len(found)
    return {result.custom_id: result.result for result in found}


def counts(batch: MessageBatch) -> tuple[int, ...]:
    """Those processing, succeeded, errored, canceled and expired."""
    return tuple(getattr(batch.request_counts, name) for name in ("processing", *ENDS))


@pytest.fixture
def quick(server: SimulatedTeacher) -> SimulatedTeacher:
    """The server with batches that end at once."""
    server.control(batch_seconds=0, response_words=5)
    return server


def test_a_batch_from_requests_to_answers(server: SimulatedTeacher) -> None:
    server.control(batch_seconds=1, batch_progressive=True, response_words=5)
    asked = client(server)
    batch = asked.messages.batches.create(requests=some(8))
    assert (batch.processing_status, counts(batch), batch.results_url) == ("in_progress", (8, 0, 0, 0, 0), None)
    assert (batch.expires_at - batch.created_at).total_seconds() == 24 * 3600 and batch.ended_at is None
    while server.stats()["batch_requests"] < 2:
        time.sleep(0.005)
    under_way = asked.messages.batches.retrieve(batch.id)
    assert counts(under_way) == (8, 0, 0, 0, 0)  # none is counted before all are done
    with pytest.raises(anthropic.NotFoundError):
        asked.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response)
    batch = ended(asked, batch)
    assert counts(batch) == (0, 8, 0, 0, 0) and batch.ended_at is not None and batch.cancel_initiated_at is None
    found = results(asked, batch)
    assert sorted(found) == [f"r{place}" for place in range(8)] != list(found)
    usage = [result.message.usage for result in found.values()]
    stats = server.stats()
    billed = [stats[f"batch_billed_{name}_tokens"] for name in ("prompt", "completion")]
    assert billed == [sum(use.input_tokens for use in usage), sum(use.output_tokens for use in usage)]
    assert (stats["batches"], stats["batch_files"], stats["batch_requests"], stats["requests"]) == (1, 0, 8, 0)
    assert [line.custom_id for line in asked.messages.batches.results(batch.id)] == list(found)


def test_repeats_are_seen_across_batches_and_messages(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    asked.messages.create(model="m", max_tokens=10, messages=[{"role": "user", "content": "question 0"}])
    done(asked, some(3))
    assert quick.stats()["batch_repeated"] == 1


def test_lists_are_newest_first_in_pages_both_ways(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    made = [done(asked, some(1)).id for _ in range(5)]
    first = asked.messages.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:2:-1] and first.has_more
    assert [batch.id for batch in first] == made[::-1]  # the client asks for the pages that follow
    after = asked.messages.batches.list(after_id=made[2])
    assert [batch.id for batch in after.data] == [made[1], made[0]] and not after.has_more
    before = asked.messages.batches.list(before_id=made[1], limit=2)
    assert [batch.id for batch in before.data] == [made[3], made[2]] and before.has_more
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "msgbatch_none"}):
        with pytest.raises(anthropic.BadRequestError):
            asked.messages.batches.list(**cast("Any", wrong))
    assert asked.messages.batches.delete(made[0]).id == made[0]
    quick.reset()
    assert asked.messages.batches.list().data == []


def test_what_is_refused_at_once(quick: SimulatedTeacher, locked: SimulatedTeacher) -> None:
    asked = client(quick)
    wrong: list[list[Any]] = [[], [one("a"), one("a")], [one("with space")], [one("x" * 65)], [one("")]]
    for requests in [*wrong, [{"custom_id": "a"}], [{"params": {}}]]:
        with pytest.raises(anthropic.BadRequestError):
            asked.messages.batches.create(requests=requests)
    with pytest.raises(anthropic.NotFoundError):
        asked.messages.batches.retrieve("msgbatch_none")
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version"):
        asked.with_options(default_headers={"anthropic-version": ""}).messages.batches.list()
    quick.control(batch_max_requests=2)
    with pytest.raises(anthropic.BadRequestError, match="at most 2"):
        asked.messages.batches.create(requests=some(3))
    quick.control(batch_max_bytes=100)
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        asked.messages.batches.create(requests=some(2))
    assert cast("Any", caught.value.body)["error"]["type"] == "request_too_large"
    quick.control(batches=False)
    with pytest.raises(anthropic.NotFoundError):
        asked.messages.batches.list()
    with pytest.raises(anthropic.AuthenticationError):
        client(locked, "sk-wrong").messages.batches.list()
    assert client(locked, KEY).messages.batches.list().data == []
    assert quick.stats()["batches"] == 0


def test_a_request_with_a_mistake_is_errored_alone_and_not_billed(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    wrong = [one("tokens", max_tokens=None), one("model", model="missing"), one("roles", messages=[{"role": "system"}])]
    batch = done(asked, [one("good"), *wrong])
    assert counts(batch) == (0, 1, 3, 0, 0)
    found = results(asked, batch)
    kinds = {name: result.error.error.type for name, result in found.items() if result.type == "errored"}
    assert kinds == {"tokens": "invalid_request_error", "model": "not_found_error", "roles": "invalid_request_error"}
    assert quick.stats()["batch_requests"] == 1


def test_faults_of_requests(quick: SimulatedTeacher) -> None:
    asked = client(quick)

    def after(fault: str) -> tuple[tuple[int, ...], int, bytes]:
        quick.control(batch_faults={fault: 1.0})
        quick.reset()
        batch = done(asked, [one("a")])
        raw = asked.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response)
        return counts(batch), quick.stats()["batch_requests"], raw.content

    for fault, kind in (("400", "invalid_request_error"), ("429", "rate_limit_error"), ("500", "api_error")):
        counted, executed, raw = after(fault)
        assert (counted, executed) == ((0, 0, 1, 0, 0), 0)
        assert json.loads(raw)["result"]["error"]["error"]["type"] == kind
    assert after("missing") == ((0, 0, 1, 0, 0), 0, b"")
    for fault, reason in (("refusal", "refusal"), ("cut", "max_tokens"), ("malformed", "end_turn")):
        counted, executed, raw = after(fault)
        assert (counted, executed) == ((0, 1, 0, 0, 0), 1)
        assert json.loads(raw)["result"]["message"]["stop_reason"] == reason
    _, executed, raw = after("garbage")
    assert executed == 1 and b'"custom_id":"a"' in raw
    with pytest.raises(ValueError):
        json.loads(raw)


def test_fates_of_batches(quick: SimulatedTeacher) -> None:
    quick.control(batch_fates=["failed", "token_limit", "upload500", "expired", "cancelled", "ok"])
    asked = client(quick)
    batch = done(asked, some(4))
    assert counts(batch) == (0, 0, 4, 0, 0)
    assert {result.error.error.type for result in results(asked, batch).values()} == {"invalid_request_error"}
    for kind in (anthropic.RateLimitError, anthropic.InternalServerError):
        with pytest.raises(kind):
            asked.messages.batches.create(requests=some(4))
    assert quick.stats()["batches"] == 1
    for end, counted in (("expired", (0, 2, 0, 0, 2)), ("canceled", (0, 2, 0, 2, 0))):
        batch = done(asked, some(4))
        assert counts(batch) == counted and (batch.cancel_initiated_at is not None) == (end == "canceled")
        assert sorted(result.type for result in results(asked, batch).values()) == sorted([end] * 2 + ["succeeded"] * 2)
    assert counts(done(asked, some(4))) == (0, 4, 0, 0, 0)
    assert quick.stats()["batch_requests"] == 8


def test_fates_of_calls(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    quick.control(batch_fates=["create500", "createdrop", "poll500", "download_drop"])
    for kind in (anthropic.InternalServerError, anthropic.APIConnectionError):
        with pytest.raises(kind):
            asked.messages.batches.create(requests=some(2))
        made = asked.messages.batches.list(limit=1).data[0]
        assert counts(ended(asked, made)) == (0, 2, 0, 0, 0)
    batch = asked.messages.batches.create(requests=some(2))
    for _ in range(3):
        with pytest.raises(anthropic.InternalServerError):
            asked.messages.batches.retrieve(batch.id)
    ended(asked, batch)
    batch = done(asked, some(2))
    with pytest.raises(anthropic.APIConnectionError):
        results(asked, batch)
    assert len(results(asked, batch)) == 2
    assert quick.stats()["batches"] == 4


def test_cancelling(server: SimulatedTeacher) -> None:
    server.control(batch_fates=["stuck"], batch_seconds=0.1)
    asked = client(server)
    batch = asked.messages.batches.create(requests=some(4))
    cancelled = asked.messages.batches.cancel(batch.id)
    assert cancelled.processing_status == "canceling" and cancelled.cancel_initiated_at is not None
    with pytest.raises(anthropic.BadRequestError):
        asked.messages.batches.delete(batch.id)
    batch = ended(asked, cancelled)
    assert counts(batch) == (0, 0, 0, 4, 0) and server.stats()["batch_requests"] == 0
    assert {result.type for result in results(asked, batch).values()} == {"canceled"}
    with pytest.raises(anthropic.BadRequestError):
        asked.messages.batches.cancel(batch.id)
