"""Programs of a caller's own that a run can execute: what they must have, what they need not, and where they work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request

import refed_dspy
from refed_dspy.cli.preview import rendered_prompts
from refed_dspy.config.compile import MetricConfig
from refed_dspy.errors import CodeFailed, ConfigError, RunStopped
from refed_dspy.ledger.candidates import load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.beats_baseline import BeatsBaseline
from refed_dspy.programs import Proposal, Sample, SynthesisProgram
from refed_dspy.records import Reference
from tests.plugins.compare.helpers import Judge
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references, spoil_first

QUIET: dict[str, Any] = {"track": False, "progress": False}


class Least(SynthesisProgram):
    """Nothing but what must be written."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("instruction, taken: list[str] -> new_instruction")
        self.response_generation = dspy.Predict("instruction -> response")

    async def propose(
        self, reference: Any, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        made = await self.ask.acall(instruction=reference.instruction, taken=list(taken))
        return Proposal((made.new_instruction,))

    async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
        made = await self.response_generation.acall(instruction=instruction)
        return Sample.of(instruction, made.response)


class Unlucky(Least):
    """Its code fails on a fourth of its rows."""

    async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
        sample = await super().respond(reference, response_feedback, instruction, item)
        if sum(map(ord, instruction)) % 4 == 3:
            raise ValueError("a row that it cannot read")
        return sample


def writer() -> Writer:
    """Writes a new instruction each time."""
    made = Writer()

    def answer(request: Request) -> str | None:
        asked = made.fields(request) == ["new_instruction"]
        return json.dumps({"new_instruction": f"Write about subject {next(made.numbers)}"}) if asked else None

    made.on_request = answer
    return made


def run(program: Any, folder: Path, teacher: Writer, size: int = 12, **settings: Any) -> Any:
    return refed_dspy.synthesize(
        program, references(8), size=size, teacher=fake_lm(teacher), run_dir=folder, **QUIET, **settings
    )


def test_two_methods_are_enough(tmp_path: Path) -> None:
    teacher = writer()
    made = run(Least(), tmp_path, teacher)
    assert len(made.samples) == 12 and made.status["opened"] == 8
    assert len(teacher.requests) == 24
    rows = list(run(Least(), tmp_path, teacher).samples.rows())
    assert {row["feature"] for row in rows} == {"new"} and len(teacher.requests) == 24


def test_an_estimate_counts_its_calls_for_instructions_by_the_instructions(tmp_path: Path) -> None:
    """Not by the references: of these each is asked ten times."""
    settings: dict[str, Any] = {"size": 80, "run_dir": tmp_path, "teacher": fake_lm(writer())}
    assert refed_dspy.estimate(Least(), references(8), **settings, **QUIET).calls == pytest.approx(160, rel=0.05)


def test_its_predictors_are_previewed() -> None:
    prompts = rendered_prompts(Least(), Reference(**references(1)[0]))
    assert list(prompts) == ["ask", "response_generation"]
    assert "«taken»" in prompts["ask"][-1]["content"]


def test_called_directly_it_gives_its_samples_and_the_failures_of_its_predictors() -> None:
    teacher = writer()
    spoil_first(teacher, "new_instruction")
    with dspy.context(lm=fake_lm(teacher)):
        made = asyncio.run(Least().acall(references(1)[0]))
    assert [failure.kind for failure in made.failures] == ["malformed"] and not made.samples
    with dspy.context(lm=fake_lm(writer())):
        assert [sample.improved_response for sample in Least()(references(1)[0]).samples] == ["response number 2"]


# --- what it must have is known before anything is paid for


class Bare(dspy.Module):  # type: ignore[misc]
    """All that a run needs, and no base class."""

    features, instructions_per_feature = {"new": "a new one"}, 1
    collect_features, collect_response_feedback = Least.collect_features, Least.collect_response_feedback
    propose, respond = Least.propose, Least.respond

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.response_generation = Least().ask, Least().response_generation


def test_the_base_class_need_not_be_its_own(tmp_path: Path) -> None:
    assert len(run(Bare(), tmp_path, writer()).samples) == 12


def without(name: str) -> Any:
    left = {key: value for key, value in vars(Bare).items() if key != name and not key.startswith("__")}
    return type("Bare", (dspy.Module,), {**left, "__init__": lambda self: dspy.Module.__init__(self)})()


def with_(**attributes: Any) -> Any:
    return type("Own", (Least,), attributes)()


async def no_repetition(self: Any, reference: Any, feature: str, description: str, taken: Any) -> Proposal:
    return Proposal(())


NEEDED = ("features", "instructions_per_feature", "collect_features", "collect_response_feedback", "propose", "respond")
UNFIT: dict[str, Callable[[], Any]] = {
    **{f"no {name}": partial(without, name) for name in NEEDED},
    "propose unwritten": lambda: with_(propose=SynthesisProgram.propose),
    "propose not async": lambda: with_(propose=lambda self, *inputs, **named: Proposal(())),
    "propose without repetition": lambda: with_(propose=no_repetition),
    "respond no method": lambda: with_(respond="text"),
    "features a list": lambda: with_(features=["new"]),
    "no feature": lambda: with_(features={}),
    "no instructions": lambda: with_(instructions_per_feature=0),
    "half an instruction": lambda: with_(instructions_per_feature=0.5),
    "no module": lambda: {"propose": 1},
}  # fmt: skip


@pytest.mark.parametrize("program", UNFIT.values(), ids=UNFIT)
def test_what_cannot_run_is_refused_by_what_it_lacks(said: Said, program: Any, tmp_path: Path) -> None:
    teacher, folder = writer(), tmp_path / "run"
    for start in (refed_dspy.synthesize, refed_dspy.estimate):
        with said.by(ConfigError):
            start(program(), references(8), size=4, teacher=fake_lm(teacher), run_dir=folder, **QUIET)
    assert not teacher.requests and not folder.exists()


@pytest.mark.parametrize("program", [Bare(), with_(propose=no_repetition)], ids=["no base class", "unfit"])
def test_what_cannot_be_compared_or_compiled_is_refused_by_it(said: Said, program: Any, tmp_path: Path) -> None:
    teacher, folder = writer(), tmp_path / "c"
    settings: dict[str, Any] = {"teacher": fake_lm(teacher), "judge": fake_lm(teacher), "out": folder, **QUIET}
    with said.by(ConfigError):
        refed_dspy.compare([program, "instruction-only"], references(8), **settings)
    with said.by(ConfigError):
        refed_dspy.compile(program, references(12), **settings)
    assert not teacher.requests and not folder.exists()


async def nothing(self: Any, *inputs: Any, **named: Any) -> Any:
    return None


@pytest.mark.parametrize("method", ["propose", "respond"])
def test_what_returns_something_else_fails_its_row_by_name(said: Said, method: str, tmp_path: Path) -> None:
    with pytest.raises(RunStopped) as error:
        run(with_(**{method: nothing}), tmp_path, writer(), size=3, per_reference=1)
    assert f"TypeError: {method} returned a NoneType, not a " in str(error.value)


# --- where else it works


def compared(own: Any, folder: Path, teacher: Writer, judge: Writer, against: str) -> dict[str, Any]:
    made = refed_dspy.compare(
        {"own": own, "plain": "instruction-only"}, references(8), size=12, teacher=fake_lm(teacher),
        judge=fake_lm(judge, "judge/model"), out=folder, embeddings=False, subsets=[4], grades=False, against=against,
        **QUIET,
    )  # fmt: skip
    return {line.program: line for line in made.programs}


def test_a_comparison_charges_every_program_for_the_instructions(tmp_path: Path) -> None:
    calls = {name: line.calls for name, line in compared(Least(), tmp_path, writer(), Judge(), "own").items()}
    assert calls == {"own": 24, "plain": 24}, "twelve for instructions, twelve for answers"


@pytest.mark.parametrize("against", ["own", "plain"])
def test_in_a_comparison_an_error_of_its_code_is_its_row_s_failure(against: str, tmp_path: Path) -> None:
    teacher, judge = writer(), Judge()
    lines = compared(Unlucky(), tmp_path, teacher, judge, against)
    assert lines["own"].rows == lines["plain"].rows == 12
    with Ledger.read(tmp_path) as ledger:
        failures = ledger.failures()
    assert failures and {failure.kind for failure in failures} == {CodeFailed.kind}
    asked = len(teacher.requests) + len(judge.requests)
    compared(Unlucky(), tmp_path, teacher, judge, against)
    assert len(teacher.requests) + len(judge.requests) == asked, "the second asks nothing"


def test_where_the_uncompiled_program_s_code_fails_the_candidate_ties() -> None:
    class Broken(Least):
        async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
            raise ValueError("a row that it cannot read")

    metric = BeatsBaseline(Broken(), fake_lm(writer()), fake_lm(Judge()), MetricConfig())
    made = dspy.Prediction(feedback=None, samples=[Sample.of("Write.", "Written.")], failures=[])
    assert metric.score(dspy.Example(reference=references(1)[0]), made).components["wins"] == 0.5


@pytest.mark.slow
def test_in_a_compile_an_error_of_its_code_is_its_row_s_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Several(Least):
        features = {"one": "of one kind", "two": "of another", "three": "of a third"}  # noqa: RUF012

        async def propose(self, reference: Any, feature: str, *inputs: Any, **named: Any) -> Proposal:
            made = await self.ask.acall(instruction=f"{reference.instruction} {feature}", taken=[])
            return Proposal((f"{made.new_instruction} of kind {feature}",))

        async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
            sample = await super().respond(reference, response_feedback, instruction, item)
            if instruction.endswith("three"):
                raise ValueError("a row that it cannot read")
            return sample

    teacher, judge = writer(), Judge()
    settings: dict[str, Any] = {
        "optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "evaluations": 4, "out": tmp_path,
        "teacher": fake_lm(teacher), "judge": fake_lm(judge, "judge/model"), **QUIET,
    }  # fmt: skip
    made = refed_dspy.compile(Several(), references(9), **settings)
    asked = len(teacher.requests) + len(judge.requests)
    with Ledger.read(tmp_path) as ledger:
        uncompiled = min(load_candidates(ledger), key=lambda candidate: candidate.seq)
    assert min(uncompiled.scores["validation"].values()) > 0, "the other rows count"
    assert sum("a row that it cannot read" in each.message for each in caplog.records) == 1
    refed_dspy.compile(Several(), references(9), **settings)
    assert len(teacher.requests) + len(judge.requests) == asked, "the second asks nothing"
    assert len(run(made.program, tmp_path / "run", writer(), max_failure_share=1).samples) == 12
