"""The recorded teacher: it answers from the ledger, and asks the teacher for the rest, so that none that is
recorded is paid for again.

A recorded answer is returned, a recorded final failure is raised again at no cost, and any other request is made; its
answer is committed before anyone sees it. Two requests are equal when model, sampling, settings, messages and
repetition are, whoever makes them.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from threading import Event
from typing import Any, TypeAlias

import dspy
from dspy.clients.errors import wrap_error
from dspy.lm15 import Config, LM15Error, Message, Request, Response, Usage, response_to_events
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.concurrency import aside
from refed_dspy.config.keys import without_keys
from refed_dspy.errors import (
    CapReached,
    ConfigError,
    CutAnswer,
    MalformedAnswer,
    NoConnection,
    RefedError,
    RefusedAnswer,
    RowError,
    RunStopped,
    TeacherError,
    TooLong,
    UnfitRequest,
)
from refed_dspy.ledger.history import ever_answered
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, RunRecorder, calls_kept_by
from refed_dspy.ledger.statements import Answer, Key, answered, failed, reused, shared
from refed_dspy.programs.fast_path import ByIdentity, DirectEngines, Engine
from refed_dspy.programs.lm_errors import in_transit, translated
from refed_dspy.programs.question import (
    Fit,
    Question,
    UnnamedStage,
    current_fit,
    current_question,
    current_repetition,
    repeated,
    repetition_of,
    rollout,
)
from refed_dspy.programs.reasoning import reasoning_of
from refed_dspy.records import Call, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy, Failures
from refed_dspy.teachers.foreign import text_of
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.vendored import config_to_dict, request_to_dict

_KINDS = {kind.kind: kind for kind in (MalformedAnswer, CutAnswer, RefusedAnswer, TooLong, UnfitRequest)}
_NO_USAGE = Usage()
BLOCKED = 30.0
"""Seconds for which an event loop that runs nothing is thought to be busy. After that it is waiting for us."""
Submit: TypeAlias = Callable[[Request], "Future[Response]"]
"""Has a request answered on the loop; called from any thread."""
_SENT = ("temperature", "max_tokens", "response_format")
"""The settings that a teacher's engine sends, of those that DSPy asks it for."""
FIRST_OF_SEVERAL = 1_000_000
"""Where the repetition numbers of a call for several answers begin: no `rollout_id` gets that high."""
_answer_numbers: ContextVar[Iterator[int] | None] = ContextVar("refed_several", default=None)
"""Numbers the answers of a call that wants several."""


