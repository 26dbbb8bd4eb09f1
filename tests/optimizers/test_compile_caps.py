"""The caps of a compile hold, and the best program so far is returned."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.optimizers.result import Compiled
from refed_dspy.teachers.progress import CompileProgress
from tests.support import capped_compiles, compiling
from tests.support.capped_compiles import BASELINE, OPTIMIZERS, billed, candidates, charged, compiled, config, is_whole
from tests.support.compiling import Answerer, questions, requests
from tests.support.said import Said

server, without_words, any_cap = compiling.terse_server, compiling.without_words, capped_compiles.any_cap
pytestmark = pytest.mark.usefixtures("any_cap")

# --- caps hold, and what there is comes back


@pytest.mark.parametrize("cap", [1, BASELINE])
def test_a_cap_about_the_baselines_evaluation_gives_the_uncompiled_program(
    server: SimulatedTeacher, tmp_path: Path, cap: int
) -> None:
    compiled(server, tmp_path, estimate=True)
    made = compiled(server, tmp_path, max_calls=cap)
    assert requests(server) <= max(BASELINE, cap)
    assert not made.changed and made.proof is None
    is_whole(made, "max_calls")


@pytest.mark.slow
def test_max_minutes_ends_it_and_lets_go_of_what_hangs(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 0.02}, seed=1)
    begun = time.monotonic()
    made = compiled(server, tmp_path, teacher=config(server, timeout=600), max_minutes=0.02)
    assert time.monotonic() - begun < 6
    is_whole(made, "max_minutes")


@pytest.mark.slow
def test_a_higher_cap_lets_the_same_call_go_on_and_pays_nothing_again(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    compiled(server, tmp_path, max_calls=50)
    assert compiled(server, tmp_path, max_calls=1).stopped == "max_calls", "far below what was spent"
    assert requests(server) <= 50
    made = compiled(server, tmp_path, max_calls=60)
    assert 50 < requests(server) <= 60 and made.stopped == "max_calls"
    said(made.state)
    done = compiled(server, tmp_path, max_calls=2_000)
    assert done.stopped == "" and done.proof is not None
    assert server.stats()["repeated"] == 0 and requests(server) == charged(tmp_path)[1]


def test_the_proof_is_paid_for_by_what_was_held_back_and_is_not_lost_by_another_start(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    told: list[CompileProgress] = []
    prompts = ("Worth 0.6", "Worth 0.9", "Worth 0.3")
    first = stepped(server, tmp_path, 30, *prompts, back=0, on_progress=told.append)
    assert first.proof is not None and first.stopped == "max_calls" and first.changed
    assert told[-1].phase == first.state and told[-1].calls == charged(tmp_path)[1]
    again = stepped(server, tmp_path, 30, *prompts, back=0)
    assert again.proof is not None
    assert again.manifest["candidate"] == first.manifest["candidate"]


# --- a program of one call, and an optimizer that does as it is told


class Stepwise:
    """Tries prompts in order on the whole validation set. In DSPy's shape; gives back the one of that number."""

    def __init__(self, metric: Any, prompts: tuple[str, ...], back: int = -1) -> None:
        self.metric, self.prompts, self.back = metric, prompts, back

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        score = dspy.Evaluate(devset=valset, metric=self.metric, num_threads=1, max_errors=99, display_progress=False)
        made = []
        for prompt in self.prompts:
            made.append(student.deepcopy())
            made[-1].answer.signature = student.answer.signature.with_instructions(prompt)
            score(made[-1])
        return made[self.back]


