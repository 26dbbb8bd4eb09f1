"""Files and Batches of the simulated server, as the client of `openai` sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Batch

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY
from tests.support.said import Said

CHAT = "/v1/chat/completions"
STATES = ["validating", "in_progress", "finalizing", "completed"]
ENDED = ("completed", "failed", "expired", "cancelled")
CASES = [("openai", CHAT), ("azure", "/chat/completions"), pytest.param("v1", CHAT, marks=pytest.mark.slow)]
WIRES = pytest.mark.parametrize(("wire", "endpoint"), CASES)


@cache
def connections() -> httpx2.Client:
    """A client shared by all tests: reading the certificates for each would take most of the time."""
    return openai.DefaultHttpxClient(verify=False)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    connections().close()


def client(server: SimulatedTeacher, wire: str = "openai", key: str = "none") -> openai.OpenAI:
    more: dict[str, Any] = {"api_key": key, "max_retries": 0, "http_client": connections()}
    if wire == "azure":
        return openai.AzureOpenAI(azure_endpoint=server.root, api_version="2024-10-21", **more)
    return openai.OpenAI(base_url=server.base_url if wire == "openai" else f"{server.root}/openai/v1", **more)


def line(name: str, text: str = "hello", *, url: str = CHAT, model: str = "some-model", **body: Any) -> dict[str, Any]:
    sent = {"model": model, "messages": [{"role": "user", "content": text}]} | body
    return {"custom_id": name, "method": "POST", "url": url, "body": sent}


def lines(count: int, url: str = CHAT) -> list[dict[str, Any]]:
    return [line(f"r{place}", f"question {place}", url=url) for place in range(count)]


def packed(requests: list[Any]) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests)


def upload(asked: openai.OpenAI, requests: list[Any]) -> str:
    """Upload these lines. Returns the file's id once it is processed."""
    file = asked.files.create(file=("in.jsonl", packed(requests)), purpose="batch")
    while asked.files.retrieve(file.id).status != "processed":
        time.sleep(0.01)
    return file.id


def create(asked: openai.OpenAI, requests: list[Any], endpoint: Any = CHAT, **more: Any) -> Batch:
    file = upload(asked, requests)
    return asked.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **more)


def ended(asked: openai.OpenAI, batch: Batch, seen: list[str] | None = None) -> Batch:
    while batch.status not in ENDED:
        time.sleep(0.01)
        batch = asked.batches.retrieve(batch.id)
        if seen is not None and batch.status not in seen:
            seen.append(batch.status)
    return batch


def read(asked: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asked.files.content(file).text.splitlines()] if file else []


def counts(batch: Batch) -> tuple[int, int, int]:
    counted = batch.request_counts
    assert counted is not None
    return counted.total, counted.completed, counted.failed


@pytest.fixture
def quick(server: SimulatedTeacher) -> SimulatedTeacher:
    """The server with batches that end at once."""
    server.control(batch_seconds=0, response_words=5)
    return server


@pytest.mark.slow
@WIRES
def test_a_batch_from_file_to_answers(server: SimulatedTeacher, wire: str, endpoint: str) -> None:
    server.control(batch_seconds=0.1, response_words=5)
    asked = client(server, wire)
    batch = create(asked, lines(8, endpoint), endpoint, metadata={"run": "a", "part": "1"})
    assert (batch.status, batch.metadata, batch.output_file_id) == ("validating", {"run": "a", "part": "1"}, None)
    batch = ended(asked, batch, seen := [str(batch.status)])
    assert seen == [state for state in STATES if state in seen] and len(seen) > 2
    assert (counts(batch), batch.error_file_id, batch.errors) == ((8, 8, 0), None, None)
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    results = read(asked, batch.output_file_id)
    names = [result["custom_id"] for result in results]
    assert sorted(names) == [f"r{place}" for place in range(8)] != names
    for result in results:
        assert set(result) == {"id", "custom_id", "response", "error"} and result["error"] is None
        assert result["response"]["status_code"] == 200 and result["response"]["body"]["object"] == "chat.completion"
    stats, usage = server.stats(), [result["response"]["body"]["usage"] for result in results]
    billed = [stats[f"batch_billed_{name}_tokens"] for name in ("prompt", "completion")]
    assert billed == [sum(use[f"{name}_tokens"] for use in usage) for name in ("prompt", "completion")]
    assert all(use["prompt_tokens_details"]["cached_tokens"] == 0 for use in usage) and min(billed) > 0
    assert batch.usage is not None and [batch.usage.input_tokens, batch.usage.output_tokens] == billed
    assert (stats["batches"], stats["batch_files"], stats["batch_requests"], stats["batch_repeated"]) == (1, 1, 8, 0)
    assert (stats["requests"], stats["billed_prompt_tokens"], stats["billed_completion_tokens"]) == (0, 0, 0)


