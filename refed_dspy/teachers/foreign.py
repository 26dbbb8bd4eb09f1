"""A caller's own language model: its settings where it can be asked as any teacher is, else an engine around it, whose
calls are recorded and priced, and under no cap."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import dspy
from dspy.lm15 import (
    Config,
    Message,
    Request,
    Response,
    TextPart,
    UnsupportedFeatureError,
    Usage,
    request_from_openai_chat,
)

from refed_dspy.config.keys import checked, held
from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError, ModelError, RefedError, one_line
from refed_dspy.ledger.recorder import current_recorder
from refed_dspy.programs.adapter import only_in_threads
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused
from refed_dspy.programs.question import takes_cut
from refed_dspy.records import Call
from refed_dspy.teachers.outcomes import in_text, outcome_of
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.route import is_known, key_variable
from refed_dspy.teachers.usage import reasoning_tokens, used_tokens, whole
from refed_dspy.teachers.vendored import CLIENT_KEYS, message_to_dict

_NOT_SENT = {*CLIENT_KEYS, "rollout_id", "n"}
"""Settings of an LM that are about its connection, or about how often it is asked."""
_FIELDS = [field.name for field in fields(Config)]
_READ = {
    *("api_key", "api_base", "base_url", "api_version", "timeout", "num_retries", "rollout_id"),
    *("temperature", "max_tokens", "max_completion_tokens"),
}
"""Settings of an LM that a teacher has fields for. All others are its `params`."""
_BASES = ("OPENAI_API_BASE", "OPENAI_BASE_URL")
"""Variables that DSPy reads the address of OpenAI's models from."""


class AskedInItsWay(RefedError):
    """A language model must be asked itself. The message says why."""


def read_lm(lm: dspy.BaseLM) -> TeacherConfig:
    """The settings of a `dspy.LM`, with which it is asked as any other teacher: retries, rate limits and caps are ours.

    Where it has no `max_tokens`, those of any teacher are asked for. Raises AskedInItsWay where its calls would not be
    the same, and ModelError for a key that no header can hold, or a `rollout_id`.
    """
    if reason := _asked_otherwise(lm):
        raise AskedInItsWay(reason)
    given = {name: value for name, value in lm.kwargs.items() if value is not None}
    if given.get("rollout_id"):
        raise ModelError("a dspy.LM with a rollout_id gives one answer for all; pass it in a predictor's config")
    provider = lm.model.partition("/")[0] if "/" in lm.model else "openai"
    base = given.get("api_base") or given.get("base_url")
    if base is None and provider == "openai":
        base = next((os.environ[name] for name in _BASES if os.environ.get(name)), None)
    key, variable = given.get("api_key"), key_variable(lm.model)
    if key:
        variable = held(checked(str(key), "api_key"), provider)
    settings = {
        "model": lm.model if "/" in lm.model else f"openai/{lm.model}",
        "api_base": base and str(base),
        "api_key_env": variable if key or (base and variable and os.environ.get(variable)) else None,
        "api_version": given.get("api_version"),
        "temperature": given.get("temperature"),
        "max_tokens": given.get("max_tokens") or given.get("max_completion_tokens"),
        "timeout": given.get("timeout"),
        "retries": lm.num_retries,
        "params": {name: value for name, value in given.items() if name not in _READ},
    }
    try:
        return check_config(TeacherConfig, settings)
    except ConfigError as error:
        raise AskedInItsWay(str(error)) from None


def _asked_otherwise(lm: dspy.BaseLM) -> str:
    """Why `lm` must be asked itself; empty where its settings say all there is to know."""
    if type(lm) is not dspy.LM:
        return f"it is of a class of its own, {type(lm).__name__}"
    if lm.model_type != "chat":
        return f"it is no chat model, but of the type {lm.model_type}"
    if lm.engine != "auto" or lm.callbacks or lm.use_developer_role:
        return "it has an engine, callbacks or a developer role of its own"
    if sent := next((name for name in lm.kwargs if "header" in name or name in {"prompt_cache", "extra_body"}), None):
        return f"it is asked with {sent}"
    if not is_known(lm.model):
        return f"DSPy leaves {one_line(lm.model, 80)} to LiteLLM"
    return ""


