"""The one door to every model while a program is compiled.

DSPy's optimizers call programs, judges and reflection models from many threads. Whoever calls, each request goes
to one event loop, where it is looked up in the journal (the compile's ledger), paid for under one budget, and written
down before its answer is seen. Requests are equal when endpoint, model, parameters, messages and repetition are: so
nothing is paid for twice, not in one process and not by the next one after a kill, which replays its way to where the
first one stood.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
from dspy._vendor.lm15.serde import request_to_dict
from dspy.clients.errors import wrap_error
from dspy.lm15 import LM15Error, Request, Response, Usage
from dspy.utils import exceptions as lm_errors

from refed_dspy.errors import RunStopped, TeacherError, one_line
from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, RunRecorder, recording
from refed_dspy.ledger.statements import Answer, Key, Statement, answered, failed
from refed_dspy.optimizers.gateway_lm import AsyncEngine, GatewayLM, SyncEngine
from refed_dspy.optimizers.journal import FINAL, Paid, final_kind, from_ledger, to_ledger
from refed_dspy.programs.asking import stop_hint, without_keys
from refed_dspy.programs.lm_errors import LMCapReached, NotAnswering, NotReached, StillLimited, WorkEnds
from refed_dspy.records import Call, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.outcomes import as_text, reserved

IN_A_ROW = 20
"""So many requests of one role without any answer end the compile: that is no longer bad luck."""
evaluating: ContextVar[str] = ContextVar("refed_evaluating", default="")
"""The candidate program that the calls of this context are for: by its digest."""
judging: ContextVar[bool] = ContextVar("refed_judging", default=False)
"""Whether they are the metric's, and not the candidate's own."""


T = TypeVar("T")


class Gateway:
    """Open it with `open_gateway`. `reached` is the cap that stopped it, or an empty text."""

    def __init__(self, ledger: Ledger, recorder: RunRecorder, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.ledger, self.recorder, self.loop, self.seed = ledger, recorder, loop, seed
        self.roles: dict[str, CompileModel] = {}
        self.opened = loop.time()
        self.deadline: float | None = None
        self.reached = ""
        self.closed = False
        self.stopped: BaseException | None = None
        """An error that ends the compile: no call begins after it."""
        self.lost = 0
        """Requests that had no answer, so far."""
        self.on_ending: Callable[[bool], None] = lambda _: None
        """Told when calls begin to be refused, and when they are allowed again."""
        self._flying: dict[str, asyncio.Task[Paid]] = {}
        self._handing_over = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self.worth: defaultdict[str, int] = defaultdict(int)
        """Candidate → what its own calls cost, picodollars, whoever paid for them first."""

    def lm(self, name: str) -> dspy.LM:
        """The language model of a role, for DSPy: it asks through this gateway."""
        role = self.roles[name]
        doors = {"engine": SyncEngine(self, role), "async_engine": AsyncEngine(self, role)}
        kwargs = {k: v for k, v in role.lm.kwargs.items() if k not in _CONNECTION and v is not None}
        if "max_completion_tokens" in kwargs:  # how dspy.LM keeps max_tokens of a reasoning model
            kwargs["max_tokens"] = kwargs.pop("max_completion_tokens")
        lm = GatewayLM(role.lm.model, cache=False, num_retries=0, **doors, **kwargs)
        lm.malformed_retries = role.teacher.malformed_retries
        return lm

    def submit(self, role: CompileModel, request: Request, repetition: int) -> Future[Response]:
        """Ask from any thread. Raises LMCapReached when the gateway is closed."""
        candidate = "" if role.name == "reflection" else evaluating.get()  # what is written anew is nobody's yet
        return self._hand_over(self._counted(role, request, repetition, candidate, judging.get()))

    def write(self, statements: list[Statement]) -> None:
        """Have rows written, from any thread, in the order given; not any more when the gateway is closed."""
        with self._handing_over:
            if not self.closed:
                self.loop.call_soon_threadsafe(self.recorder.group.post, statements)

    async def close(self) -> None:
        """Call off what is in flight, and let everyone go who waits for it."""
        with self._handing_over:
            self.closed = self.recorder.stopping = True
        while self._waiting or self._flying:
            for task in list(self._flying.values()):
                task.cancel()
            for future in list(self._waiting):
                future.cancel()
            await asyncio.sleep(0.01)
        self.recorder.group.close()

    def allow(self, caps: Caps, seconds: float | None = None) -> None:
        """Go on under other caps; `seconds` count from when the gateway was opened."""

        def change(_: Ledger) -> None:
            self.recorder.budget.allow(caps)
            self.deadline = None if seconds is None else self.opened + seconds
            self.reached = ""
            self.on_ending(False)

        self.read(change)

    def read(self, look: Callable[[Ledger], T]) -> T:
        """What `look` finds in the ledger, where everything written before is there. Called from any other thread."""

        async def looking() -> T:
            self.recorder.group.flush()
            return look(self.ledger)

        return self._hand_over(looking()).result()

    def _hand_over(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the event loop do `work`. Raises LMCapReached when the gateway is closed."""
        with self._handing_over:
            if self.closed:
                work.close()
                raise LMCapReached("the compile has ended")
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
            self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def stop(self, error: BaseException) -> None:
        """Let no further call begin; `error` is what the compile ends with."""
        self.stopped = self.stopped or error
        self.on_ending(True)

    def _reach(self, cap: str) -> None:
        self.reached = self.reached or cap
        self.on_ending(True)

    # --- on the event loop

    async def _counted(
        self, role: CompileModel, request: Request, repetition: int, candidate: str, of_metric: bool
    ) -> Response:
        response, cost = await self._answer(role, request, self._key(role, request, repetition, candidate))
        if not of_metric:
            self.worth[candidate] += cost
        return response

    async def _answer(self, role: CompileModel, request: Request, key: Key) -> Paid:
        """The answer and what it cost when it was paid for."""
        while (flying := self._flying.get(key.digest)) is not None:
            try:
                return await asyncio.shield(flying)
            except asyncio.CancelledError:
                if self.closed or not flying.cancelled():
                    raise
                if self._flying.get(key.digest) is flying:  # whoever asked first was called off; this one wants it
                    del self._flying[key.digest]
        if (known := self._known(role, key)) is not None:
            return known
        task = asyncio.ensure_future(self._pay(role, request, key))
        self._flying[key.digest] = task
        task.add_done_callback(lambda done: self._landed(key.digest, done))
        return await asyncio.shield(task)

    def _landed(self, digest_: str, task: asyncio.Task[Paid]) -> None:
        if self._flying.get(digest_) is task:
            del self._flying[digest_]
        if not task.cancelled():
            task.exception()  # whoever asked has it; nobody else need hear of it

    def _known(self, role: CompileModel, key: Key) -> Paid | None:
        """The paid answer from the journal. Raises the error that the request is known to end with."""
        if (paid := self.ledger.answer(key.digest)) is not None:
            return from_ledger(role.teacher.model, paid)
        if (failure := self.ledger.failure(key.digest)) is not None:
            kind, reason = failure
            raise FINAL.get(kind, lm_errors.LMProviderError)(message=reason)
        return None

    async def _pay(self, role: CompileModel, request: Request, key: Key) -> Paid:
        if self.stopped is not None:
            raise LMCapReached(f"the compile is ending: {self.stopped}")
        if self.reached:
            raise LMCapReached(f"{self.reached} is reached")
        unit = CallRecorder(self.recorder, key, 0, int(key.digest[:7], 16) ^ self.seed)
        try:
            async with asyncio.timeout_at(self.deadline) as timer:
                response = await ask(role, request, unit)
        except BaseException as error:
            if isinstance(error, TimeoutError) and timer.expired():
                unit.write()
                self._reach("max_minutes")
                raise LMCapReached("max_minutes is reached") from None
            told = await self._failed(role, error, key, unit)
            if told is error:
                raise
            raise told from None
        role.answered, role.in_a_row = True, 0
        last = unit.calls[-1]
        text = to_ledger(response, last.cost or 0)
        await self.recorder.group.commit(answered(Answer(key, text, last.endpoint), unit.take()))
        return from_ledger(role.teacher.model, text)

    async def _failed(self, role: CompileModel, error: BaseException, key: Key, unit: CallRecorder) -> BaseException:
        """Write down what came of a request without an answer. Returns the error for whoever asked."""
        told = wrap_error(error, model=role.lm.model) if isinstance(error, LM15Error) else error
        if isinstance(error, LMCapReached):
            reached = self.recorder.budget.reached
            self._reach(reached.cap if reached else "max_cost")
        kind = final_kind(told)
        if kind:
            role.answered, role.in_a_row = True, 0
            reason = one_line(without_keys(getattr(told, "message", "") or str(told), role.lm))
            await self.recorder.group.commit(failed(key, kind, reason, True, unit.take()))
            return told
        unit.write()
        if isinstance(told, NotReached) and not role.answered:
            told = NotAnswering(f"{role.name}: {told} — check api_base, and that the server runs")
        elif isinstance(told, lm_errors.LMError) and not isinstance(told, LMCapReached):
            self.lost += 1
            role.in_a_row += 1
            if role.in_a_row >= IN_A_ROW:
                told = NotAnswering(f"{role.name}: {role.in_a_row} requests in a row had no answer, the last: {told}")
        self._stop_for(role, told)
        return told

    def _stop_for(self, role: CompileModel, error: BaseException) -> None:
        """End the compile where no other request would fare better."""
        if isinstance(error, NotAnswering):
            self.stop(TeacherError(one_line(without_keys(error.message or str(error), role.lm))))
        elif isinstance(error, lm_errors.LMError) and not isinstance(error, LMCapReached):
            reason = one_line(without_keys(error.message or str(error), role.lm))
            if hint := stop_hint(error):
                self.stop(TeacherError(f"{role.name}: {reason} — {hint}"))
            elif isinstance(error, StillLimited | WorkEnds):
                self.stop(RunStopped(f"{role.name}: {reason}"))

    def _key(self, role: CompileModel, request: Request, repetition: int, candidate: str) -> Key:
        """Equal requests to equal models have equal keys, whichever role and candidate they are asked for."""
        teacher = role.teacher
        asked = request_to_dict(request)
        inputs = digest(asked)
        whole = digest([teacher.endpoint, teacher.identity, inputs, repetition])
        return Key(role.name, candidate, repetition, "", inputs, whole)


