"""The providers' formats that the simulated server speaks: OpenAI's, Azure's two and Anthropic's. Gemini's is in
`benchmarks.wires_gemini`.

A wire finds the key, reads a request into a `Chat`, and builds answers, errors and rate-limit headers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote

import orjson
from aiohttp import web

from benchmarks.counts import Bucket

AZURE_VERSIONS = {"2024-06-01", "2024-10-21", "2025-01-01-preview", "2025-04-01-preview"}
UNFIT = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
FILTERED = "The response was filtered due to the prompt triggering content management policy."
REPEATED = "Cannot read the header Authorization: Bearer {}"
REFUSALS = {
    "400": ("unsupported_value", UNFIT),
    "filtered": ("content_filter", FILTERED),
    "keyerror": ("invalid_header", REPEATED),
}
"""Fault → code and message of a 400, into which the key goes where there is a place."""
NO_DEPLOYMENT = "The API deployment for this resource does not exist. Create it, or name one that is there."


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Refused(Exception):
    """A refusal: the error that a wire's `error` builds, or a page of HTML if `page`."""

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        headers: dict[str, str] | None = None,
        *,
        page: bool = False,
        param: str | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.text, self.headers, self.page = status, code, text, headers, page
        self.param = param


def fail(fate: str, status: int) -> NoReturn:
    """End a request as its fate says: without an answer, with an error of that status or with a page."""
    if fate == "drop":
        raise Dropped
    if fate == "500":
        raise Refused(status, "server_error", "The simulated server failed on purpose.")
    raise Refused(200 if fate == "html" else 502, "", "a page", page=True)


def reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = orjson.dumps(data)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


@dataclass(slots=True)
class Chat:
    """One chat request as read. `texts` are its messages' texts, `text` is all of them, `most` the max_tokens asked
    for, `form` the type of response_format, `body` the request."""

    model: str
    texts: list[str]
    text: str
    system: str
    digest: bytes
    fixed: bool
    most: int | None
    form: str
    schema: Any
    body: dict[str, Any]


