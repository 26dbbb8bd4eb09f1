"""Any DSPy code in the engine: its calls are recorded, capped and answered from the folder the next time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import (
    CapReached,
    CapTooSmall,
    ConfigError,
    RunDirError,
    RunStopped,
    TeacherError,
    TeacherRefused,
)
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.ledger import Ledger
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.compiling import requests
from tests.support.gateways import Answering, calls, config
from tests.support.said import Said

DEVSET = [dspy.Example(question=f"What is {n}?", answer="x").with_inputs("question") for n in range(12)]


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


class Rewriting(dspy.Module):  # type: ignore[misc]
    """Nobody's program: two predictors, and no word of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.draft, self.polish = dspy.Predict(Answering), dspy.ChainOfThought("question, draft -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.polish(question=question, draft=self.draft(question=question).answer)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.polish.acall(question=question, draft=(await self.draft.acall(question=question)).answer)


def has_answer(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return float(len(prediction.answer) % 2)


def evaluated(program: dspy.Module) -> float:
    return float(dspy.Evaluate(devset=DEVSET, metric=has_answer, num_threads=4)(program).score)


def acalled(program: dspy.Module) -> str:
    async def all_of() -> list[dspy.Prediction]:
        return await asyncio.gather(*(program.acall(**example.inputs()) for example in DEVSET))

    return str(asyncio.run(all_of()))


def optimized(program: dspy.Module) -> str:
    optimizer = dspy.BootstrapFewShot(metric=has_answer, max_bootstrapped_demos=2, max_labeled_demos=0)
    return str(optimizer.compile(program, trainset=DEVSET).dump_state())


WAYS: dict[str, Callable[[dspy.Module], Any]] = {
    "a call": lambda program: program(question="What is the tide?").answer,
    "acall": acalled,
    "Evaluate": evaluated,
    "Parallel": lambda program: str(dspy.Parallel(num_threads=4)([(program, example) for example in DEVSET])),
    "batch": lambda program: str(program.batch(DEVSET, num_threads=4)),
    "an optimizer": optimized,
    "the model itself": lambda _: dspy.settings.lm("What is the tide?"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_asked_is_asked_no_more(server: SimulatedTeacher, tmp_path: Path, way: str) -> None:
    def recorded() -> Any:
        with refed_dspy.recording(tmp_path, teacher=config(server)):
            return WAYS[way](Rewriting())

    first = recorded()
    paid = requests(server)
    assert recorded() == first and requests(server) == paid > 0
    assert paid == len(calls(tmp_path))


def test_costs_are_told_by_predictor_and_by_role(server: SimulatedTeacher, tmp_path: Path) -> None:
    with refed_dspy.recording(tmp_path, teacher=config(server), judge=config(server, max_tokens=32)) as lms:
        Rewriting()(question="What is the tide?")
        dspy.Predict(Answering)(question="Alone?")
        with dspy.context(lm=lms["judge"]):
            dspy.settings.lm("Which is better?")
    with Ledger.read(tmp_path) as ledger:
        status = status_of(ledger)
    assert {stage: use["calls"] for stage, use in status["usage"].items()} == {
        "draft": 1, "polish": 1, "self": 1, "judge": 1,
    }  # fmt: skip
    assert status["work"] == "recording" and status["state"] == "done"


@pytest.mark.parametrize("threads", [1, 8])
def test_at_a_cap_no_call_begins_and_the_block_says_so(
    said: Said, server: SimulatedTeacher, tmp_path: Path, threads: int
) -> None:
    server.control(latency=0.02)
    scores = []
    with said.by(CapReached), refed_dspy.recording(tmp_path, teacher=config(server), max_calls=7):
        evaluate = dspy.Evaluate(devset=DEVSET, metric=has_answer, num_threads=threads, max_errors=100)
        scores.append(evaluate(Rewriting()).score)
    assert scores, "what the code makes of it is its own"
    assert requests(server) == 7 == len(calls(tmp_path))
    with refed_dspy.recording(tmp_path, teacher=config(server), max_calls=100):
        evaluated(Rewriting())
    assert requests(server) == 24, "what was paid for is not paid for again"


def test_a_dollar_cap_holds(server: SimulatedTeacher, tmp_path: Path) -> None:
    cap = 0.005
    with (
        pytest.raises(CapReached, match="max_cost"),
        refed_dspy.recording(tmp_path, teacher=config(server), max_cost=cap),
    ):
        evaluated(Rewriting())
    with Ledger.read(tmp_path) as ledger:
        assert 0 < status_of(ledger)["cost"] <= cap


def test_a_dollar_cap_below_the_first_call_is_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(CapTooSmall), refed_dspy.recording(tmp_path, teacher=config(server), max_cost=0.001):
        evaluated(Rewriting())
    assert requests(server) == 0


def test_a_dead_endpoint_is_no_score_of_zero(tmp_path: Path) -> None:
    teacher = {"model": "openai/none", "api_base": "http://127.0.0.1:9", "retries": 0}
    with pytest.raises(TeacherRefused, match="check api_base"), refed_dspy.recording(tmp_path, teacher=teacher):
        evaluated(Rewriting())


def test_a_wrong_key_ends_it_and_is_not_told(
    locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, wrong := KEY[::-1])
    with (
        pytest.raises(TeacherError) as raised,
        refed_dspy.recording(tmp_path, teacher=config(locked, api_key_env=KEY_VARIABLE)),
    ):
        Rewriting()(question="What is the tide?")
    assert wrong not in str(raised.value) and requests(locked) == 1


def test_the_blocks_own_error_is_raised_and_what_was_paid_for_is_kept(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), refed_dspy.recording(tmp_path, teacher=config(server)):
        _ = 1 / len(Rewriting()(question="What is the tide?").answer[:0])
    with refed_dspy.recording(tmp_path, teacher=config(server)):
        Rewriting()(question="What is the tide?")
    assert requests(server) == 2


def test_blocks_may_be_nested_in_folders_of_their_own(server: SimulatedTeacher, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    with refed_dspy.recording(outer, teacher=config(server)) as lms:
        with refed_dspy.recording(inner, teacher=config(server)):
            dspy.settings.lm("Inside?")
        assert dspy.settings.lm is lms["teacher"]
        dspy.settings.lm("Outside?")
        with pytest.raises(RunDirError, match="still"), refed_dspy.recording(outer, teacher=config(server)):
            pass
    assert len(calls(outer)) == len(calls(inner)) == 1


def test_a_run_inside_a_block_has_its_own_folder(server: SimulatedTeacher, tmp_path: Path) -> None:
    with refed_dspy.recording(tmp_path / "outer", teacher=config(server)):
        made = refed_dspy.synthesize(
            None, "builtin", size=2, teacher=config(server, max_tokens=512), run_dir=tmp_path / "run", progress=False
        )
    assert len(made) == 2 and not calls(tmp_path / "outer")


def test_another_teacher_or_other_work_is_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with refed_dspy.recording(tmp_path / "a", teacher=config(server)):
        dspy.settings.lm("What is the tide?")
    with said.by(RunDirError), refed_dspy.recording(tmp_path / "a", teacher=config(server, temperature=0.5)):
        pass
    with said.by(RunDirError), refed_dspy.recording(tmp_path / "a", teacher=config(server), judge=config(server)):
        pass
    refed_dspy.synthesize(
        None, "builtin", size=1, teacher=config(server, max_tokens=512), run_dir=tmp_path / "b", progress=False
    )
    with said.by(RunDirError), refed_dspy.recording(tmp_path / "b", teacher=config(server)):
        pass


def test_bad_input_is_refused_before_anything(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"teacher": {"model": "nothing"}},
        {"teacher": config(server), "max_cost": -1},
        {"teacher": config(server, price=None), "max_cost": 1.0},
        {"teacher": config(server), "judge": {"model": "nothing"}},
        {"teacher": config(server), "max_cost": 1e-9},
    ]
    for settings in bad:
        with said.by(ConfigError), refed_dspy.recording(tmp_path / "new", **settings):
            pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter()])
def test_dspys_history_has_each_call(server: SimulatedTeacher, tmp_path: Path, adapter: Any) -> None:
    with dspy.context(adapter=adapter), refed_dspy.recording(tmp_path, teacher=config(server)) as lms:
        Rewriting()(question="What is the tide?")
        asked = [entry["messages"][-1]["content"] for entry in lms["teacher"].history]
    assert "What is the tide?" in asked[0] and len(asked) == requests(server)


@pytest.mark.parametrize("paid", [False, True])
def test_a_model_that_a_predictor_holds_ends_it_unasked(
    said: Said, server: SimulatedTeacher, tmp_path: Path, paid: bool
) -> None:
    program = Rewriting()
    program.polish.set_lm(dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="sk-none", cache=False))
    if not paid:
        program.draft.set_lm(program.polish.get_lm())
    with said.by((ConfigError, RunStopped)) as raised, refed_dspy.recording(tmp_path, teacher=config(server)):
        evaluated(program)
    assert isinstance(raised.value, RunStopped if paid else ConfigError)
    assert requests(server) == len(calls(tmp_path)), "none past the ledger"