def graded(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    """What its prompt says that it is worth; 0.5 for the uncompiled one."""
    last = str(prediction.prompt).rpartition(" ")[2]
    return float(last) if last.startswith("0.") else 0.5


def stepped(
    server: SimulatedTeacher, folder: Path, max_calls: int | None, *prompts: str, back: int = -1, **more: Any
) -> Compiled:
    """Five validation and five test examples, one call each. Of `max_calls` above 5 half is held back for the proof,
    11 at most."""
    return refed_dspy.compile(
        Answerer(),
        questions(13),
        metric=graded,
        teacher=config(server),
        judge=config(server),
        optimizer="tests.optimizers.test_compile_caps.Stepwise",
        options={"prompts": prompts or ("Worth 0.9",), "back": back},
        out=folder,
        max_calls=max_calls,
        **{"train": 3, "validation": 5, "test": 5, "threads": 1, "track": False, **more},
    )


def test_the_best_candidate_is_chosen_and_proved(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = stepped(server, tmp_path, None, "Worth 0.7", "Worth 0.9", "Worth 0.2")
    assert made.changed and made.program.answer.signature.instructions == "Worth 0.9"
    assert made.proof is not None and made.proof.gain.raw.mean == pytest.approx(0.4)
    assert requests(server) == 5 + 3 * 5 + 2 * 5


@pytest.mark.parametrize(("scored", "chosen"), [(2, False), (4, True)])
def test_a_candidate_that_the_cap_cut_short_is_chosen_only_from_four_fifths_on(
    server: SimulatedTeacher, tmp_path: Path, scored: int, chosen: bool
) -> None:
    """As many calls again are held back for the proof."""
    stepped(server, tmp_path, None, estimate=True)
    made = stepped(server, tmp_path, 5 + 2 * scored)
    assert requests(server) == 5 + 2 * scored
    partly = candidates(tmp_path)[1]
    assert len(partly.scores["validation"]) == scored and partly.mean("validation") == 0.9
    assert made.changed is chosen and made.stopped == "max_calls" and made.proof is None


def test_an_earlier_whole_candidate_is_chosen_over_a_better_one_that_was_cut(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = stepped(server, tmp_path, 5 + 2 * 6, "Worth 0.7", "Worth 0.95", back=0)
    assert requests(server) == 17
    assert len(candidates(tmp_path)[2].scores["validation"]) == 1
    assert made.program.answer.signature.instructions == "Worth 0.7"


def test_a_later_start_takes_no_proof_for_tuning(server: SimulatedTeacher, tmp_path: Path) -> None:
    """What it names as enough is what the first start named: the proof that was paid for meanwhile is in both."""
    named = []
    for cap in (30, 40):
        made = stepped(server, tmp_path, cap, *(f"Prompt {n}: worth 0.9" for n in range(10)), evaluations=50)
        told = re.search(r"; (\d+) calls would leave room for the rest", made.why)
        assert made.proof is not None and told is not None, made.why
        named.append(int(told[1]))
    assert named[0] == named[1]


@pytest.mark.parametrize(
    ("optimizer", "cap"),
    [
        ("mipro", {"max_cost": 0.04}),
        *(pytest.param(name, {"max_cost": 0.04}, marks=pytest.mark.slow) for name in ("gepa", "simba", "bootstrap")),
        *(pytest.param(name, {"max_calls": 50}, marks=pytest.mark.slow) for name in OPTIMIZERS),
    ],
    ids=str,
)
def test_a_cap_is_never_passed_whatever_goes_wrong(
    server: SimulatedTeacher, tmp_path: Path, optimizer: str, cap: dict[str, float]
) -> None:
    server.control(faults={"500": 0.03, "malformed": 0.03, "cut": 0.03, "drop": 0.02, "nousage": 0.02}, seed=4)
    made = compiled(server, tmp_path, optimizer, **cap)
    cost, calls = charged(tmp_path)
    assert BASELINE < requests(server) == calls <= cap.get("max_calls", calls)
    assert billed(server) <= cost <= cap.get("max_cost", math.inf) * 10**12
    is_whole(made, *cap)


def test_several_optimizers_share_a_cap_and_go_on_under_a_higher_one_without_paying_again(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    raced = "gepa, bootstrap"
    compiled(server, tmp_path, raced, estimate=True)
    first = compiled(server, tmp_path, raced, max_calls=90)
    assert first.stopped == "max_calls" and requests(server) <= 90
    paid = {each["name"]: each["calls"] for each in first.manifest["race"]}
    assert min(paid.values()) > 0, f"nobody may use up what the others are to have: {paid}"
    again = compiled(server, tmp_path, raced, max_calls=90)
    assert again.manifest["race"] == first.manifest["race"], "each turn has the same limit on every start"
    done = compiled(server, tmp_path, raced, max_calls=5_000)
    assert done.stopped == "" and done.proof is not None
    assert server.stats()["repeated"] == 0 and requests(server) == charged(tmp_path)[1]