_CONNECTION = {"api_key", "api_base", "base_url", "api_version", "headers", "extra_headers", "timeout", "rollout_id"}


@contextmanager
def open_gateway(
    ledger: Ledger, recorder: RunRecorder, teachers: Mapping[str, Teacher], seed: int
) -> Iterator[Gateway]:
    """Start the models of `teachers` (role → teacher) on an event loop of their own, and end them after the block.

    One Teacher object that serves several roles is started once. What is in flight when the block ends is cancelled.
    """
    begun: Future[tuple[Gateway, asyncio.Event]] = Future()
    ended: Future[None] = Future()

    def target() -> None:
        try:
            asyncio.run(_keep_open(ledger, recorder, teachers, seed, begun))
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
            (ended if begun.done() else begun).set_exception(error)

    thread = threading.Thread(target=target, name="refed-gateway")
    thread.start()
    gateway, over = _begun(begun, thread)
    try:
        yield gateway
    finally:
        gateway.loop.call_soon_threadsafe(over.set)
        thread.join()
    ended.result()


def _begun(begun: Future[tuple[Gateway, asyncio.Event]], thread: threading.Thread) -> tuple[Gateway, asyncio.Event]:
    try:
        return begun.result()
    except BaseException:
        # Ctrl-C, while a model is starting: it has to be ended all the same.
        begun.add_done_callback(_end_at_once)
        thread.join()
        raise