class RecordedTeacher:
    """One model, asked through the ledger: an engine for DSPy. Several may share a ledger, a recorder and a progress.

    `reused_from`: the ledger of another run, whose answers count here too.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        teacher: Teacher,
        progress: Progress,
        policy: CallPolicy = CallPolicy(),  # noqa: B008 — it cannot change
        reused_from: Ledger | None = None,
        role: str = "teacher",
    ) -> None:
        self.ledger, self.recorder, self.progress, self.teacher = ledger, recorder, progress, teacher
        self.role = role
        """What the model is in this session, for messages."""
        self.engine: Engine | None = None
        """What sends its requests, while it runs."""
        self.seed, self.failures = policy.seed, Failures(role, policy, partial(ever_answered, ledger))
        self._reused_from = reused_from
        self.key = key_function(teacher.identity, teacher.settings)
        """Asked → its key in the ledger."""
        self._depth = policy.depth

    async def complete(self, request: Request) -> Response:
        """The recorded answer, or a new one, which is in the ledger by then. Raises LMError (`in_transit`)."""
        try:
            return response_of(self.teacher.model, await self.answer(Asked.now(request)))
        except RefedError as error:
            raise in_transit(error) from None

    async def answer(self, asked: Asked) -> Answer:
        """`complete` with this package's errors."""
        key = self.key(asked)

        async def first() -> Answer:
            return self.from_ledger(asked, key) or self.from_reused_run(asked, key) or await self.ask(asked, key)

        in_flight = key.digest in self.recorder.single_flight
        answer = await self.recorder.single_flight.share(key.digest, first)  # the same request is paid for once
        return (self.from_ledger(asked, key) if in_flight else None) or answer

    def _note_shared(self, key: Key) -> None:
        """Write down that another's answer was given to this item and stage, too."""
        self.recorder.group.post(shared(key))

    def from_ledger(self, asked: Asked, key: Key) -> Answer | None:
        """The answer that was paid for in this folder; None: there is none. Raises the RowError that is recorded."""
        if (answer := remembered(self.ledger, asked, key)) is None:
            return None
        if answer.asked_for != (key.item, key.stage):
            self._note_shared(key)
        return answer

    def from_reused_run(self, asked: Asked, key: Key) -> Answer | None:
        """The reused run's answer under this key, copied into this ledger; None: it has none, or no run is reused."""
        if self._reused_from is None or (found := self._reused_from.answer(key.digest)) is None:
            return None
        try:
            answer = asked.checked(without_keys(found.text), without_keys(found.reasoning))
        except MalformedAnswer:  # it was asked for with other bounds
            return None
        rows = [
            *answered(key, answer, self._reused_from.endpoint(key.digest), []),
            *self.recorder.recovered(key.digest),
        ]
        self.ledger.commit([*rows, *reused(key.digest, self.teacher.model)])
        return answer

    async def ask(self, asked: Asked, key: Key) -> Answer:
        """Ask the teacher. The answer or failure is in the ledger before this returns or raises."""
        if self.recorder.ended is not None:
            raise self.recorder.ended
        if self.recorder.stopping:
            raise asyncio.CancelledError
        if self.recorder.out_of_time:
            raise CapReached("max_minutes")
        self.progress.ask()
        # The call's seed: another for every key, the same again for the same run seed.
        rank = -self._depth.get(key.stage, len(self._depth))
        recorder = CallRecorder(self.recorder, key, rank, int(key.digest[:7], 16) ^ self.seed)
        try:
            with calls_kept_by(recorder):
                answer = await self._usable_answer(asked, recorder)
        except RowError as error:
            await self._failed(key, error, recorder)
            raise
        except BaseException:
            recorder.write()
            raise
        finally:
            self.progress.in_flight -= 1
            self._count(recorder.calls)
        self.failures.paid = True
        self.failures.answered(key.stage)  # before the wait: others fail meanwhile
        endpoint = recorder.calls[-1].endpoint if recorder.calls else self.teacher.endpoint  # it may have several
        rows = [*answered(key, answer, endpoint, recorder.take()), *self.recorder.recovered(key.digest)]
        await self.recorder.group.commit(rows)
        return answer

    async def _failed(self, key: Key, error: RowError, recorder: CallRecorder) -> None:
        """Record and count a request without an answer. Raises TeacherError where the endpoint is not there, and as
        `fail`."""
        if isinstance(error, NoConnection) and not self.failures.paid:
            raise self.failures.not_reached(error) from error
        await self.fail(key, error, recorder.take())

    async def fail(self, key: Key, error: RowError, calls: Sequence[Call] = ()) -> None:
        """The request ends with `error`. Raises as `Failures.failed` where too many did."""
        # A row that an earlier start saw refused may be at fault itself.
        again = isinstance(error, UnfitRequest) and key.digest in self.recorder.failed_before
        if not error.final:
            self.recorder.passing.add(key.digest)
        try:  # counted at once: calls that wait for a slot must hear of it before they begin
            if not again:
                self._count_failure(key.stage, error)
        finally:
            await self.recorder.group.commit(failed(key, error.kind, error.reason, error.final, calls))

    async def _usable_answer(self, asked: Asked, recorder: CallRecorder) -> Answer:
        """An answer that fits. Each try is paid for and recorded.

        Raises MalformedAnswer when the last try does not fit either, and as `Failures.failed` when too many did.
        """
        tries = 0
        while True:
            response = await self._ask_once(asked)
            try:
                return await aside(asked.reading(response), asked.answer_in, response)
            except MalformedAnswer as error:
                recorder.rename_last(error.kind)
                recorder.write()
                if tries == self.teacher.malformed_retries or self.recorder.stopping:
                    raise
                self._count_failure(asked.question.stage, error)
                tries += 1
                recorder.seed += 1

    async def _ask_once(self, asked: Asked) -> Response:
        """One try. Raises this package's errors."""
        assert self.engine is not None, "the teacher is not running"
        question = replace(asked.question, lm=self.teacher.lm)  # whose keys may be in a message
        try:
            return await self.engine.complete(asked.request)
        except LM15Error as error:
            wrapped = wrap_error(error, model=self.teacher.model)
            raise translated(wrapped, question) from wrapped
        except LMError as error:
            raise translated(error, question) from error

    def _count(self, calls: Iterable[Call]) -> None:
        tracker = dspy.settings.usage_tracker if self.teacher.lm is None else None  # DSPy itself counts for a `dspy.LM`
        for call in calls:
            if tracker is not None:
                used = {"prompt_tokens": call.prompt_tokens or 0, "completion_tokens": call.completion_tokens or 0}
                tracker.add_usage(self.teacher.model, used)
            self.failures.paid |= call.prompt_tokens is not None or call.outcome == "ok"
            self.progress.calls += 1
            self.progress.prompt_tokens += call.prompt_tokens or 0
            self.progress.completion_tokens += call.completion_tokens or 0
            if call.cost is None:
                self.progress.unpriced += 1
            self.progress.picodollars += call.cost or 0

    def _count_failure(self, stage: str, error: RowError) -> None:
        """Count a request that failed, or a try. Raises as `Failures.failed`."""
        self.progress.failed[error.kind] += 1
        try:
            self.failures.failed(stage, error)
        except (TeacherError, RunStopped) as ended:
            self.recorder.ended = ended
            raise


