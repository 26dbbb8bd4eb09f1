"""Gemini's generateContent as the simulated server speaks it: paths below /v1beta, errors as google.rpc has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from benchmarks.counts import Bucket
from benchmarks.wires import Chat, OpenAI, Refused, digest_of, most_of

MODELS = "/v1beta/models/"
METHOD = ":generateContent"
GENERATION = """
candidateCount enableEnhancedCivicAnswers frequencyPenalty imageConfig logprobs maxOutputTokens mediaResolution
presencePenalty responseFormat responseJsonSchema responseLogprobs responseMimeType responseModalities responseSchema
seed speechConfig stopSequences temperature thinkingConfig topK topP
""".split()  # noqa: SIM905
FIELDS = """
cachedContent contents generationConfig model safetySettings serviceTier store systemInstruction toolConfig tools
""".split()  # noqa: SIM905
STATUSES = {
    400: ("INVALID_ARGUMENT", 3),
    401: ("UNAUTHENTICATED", 16),
    403: ("PERMISSION_DENIED", 7),
    404: ("NOT_FOUND", 5),
    429: ("RESOURCE_EXHAUSTED", 8),
    500: ("INTERNAL", 13),
    503: ("UNAVAILABLE", 14),
}
"""HTTP status → the name and the number that google.rpc has for it."""
TYPE = "type.googleapis.com/google.rpc."


class Gemini(OpenAI):
    """Gemini's generateContent, with the model in the path. Fields may be named as in JSON or as in protobuf."""

    name = "gemini"
    failed = 503
    usage = "usageMetadata"
    missing = ("NOT_FOUND", "models/{} is not found for API version v1beta, or is not supported for generateContent.")
    reasons: Mapping[str, str] = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}

    def key(self, request: web.BaseRequest) -> str:
        return request.headers.get("x-goog-api-key") or request.query.get("key", "")

    def read(self, raw: bytes) -> Chat:
        body = orjson.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        sent = known(body, FIELDS, "")
        config = known(sent.get("generationConfig") or {}, GENERATION, " at 'generation_config'")
        contents = sent.get("contents")
        if not isinstance(contents, list) or not contents:
            raise ValueError("* GenerateContentRequest.contents: contents is not specified")
        if config.get("candidateCount", 1) != 1:
            raise ValueError("the simulated server knows no candidateCount above 1")
        system = _text(sent.get("systemInstruction") or {})
        turns = [(content.get("role", "user"), _text(content)) for content in contents]
        if any(role not in ("user", "model") for role, _ in turns):
            raise ValueError("Please use a valid role: user, model.")
        texts = [system, *(text for _, text in turns)]
        schema = config.get("responseJsonSchema") or lowered(config.get("responseSchema"))
        wanted = config.get("responseMimeType") == "application/json"
        if schema is not None and not wanted:
            raise ValueError("Unable to submit request because a response schema needs response_mime_type.")
        return Chat(
            model=str(sent.get("model") or "sim-model").removeprefix("models/"),
            texts=texts,
            text="".join(texts),
            system=system,
            digest=digest_of([system, turns]),
            fixed=config.get("temperature") == 0,
            most=most_of(config.get("maxOutputTokens")),
            form="json_object" if wanted else "",
            schema=schema,
            body=body,
        )

    def check(self, chat: Chat, request: web.BaseRequest) -> None:
        chat.model = model_of(request.raw_path.partition("?")[0], METHOD)

    def answer(self, number: int, chat: Chat, content: str, reason: str, spent: tuple[int, int, int]) -> dict[str, Any]:
        prompt, cached, completion = spent
        said: dict[str, Any] = {"finishReason": self.reasons[reason], "index": 0}
        if content:
            said["content"] = {"parts": [{"text": content}], "role": "model"}
        elif reason == "stop":
            said["content"] = {"role": "model"}
        usage: dict[str, Any] = {"promptTokenCount": prompt, "candidatesTokenCount": completion}
        usage |= {"totalTokenCount": prompt + completion, "cachedContentTokenCount": cached}
        usage = {name: count for name, count in usage.items() if count}  # as protobuf does, zeros are left out
        usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": prompt}]
        made = {"candidates": [said], "usageMetadata": usage, "modelVersion": chat.model}
        return made | {"responseId": f"sim{number:08x}"}

    def think(self, data: dict[str, Any], reasoning: str) -> None:
        content = data["candidates"][0].setdefault("content", {"role": "model"})
        content["parts"] = [{"text": reasoning, "thought": True}, *content.get("parts", [])]
        usage = data.get("usageMetadata", {})
        if written := usage.get("candidatesTokenCount"):
            thoughts = min(len(reasoning) // 4, written)
            usage |= {"candidatesTokenCount": written - thoughts, "thoughtsTokenCount": thoughts}

    def status(self, refused: Refused) -> int:
        """A wrong key is a bad request here, a blocked prompt an answer without a candidate."""
        if refused.code == "content_filter":
            return 200
        return 400 if refused.status in (401, 409, 413) else refused.status

    def error(self, refused: Refused) -> dict[str, Any]:
        if refused.code == "content_filter":
            return blocked(refused)
        code = self.status(refused)
        name, _ = STATUSES.get(code, ("UNKNOWN", 2))
        name = "FAILED_PRECONDITION" if refused.status == 409 else name
        error: dict[str, Any] = {"code": code, "message": refused.text, "status": name}
        if refused.code == "invalid_api_key":
            error["message"] = f"API key not valid. Please pass a valid API key. {refused.text}"
            details = {"@type": f"{TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            error["details"] = [details | {"metadata": {"service": "generativelanguage.googleapis.com"}}]
        elif after := (refused.headers or {}).get("Retry-After"):
            error["details"] = [{"@type": f"{TYPE}RetryInfo", "retryDelay": f"{after}s"}]
        return {"error": error}

    def status_of(self, refused: Refused) -> dict[str, Any]:
        """The google.rpc.Status of a request in a batch that was refused."""
        return {"code": STATUSES.get(self.status(refused), ("", 3))[1], "message": refused.text}

    def limits(self, bucket: Bucket) -> dict[str, str]:  # noqa: ARG002
        """Gemini says nothing of its limits in headers."""
        return {}


def blocked(refused: Refused) -> dict[str, Any]:
    """The answer to a prompt that the filter stopped."""
    usage = {"promptTokenCount": 1, "totalTokenCount": 1}
    reason = {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": refused.text}
    return {"promptFeedback": reason, "usageMetadata": usage}


def model_of(path: str, method: str) -> str:
    """The model that a path names; empty where the path is not one of a model and that method."""
    name = path.removeprefix(MODELS).removesuffix(method)
    return unquote(name) if path == f"{MODELS}{name}{method}" and "/" not in name else ""


def known(sent: Any, fields: list[str], where: str) -> dict[str, Any]:
    """An object with its fields named as in JSON. Raises ValueError for a field that the service does not have."""
    if not isinstance(sent, dict):
        raise ValueError(f"Invalid value{where}: an object is expected")
    named = {camel(name): value for name, value in sent.items()}
    for name in named:
        if name not in fields:
            raise ValueError(f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.')
    return named


def camel(name: str) -> str:
    """A field's name in JSON, from that or from the one in protobuf."""
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def lowered(schema: Any) -> Any:
    """A schema of OpenAPI's kind, whose types may be in capitals, with the types of JSON Schema."""
    if isinstance(schema, list):
        return [lowered(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: part.lower() if name == "type" and isinstance(part, str) else lowered(part)
        for name, part in schema.items()
    }


def _text(content: Any) -> str:
    return "".join(str(part.get("text", "")) for part in content.get("parts") or [])


GEMINI = Gemini()
