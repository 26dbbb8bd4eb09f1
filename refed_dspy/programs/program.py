"""What all programs of this package have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dspy
from anyio import ClosedResourceError, from_thread

from refed_dspy.concurrency import in_event_loop, run_blocking
from refed_dspy.programs.asking import about_call
from refed_dspy.text import Shown


class AsyncProgram(Shown, dspy.Module):
    """A module that does its work in `aforward`, and that ordinary code can call as well.

    Wherever it is called, its predictors send the same requests as in a run: through `SchemaAdapter`, unless the caller
    set an adapter.
    """

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """A prediction. Raises this package's errors, and those of the program's own code."""
        with about_call(self):
            return super().__call__(*inputs, **named)

    async def acall(self, *inputs: Any, **named: Any) -> Any:
        """As a call, from an event loop."""
        with about_call(self):
            return await super().acall(*inputs, **named)

    def _describe(self) -> str:
        predictors = self.predictors()
        demos, source = sum(len(each.demos) for each in predictors), getattr(self, "source", {}).get("address")
        loaded = f", from {source}" if source else ""
        return f"{len(predictors)} predictor{'s' * (len(predictors) != 1)}, {demos} demonstrations{loaded}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        rows = ((name, each.signature.instructions, len(each.demos)) for name, each in self.named_predictors())
        return ("predictor", "instructions", "demonstrations"), rows

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward` from ordinary code, and from notebooks, whose event loop is running."""
        with _streaming():
            return run_blocking(self.aforward(*inputs, **named))


def synchronous(program: dspy.Module) -> dspy.Module:
    """`program` as code without an event loop calls it."""
    called: dspy.Module = program if hasattr(type(program), "forward") else dspy.syncify(program)
    return called


class _OtherLoopsStream:
    """The stream of `dspy.streamify`, which only the event loop that reads it may write to."""

    def __init__(self, stream: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.stream, self.loop = stream, loop

    async def send(self, item: Any) -> None:
        sent = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.stream.send(item), self.loop))
        while not (await asyncio.wait([sent], timeout=1))[0]:
            if self.loop.is_closed():  # its reader went away before it came to send
                raise ClosedResourceError
        await sent


@contextmanager
def _streaming() -> Iterator[None]:
    """Have the block, which runs an event loop of its own, stream to the loop that `dspy.streamify` waits on. There
    the block is in a thread that anyio knows."""
    stream = dspy.settings.send_stream
    if stream is None or in_event_loop():
        yield
        return

    async def waiting() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with dspy.context(send_stream=_OtherLoopsStream(stream, from_thread.run(waiting))):
        yield


@contextmanager
def trace_in_order(program: dspy.Module) -> Iterator[None]:
    """Sort DSPy's trace of this block by stage, then by inputs, so that it does not depend on which call ended first.

    Optimizers make demonstrations from it, and a resumed compile must make the same ones.
    """
    outer = dspy.settings.trace
    if outer is None or not dspy.settings.max_trace_size:
        yield
        return
    position = {id(predictor): n for n, predictor in enumerate(program.predictors())}
    with dspy.context(trace=[]):
        inner = dspy.settings.trace
        try:
            yield
        finally:
            outer.extend(sorted(inner, key=lambda step: (position.get(id(step[0]), -1), repr(step[1]))))