@dataclass(frozen=True)
class Asked:
    """A request, and what it is made for."""

    request: Request
    question: Question
    repetition: int = 0
    fit: Fit | None = None
    """What its answer must be; None where any text will do."""

    @classmethod
    def now(cls, request: Request) -> Asked:
        """`request` as it is made in this context."""
        question = current_question() or Question("", "")
        if isinstance(question, UnnamedStage):
            question = question.called_by(reversed(dspy.settings.caller_modules or ()))
        return cls(request, question, repetition_of(question.stage), current_fit())

    def reading(self, response: Response) -> float:
        """How long a text it takes to read the answer in `response` (`aside`)."""
        return math.inf if self.fit is not None and self.fit.slow else len(response.text or "")

    def answer_in(self, response: Response) -> Answer:
        """What the ledger keeps of a response. Raises MalformedAnswer."""
        return self.checked(response.text or "", reasoning_of(response))

    def checked(self, text: str, reasoning: str = "") -> Answer:
        """The answer with this text, for which the model had this `reasoning`. Raises MalformedAnswer."""
        # No database takes half a surrogate pair.
        text, reasoning = (each.encode("utf-8", "replace").decode() for each in (text, reasoning))
        if self.fit is None:
            return Answer(text, reasoning=reasoning)
        try:
            output, raw = self.fit.checked(text)
            return Answer(output, raw, reasoning)
        except AdapterParseError as error:
            raise translated(error, self.question) from None