def test_repeats_are_seen_across_batches_and_chat(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    asked.chat.completions.create(model="some-model", messages=[{"role": "user", "content": "question 0"}])
    ended(asked, create(asked, lines(3)))
    assert quick.stats()["batch_repeated"] == 1
    ended(asked, create(asked, lines(4)))
    assert (quick.stats()["batch_repeated"], quick.stats()["repeated"]) == (4, 0)
    asked.chat.completions.create(model="some-model", messages=[{"role": "user", "content": "question 3"}])
    assert quick.stats()["repeated"] == 1


def test_lists_are_newest_first_in_pages_and_reset_clears_them(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    made = [ended(asked, create(asked, lines(1), metadata={"n": str(n)})).id for n in range(5)]
    first = asked.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:2:-1] and first.has_more
    assert [batch.id for batch in first] == made[::-1]  # the client asks for the pages that follow
    after = asked.batches.list(limit=2, after=made[2]).data
    assert [(batch.id, batch.metadata) for batch in after] == [(made[1], {"n": "1"}), (made[0], {"n": "0"})]
    files = list(asked.files.list(purpose="batch", limit=3))
    assert len(files) == 5 and asked.files.delete(files[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        asked.files.retrieve(files[0].id)
    quick.reset()
    assert not asked.batches.list().data and not asked.files.list().data


BAD: dict[str, tuple[list[Any], str, int | None]] = {
    "json": ([line("a"), b"{not json"], "invalid_json_line", 2),
    "part": ([{"custom_id": "a", "method": "POST", "url": CHAT}], "missing_required_parameter", 1),
    "twice": ([line("a"), line("b"), line("a")], "duplicate_custom_id", 3),
    "models": ([line("a"), line("b", model="other")], "mismatched_model", 2),
    "model": ([line("a", model="missing-one")], "model_not_found", 1),
    "url": ([line("a", url="/chat/completions")], "invalid_url", 1),
    "empty": ([b"\n"], "empty_file", None),
    "many": (lines(4), "too_many_tasks", None),
}


def test_a_file_with_a_mistake_fails_the_batch(quick: SimulatedTeacher) -> None:
    quick.control(batch_max_requests=3)
    asked = client(quick)
    for name, (requests, code, number) in BAD.items():
        batch = ended(asked, create(asked, requests))
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None), name
        assert batch.errors is not None and batch.errors.data and batch.failed_at, name
        assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, number)
    assert ended(asked, create(asked, lines(3))).status == "completed"
    assert quick.stats()["batch_requests"] == 3
    azure = client(quick, "azure")
    batch = ended(azure, create(azure, [line("a")], "/chat/completions"))
    assert batch.errors is not None and batch.errors.data and batch.errors.data[0].code == "url_mismatch"


def server_words(error: openai.APIStatusError) -> str:
    """What the server said; versions of the client put it into words of their own."""
    return str(error.response.json()["error"]["message"])


def test_what_is_refused_at_once(said: Said, quick: SimulatedTeacher, locked: SimulatedTeacher) -> None:
    asked = client(quick)
    file = upload(asked, lines(1))

    def refused(**changes: Any) -> str:
        right: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError) as caught:
            asked.batches.create(**(right | changes))
        return caught.value.message

    assert "file-none" in refused(input_file_id="file-none")
    assert "endpoint" in refused(endpoint="/chat/completions") and "24h" in refused(completion_window="1h")
    for metadata in ({"a": "x" * 513}, {"b" * 65: "x"}, {str(n): "x" for n in range(17)}):
        assert "metadata" in refused(metadata=metadata)
    azure: Any = client(quick, "azure")
    pending = azure.files.create(file=("in.jsonl", packed(lines(1, "/chat/completions"))), purpose="batch")
    assert str(pending.status) == "pending"
    with pytest.raises(openai.BadRequestError) as early:
        azure.batches.create(input_file_id=pending.id, endpoint=CHAT, completion_window="24h")
    said(server_words(early.value))
    quick.control(batch_max_bytes=100)
    with pytest.raises(openai.APIStatusError) as caught:
        upload(asked, lines(2))
    assert caught.value.status_code == 413
    quick.control(batches=False)
    with pytest.raises(openai.NotFoundError) as without:
        asked.batches.list()
    said(server_words(without.value))
    for wire in ("openai", "azure", "v1"):
        with pytest.raises(openai.AuthenticationError):
            client(locked, wire, "sk-wrong").files.list()
        assert client(locked, wire, KEY).files.list().data == []
    assert quick.stats()["batches"] == 0


