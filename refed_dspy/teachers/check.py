"""Whether a teacher works: two small requests through its own engine, as a run's go, and what they show of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated

import dspy
from dspy.clients.errors import wrap_error
from dspy.lm15 import LM15Error, Message, Request, Response
from dspy.utils.exceptions import LMError

from refed_dspy.config.teacher import TeacherConfig, is_unsent, takes_zero
from refed_dspy.errors import ExportError, TeacherError, TeacherRefused
from refed_dspy.ledger.recorder import NullRecorder, calls_kept_by
from refed_dspy.programs.adapter import SchemaAdapter, messages_of, rendering
from refed_dspy.programs.asking import about
from refed_dspy.programs.fast_path import lm_request
from refed_dspy.programs.reasoning import reasoning_of
from refed_dspy.records import PICO, AtMost, Call
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.prices import Price, in_batches, table_name, table_window
from refed_dspy.teachers.recorded import recorded_lm
from refed_dspy.teachers.requests import learned_file, remember
from refed_dspy.teachers.route import LOCAL_PROVIDERS, Dialect
from refed_dspy.teachers.teacher import NO_BATCHES, Teacher, at_once, open_teacher

Tell = Callable[[str, str], None]
"""Takes the name of a finding and the finding."""
PROSE = "Explain in about 100 words why bread rises."
_SCHEMAS = {
    "bounded": "accepted, with length bounds; the answer fits",
    "strict": "accepted, without length bounds; the answer fits",
    "none": "not sent; the answer fits anyway",
}


class Fruit(dspy.Signature):
    """Name three fruits of this colour, and say in one sentence what else they have in common."""

    colour: str = dspy.InputField()
    fruits: Annotated[list[Annotated[str, AtMost(40)]], AtMost(5)] = dspy.OutputField()
    sentence: Annotated[str, AtMost(400)] = dspy.OutputField()


@dataclass
class CallList(NullRecorder):
    """A recorder that allows everything and keeps the calls."""

    calls: list[Call] = field(default_factory=list)

    def report(self, call: Call) -> None:
        self.calls.append(call)


@contextmanager
def calls_listed() -> Iterator[CallList]:
    """The calls of the block. A TeacherError before the first answer is a TeacherRefused: nothing was paid for."""
    with calls_kept_by(recorder := CallList()):
        try:
            yield recorder
        except TeacherError as error:
            if any(call.outcome == "ok" for call in recorder.calls):
                raise
            raise TeacherRefused(str(error)) from error


async def check(config: TeacherConfig, tell: Tell) -> list[Call]:
    """Make the two requests, and `tell` what they show, one finding after another. What the endpoint refused is
    remembered for later runs. Returns the calls.

    Raises:
        ModelError: it cannot be used with its settings; nothing was sent.
        RowError, TeacherError: it does not work, in the endpoint's own words.
    """
    teacher = at_once(open_teacher(config))
    async with teacher.running() as engine:
        assert isinstance(engine, TeacherEngine)
        engine.outgoing.forget()
        names = engine.route.key_env
        tell("key", f"read from {', '.join(names)}" if names else "none is sent")
        adapter = SchemaAdapter()
        messages = messages_of(adapter, Fruit, [], {"colour": "red"})
        request = lm_request(recorded_lm(teacher, engine), messages, rendering(Fruit).typed_format)
        with calls_listed() as recorder, about("check", teacher.model):
            first = await _answer(engine, request)
            tell("model", f"{teacher.model} answers{_other_name(config, first)}")
            adapter.parsed(Fruit, first.text or "")
            tell("schema", _SCHEMAS[engine.outgoing.dialect.schema])
            second = await _answer(engine, _in_prose(request, config))
        for name, finding in _findings(config, teacher, engine.outgoing.dialect):
            tell(name, finding)
        tell("batches", await _batches(engine))
        tell("thinking", _thinking(recorder.calls, first, second))
        tell("speed", _speed(recorder.calls[-1]))
        if kept := _kept(engine):
            tell("remembered", kept)
    return recorder.calls


def _findings(config: TeacherConfig, teacher: Teacher, dialect: Dialect) -> Iterator[tuple[str, str]]:
    yield "temperature", _temperature(config, dialect)
    if dialect.tokens_field is not None:
        yield "max_tokens", f"sent as {dialect.tokens_field}"
    yield "price", _price(teacher.price)
    yield "window", _window(config, teacher)


def _kept(engine: TeacherEngine) -> str:
    """Remember what the endpoint refused. Returns what to say of it; empty where it refused nothing."""
    outgoing, config = engine.outgoing, engine.config
    if config.without_endpoint:
        return ""
    try:
        remember(config, engine.route.endpoint, outgoing.dialect if outgoing.refused else None)
    except ExportError as error:
        return f"nothing: {error}"
    return f"refusals noted for later runs in {learned_file()}" if outgoing.refused else ""


async def _answer(engine: TeacherEngine, request: Request) -> Response:
    try:
        return await engine.complete(request)
    except LM15Error as error:
        raise wrap_error(error, model=request.model) from error


def _in_prose(request: Request, config: TeacherConfig) -> Request:
    """A request of the same kind without a schema; at temperature 0, as a judge's are, where the model may take it."""
    zero = takes_zero(str(config.model), config.params)
    settings = replace(request.config, response_format=None, temperature=0.0 if zero else request.config.temperature)
    return replace(request, system=None, messages=(Message.user(PROSE),), config=settings)