def key_function(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> Callable[[Asked], Key]:
    """Asked → its key: a digest of a model with its sampling (`Teacher.identity`), of the request, of those settings
    that are not the model's own (`Teacher.settings`), and of the repetition. The endpoint is no part of it: a server
    may move."""
    sampling, own = digest(identity), tuple(settings.items())

    def key(asked: Asked) -> Key:
        request, question = asked.request, asked.question
        head = [sampling, _settings(ByIdentity(request.config), own), asked.repetition]
        if request.tools or isinstance(request.system, tuple):
            content = digest([head, request_to_dict(replace(request, model="any", config=Config()))])
        else:
            texts = [request.system or "", *map(text_of, request.messages)]
            roles = [message.role for message in request.messages]
            # The lengths keep apart where one text ends and the next begins.
            whole = "".join([f"{head} {roles} {list(map(len, texts))} ", *texts])
            content = sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Key(question.stage, question.item, asked.repetition, content)

    return key


@lru_cache(maxsize=512)
def _settings(config: ByIdentity, own: tuple[tuple[str, Any], ...]) -> str:
    """A digest of a request's settings but the model's `own`. The same object serves all calls of a signature, and a
    schema is long."""
    settings = config_to_dict(config.value)
    return digest({name: value for name, value in settings.items() if (name, value) not in own})


def remembered(ledger: Ledger, asked: Asked, key: Key) -> Answer | None:
    """The answer in `ledger`, or None where there is none. Raises the final RowError that is recorded instead."""
    if (answer := ledger.answer(key.digest)) is not None:
        return answer
    if (failure := ledger.failure(key.digest)) is not None:
        kind, reason, final = failure
        if final:
            raise _KINDS.get(kind, RowError)(asked.question.stage, asked.question.item, reason)
    return None


def response_of(model: str, answer: Answer) -> Response:
    """The answer as an endpoint would return it; the same whether it is new or recorded."""
    message = Message.assistant(answer.text or " ")
    return Response(id="ledger", model=model, message=message, finish_reason="stop", usage=_NO_USAGE)


# --- what programs see of it: a `dspy.LM`. DSPy's layers, or programs/fast_path.py past them, hand its requests to one
# of its two engines, and that has `RecordedTeacher.complete` answer on the event loop that it belongs to.


class RecordedLM(dspy.LM):
    """A `dspy.LM` whose answers are recorded. `recorded`: the caller's own LM behind it, where it is one.

    It asks for another answer to the same request if its `rollout_id` is another, whatever the temperature. That may
    come with a copy or with a call. A call for `n` answers numbers them.
    """

    recorded: Any = None
    of_teacher: Teacher | None = None
    """Whose answers it gives: named as the teacher of other work, it stands for that."""

    @property
    def direct_engines(self) -> DirectEngines | None:
        """The engines themselves, past DSPy's layers, for calls that nothing observes (programs/fast_path.py)."""
        waiting: BlockingEngine = self._engine_spec
        return DirectEngines(self._async_engine_spec, waiting) if waiting.supports_response_schema else None

    def __call__(self, *asked: Any, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with self._repeated(kwargs):
            return super().__call__(*asked, **kwargs)

    async def acall(self, *asked: Any, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with self._repeated(kwargs):
            return await super().acall(*asked, **kwargs)

    @contextmanager
    def _repeated(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """What a call with these arguments asks for, kept for its engine: which answer, or several of them."""
        several = int(kwargs.get("n") or self.kwargs.get("n") or 1) > 1
        token = _answer_numbers.set(itertools.count() if several else None)
        try:
            with repeated(rollout(kwargs, self.kwargs)):
                yield
        finally:
            _answer_numbers.reset(token)

    def _warn_zero_temp_rollout(self, temperature: float | None, rollout_id: Any) -> None:
        """Nothing to warn of: the repetition is part of the ledger's key at any temperature."""


def recorded_lm(teacher: Teacher, engine: Engine) -> RecordedLM:
    """The language model of `teacher`, whose requests `engine` answers on the running event loop."""
    loop = asyncio.get_running_loop()

    def submit(request: Request) -> Future[Response]:
        if asyncio._get_running_loop() is loop:  # it cannot answer while its thread waits here
            raise in_transit(ConfigError("program: a predictor was called without `await`: use its acall"))
        runs = Event()
        loop.call_soon_threadsafe(runs.set)
        if not runs.wait(BLOCKED):  # it waits for this thread
            raise in_transit(
                ConfigError("program: threads were started and waited for without `await`: use dspy.asyncify(…)")
            )
        return asyncio.run_coroutine_threadsafe(engine.complete(request), loop)

    return recorded_lm_on(loop, teacher, engine, submit)


def recorded_lm_on(loop: asyncio.AbstractEventLoop, teacher: Teacher, engine: Engine, submit: Submit) -> RecordedLM:
    """`recorded_lm` on another thread's event loop. `submit`: how a request from elsewhere is answered there."""
    lm = RecordedLM(
        teacher.model,
        **teacher.settings,
        cache=False,
        num_retries=0,
        engine=BlockingEngine(submit, teacher),
        async_engine=LoopEngine(engine, loop, submit, teacher),
    )
    lm.recorded, lm.of_teacher = teacher.lm, teacher
    return lm


class _Engine:
    """What DSPy asks of an LM's engine besides `complete`."""

    supports_function_calling = False

    def __init__(self, submit: Submit, teacher: Teacher) -> None:
        self._submit = submit
        own = teacher.lm
        self.supports_response_schema = own is None or bool(own.supports_response_schema)
        self.supported_params = frozenset(_SENT if own is None else own.supported_params)

    def __deepcopy__(self, memo: object) -> _Engine:
        return self  # optimizers copy programs, and with them their language models


class BlockingEngine(_Engine):
    """For callers without an event loop."""

    def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        with _numbered():
            return self._submit(request).result()

    def stream(self, request: Request) -> Iterator[Any]:
        """`complete`, as what `dspy.streamify` reads."""
        return iter(response_to_events(self.complete(request)))


class LoopEngine(_Engine):
    """For callers on an event loop: the one where `engine` answers, or another."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, submit: Submit, teacher: Teacher) -> None:
        super().__init__(submit, teacher)
        self._engine, self._loop = engine, loop

    async def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        with _numbered():
            if asyncio.get_running_loop() is self._loop:
                return await self._engine.complete(request)
            return await asyncio.wrap_future(self._submit(request))

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """`complete`, as what `dspy.streamify` reads."""
        for event in response_to_events(await self.complete(request)):
            yield event


@contextmanager
def _numbered() -> Iterator[None]:
    """Inside the block, a call for several answers asks for the next one."""
    counter = _answer_numbers.get()
    with repeated(current_repetition() + (0 if counter is None else next(counter)) * FIRST_OF_SEVERAL):
        yield
