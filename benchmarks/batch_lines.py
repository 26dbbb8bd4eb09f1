"""Lines of batch files: how the simulated services read those of input files, and how OpenAI's writes the results."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson

from benchmarks.wires import OPENAI, OpenAI

SHOWN = 50  # errors listed for a refused file, at most
YIELD = 200  # lines read before the event loop serves other requests
# What the two services call the same mistake.
AZURE_CODES = {"mismatched_model": "model_mismatch", "invalid_url": "url_mismatch"}


@dataclass(slots=True)
class Line:
    """One request of a batch. `number` is its place among them."""

    custom_id: str
    body: dict[str, Any]
    number: int = 0


class Reading:
    """An input file as the service validates it: its requests, or the errors that make the whole batch fail.

    A line that is not JSON, lacks a field, repeats a custom_id, or names another model or URL fails the batch, as does
    a file that is empty or has more than `most` requests. A mistake inside a body fails only that request.
    """

    def __init__(self, wire: OpenAI, endpoint: str, most: int | None) -> None:
        self.wire = wire
        self.endpoint = endpoint
        self.most = most
        self.lines: list[Line] = []
        self.errors: list[dict[str, Any]] = []
        self.names: set[str] = set()
        self.model = ""

    async def read(self, data: bytes) -> None:
        for number, raw in enumerate(data.splitlines(), 1):
            if number % YIELD == 0:
                await asyncio.sleep(0)
            if raw.strip():
                self.line(number, raw)
        if not self.lines and not self.errors:
            self.wrong("empty_file", "The input file has no requests.")
        if self.most is not None and len(self.lines) > self.most:
            message = f"The input file has {len(self.lines)} requests; a batch takes {self.most}."
            self.wrong("too_many_tasks", message)

    def wrong(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        if self.wire is not OPENAI:
            code = AZURE_CODES.get(code, code)
        if len(self.errors) < SHOWN:
            self.errors.append({"code": code, "line": line, "message": message, "param": param})

    def line(self, number: int, raw: bytes) -> None:
        try:
            sent = orjson.loads(raw)
        except ValueError:
            sent = None
        if not isinstance(sent, dict):
            self.wrong("invalid_json_line", "This line is not a JSON object.", number)
            return
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if not isinstance(sent.get(name), kind):
                self.wrong("missing_required_parameter", f"A request needs '{name}'.", number, name)
                return
        custom, body = sent["custom_id"], sent["body"]
        if custom in self.names:
            self.wrong("duplicate_custom_id", f"The custom_id '{custom}' is in an earlier line.", number, "custom_id")
        self.names.add(custom)
        if sent["method"] != "POST":
            self.wrong("invalid_method", f"The method is '{sent['method']}'; it must be POST.", number, "method")
        if sent["url"] != self.endpoint:
            message = f"The url '{sent['url']}' is not the batch's endpoint '{self.endpoint}'."
            self.wrong("invalid_url", message, number, "url")
        self.check_model(number, body.get("model"))
        self.lines.append(Line(custom, body))

    def check_model(self, number: int, model: Any) -> None:
        """Check that the model exists (first request) and that every later request names the same one."""
        if not isinstance(model, str) or not model:
            self.wrong("missing_required_parameter", "A request needs a model.", number, "body.model")
        elif not self.model:
            self.model = model
            if model.startswith("missing"):
                self.wrong("model_not_found", f"The model '{model}' is not there for batches.", number, "body.model")
        elif model != self.model:
            message = f"The model '{model}' is not that of the first request, '{self.model}'."
            self.wrong("mismatched_model", message, number, "body.model")


def answered(line: Line, status: int, body: dict[str, Any]) -> bytes:
    """The result line of a request that was answered, with an error or without."""
    response = {"status_code": status, "request_id": uuid4().hex, "body": body}
    return _written(line, response, None)


def unreached(line: Line, code: str, message: str) -> bytes:
    """The result line of a request that the batch did not get to."""
    return _written(line, None, {"code": code, "message": message})


def _written(line: Line, response: Any, error: Any) -> bytes:
    made = {"id": f"batch_req_{uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": error}
    return orjson.dumps(made)
