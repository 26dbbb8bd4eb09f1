"""Files and batches of the simulated server as the client of `google.genai` sees them, and as bytes."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import httpx2
import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY

genai = pytest.importorskip("google.genai")
errors, types = genai.errors, genai.types
CREATE = "/v1beta/models/sim-model:batchGenerateContent"
START = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
LAST = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}


def client(server: SimulatedTeacher, key: str = "k") -> Any:
    options = {"base_url": server.root, "api_version": "v1beta", "client_args": {"verify": False}}
    return genai.Client(api_key=key, http_options=options)


def raw(server: SimulatedTeacher, method: str, path: str, key: str = "k", **more: Any) -> httpx2.Response:
    headers = {"x-goog-api-key": key} | more.pop("headers", {})
    address = path if path.startswith("http") else f"{server.root}{path}"
    with httpx2.Client(verify=False) as asked:
        return asked.request(method, address, headers=headers, **more)


def one(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]} | more


def some(count: int) -> list[Any]:
    return [{"key": f"r{place}", "request": one(f"question {place}")} for place in range(count)]


def packed(requests: list[Any]) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests)


def upload(asked: Any, requests: list[Any]) -> Any:
    """Upload these lines. Returns the file once it is active."""
    config = {"mime_type": "application/jsonl", "display_name": "in.jsonl"}
    file = asked.files.upload(file=io.BytesIO(packed(requests)), config=config)
    while file.state == types.FileState.PROCESSING:
        time.sleep(0.01)
        file = asked.files.get(name=file.name)
    return file


def create(asked: Any, requests: list[Any], title: str = "a") -> Any:
    return asked.batches.create(model="sim-model", src=upload(asked, requests).name, config={"display_name": title})


def ended(asked: Any, batch: Any, seen: list[str] | None = None) -> Any:
    while batch.state.name in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
        if seen is not None and batch.state.name not in seen:
            seen.append(batch.state.name)
        time.sleep(0.01)
        batch = asked.batches.get(name=batch.name)
    return batch


def results(asked: Any, batch: Any) -> dict[str, Any]:
    """The result of each request of a file, by its key; answers are checked by the provider's type."""
    data = asked.files.download(file=batch.dest.file_name).decode()
    lines = [json.loads(line) for line in data.splitlines()]
    for line in lines:
        if "response" in line:
            types.GenerateContentResponse.model_validate_json(json.dumps(line["response"]), strict=True)
        else:
            types.JobError.model_validate_json(json.dumps(line["error"]), strict=True)
    return {line["key"]: line for line in lines}


@pytest.fixture
def quick(server: SimulatedTeacher) -> SimulatedTeacher:
    """The server with batches that end at once."""
    server.control(batch_seconds=0, response_words=5)
    return server


def test_a_batch_from_file_to_answers(server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0.8, response_words=5)
    asked = client(server)
    batch = create(asked, some(8))
    told = raw(server, "GET", f"/v1beta/{batch.name}").json()
    assert told["metadata"]["batchStats"] == {"requestCount": "8", "pendingRequestCount": "8"}
    assert (told["metadata"]["model"], "done" in told, "endTime" in told["metadata"]) == (
        "models/sim-model",
        False,
        False,
    )
    assert (batch.state.name, batch.display_name, batch.dest) == ("JOB_STATE_PENDING", "a", None)
    seen: list[str] = []
    batch = ended(asked, batch, seen)
    assert (seen, batch.state.name) == (["JOB_STATE_PENDING", "JOB_STATE_RUNNING"], "JOB_STATE_SUCCEEDED")
    found = results(asked, batch)
    assert list(found) == [f"r{place}" for place in range(8)]  # in the order of the requests
    usage = [line["response"]["usageMetadata"] for line in found.values()]
    told, stats = raw(server, "GET", f"/v1beta/{batch.name}").json(), server.stats()
    assert told["done"] and told["response"]["responsesFile"] == told["metadata"]["output"]["responsesFile"]
    assert told["metadata"]["batchStats"] == {"requestCount": "8", "successfulRequestCount": "8"}
    billed = [stats[f"batch_billed_{name}_tokens"] for name in ("prompt", "completion")]
    assert billed == [sum(use[f"{name}TokenCount"] for use in usage) for name in ("prompt", "candidates")]
    assert (stats["batches"], stats["batch_files"], stats["batch_requests"], stats["requests"]) == (1, 1, 8, 0)


