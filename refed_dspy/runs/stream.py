"""`stream`: a run's samples one by one, as they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Unpack

from refed_dspy.data.rows import Samples
from refed_dspy.programs.load import ProgramLike
from refed_dspy.records import Sample
from refed_dspy.runs.prepare import RunSettings, prepare, run_keywords
from refed_dspy.runs.synthesize import produce
from refed_dspy.teachers.progress import Progress, Watch

_AT_ONCE = 100
"""Samples that are read together."""


@run_keywords
async def stream(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunSettings],
) -> AsyncGenerator[Sample, None]:
    """The samples of `synthesize` with the same arguments, each as soon as it is kept; first those that the run's
    folder has already, so that the loop sees all of them.

    The run goes on while the loop works on a sample. `await samples.aclose()` ends it within two seconds: calls in
    flight may finish, and what they make is kept in the folder for the next call. After a mere `break` it ends the same
    way, but only while your code awaits something. At a cap the loop ends with a warning.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the run ended early, after the samples that were kept.
    """
    spec = prepare(program, references, **settings)
    begun, changed = asyncio.Event(), asyncio.Event()

    def told(now: Progress) -> None:
        begun.set()
        changed.set()
        if on_progress is not None:
            on_progress(now)

    run = asyncio.create_task(produce(spec, Watch(told, progress)))
    run.add_done_callback(lambda _: changed.set())
    samples: Samples | None = None
    given, ended = 0, False
    try:
        while not ended:
            await changed.wait()
            changed.clear()
            ended = run.done()
            if samples is None and begun.is_set():  # before that there may be no folder
                samples = Samples(spec.folder)
            while samples is not None and (page := samples[given : given + _AT_ONCE]):
                for sample in page:
                    given += 1
                    yield sample
        await run
    except asyncio.CancelledError as interrupt:
        run.cancel()
        await asyncio.wait([run])
        try:
            run.result()
        except asyncio.CancelledError as ended:  # says what is kept
            interrupt.args = ended.args
        raise
    finally:
        run.cancel()
        await asyncio.wait([run])