def test_a_request_with_an_error_spoils_no_other(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    batch = ended(asked, create(asked, [line("good"), line("bad", max_tokens="many"), line("streams", stream=True)]))
    assert (batch.status, counts(batch)) == ("completed", (3, 1, 2))
    assert [result["custom_id"] for result in read(asked, batch.output_file_id)] == ["good"]
    for result in read(asked, batch.error_file_id):
        assert (result["response"]["status_code"], result["error"]) == (400, None)
        assert result["response"]["body"]["error"]["code"] == "invalid_request"


def test_faults_of_lines(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    form = {"type": "json_schema", "json_schema": {"schema": {"properties": {"answer": {"type": "string"}}}}}

    def after(fault: str) -> tuple[tuple[int, int, int], str, str, int]:
        quick.control(batch_faults={fault: 1.0}, faults={"500": 1.0})
        quick.reset()
        batch = ended(asked, create(asked, [line("a", response_format=form)]))
        texts = [asked.files.content(name).text if name else "" for name in (batch.output_file_id, batch.error_file_id)]
        return counts(batch), texts[0], texts[1], quick.stats()["batch_requests"]

    for status, code in ((400, "content_filter"), (429, "rate_limit_exceeded"), (500, "server_error")):
        counted, output, errors, executed = after(str(status))
        response = json.loads(errors)["response"]
        assert (counted, output, executed, response["status_code"]) == ((1, 0, 1), "", 0, status)
        assert response["body"]["error"]["code"] == code
    assert after("missing") == ((1, 0, 0), "", "", 0)
    for fault, reason in (("malformed", "stop"), ("cut", "length"), ("refusal", "content_filter"), ("nousage", "stop")):
        counted, output, errors, executed = after(fault)
        body = json.loads(output)["response"]["body"]
        assert (counted, errors, executed) == ((1, 1, 0), "", 1)
        assert body["choices"][0]["finish_reason"] == reason and ("usage" in body) is (fault != "nousage")
        if fault in ("malformed", "cut"):
            with pytest.raises(ValueError):
                json.loads(body["choices"][0]["message"]["content"])
    _, output, _, executed = after("garbage")
    assert executed == 1 and '"custom_id":"a"' in output
    with pytest.raises(ValueError):
        json.loads(output)
    quick.control(batch_faults={"400": 0.5})
    assert 5 < counts(ended(asked, create(asked, lines(40))))[1] < 35


def test_fates_of_batches_that_end_early(quick: SimulatedTeacher) -> None:
    quick.control(batch_fates=["failed", "token_limit", "expired", "cancelled", "ok"])
    asked = client(quick)
    for code in ("invalid_json_line", "token_limit_exceeded"):
        batch = ended(asked, create(asked, lines(4)))
        assert batch.status == "failed" and batch.errors is not None and batch.errors.data
        assert batch.errors.data[0].code == code
    for status in ("expired", "cancelled"):
        batch = ended(asked, create(asked, lines(4)))
        assert (batch.status, counts(batch)) == (status, (4, 2, 2))
        output, errors = (read(asked, name) for name in (batch.output_file_id, batch.error_file_id))
        assert {result["custom_id"] for result in output + errors} == {"r0", "r1", "r2", "r3"} and len(output) == 2
        assert {(result["response"], result["error"]["code"]) for result in errors} == {(None, f"batch_{status}")}
    assert ended(asked, create(asked, lines(4))).status == "completed"
    assert (quick.control()["batch_fates"], quick.stats()["batch_requests"]) == ([], 8)


def test_fates_of_calls(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    quick.control(batch_fates=["upload500", "create500", "createdrop", "poll500", "download_drop"])
    with pytest.raises(openai.InternalServerError):
        upload(asked, lines(2))
    for kind, name in ((openai.InternalServerError, "one"), (openai.APIConnectionError, "two")):
        with pytest.raises(kind):
            create(asked, lines(2), metadata={"name": name})
        made = asked.batches.list(limit=1).data[0]
        assert made.metadata == {"name": name} and ended(asked, made).status == "completed"
    batch = create(asked, lines(2))
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            asked.batches.retrieve(batch.id)
    assert ended(asked, batch).status == "completed"
    batch = ended(asked, create(asked, lines(2)))
    with pytest.raises(openai.APIConnectionError):
        read(asked, batch.output_file_id)
    assert len(read(asked, batch.output_file_id)) == 2
    assert (quick.stats()["batches"], quick.stats()["batch_files"]) == (4, 4)


@pytest.mark.slow
def test_answers_are_billed_when_they_are_there_and_a_reset_gives_batches_up(server: SimulatedTeacher) -> None:
    asked = client(server)
    for progressive in (False, True):
        server.control(batch_seconds=3, batch_progressive=progressive)
        server.reset()
        batch = create(asked, lines(40))
        time.sleep(0.5)
        done = server.stats()["batch_requests"]
        assert 1 <= done < 20 if progressive else done == 0
        batch = asked.batches.retrieve(batch.id)
        assert batch.status == "in_progress" and done <= counts(batch)[1] <= done + 3
    server.reset()
    time.sleep(0.2)
    assert server.stats()["batch_requests"] == 0


@pytest.mark.slow
def test_cancelling(server: SimulatedTeacher) -> None:
    server.control(batch_fates=["stuck", "ok"], batch_seconds=0.1)
    asked = client(server)
    batch = create(asked, lines(4))
    time.sleep(0.2)
    assert asked.batches.retrieve(batch.id).status == "in_progress"
    assert asked.batches.cancel(batch.id).status == "cancelling"
    batch = ended(asked, batch)
    assert (batch.status, counts(batch), batch.output_file_id) == ("cancelled", (4, 0, 4), None)
    assert {result["error"]["code"] for result in read(asked, batch.error_file_id)} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        asked.batches.cancel(batch.id)
    server.control(batch_progressive=True, batch_seconds=0.8)
    batch = create(asked, lines(40))
    while server.stats()["batch_requests"] < 10:
        time.sleep(0.005)
    asked.batches.cancel(batch.id)
    total, done, failed = counts(ended(asked, batch))
    assert (total, done + failed) == (40, 40) and 10 <= done < 35
    assert server.stats()["batch_requests"] == done
