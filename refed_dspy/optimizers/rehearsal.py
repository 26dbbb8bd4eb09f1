"""An optimizer's own conditions, known before anything is paid for: it is run up to the first thing that it asks."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

import dspy

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.optimizers.printed import printed_to_file
from refed_dspy.optimizers.spec import CompileSpec, no_metric
from refed_dspy.programs.adapter import SchemaAdapter


class _Begun(BaseException):
    """Ends a rehearsal. No `Exception`: optimizers, programs and DSPy's evaluation let those of a row pass."""


class _Listener(dspy.LM):
    """A language model that ends the rehearsal as soon as it is asked."""

    def __init__(self) -> None:
        super().__init__("rehearsal/none")
        self.begun = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        self.begun.set()
        raise _Begun

    async def acall(self, *_: Any, **__: Any) -> NoReturn:
        self.begun.set()
        raise _Begun

    def copy(self, **_: Any) -> _Listener:
        return self

    def __deepcopy__(self, _: Any) -> _Listener:
        return self


def rehearse(spec: CompileSpec) -> None:
    """Raises ConfigError where the optimizer refuses its options or its sets. Nothing is asked or written."""
    listener = _Listener()
    optimizer = spec.optimizer(no_metric, listener, listener, stopping=lambda: False)
    adapter = dspy.settings.adapter or SchemaAdapter()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            printed_to_file(Path(folder)),
            dspy.context(lm=listener, adapter=adapter, callbacks=[], disable_history=True),
        ):
            optimizer.tune(spec.student, list(spec.split.train), list(spec.split.validation))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not listener.begun.is_set():
            raise ConfigError(f"optimizer {optimizer.name}: {one_line(error) or type(error).__name__}") from error
