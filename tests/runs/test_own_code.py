"""Errors of a caller's own code in a run: each is the failure of the row at hand, wherever the code stands."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.errors import CodeFailed, RowError, RunStopped
from refed_dspy.filters.base import Decision, JudgeFilter
from refed_dspy.programs import reference_level
from refed_dspy.records import DataRow, Reference, Sample
from refed_dspy.runs.result import Synthesis
from tests.runs.filter.helpers import CustomFilter
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm, question_of, references, spoil_first

SIZE = 12
KEY = "sk-9aVq2LxT7bRm4WcY8dKe1Nf5"


def run(program: Any, folder: Path, writer: Writer, size: int = SIZE, **settings: Any) -> Synthesis:
    settings = {"per_reference": 20, "teacher": fake_lm(writer), "track": False, **settings}
    return refed_dspy.synthesize(program, references(3), size=size, run_dir=folder, **settings)


class Fragile:
    """Raises an error for every eighth text that it has not seen, again and again for the same text."""

    def __init__(self, error: Callable[[], Exception] | None = None) -> None:
        self.error = error or (lambda: ValueError(f"cannot read\nthis with {KEY}"))
        self.seen: list[str] = []
        self.mended = False

    def look(self, text: str) -> None:
        if text not in self.seen:
            self.seen.append(text)
        if self.seen.index(text) % 8 == 3 and not self.mended:
            raise self.error()


class Stage(dspy.Module):  # type: ignore[misc]
    def __init__(self, stage: Any, fragile: Fragile) -> None:
        super().__init__()
        self.inner, self.fragile = dspy.Predict(stage.signature), fragile

    async def aforward(self, **inputs: Any) -> Any:
        self.fragile.look(inputs["instruction"])
        return await self.inner.acall(**inputs)


def own_stage(fragile: Fragile) -> tuple[Any, list[Any]]:
    program = ReferenceLevelFeedback()
    program.response_improvement = Stage(program.response_improvement, fragile)
    return program, []


def own_program(fragile: Fragile) -> tuple[Any, list[Any]]:
    class Own(ReferenceLevelFeedback):
        async def respond(
            self, reference: Reference, response_feedback: str, instruction: str, item: str = ""
        ) -> Sample:
            sample = await super().respond(reference, response_feedback, instruction, item)
            fragile.look(instruction)
            return sample

    return Own(), []


def own_filter(of_instruction: bool) -> Callable[[Fragile], tuple[Any, list[Any]]]:
    def filters(fragile: Fragile) -> tuple[Any, list[Any]]:
        def check(row: DataRow) -> Decision:
            fragile.look(row.instruction)
            return Decision(True)

        return None, [CustomFilter("own", check, of_instruction=of_instruction)]

    return filters


def own_judge(fragile: Fragile) -> tuple[Any, list[Any]]:
    class Own(JudgeFilter):
        name = "own"

        async def judged(self, row: DataRow, item: str) -> Decision:
            fragile.look(row.instruction)
            return Decision(True)

    return None, [Own()]


PLACES = {
    "stage": (own_stage, "response_improvement"),
    "program": (own_program, "program"),
    "filter of samples": (own_filter(False), "filters: own"),
    "filter of instructions": (own_filter(True), "filters: own"),
    "judge": (own_judge, "filters: own"),
}


@pytest.mark.parametrize(("place", "stage"), PLACES.values(), ids=PLACES)
def test_an_error_of_own_code_is_its_rows_failure(said: Said,
    place: Callable[[Fragile], tuple[Any, list[Any]]], stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OWN_API_KEY", KEY)
    fragile = Fragile()
    program, filters = place(fragile)
    with caplog.at_level(logging.DEBUG, "refed_dspy"):
        made = run(program, tmp_path / "run", Writer(), filters=filters)
    assert len(made.samples) == SIZE, "the run makes up for it"
    assert made.failures and all(failure.item for failure in made.failures)
    assert {(failure.stage, failure.kind) for failure in made.failures} == {(stage, CodeFailed.kind)}
    said(sorted({failure.reason for failure in made.failures}))
    assert KEY not in caplog.text
    logged = [(record.levelname, record.message) for record in caplog.records if __file__ in record.message]
    assert Counter(level for level, _ in logged)["WARNING"] == 1, "once for each place"
    assert any(level == "DEBUG" and "Traceback" in message for level, message in logged)


@pytest.mark.parametrize("place", [own_stage, own_judge], ids=["stage", "judge"])
def test_the_next_start_tries_mended_code_on_what_was_paid_for(
    place: Callable[[Fragile], tuple[Any, list[Any]]], tmp_path: Path
) -> None:
    fragile, writer = Fragile(), Writer()
    program, filters = place(fragile)
    failed = len(run(program, tmp_path / "run", writer, filters=filters).failures)
    asked, fragile.mended = len(writer.requests), True
    made = run(program, tmp_path / "run", writer, size=SIZE + failed, filters=filters)
    assert failed and not made.failures and len(made.samples) == SIZE + failed
    assert len(writer.requests) - asked <= failed, "the last call of each is all that may be missing"


@pytest.mark.parametrize(("place", "stage"), PLACES.values(), ids=PLACES)
def test_code_that_always_fails_ends_the_run(
    said: Said, place: Callable[[Fragile], tuple[Any, list[Any]]], stage: str, tmp_path: Path
) -> None:
    fragile = Fragile()
    fragile.look = lambda text: 1 / 0  # type: ignore[method-assign, assignment]
    program, filters = place(fragile)
    writer = Writer()
    with pytest.raises(RunStopped) as error:
        run(program, tmp_path / "run", writer, size=40, filters=filters)
    said(re.sub(f"(?<={stage} of )[^:]+", "ROW", str(error.value)))  # whichever came last
    assert len(writer.requests) < 120, "no more is paid for"


def test_a_row_error_of_own_code_is_in_the_list(said: Said, tmp_path: Path) -> None:
    program, _ = own_program(Fragile(lambda: RowError("polish", "row-7", "too plain")))
    made = run(program, tmp_path / "run", Writer())
    assert len(made.samples) == SIZE
    assert {(failure.stage, failure.item) for failure in made.failures} == {("polish", "row-7")}
    said(sorted({failure.reason for failure in made.failures}))


def test_a_call_that_fails_in_a_task_group_is_no_error_of_own_code(tmp_path: Path) -> None:
    class Own(ReferenceLevelFeedback):
        async def respond(self, *inputs: Any, **named: Any) -> Sample:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(super().respond(*inputs, **named))
            return task.result()

    writer = Writer()
    spoil_first(writer, "response")
    made = run(Own(), tmp_path / "run", writer)
    assert len(made.samples) == SIZE
    assert {(failure.stage, failure.kind) for failure in made.failures} == {("response_generation", "malformed")}


def test_where_nothing_is_own_an_error_is_a_bug_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_level, "improved_sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(None, tmp_path / "run", Writer())


def rewarded(wrapper: Any) -> Callable[[Any, Fragile], Any]:
    def reward(inputs: Any, made: Any, fragile: Fragile) -> float:
        fragile.look(inputs["instruction"])
        return 1.0

    return lambda stage, fragile: wrapper(
        module=stage, N=2, reward_fn=lambda inputs, made: reward(inputs, made, fragile), threshold=0.5, fail_count=0
    )


class Blocking(Stage):
    """Has no `aforward`."""

    aforward = property()

    def forward(self, **inputs: Any) -> Any:
        self.fragile.look(inputs["instruction"])
        return self.inner(**inputs)


MODULES: dict[str, Callable[[Any, Fragile], Any]] = {
    "BestOfN": rewarded(dspy.BestOfN),
    "Refine": rewarded(dspy.Refine),
    "no aforward": Blocking,
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_an_error_in_a_module_s_own_thread_is_its_row_s_failure(
    module: Callable[[Any, Fragile], Any], tmp_path: Path
) -> None:
    fragile, program, writer = Fragile(), ReferenceLevelFeedback(), Writer()
    program.response_improvement = module(program.response_improvement, fragile)
    made = run(program, tmp_path, writer)
    assert len(made.samples) == SIZE
    assert {(failure.stage, failure.kind) for failure in made.failures} == {("response_improvement", CodeFailed.kind)}


def test_an_agent_in_a_stage_s_place_fails_the_row_that_it_has_no_answer_for(tmp_path: Path) -> None:
    program, writer = ReferenceLevelFeedback(), Writer()
    program.response_improvement = dspy.ReActV2(program.response_improvement.signature, tools=[])
    asked: list[str] = []
    submitted = {"tool_calls": [{"name": "submit", "args": {**SAMPLE_FIELDS, "improved_response": "better"}}]}

    def answer(request: Any) -> str | None:
        if "tool_calls" not in (fields := writer.fields(request)):
            return None
        answers = {name: submitted if name == "tool_calls" else "so" for name in fields}
        asked.append(question_of(request))
        return "no JSON" if asked[-1] == asked[0] else json.dumps(answers)

    writer.on_request = answer
    made = run(program, tmp_path, writer)
    assert [sample.improved_response for sample in made.samples] == ["better"] * SIZE
    assert [(failure.stage, failure.kind) for failure in made.failures] == [("response_improvement", "malformed")]


@pytest.mark.parametrize("wrapper", [dspy.BestOfN, dspy.Refine])
def test_a_module_without_aforward_works_in_a_stages_place(wrapper: Any, tmp_path: Path) -> None:
    program, writer = ReferenceLevelFeedback(), Writer()
    program.response_improvement = wrapper(
        module=program.response_improvement, N=2, reward_fn=lambda inputs, made: 1.0, threshold=0.5
    )
    made = run(program, tmp_path / "run", writer, size=4)
    assert len(made.samples) == 4 and not made.failures
    assert sum(stage["calls"] for stage in made.usage.values()) == len(writer.requests), "all calls are recorded"
    run(program, tmp_path / "run", writer, size=4)
    assert sum(stage["calls"] for stage in made.usage.values()) == len(writer.requests), "and none is paid twice"
