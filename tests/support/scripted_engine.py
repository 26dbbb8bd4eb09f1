"""An engine for `dspy.LM` that writes fitting answers, or what a queue holds; and a recorder of its calls."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import dspy
from dspy.lm15 import Message, Request, Response, Usage, response_to_events

from refed_dspy.ledger.recorder import NullRecorder
from refed_dspy.records import Call

Answer: TypeAlias = str | Exception | Response | Callable[[Request], Any]

SAMPLE_FIELDS: dict[str, Any] = {
    "analysis": {
        "original_strengths": ["clear"],
        "improvement_opportunities": ["depth"],
        "relevant_feedback": ["tone"],
    },
    "implementation_strategy": {"planned_changes": ["add an example"], "rationale": "it helps"},
}

CRITERIA = [
    {"criterion": "Does the answer give a concrete example?", "weight": 3},
    {"criterion": "Does the answer say why each step is needed?", "weight": 2},
]


class Writer:
    """Answers each request by the fields its schema asks for. `queue` entries come first, in order.

    `per_call` is how many instructions a synthesis answer holds; `repeat` makes it write the same ones each time.
    """

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens"})

    def __init__(self, *queue: Answer, per_call: int = 10, repeat: bool = False) -> None:
        self.queue: deque[Answer] = deque(queue)
        self.per_call, self.repeat = per_call, repeat
        self.requests: list[Request] = []
        self.numbers = iter(range(1, 1_000_000))  # since Python 3.14 a count cannot be copied
        self.on_request: Callable[[Request], Answer | None] = lambda request: None

    def fields(self, request: Request) -> list[str]:
        format_ = request.config.response_format or {}
        return list(format_["schema"]["properties"])

    def write(self, request: Request) -> str:
        """A JSON answer that fits the request's schema."""
        answer = {name: self._value(name) for name in self.fields(request)}
        return json.dumps(answer)

    def _value(self, name: str) -> Any:
        if name == "new_instructions":
            return [f"Task {i if self.repeat else next(self.numbers)}: do it." for i in range(self.per_call)]
        if name == "criteria":
            return CRITERIA
        return SAMPLE_FIELDS.get(name) or f"{name} number {next(self.numbers)}"

    def answer(self, request: Request) -> Response:
        self.requests.append(request)
        answer: Any = self.queue.popleft() if self.queue else self.on_request(request)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Response):
            return answer
        return response(answer if answer is not None else self.write(request))

    # The two engines that dspy.LM asks for.
    def complete(self, request: Request) -> Response:
        return self.answer(request)

    @property
    def asynchronous(self) -> AsyncWriter:
        return AsyncWriter(self)


class AsyncWriter:
    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    async def complete(self, request: Request) -> Response:
        return self.writer.answer(request)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        for event in response_to_events(self.writer.answer(request)):
            yield event


class CallCollector(NullRecorder):
    """A recorder that allows everything and keeps the calls reported to it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def report(self, call: Call) -> None:
        self.calls.append(call)


def response(text: str, finish_reason: Any = "stop") -> Response:
    return Response(
        id="r",
        model="fake",
        message=Message.assistant(text) if text else Message.assistant(" "),
        finish_reason=finish_reason,
        usage=Usage(input_tokens=100, output_tokens=20),
    )


def fake_lm(writer: Writer, name: str = "fake/model", **settings: Any) -> dspy.LM:
    """A `dspy.LM` whose engine is `writer`."""
    return dspy.LM(name, engine=writer, async_engine=writer.asynchronous, num_retries=0, cache=False, **settings)


def references(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Explain topic {i}.", "response": f"Topic {i} is about {i} things."} for i in range(count)]


def question_of(request: Request) -> str:
    """What two requests share if they are the same question."""
    return f"{request.system}\n{request.messages}"


def spoil_first(writer: Writer, field: str, answer: Answer = "no JSON") -> list[str]:
    """Have the first question for `field` answered so, however often it is asked. All questions for it, in order."""
    asked: list[str] = []

    def spoilt(request: Request) -> Answer | None:
        if field not in writer.fields(request):
            return None
        asked.append(question_of(request))
        return answer if asked[-1] == asked[0] else None

    writer.on_request = spoilt
    return asked


class Killed(BaseException):
    """Stands for the process going away in the middle of a call."""


def killed_at(number: int) -> Writer:
    """A writer whose process goes away at this request."""
    writer = Writer()

    def go_away(request: Request) -> None:
        if len(writer.requests) >= number:
            raise Killed

    writer.on_request = go_away
    return writer