def _other_name(config: TeacherConfig, answer: Response) -> str:
    same = config.without_endpoint or answer.model in {None, "", str(config.model).partition("/")[2]}
    return "" if same else f" (it calls itself {answer.model})"


def _temperature(config: TeacherConfig, dialect: Dialect) -> str:
    if not dialect.temperature:
        return "refused, so none is sent"
    model, params = str(config.model), config.params
    asked = dict.fromkeys([config.temperature, *([0.0] if takes_zero(model, params) else [])])
    sent = [f"{temperature:g}" for temperature in asked if not is_unsent(temperature, model, params)]
    taken = f"{' and '.join(sent)} {'are' if len(sent) > 1 else 'is'} taken"
    return taken if sent else "not sent to models of this name"


def _thinking(calls: list[Call], *answers: Response) -> str:
    tokens = sum(call.reasoning_tokens or 0 for call in calls)
    if any(map(reasoning_of, answers)):
        return "separate from the answer" + (f", {tokens} tokens" if tokens else "")
    return f"{tokens} tokens, not shown" if tokens else "none seen"


async def _batches(engine: TeacherEngine) -> str:
    """Whether there is a Batch API for `mode: batch`, and what a call costs there."""
    if engine.config.without_endpoint or engine.route.provider in {*NO_BATCHES, *LOCAL_PROVIDERS}:
        return "none that mode: batch can use"
    from refed_dspy.teachers.batch.service import open_service

    service = open_service(engine.config, engine.route, patience=5)
    try:
        if not await service.exists():
            return "none at this address"
    except LMError as error:
        return f"unknown: {error}"
    finally:
        await service.aclose()
    price = in_batches(engine.config, engine.price)
    return f"taken with mode: batch, within a day{f', at {_price(price)}' if price else ''}"


def _price(price: Price | None) -> str:
    if price is None:
        return "unknown: set `price` in the teacher's settings; max_cost needs it"
    rates, million = price.rates, 10**6 / PICO
    if not rates.completion and not rates.prompt:
        return f"nothing ({price.source})"
    dollars = f"${rates.prompt * million:g} read, ${rates.completion * million:g} written"
    return f"{dollars}, per million tokens ({price.source})"


def _window(config: TeacherConfig, teacher: Teacher) -> str:
    if teacher.window is not None:
        return f"{teacher.window:,} tokens (settings)"
    provider = teacher.model.partition("/")[0]
    own = config.api_base is None and provider not in LOCAL_PROVIDERS  # else the server's settings say it
    window = table_window(teacher.model) if own else None
    return f"{window:,} tokens ({table_name()})" if window else "unknown: set context_window in the teacher's settings"


def _speed(call: Call) -> str:
    if not call.completion_tokens:
        return f"an answer in {call.seconds:.1f} s; it does not report tokens"
    rate = call.completion_tokens / max(call.seconds, 0.001)
    return f"{rate:,.{0 if rate >= 10 else 1}f} tokens/s: {call.completion_tokens} in {call.seconds:.1f} s"