def _end_at_once(begun: Future[tuple[Gateway, asyncio.Event]]) -> None:
    if begun.exception() is None:
        gateway, over = begun.result()
        gateway.loop.call_soon_threadsafe(over.set)


async def _keep_open(
    ledger: Ledger,
    recorder: RunRecorder,
    teachers: Mapping[str, Teacher],
    seed: int,
    begun: Future[tuple[Gateway, asyncio.Event]],
) -> None:
    """Run the models until the event that goes with the gateway is set."""
    async with AsyncExitStack() as stack:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        gateway = Gateway(ledger, recorder, loop, seed)
        started: dict[int, Any] = {}
        for name, teacher in teachers.items():
            if id(teacher) not in started:
                started[id(teacher)] = await stack.enter_async_context(teacher.running())
            gateway.roles[name] = CompileModel(name, teacher, started[id(teacher)])
        gateway.opened = loop.time()
        begun.set_result((gateway, over))
        try:
            await over.wait()
        finally:
            await gateway.close()


@dataclass
class CompileModel:
    """One of the models of a compile: `teacher`, `judge` or `reflection`."""

    name: str
    teacher: Teacher
    lm: Any
    answered: bool = False
    in_a_row: int = 0


async def ask(role: CompileModel, request: Request, unit: CallRecorder) -> Response:
    """The answer of a role's model, booked in `unit`. Raises what the model's engine raises."""
    if role.teacher.reports_calls:
        with recording(unit):
            response: Response = await role.lm.straight.complete(request)
        return response
    return await _ask_borrowed(role, request, unit)


async def _ask_borrowed(role: CompileModel, request: Request, unit: CallRecorder) -> Response:
    """Ask a caller's own LM, whose attempts are not seen one by one."""
    teacher = role.teacher
    number = await reserved(unit, Attempt(teacher.model, teacher.endpoint, None))
    started, usage, outcome = time.monotonic(), Usage(), "error"
    try:
        said: Response = as_text(await role.lm.acall(request=request))
        usage, outcome = said.usage or usage, "ok"
        if said.finish_reason in {"length", "content_filter"}:
            outcome = "cut" if said.finish_reason == "length" else "refused"
            raise FINAL[outcome](f"{outcome}: {said.finish_reason}")
        return said
    finally:
        tokens = usage.input_tokens or None, None, usage.output_tokens or None
        seconds = round(time.monotonic() - started, 3)
        unit.report(Call(teacher.model, teacher.endpoint, outcome, seconds, *tokens, None, number))
