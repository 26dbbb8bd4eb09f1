"""A caller's own `dspy.LM` as an engine: its calls are reserved, recorded and priced like any teacher's."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dspy.clients.base_lm import BaseLM
from dspy.lm15 import Config, Request, Response, Usage, request_from_openai_chat

from refed_dspy.ledger.recorder import current_recorder
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused
from refed_dspy.records import Call
from refed_dspy.teachers.outcomes import as_text, outcome_of
from refed_dspy.teachers.route import used_tokens

if TYPE_CHECKING:
    from refed_dspy.teachers.teacher import Teacher

_CONNECTION_SETTINGS = frozenset(
    ["api_key", "api_base", "base_url", "api_version", "headers", "extra_headers", "timeout", "rollout_id", "n"]
)


class ForeignEngine:
    """The engine of a `dspy.LM` that retries by itself: each request is recorded as one call."""

    def __init__(self, lm: BaseLM, teacher: Teacher) -> None:
        self.lm, self.teacher = lm, teacher
        self.supports_response_schema = bool(lm.supports_response_schema)
        self.supported_params = frozenset(lm.supported_params)
        self._own = _settings(lm)

    async def complete(self, request: Request) -> Response:
        """The whole answer. Raises LMError, AnswerCut, AnswerRefused, and whatever the recorder raises."""
        recorder, teacher = current_recorder.get(), self.teacher
        number = await recorder.reserve(teacher.model, teacher.endpoint, None)
        started, usage, outcome = time.monotonic(), Usage(), "error"
        try:
            response = as_text(await self.lm.acall(request=self._fitted(request)))
            usage, outcome = response.usage or usage, outcome_of(response)
        finally:
            recorder.report(self._call(outcome, round(time.monotonic() - started, 3), usage, number))
        if outcome == "cut":
            raise AnswerCut("cut at the token limit: raise max_tokens in the LM's settings")
        if outcome == "refused":
            raise AnswerRefused("declined by the model or its content filter")
        return response

    def _fitted(self, request: Request) -> Request:
        """`request` with the LM's own settings where it has none, and without a schema that the LM does not take."""
        config = request.config
        given = {name: value for name, value in self._own.items() if getattr(config, name) in (None, ())}
        if config.response_format is not None and not self.supports_response_schema:
            plain = {"type": "json_object"} if "response_format" in self.supported_params else None
            given["response_format"] = plain
        return replace(request, model=self.lm.model, config=replace(config, **given))

    def _call(self, outcome: str, seconds: float, usage: Usage, number: int) -> Call:
        prompt, cached, written, completion = used_tokens(self.lm.model.partition("/")[0], usage)
        price, cost = self.teacher.price, None
        if price is not None and prompt is not None and completion is not None:
            cost = price.cost(prompt, cached or 0, written or 0, completion)
        return Call(
            self.teacher.model, self.teacher.endpoint, outcome, seconds, prompt, cached, completion, cost, number
        )


def _settings(lm: BaseLM) -> dict[str, Any]:
    """The fields of a request's Config that the LM sets by itself: an explicit request would go without them."""
    body = {name: value for name, value in lm.kwargs.items() if name not in _CONNECTION_SETTINGS and value is not None}
    body |= {"model": lm.model, "messages": [{"role": "user", "content": "-"}]}
    config = request_from_openai_chat(body).config
    return {field.name: value for field in fields(Config) if (value := getattr(config, field.name))}
