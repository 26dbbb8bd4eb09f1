"""A gateway that keeps what is written to it, and a metric and programs to record."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import dspy

from refed_dspy.optimizers.examples import Split, example_id
from refed_dspy.optimizers.metrics import ExampleScore
from refed_dspy.optimizers.recorder import CandidateCallback, ScoreRecorder
from refed_dspy.programs.adapter import SchemaAdapter
from tests.support.scripted_engine import Writer, fake_lm

EXAMPLES = [dspy.Example(question=f"q{n}", worth=n / 10).with_inputs("question") for n in range(10)]


class FakeGateway:
    """Keeps what is written, and the errors that stop the compile."""

    def __init__(self) -> None:
        self.candidates: list[tuple[Any, ...]] = []
        self.evaluations: list[tuple[Any, ...]] = []
        self.failed: list[tuple[Any, ...]] = []
        self.stop_errors: list[BaseException] = []
        self.recorder = SimpleNamespace(budget=SimpleNamespace(spent=42))
        self._lock = threading.Lock()

    def write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        with self._lock:
            for sql, row in statements:
                lists = {"candidates": self.candidates, "evaluations": self.evaluations, "failures": self.failed}
                next(rows for table, rows in lists.items() if f"INTO {table} " in sql).append(row)

    def read(self, query: Any) -> list[Any]:
        return []

    def stop(self, error: BaseException) -> None:
        self.stop_errors.append(error)


class ByWorth:
    """Scores an example by its worth; raises where `errors` has something for it."""

    accept = 0.5

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.stages: list[tuple[str | None, Any]] = []

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:
        if (error := self.errors.get(example.question)) is not None:
            raise error
        return ExampleScore(example.worth, {"worth": example.worth}, objectives={"worth": example.worth})

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        self.stages.append((stage, trace))
        return f"write more about {example.question}"

    def identity(self) -> dict[str, Any]:
        return {}


def recorder(gateway: FakeGateway, metric: Any = None, **more: Any) -> ScoreRecorder:
    subsets = {example_id(example): "train" for example in EXAMPLES[:5]}
    recorder_: Any = ScoreRecorder
    return recorder_(metric or ByWorth(), gateway, subsets, **more)  # type: ignore[no-any-return]


def candidates(gateway: FakeGateway, student: dspy.Module) -> CandidateCallback:
    made: Any = CandidateCallback
    return made(gateway, student, Split((), (), ()))  # type: ignore[no-any-return]


def program(instructions: str = "Answer.") -> dspy.Module:
    return dspy.ChainOfThought(dspy.Signature("question -> answer", instructions))


def running(*callbacks: Any, writer: Writer | None = None) -> Any:
    return dspy.context(lm=fake_lm(writer or Writer()), adapter=SchemaAdapter(), callbacks=list(callbacks))


def evaluate(program_: dspy.Module, metric: Any, examples: list[dspy.Example], threads: int = 2) -> Any:
    return dspy.Evaluate(
        devset=examples, metric=metric, num_threads=threads, display_progress=False, max_errors=100, failure_score=0.0,
        provide_traceback=False,
    )(program_)  # fmt: skip
