"""A registered version at work in MLflow: what `mlflow.pyfunc.load_model` and `mlflow models serve` call.

It reads the version's JSON file; nothing is unpickled. The model that answers is `dspy.settings.lm`, or where none is
set, as in a server, the one in the variables that set the teacher: REFED_TEACHER, REFED_TEACHER__API_BASE, …
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.concurrency import all_of, current_environ, run_blocking
from refed_dspy.config.environment import variable
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.programs.asking import about_unnamed, ask, predictor_names
from refed_dspy.programs.load import load_program, names_own_program, open_judge, own_program, read_saved
from refed_dspy.programs.question import UnnamedStage
from refed_dspy.records import json_default
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.recorded import recorded_lm

_TEACHER, _PROGRAM = variable("teacher"), variable("program")


class ServedProgram:
    """A program that MLflow asks for predictions."""

    def __init__(self, program: dspy.Module) -> None:
        self.program = program
        self._teacher: Teacher | None = None

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """The outputs for each row of `model_input`, in JSON types; the rows are asked at once. A row holds the
        program's inputs; a ReferenceLevelFeedback's is a reference, and its outputs are `samples`, with `feedback` and
        `failures`.

        Raises ConfigError where no model is set, and as a program called directly where none can be asked.
        """
        if hasattr(model_input, "to_dict"):  # pandas
            model_input = model_input.to_dict("records")
        rows = [model_input] if isinstance(model_input, Mapping) else list(model_input)
        return run_blocking(self._predicted(rows))

    async def _predicted(self, rows: list[Any]) -> list[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            if dspy.settings.lm is None:
                self._teacher = self._teacher or _teacher()
                lm = recorded_lm(self._teacher, await stack.enter_async_context(self._teacher.running()))
                stack.enter_context(dspy.context(lm=lm))
            return await all_of(self._answer(number, row) for number, row in enumerate(rows))

    async def _answer(self, number: int, row: Any) -> dict[str, Any]:
        inputs = {"reference": row} if hasattr(self.program, "collect_features") else row
        with about_unnamed(UnnamedStage(str(number), predictor_names(self.program))):
            answer = await ask(self.program, **inputs)
        answered: dict[str, Any] = json.loads(json.dumps(dict(answer.items()), default=json_default))
        return answered


def _teacher() -> Teacher:
    """The teacher in the environment. Raises ConfigError, ModelError."""
    own = {name: text for name, text in current_environ().items() if name.partition("__")[0] == _TEACHER}
    if (teacher := load_config(RunConfig, environ=own).teacher) is None:
        raise ConfigError(f"no teacher: set {_TEACHER}=openai/gpt-4o-mini, or dspy.configure(lm=dspy.LM(…))")
    return open_teacher(teacher)


def _load_pyfunc(folder: str) -> ServedProgram:
    """The program in a version's folder. Raises ConfigError, also for one of the caller's own class that REFED_PROGRAM
    does not name."""
    file = Path(folder) / "program.json"
    manifest = read_saved(file).manifest
    if own := manifest.get("class"):
        name = os.environ.get(_PROGRAM, "").partition("@")[0]
        if not names_own_program(name):
            raise ConfigError(
                f"program: its class {own!r:.80} is imported only if you name it: set {_PROGRAM}={own!s:.80}"
            )
        return ServedProgram(own_program(f"{name}@{file}"))
    if manifest.get("kind") in {"PairwiseJudge", "TrainedJudge"}:
        return ServedProgram(open_judge(file))
    return ServedProgram(load_program(file))