def test_inline_requests_are_answered_in_the_operation(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    config = {"temperature": 0, "max_output_tokens": 3}
    sent = [{**one(f"q{n}"), "metadata": {"key": f"r{n}"}, "config": config} for n in range(3)]
    batch = ended(asked, asked.batches.create(model="sim-model", src=sent))
    found = batch.dest.inlined_responses
    assert [answer.metadata["key"] for answer in found] == ["r0", "r1", "r2"]
    assert {answer.response.usage_metadata.candidates_token_count for answer in found} == {3}
    assert [listed.dest for listed in asked.batches.list()] == [None]  # a list has no inline answers
    body = {"batch": {"display_name": "b", "input_config": {"requests": {"requests": [{"request": one()}] * 2}}}}
    told = raw(quick, "POST", CREATE, json=body).json()  # named as in protobuf, too
    assert told["metadata"]["displayName"] == "b"
    assert len(ended(asked, asked.batches.get(name=told["name"])).dest.inlined_responses) == 2


def test_repeats_are_seen_across_batches_and_calls(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    asked.models.generate_content(model="sim-model", contents="question 0")
    ended(asked, create(asked, some(3)))
    assert quick.stats()["batch_repeated"] == 1


def test_lists_are_newest_first_in_pages(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    made = [ended(asked, create(asked, some(1), str(n))).name for n in range(5)]
    pages = asked.batches.list(config={"page_size": 2})
    assert [batch.name for batch in pages.page] == made[:2:-1]
    assert [batch.name for batch in asked.batches.list(config={"page_size": 2})] == made[::-1]
    assert raw(quick, "GET", "/v1beta/batches?pageToken=none").status_code == 400
    asked.batches.delete(name=made[0])
    assert made[0] not in [batch.name for batch in asked.batches.list()]
    files = list(asked.files.list(config={"page_size": 3}))
    assert len(files) == 10 and {file.source.name for file in files} == {"UPLOADED", "GENERATED"}
    asked.files.delete(name=files[0].name)
    with pytest.raises(errors.ClientError) as caught:
        asked.files.get(name=files[0].name)
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")
    quick.reset()
    assert not list(asked.batches.list()) and not list(asked.files.list())


def begun(server: SimulatedTeacher, size: int, key: str = "k", **file: Any) -> httpx2.Response:
    headers = START | {"X-Goog-Upload-Header-Content-Length": str(size)}
    headers |= {"X-Goog-Upload-Header-Content-Type": "application/jsonl"}
    return raw(server, "POST", "/upload/v1beta/files", key, headers=headers, json={"file": file})


def test_an_upload_in_parts(quick: SimulatedTeacher, locked: SimulatedTeacher) -> None:
    data = packed(some(2))
    address = begun(quick, len(data), display_name="mine").headers["X-Goog-Upload-URL"]

    def part(command: str, offset: int, content: bytes) -> httpx2.Response:
        headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
        return raw(quick, "POST", address, headers=headers, content=content)

    assert part("upload", 0, data[:50]).headers["X-Goog-Upload-Status"] == "active"
    assert part("upload", 0, data[:50]).status_code == 400  # these are there already
    assert part("query", 0, b"").headers["X-Goog-Upload-Size-Received"] == "50"
    answer = part("upload, finalize", 50, data[50:])
    file = types.File.model_validate_json(json.dumps(answer.json()["file"]))
    assert answer.headers["X-Goog-Upload-Status"] == "final"
    assert (file.display_name, file.size_bytes, file.mime_type) == ("mine", len(data), "application/jsonl")
    assert file.state == types.FileState.PROCESSING and file.download_uri is None
    assert raw(quick, "GET", f"/download/v1beta/{file.name}:download?alt=media").status_code == 400  # uploads stay
    assert part("upload, finalize", 0, data).status_code == 404
    short = begun(quick, 9).headers["X-Goog-Upload-URL"]
    assert raw(quick, "POST", short, headers=LAST, content=b"12345").status_code == 400
    opened = begun(locked, 5, KEY).headers["X-Goog-Upload-URL"]  # which stands for the key
    assert raw(locked, "POST", opened, "", headers=LAST, content=b"12345").status_code == 200
    assert begun(locked, 5, "sk-wrong").status_code == 400
    quick.control(batch_max_bytes=100)
    assert begun(quick, 101).status_code == 400
    assert quick.stats()["batch_files"] == 1


def test_what_is_refused_at_once(quick: SimulatedTeacher) -> None:
    asked = client(quick)

    def refused(body: Any, path: str = CREATE) -> tuple[int, str]:
        answer = raw(quick, "POST", path, json=body)
        assert answer.json()["error"]["code"] == answer.status_code
        return answer.status_code, answer.json()["error"]["status"]

    def of(source: Any) -> dict[str, Any]:
        return {"batch": {"displayName": "a", "inputConfig": source}}

    wrong: list[Any] = [{}, {"batch": {}}, of({}), of({"requests": {"requests": []}}), of({"file": "files/x"})]
    wrong.append(of({"requests": {"requests": [{"request": {"max_tokens": 5}}]}}))
    wrong.append(of({"requests": {"requests": [{"request": one("x" * 21 * 1024**2)}]}}))
    for body in wrong:
        assert refused(body) == (400, "INVALID_ARGUMENT")
    assert refused(of({"fileName": "files/none"})) == (403, "PERMISSION_DENIED")
    inline = of({"requests": {"requests": [{"request": one()}]}})
    assert refused(inline, CREATE.replace("sim", "missing")) == (404, "NOT_FOUND")
    with pytest.raises(errors.ClientError) as caught:
        asked.batches.get(name="batches/none")
    assert caught.value.code == 404
    assert quick.stats()["batches"] == 0
    quick.control(batches=False)
    assert refused(inline) == (404, "NOT_FOUND")


def test_a_file_that_is_still_processed_cannot_be_used(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    for _ in range(20):  # it may be active by the time that it is used
        file = asked.files.upload(file=io.BytesIO(packed(some(1))), config={"mime_type": "application/jsonl"})
        answer = raw(quick, "POST", CREATE, json={"batch": {"inputConfig": {"fileName": file.name}}})
        if answer.status_code != 200:
            break
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_a_file_with_a_mistake_fails_the_batch(quick: SimulatedTeacher) -> None:
    quick.control(batch_max_requests=3)
    asked = client(quick)
    for requests in ([*some(1), b"{not json"], [{"key": "a"}], [b"[]"], [b"\n"], some(4)):
        batch = ended(asked, create(asked, requests))
        told = raw(quick, "GET", f"/v1beta/{batch.name}").json()
        assert (batch.state.name, batch.dest, told["error"]["code"]) == ("JOB_STATE_FAILED", None, 3)
        assert told["done"] and "response" not in told
    assert ended(asked, create(asked, some(3))).state.name == "JOB_STATE_SUCCEEDED"
    assert quick.stats()["batch_requests"] == 3


def test_a_request_with_a_mistake_spoils_no_other(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    lines = [{"key": "good", "request": one()}, {"key": "bad", "request": {"contents": []}}]
    lines.append({"key": "odd", "request": one(generationConfig={"max_tokens": 3})})
    batch = ended(asked, create(asked, lines))
    found = results(asked, batch)
    assert [(name, line.get("error", {}).get("code")) for name, line in found.items()] == [
        ("good", None),
        ("bad", 3),
        ("odd", 3),
    ]
    told = raw(quick, "GET", f"/v1beta/{batch.name}").json()["metadata"]["batchStats"]
    assert told == {"requestCount": "3", "successfulRequestCount": "1", "failedRequestCount": "2"}
    assert quick.stats()["batch_requests"] == 1


def test_faults_of_lines(quick: SimulatedTeacher) -> None:
    asked = client(quick)

    def after(fault: str) -> tuple[bytes, int]:
        quick.control(batch_faults={fault: 1.0})
        quick.reset()
        batch = ended(asked, create(asked, some(1)))
        return asked.files.download(file=batch.dest.file_name), quick.stats()["batch_requests"]

    for fault, code in (("400", 3), ("429", 8), ("500", 13)):
        data, executed = after(fault)
        assert (json.loads(data)["error"]["code"], executed) == (code, 0)
    assert after("missing") == (b"", 0)
    for fault, reason in (("refusal", "SAFETY"), ("cut", "MAX_TOKENS"), ("malformed", "STOP")):
        data, executed = after(fault)
        assert (json.loads(data)["response"]["candidates"][0]["finishReason"], executed) == (reason, 1)
    data, executed = after("garbage")
    assert executed == 1 and b'"key":"r0"' in data
    with pytest.raises(ValueError):
        json.loads(data)


def test_fates_of_batches_that_do_not_succeed(quick: SimulatedTeacher) -> None:
    quick.control(batch_fates=["failed", "token_limit", "expired", "cancelled", "ok"])
    asked = client(quick)
    assert ended(asked, create(asked, some(4))).state.name == "JOB_STATE_FAILED"
    with pytest.raises(errors.ClientError) as caught:
        create(asked, some(4))
    assert (caught.value.code, caught.value.status, quick.stats()["batches"]) == (429, "RESOURCE_EXHAUSTED", 1)
    for state, code in (("EXPIRED", 4), ("CANCELLED", 1)):
        batch = ended(asked, create(asked, some(4)))
        told = raw(quick, "GET", f"/v1beta/{batch.name}").json()
        assert (batch.state.name, batch.dest, told["error"]["code"]) == (f"JOB_STATE_{state}", None, code)
    assert {file.source.name for file in asked.files.list()} == {"UPLOADED"}  # nothing to retrieve
    assert ended(asked, create(asked, some(4))).state.name == "JOB_STATE_SUCCEEDED"
    assert quick.stats()["batch_requests"] == 8


def test_fates_of_calls(quick: SimulatedTeacher) -> None:
    asked = client(quick)
    data = packed(some(2))
    quick.control(batch_fates=["upload500", "create500", "createdrop", "poll500", "download_drop"])
    address = begun(quick, len(data)).headers["X-Goog-Upload-URL"]
    tries = [raw(quick, "POST", address, headers=LAST, content=data) for _ in range(2)]  # the same bytes again
    assert [answer.status_code for answer in tries] == [500, 200]
    for kind, title in ((errors.ServerError, "one"), (Exception, "two")):
        with pytest.raises(kind):
            create(asked, some(2), title)
        made = next(iter(asked.batches.list(config={"page_size": 1})))
        assert made.display_name == title and ended(asked, made).state.name == "JOB_STATE_SUCCEEDED"
    batch = create(asked, some(2))
    for _ in range(3):
        with pytest.raises(errors.ServerError):
            asked.batches.get(name=batch.name)
    ended(asked, batch)
    batch = ended(asked, create(asked, some(2)))
    with pytest.raises(httpx2.HTTPError):
        raw(quick, "GET", f"/download/v1beta/{batch.dest.file_name}:download?alt=media")
    assert len(results(asked, batch)) == 2
    assert (quick.stats()["batches"], quick.stats()["batch_files"]) == (4, 5)


def test_cancelling(server: SimulatedTeacher) -> None:
    server.control(batch_fates=["stuck"], batch_seconds=0.1)
    asked = client(server)
    batch = create(asked, some(4))
    asked.batches.cancel(name=batch.name)
    assert ended(asked, batch).state.name == "JOB_STATE_CANCELLED"
    with pytest.raises(errors.ClientError) as caught:
        asked.batches.cancel(name=batch.name)
    assert (caught.value.code, caught.value.status) == (400, "FAILED_PRECONDITION")
    assert server.stats()["batch_requests"] == 0