class OpenAI:
    """OpenAI's chat completions, and what the other wires have in common with them."""

    name = "openai"
    failed = 500  # the status of the fault 500
    usage = "usage"  # where an answer says what it took
    missing = ("model_not_found", "The model `{}` does not exist.")

    def key(self, request: web.BaseRequest) -> str:
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        return key if kind == "Bearer" else ""

    def read(self, raw: bytes) -> Chat:
        """The request. Raises ValueError, KeyError, TypeError or AttributeError for a body that cannot be answered."""
        body, messages = _body(raw)
        if (body.get("n") or 1) != 1:
            raise ValueError("the simulated server knows no n above 1")
        texts = [_text(message.get("content")) for message in messages]
        roles = [message.get("role") for message in messages]
        form = body.get("response_format") or {}
        kind = form.get("type", "")
        return Chat(
            model=str(body.get("model") or "sim-model"),
            texts=texts,
            text="".join(texts),
            system="".join(t for t, r in zip(texts, roles, strict=True) if r in ("system", "developer")),
            digest=digest_of(messages),
            fixed=body.get("temperature") == 0,
            most=most_of(body.get("max_completion_tokens") or body.get("max_tokens")),
            form=kind,
            schema=form["json_schema"]["schema"] if kind == "json_schema" else None,
            body=body,
        )

    def admit(self, chat: Chat, request: web.BaseRequest) -> None:
        """Raises Refused for a missing version or model. A model whose name begins with "missing" is missing."""
        self.check(chat, request)
        self.exists(chat.model)

    def exists(self, model: str) -> None:
        """Raises Refused for a model that is missing."""
        if model.startswith("missing"):
            code, text = self.missing
            raise Refused(404, code, text.format(model))

    def check(self, chat: Chat, request: web.BaseRequest) -> None:
        """Read what a wire has outside the body; raises Refused where it is missing. OpenAI has nothing there."""

    def dated(self, request: web.BaseRequest) -> None:
        """Raises Refused unless the request names the version that the wire requires; OpenAI requires none."""

    def answer(self, number: int, chat: Chat, content: str, reason: str, spent: tuple[int, int, int]) -> dict[str, Any]:
        """The body of answer `number`; `spent` is its prompt, cached and completion tokens."""
        message = {"role": "assistant", "content": content, "refusal": None}
        prompt, cached, completion = spent
        return {
            "id": f"chatcmpl-{number:08x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": chat.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }

    def think(self, data: dict[str, Any], reasoning: str) -> None:
        """Put `reasoning` into an answer's body, beside its text."""
        data["choices"][0]["message"]["reasoning_content"] = reasoning
        if "usage" in data:
            data["usage"]["completion_tokens_details"] = {"reasoning_tokens": len(reasoning) // 4}

    def status(self, refused: Refused) -> int:
        """The HTTP status of a refusal."""
        return refused.status

    def error(self, refused: Refused) -> dict[str, Any]:
        if refused.code == "content_filter":
            inner = {"code": "ResponsibleAIPolicyViolation"}
            error = {"message": refused.text, "type": None, "param": "prompt", "code": refused.code}
            return {"error": error | {"status": refused.status, "innererror": inner}}
        kind = {429: "requests", 500: "server_error"}.get(refused.status, "invalid_request_error")
        return {"error": {"message": refused.text, "type": kind, "param": refused.param, "code": refused.code}}

    def limits(self, bucket: Bucket) -> dict[str, str]:
        """The rate-limit headers of one bucket."""
        shown = {"limit": int(bucket.per_minute), "remaining": int(bucket.left), "reset": f"{bucket.full():.3f}s"}
        return {f"x-ratelimit-{name}-{bucket.unit}": str(value) for name, value in shown.items()}


class AzureV1(OpenAI):
    """Azure OpenAI below /openai/v1: the deployment is named as the model of the body."""

    name = "azure-v1"
    missing = ("DeploymentNotFound", NO_DEPLOYMENT)

    def key(self, request: web.BaseRequest) -> str:
        return request.headers.get("api-key") or super().key(request)

    def error(self, refused: Refused) -> dict[str, Any]:
        if refused.status not in (401, 404, 429):
            return super().error(refused)
        code = refused.code if refused.code == "DeploymentNotFound" else str(refused.status)
        return {"error": {"code": code, "message": refused.text}}


class Azure(AzureV1):
    """Azure OpenAI with the deployment in the path and a dated version in the query."""

    name = "azure"

    def key(self, request: web.BaseRequest) -> str:
        return request.headers.get("api-key", "")

    def check(self, chat: Chat, request: web.BaseRequest) -> None:
        chat.model = unquote(request.raw_path.partition("?")[0].split("/")[3])
        self.dated(request)

    def dated(self, request: web.BaseRequest) -> None:
        versions = parse_qs(request.raw_path.partition("?")[2]).get("api-version", [])
        if len(versions) != 1 or versions[0] not in AZURE_VERSIONS:
            raise Refused(404, "404", "Resource not found")


class Anthropic(OpenAI):
    """Anthropic's messages; a schema comes as output_config.format (formerly output_format)."""

    name = "anthropic"
    failed = 529
    missing = ("model_not_found", "model: {}")  # which is all that Anthropic says
    reasons: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
    kinds: Mapping[int, str] = {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }

    def key(self, request: web.BaseRequest) -> str:
        return request.headers.get("x-api-key") or super().key(request)  # its client has come to send a bearer token

    def read(self, raw: bytes) -> Chat:
        body, messages = _body(raw)
        if not messages or any(message.get("role") not in ("user", "assistant") for message in messages):
            raise ValueError("messages: one or more, whose role is user or assistant")
        for name in ("model", "max_tokens"):
            if body.get(name) is None:
                raise ValueError(f"{name}: Field required")
        system = _text(body.get("system"))
        texts = [system, *(_text(message.get("content")) for message in messages)]
        form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return Chat(
            model=str(body["model"]),
            texts=texts,
            text="".join(texts),
            system=system,
            digest=digest_of([system, messages]),
            fixed=body.get("temperature") == 0,
            most=most_of(body["max_tokens"]),
            form="",
            schema=form["schema"] if form.get("type") == "json_schema" else None,
            body=body,
        )

    def check(self, chat: Chat, request: web.BaseRequest) -> None:  # noqa: ARG002
        self.dated(request)

    def dated(self, request: web.BaseRequest) -> None:
        if not request.headers.get("anthropic-version"):
            raise Refused(400, "invalid_request", "anthropic-version: header is required")

    def answer(self, number: int, chat: Chat, content: str, reason: str, spent: tuple[int, int, int]) -> dict[str, Any]:
        prompt, cached, completion = spent
        return {
            "id": f"msg_{number:08x}",
            "type": "message",
            "role": "assistant",
            "model": chat.model,
            "content": [{"type": "text", "text": content}] if content else [],
            "stop_reason": self.reasons[reason],
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt - cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "output_tokens": completion,
            },
        }

    def think(self, data: dict[str, Any], reasoning: str) -> None:
        data["content"].insert(0, {"type": "thinking", "thinking": reasoning, "signature": "sim"})

    def error(self, refused: Refused) -> dict[str, Any]:
        kind = self.kinds.get(refused.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": refused.text}}

    def limits(self, bucket: Bucket) -> dict[str, str]:
        reset = time.gmtime(math.ceil(time.time() + min(bucket.full(), 1e9)))
        shown = {"limit": int(bucket.per_minute), "remaining": int(bucket.left)}
        named = shown | {"reset": time.strftime("%Y-%m-%dT%H:%M:%SZ", reset)}
        return {f"anthropic-ratelimit-{bucket.unit}-{name}": str(value) for name, value in named.items()}


def _body(raw: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The body of a request and its messages."""
    body = orjson.loads(raw)
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("the body must be a JSON object with a list of messages")
    if body.get("stream"):
        raise ValueError("the simulated server knows no stream")
    return body, messages


def digest_of(messages: Any) -> bytes:
    """By which the same messages are known again."""
    return blake2b(orjson.dumps(messages), digest_size=16).digest()


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def most_of(asked: Any) -> int | None:
    """The most tokens asked for. Raises ValueError unless they are a whole number above 0, or None."""
    if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise ValueError(f"max_tokens must be a whole number above 0, not {asked!r}")
    return asked


def odd(usage: dict[str, Any], offset: int) -> dict[str, Any]:
    """Usage whose counts are strings, fractions or negative; which count gets which changes with `offset`."""
    spoil = (str, lambda count: count + 0.5, lambda count: -1 - count)
    counts = (key for key, value in usage.items() if isinstance(value, int))
    return {key: spoil[(offset + place) % 3](usage[key]) for place, key in enumerate(counts)}


OPENAI, AZURE_V1, AZURE, ANTHROPIC = OpenAI(), AzureV1(), Azure(), Anthropic()
