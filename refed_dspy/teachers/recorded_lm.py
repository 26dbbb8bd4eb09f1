"""The language model that DSPy holds while work is recorded: its requests go to a recorded teacher, on one event loop.

A request may come from that loop, from another one, or from a thread without any: optimizers call from many.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Any, TypeAlias

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.errors import ConfigError
from refed_dspy.programs.fast_path import Engine
from refed_dspy.programs.lm_errors import in_transit
from refed_dspy.programs.question import current_repetition, repeated, rollout
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.engine import TeacherEngine

BLOCKED = 30.0
"""Seconds for which an event loop that runs nothing is thought to be busy. After that it is waiting for us."""
Submit: TypeAlias = Callable[[Request], "Future[Response]"]
"""Has a request answered on the loop; called from any thread."""
FIRST_OF_SEVERAL = 1_000_000
"""Where the repetition numbers of a call for several answers begin: no `rollout_id` gets that high."""
_answer_numbers: ContextVar[Iterator[int] | None] = ContextVar("refed_several", default=None)
"""Numbers the answers of a call that wants several."""


class _Engine:
    supports_function_calling = False

    def __init__(self, submit: Submit, teacher: Teacher) -> None:
        self._submit = submit
        answers = teacher.lm or TeacherEngine
        self.supports_response_schema = bool(answers.supports_response_schema)
        self.supported_params = frozenset(answers.supported_params)

    def __deepcopy__(self, memo: object) -> _Engine:
        return self  # optimizers copy programs, and with them their language models


class BlockingEngine(_Engine):
    """For callers without an event loop."""

    def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        with _numbered():
            return self._submit(request).result()


class LoopEngine(_Engine):
    """For callers on an event loop: the one where `engine` answers, or another."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, submit: Submit, teacher: Teacher) -> None:
        super().__init__(submit, teacher)
        self._engine, self._loop = engine, loop

    async def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        here = asyncio.get_running_loop() is self._loop
        if here and _answer_numbers.get() is None:
            return await self._engine.complete(request)
        with _numbered():
            return await (self._engine.complete(request) if here else asyncio.wrap_future(self._submit(request)))


@contextmanager
def _numbered() -> Iterator[None]:
    """Inside the block, a call for several answers asks for the next one."""
    counter = _answer_numbers.get()
    with repeated(current_repetition() + (0 if counter is None else next(counter)) * FIRST_OF_SEVERAL):
        yield


class RecordedLM(dspy.LM):
    """A `dspy.LM` whose answers are recorded. `recorded`: the caller's own LM behind it, where it is one.

    It asks for another answer to the same request if its `rollout_id` is another, whatever the temperature. That may
    come with a copy or with a call. A call for `n` answers numbers them.
    """

    recorded: Any = None

    @property
    def direct_engine(self) -> LoopEngine | None:
        """The engine itself, past DSPy's layers, for calls without history or callbacks (programs/fast_path.py)."""
        engine: LoopEngine = self._async_engine_spec
        return engine if engine.supports_response_schema else None

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with self._repeated(kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        with self._repeated(kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    @contextmanager
    def _repeated(self, kwargs: dict[str, Any]) -> Iterator[None]:
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
        if asyncio._get_running_loop() is loop:
            raise in_transit(ConfigError("program: a predictor was called without `await`: use its acall"))
        free = Event()
        loop.call_soon_threadsafe(free.set)
        if not free.wait(BLOCKED):
            raise in_transit(
                ConfigError("program: threads were started and waited for without `await`: use dspy.asyncify(…)")
            )
        return asyncio.run_coroutine_threadsafe(_complete(engine, request), loop)

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
    lm.recorded = teacher.lm
    return lm


async def _complete(engine: Engine, request: Request) -> Response:
    return await engine.complete(request)