class ForeignEngine:
    """The engine of a `dspy.LM` that retries by itself: each request is recorded as one call."""

    def __init__(self, lm: dspy.BaseLM, endpoint: str, price: Price | None) -> None:
        self._endpoint, self._price = endpoint, price
        self._own = _settings(lm)
        # DSPy leaves to LiteLLM whatever lm15 has no field for, unless the caller chose an engine.
        by_litellm = bool(self._own.get("extensions")) and getattr(lm, "engine", None) == "auto"
        self.lm: dspy.BaseLM = lm.copy(engine="litellm") if by_litellm else lm
        self.supports_response_schema = bool(lm.supports_response_schema)
        self.supported_params = frozenset(lm.supported_params)

    async def complete(self, request: Request) -> Response:
        """The whole answer. Raises LMError, AnswerCut, AnswerRefused, and whatever the recorder raises."""
        recorder = current_recorder.get()
        number = await recorder.reserve(self.lm.model, self._endpoint, None)
        started, usage, outcome = time.monotonic(), Usage(), "error"
        try:
            response = await self._answer(request)
            usage, outcome = response.usage or usage, outcome_of(response)
        finally:
            recorder.report(self._call(outcome, round(time.monotonic() - started, 3), usage, number))
        if outcome == "cut" and not takes_cut():
            raise AnswerCut("cut at the token limit; raise max_tokens in the LM's settings")
        if outcome == "refused":
            raise AnswerRefused("declined by the model or its content filter")
        return response

    async def _answer(self, request: Request) -> Response:
        with _unobserved():
            return await in_text(await self.lm.acall(request=self._fitted(request)))

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
        price, cost = self._price, None
        if price is not None and prompt is not None and completion is not None:
            cost = price.cost(prompt, cached or 0, written or 0, completion)
        return Call(
            self.lm.model, self._endpoint, outcome, seconds, prompt, cached, completion, cost, number,
            reasoning_tokens(usage),
        )  # fmt: skip


class MessagesEngine(ForeignEngine):
    """The engine of a language model that takes no explicit request: text completion, or a class of the caller's that
    implements `forward`. Whether its answer was cut is not known."""

    async def _answer(self, request: Request) -> Response:
        messages = [{"role": message.role, "content": text_of(message)} for message in request.messages]
        if isinstance(request.system, str):
            messages.insert(0, {"role": "system", "content": request.system})
        with _unobserved(), dspy.track_usage() as tracker:
            first = (await self._asked(messages=messages, **self._others(request.config)))[0]
        tokens: dict[str, Any] = next(iter(tracker.get_total_tokens().values()), {})
        usage = Usage(
            input_tokens=whole(tokens.get("prompt_tokens")), output_tokens=whole(tokens.get("completion_tokens"))
        )
        text = str((first.get("text") if isinstance(first, dict) else first) or "")
        message = Message.assistant(text or " ")
        return await in_text(Response(id="-", model=self.lm.model, message=message, finish_reason="stop", usage=usage))

    @property
    def _asked(self) -> Callable[..., Awaitable[Any]]:
        """The model from an event loop; in a thread, where its class has nothing but `forward`."""
        ask: Callable[..., Awaitable[Any]] = dspy.asyncify(self.lm) if only_in_threads(self.lm) else self.lm.acall
        return ask

    def _others(self, config: Config) -> dict[str, Any]:
        """The settings of a request that are not the model's own."""
        given = {name: getattr(config, name) for name in ("temperature", "max_tokens", "top_p")}
        return {name: value for name, value in given.items() if value not in {None, self.lm.kwargs.get(name)}}


def _unobserved() -> AbstractContextManager[Any]:
    """Callbacks and streams have each call once: where DSPy asks the recorded model, whose call this is a part of."""
    if not dspy.settings.callbacks and dspy.settings.send_stream is None:
        return nullcontext()
    context: AbstractContextManager[Any] = dspy.context(callbacks=[], send_stream=None)
    return context


def foreign_engine(lm: dspy.BaseLM, endpoint: str, price: Price | None) -> ForeignEngine:
    """The engine that fits a caller's own language model, which is at `endpoint`."""
    explicit = isinstance(lm, dspy.LM) and lm.model_type != "text"
    return (ForeignEngine if explicit else MessagesEngine)(lm, endpoint, price)


def text_of(message: Message) -> str:
    """A message's text; its parts as JSON where it has others."""
    first, *others = message.parts
    if isinstance(first, TextPart) and not others:
        text: str = first.text
        return text
    return json.dumps(message_to_dict(message), sort_keys=True)


def _settings(lm: dspy.BaseLM) -> dict[str, Any]:
    """The fields of a request's Config that the LM sets by itself: an explicit request would go without them."""
    given = {name: value for name, value in lm.kwargs.items() if name not in _NOT_SENT and value is not None}
    others = {name: value for name, value in given.items() if not _has_field(name, value)}
    config, unset = _config({name: value for name, value in given.items() if name not in others}), Config()
    own = {name: value for name in _FIELDS if (value := getattr(config, name)) != getattr(unset, name)}
    return own | ({"extensions": {**(config.extensions or {}), **others}} if others else {})


def _has_field(name: str, value: Any) -> bool:
    try:
        _config({name: value})
    except UnsupportedFeatureError:
        return False
    return True


def _config(settings: Mapping[str, Any]) -> Config:
    body = {**settings, "model": "-", "messages": [{"role": "user", "content": "-"}]}
    config: Config = request_from_openai_chat(body).config
    return config