def test_other_work_in_a_block_may_have_its_teacher_under_a_cap(server: SimulatedTeacher, tmp_path: Path) -> None:
    with refed_dspy.recording(tmp_path / "a", teacher=config(server)) as lms:
        for folder, teacher in (("b", None), ("c", lms["teacher"])):
            with refed_dspy.recording(tmp_path / folder, teacher=teacher, max_cost=1.0):
                dspy.settings.lm("Inside?")
    assert not calls(tmp_path / "a") and requests(server) == 2


KILLED = """
import os, sys
import dspy, refed_dspy
from tests.jobs.test_recording import DEVSET, Rewriting
folder, teacher = sys.argv[1], {"model": "openai/sim", "api_base": sys.argv[2], "max_tokens": 64, "retries": 0}
with refed_dspy.recording(folder, teacher=teacher):
    for example in DEVSET[:5]:
        Rewriting()(**example.inputs())
    os.kill(os.getpid(), 9)
"""


def test_a_killed_block_goes_on_where_it_was(server: SimulatedTeacher, tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), server.base_url], check=False)
    assert died.returncode == -9 and requests(server) == 10
    with refed_dspy.recording(tmp_path, teacher=config(server, price=None)):
        evaluated(Rewriting())
    assert requests(server) == 24


def test_a_model_that_fails_too_often_ends_it(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"500": 1})
    with pytest.raises(RunStopped, match="failed"), refed_dspy.recording(tmp_path, teacher=config(server)):
        dspy.Evaluate(devset=DEVSET * 4, metric=has_answer, num_threads=2, max_errors=1000)(Rewriting())
