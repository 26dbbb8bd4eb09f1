"""The gateway: every request to a model goes through it while a program is compiled.

DSPy's optimizers call programs, judges and reflection models from many threads. Each request is handed to one event
loop. There it is looked up in the compile's ledger; if it is not there, it is paid for under one budget and recorded
before the caller sees the answer. Two requests are equal when endpoint, model, parameters, messages and repetition are.
So nothing is paid for twice, neither in one process nor by the next one after a kill: that one replays the recorded
answers until it is where the first one ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import dspy
from dspy._vendor.lm15.serde import request_to_dict
from dspy.clients.errors import wrap_error
from dspy.lm15 import LM15Error, Request, Response
from dspy.utils import exceptions as lm_errors

from refed_dspy.errors import RunStopped, TeacherError, one_line
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, RunRecorder
from refed_dspy.ledger.statements import Answer, Key, Statement, answered, failed
from refed_dspy.optimizers.gateway_lm import AsyncEngine, GatewayLM, SyncEngine
from refed_dspy.optimizers.models import CompileModel, ask
from refed_dspy.optimizers.stored_responses import FINAL_ERRORS, PaidResponse, final_kind, from_ledger, to_ledger
from refed_dspy.programs.asking import stop_hint, without_keys
from refed_dspy.programs.lm_errors import LMCapReached, NotAnswering, NotReached, StillLimited, WorkEnds
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher

UNANSWERED_LIMIT = 20
"""So many unanswered requests to one model, one after another, end the compile: that is no longer bad luck."""
current_candidate: ContextVar[str] = ContextVar("refed_evaluating", default="")
"""The digest of the candidate program that the calls of this context are made for."""
in_metric: ContextVar[bool] = ContextVar("refed_judging", default=False)
"""Whether the calls of this context are made by the metric, not by the candidate itself."""
_CONNECTION_SETTINGS = frozenset(
    ["api_key", "api_base", "base_url", "api_version", "headers", "extra_headers", "timeout", "rollout_id"]
)
T = TypeVar("T")


class Gateway:
    """Takes requests from any thread and answers them from the ledger or from a model. Open it with `open_gateway`."""

    def __init__(self, ledger: Ledger, recorder: RunRecorder, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.ledger, self.recorder, self.loop, self.seed = ledger, recorder, loop, seed
        self.models: dict[str, CompileModel] = {}
        """Role → model."""
        self.opened = loop.time()
        self.deadline: float | None = None
        self.cap_reached = ""
        """The cap after which no call begins, or an empty text."""
        self.closed = False
        self.stop_error: BaseException | None = None
        """The error that ends the compile: no call begins after it."""
        self.unanswered = 0
        """How many requests had no answer so far."""
        self.on_ending: Callable[[bool], None] = lambda _: None
        """Called with True when calls begin to be refused, and with False when they are allowed again."""
        self._in_flight: dict[str, asyncio.Task[PaidResponse]] = {}
        """Key's digest → the request to a model that runs for it."""
        self._submit_lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        """What other threads wait for."""
        self.candidate_costs: defaultdict[str, int] = defaultdict(int)
        """Candidate → what its own calls cost in picodollars, including those that another candidate paid for first."""

    def lm(self, role: str) -> dspy.LM:
        """The language model of a role, for DSPy. It asks through this gateway."""
        model = self.models[role]
        engines = {"engine": SyncEngine(self.submit, model), "async_engine": AsyncEngine(self.submit, model)}
        kwargs = {k: v for k, v in model.lm.kwargs.items() if k not in _CONNECTION_SETTINGS and v is not None}
        if "max_completion_tokens" in kwargs:  # how dspy.LM keeps max_tokens of a reasoning model
            kwargs["max_tokens"] = kwargs.pop("max_completion_tokens")
        lm = GatewayLM(model.lm.model, cache=False, num_retries=0, **engines, **kwargs)
        lm.malformed_retries = model.teacher.malformed_retries
        return lm

    def submit(self, model: CompileModel, request: Request, repetition: int) -> Future[Response]:
        """Ask from any thread. Raises LMCapReached when the gateway is closed."""
        # What the reflection model writes belongs to no candidate yet.
        candidate = "" if model.role == "reflection" else current_candidate.get()
        return self._run_on_loop(self._answer_and_count(model, request, repetition, candidate, in_metric.get()))

    def write(self, statements: list[Statement]) -> None:
        """Have rows written, in this order. From any thread. Does nothing when the gateway is closed."""
        with self._submit_lock:
            if not self.closed:
                self.loop.call_soon_threadsafe(self.recorder.group.post, statements)

    async def close(self) -> None:
        """Cancel what is in flight, and release every thread that waits for it."""
        with self._submit_lock:
            self.closed = self.recorder.stopping = True
        while self._pending or self._in_flight:
            for task in list(self._in_flight.values()):
                task.cancel()
            for future in list(self._pending):
                future.cancel()
            await asyncio.sleep(0.01)
        self.recorder.group.close()

    def allow(self, caps: Caps, seconds: float | None = None) -> None:
        """Go on under other caps. `seconds` count from when the gateway was opened."""

        def change(_: Ledger) -> None:
            self.recorder.budget.allow(caps)
            self.deadline = None if seconds is None else self.opened + seconds
            self.cap_reached = ""
            self.on_ending(False)

        self.read(change)

    def read(self, query: Callable[[Ledger], T]) -> T:
        """What `query` returns. Everything written before is in the ledger by then. Call it from another thread."""

        async def flush_and_query() -> T:
            self.recorder.group.flush()
            return query(self.ledger)

        return self._run_on_loop(flush_and_query()).result()

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` on the event loop. Raises LMCapReached when the gateway is closed."""
        with self._submit_lock:
            if self.closed:
                coroutine.close()
                raise LMCapReached("the compile has ended")
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def stop(self, error: BaseException) -> None:
        """Let no further call begin. `error` is what the compile ends with."""
        self.stop_error = self.stop_error or error
        self.on_ending(True)

    def _reach_cap(self, cap: str) -> None:
        self.cap_reached = self.cap_reached or cap
        self.on_ending(True)

    # --- on the event loop

    async def _answer_and_count(
        self, model: CompileModel, request: Request, repetition: int, candidate: str, of_metric: bool
    ) -> Response:
        response, cost = await self._answer(model, request, self._key(model, request, repetition, candidate))
        if not of_metric:
            self.candidate_costs[candidate] += cost
        return response

    async def _answer(self, model: CompileModel, request: Request, key: Key) -> PaidResponse:
        """The answer, and what it cost when it was paid for. Equal requests in flight share one call."""
        while (task := self._in_flight.get(key.digest)) is not None:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if self.closed or not task.cancelled():
                    raise
                if self._in_flight.get(key.digest) is task:  # its caller was cancelled; this one still waits
                    del self._in_flight[key.digest]
        if (recorded := self._recorded_answer(model, key)) is not None:
            return recorded
        new_task = asyncio.ensure_future(self._ask_and_record(model, request, key))
        self._in_flight[key.digest] = new_task
        new_task.add_done_callback(lambda done: self._forget_task(key.digest, done))
        return await asyncio.shield(new_task)

    def _forget_task(self, digest_: str, task: asyncio.Task[PaidResponse]) -> None:
        if self._in_flight.get(digest_) is task:
            del self._in_flight[digest_]
        if not task.cancelled():
            task.exception()  # its caller has raised it; asyncio need not log it

    def _recorded_answer(self, model: CompileModel, key: Key) -> PaidResponse | None:
        """The answer in the ledger, or None. Raises the error recorded there where the request failed for good."""
        if (stored := self.ledger.answer(key.digest)) is not None:
            return from_ledger(model.teacher.model, stored)
        if (failure := self.ledger.failure(key.digest)) is not None:
            kind, reason = failure
            raise FINAL_ERRORS.get(kind, lm_errors.LMProviderError)(message=reason)
        return None

    async def _ask_and_record(self, model: CompileModel, request: Request, key: Key) -> PaidResponse:
        """Ask the model and commit its answer. Raises LMCapReached where no further call may begin."""
        if self.stop_error is not None:
            raise LMCapReached(f"the compile is ending: {self.stop_error}")
        if self.cap_reached:
            raise LMCapReached(f"{self.cap_reached} is reached")
        calls = CallRecorder(self.recorder, key, 0, int(key.digest[:7], 16) ^ self.seed)
        try:
            async with asyncio.timeout_at(self.deadline) as timer:
                response = await ask(model, request, calls)
        except BaseException as error:
            if isinstance(error, TimeoutError) and timer.expired():
                calls.write()
                self._reach_cap("max_minutes")
                raise LMCapReached("max_minutes is reached") from None
            raised = await self._record_failure(model, error, key, calls)
            if raised is error:
                raise
            raise raised from None
        model.answered, model.unanswered_in_a_row = True, 0
        last = calls.calls[-1]
        text = to_ledger(response, last.cost or 0)
        await self.recorder.group.commit(answered(Answer(key, text, last.endpoint), calls.take()))
        return from_ledger(model.teacher.model, text)

    async def _record_failure(
        self, model: CompileModel, error: BaseException, key: Key, calls: CallRecorder
    ) -> BaseException:
        """Record a request without an answer. Returns the error for its caller."""
        raised = wrap_error(error, model=model.lm.model) if isinstance(error, LM15Error) else error
        if isinstance(error, LMCapReached):
            reached = self.recorder.budget.reached
            self._reach_cap(reached.cap if reached else "max_cost")
        kind = final_kind(raised)
        if kind:
            model.answered, model.unanswered_in_a_row = True, 0
            reason = one_line(without_keys(getattr(raised, "message", "") or str(raised), model.lm))
            await self.recorder.group.commit(failed(key, kind, reason, True, calls.take()))
            return raised
        calls.write()
        if isinstance(raised, NotReached) and not model.answered:
            raised = NotAnswering(f"{model.role}: {raised} — check api_base, and that the server runs")
        elif isinstance(raised, lm_errors.LMError) and not isinstance(raised, LMCapReached):
            self.unanswered += 1
            model.unanswered_in_a_row += 1
            if model.unanswered_in_a_row >= UNANSWERED_LIMIT:
                unanswered = f"{model.unanswered_in_a_row} requests in a row had no answer"
                raised = NotAnswering(f"{model.role}: {unanswered}, the last: {raised}")
        self._stop_if_hopeless(model, raised)
        return raised

    def _stop_if_hopeless(self, model: CompileModel, error: BaseException) -> None:
        """End the compile if no other request would fare better."""
        if isinstance(error, NotAnswering):
            self.stop(TeacherError(one_line(without_keys(error.message or str(error), model.lm))))
        elif isinstance(error, lm_errors.LMError) and not isinstance(error, LMCapReached):
            reason = one_line(without_keys(error.message or str(error), model.lm))
            if hint := stop_hint(error):
                self.stop(TeacherError(f"{model.role}: {reason} — {hint}"))
            elif isinstance(error, StillLimited | WorkEnds):
                self.stop(RunStopped(f"{model.role}: {reason}"))

    def _key(self, model: CompileModel, request: Request, repetition: int, candidate: str) -> Key:
        """Equal requests to equal models have equal keys, whichever role and candidate they are asked for."""
        teacher = model.teacher
        inputs = digest(request_to_dict(request))
        whole = digest([teacher.endpoint, teacher.identity, inputs, repetition])
        return Key(model.role, candidate, repetition, "", inputs, whole)


@contextmanager
def open_gateway(
    ledger: Ledger, recorder: RunRecorder, teachers: Mapping[str, Teacher], seed: int
) -> Iterator[Gateway]:
    """Start the models of `teachers` (role → teacher) on an event loop of their own, and end them after the block.

    One Teacher object that serves several roles is started once. What is in flight when the block ends is cancelled.
    """
    started: Future[tuple[Gateway, asyncio.Event]] = Future()
    ended: Future[None] = Future()

    def target() -> None:
        try:
            asyncio.run(_run_gateway(ledger, recorder, teachers, seed, started))
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
            (ended if started.done() else started).set_exception(error)

    thread = threading.Thread(target=target, name="refed-gateway")
    thread.start()
    gateway, over = _wait_until_started(started, thread)
    try:
        yield gateway
    finally:
        gateway.loop.call_soon_threadsafe(over.set)
        thread.join()
    ended.result()


def _wait_until_started(
    started: Future[tuple[Gateway, asyncio.Event]], thread: threading.Thread
) -> tuple[Gateway, asyncio.Event]:
    try:
        return started.result()
    except BaseException:
        # Ctrl-C, while a model is starting: it has to be ended all the same.
        started.add_done_callback(_end_when_started)
        thread.join()
        raise


def _end_when_started(started: Future[tuple[Gateway, asyncio.Event]]) -> None:
    if started.exception() is None:
        gateway, over = started.result()
        gateway.loop.call_soon_threadsafe(over.set)


async def _run_gateway(
    ledger: Ledger,
    recorder: RunRecorder,
    teachers: Mapping[str, Teacher],
    seed: int,
    started: Future[tuple[Gateway, asyncio.Event]],
) -> None:
    """Run the models, and set the result of `started`; end when the event in that result is set."""
    async with AsyncExitStack() as stack:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        gateway = Gateway(ledger, recorder, loop, seed)
        lms: dict[int, Any] = {}
        for role, teacher in teachers.items():
            if id(teacher) not in lms:
                lms[id(teacher)] = await stack.enter_async_context(teacher.running())
            gateway.models[role] = CompileModel(role, teacher, lms[id(teacher)])
        gateway.opened = loop.time()
        started.set_result((gateway, over))
        try:
            await over.wait()
        finally:
            await gateway.close()
