"""What a comparison asks and pays: shared questions once, and each program's cost as if it ran alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, TeacherConfig, compare, save_program
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.programs import SampleLevelFeedback
from refed_dspy.programs.reference_level import METHODS
from tests.plugins.compare.helpers import ALL, SMALL, Judge, answers, config, facts, line, prompt, rows, run
from tests.support.compiling import requests
from tests.support.looks import small
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.fixture
def server() -> Iterator[SimulatedTeacher]:
    """One that no other test has asked: calls are counted to the last one here."""
    with SimulatedTeacher(latency=0, sigma=0) as own:
        yield own


def test_shared_questions_are_paid_for_once_and_the_ledger_agrees_with_the_server(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    """Feedback is one a sample or one a reference, as in the paper: 1,000 and 50."""
    made = run(server, tmp_path / "c", data=references(10), size=8, per_reference=4, grades=True)
    asked = answers(tmp_path / "c")
    assert asked["response_generation"] == 8, "one plain response an instruction, for three programs"
    assert asked["sample_feedback"] == asked["sample_improvement"] == asked["response_improvement"] == 8
    assert asked["response_feedback"] == made.references == 2
    assert [row.feedback for row in made.programs] == [0, 0, 8, 2]
    with Ledger.read(tmp_path / "c") as ledger:
        ended = Counter(ledger.db.execute("SELECT stage, outcome FROM calls").fetchall())
    assert asked["pairwise_judge"] == 2 * 2 * 8 and asked["rubric_judge"] == 3 * 8 + 2, ended
    assert requests(server) == sum(asked.values()) == made.used.calls and server.stats()["repeated"] == 0
    frame = made.to_pandas()
    assert "reference-level" in small(made) and list(frame["program"]) == list(ALL)
    assert "win_rate" not in frame and frame["win_rate_mean"].notna().any(), "no column of nothing beside the bounds"
    written = rows(tmp_path / "c")
    plain = {row["instruction"]: row["response"] for row in written}
    assert all(row["response"] == plain[row["instruction"]] for row in written), "paired"
    assert [row.program for row in made.programs] == list(ALL) and [row.rows for row in made.programs] == [2, 8, 8, 8]
    assert {row["program"] for row in written} == set(ALL[1:]) and len(written) == 24


@pytest.mark.parametrize(
    "method", ["sample-level", *(pytest.param(name, marks=pytest.mark.slow) for name in (ALL[1], ALL[3]))]
)
def test_a_programs_cost_is_what_it_pays_alone(server: SimulatedTeacher, tmp_path: Path, method: str) -> None:
    teacher = config(server, concurrency=1)
    made = line(run(server, tmp_path / "c", teacher=teacher, size=3), method)
    server.reset()
    refed_dspy.synthesize(
        METHODS[method](instructions_per_feature=3), references(6),
        size=3, per_reference=3, teacher=teacher, run_dir=tmp_path / "alone", track=False,
    )  # fmt: skip
    assert made.calls == requests(server)
    with Ledger.read(tmp_path / "alone") as ledger:
        alone = spent(ledger).cost
    assert made.cost == pytest.approx(alone, rel=0.05), "the same questions; answers are of the same length"


def test_what_failed_on_the_way_is_in_a_programs_cost(tmp_path: Path) -> None:
    """Also where no row came of it: it would have been paid for alone as well."""
    writer = Writer(per_call=3)
    bad: dict[str, str] = {}

    def spoil(request: Request) -> str | None:
        shown = prompt(request)
        task = shown.partition("<instruction>\n")[2].partition("\n")[0]
        stage = writer.fields(request)[-1]
        if stage not in {"response", "improved_response"}:
            return None
        bad.setdefault(stage, task)  # the first one that is asked for, at each try
        return "no JSON" if bad[stage] == task else None

    writer.on_request = spoil
    made = compare(
        None, references(6), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "max_failure_share": 1},
    )  # fmt: skip
    with Ledger.read(tmp_path / "c") as ledger:
        calls = Counter(dict(ledger.db.execute("SELECT stage, count(*) FROM calls GROUP BY stage")))
    shared = calls["instruction_feedback"] + calls["instruction_synthesis"] + calls["response_generation"]
    assert made.instructions == 9 and calls["response_generation"] == 9 + 3, "three tries that no row came of"
    assert line(made, "instruction-only").calls == shared
    assert line(made, "sample-level").calls == shared + calls["sample_feedback"] + calls["sample_improvement"]
    assert line(made, "reference-level").calls == shared + calls["response_feedback"] + calls["response_improvement"]


def test_equal_programs_ask_once_and_tie(server: SimulatedTeacher, tmp_path: Path) -> None:
    programs = {"plain": "instruction-only", "one": "reference-level", "two": ReferenceLevelFeedback()}
    made = run(server, tmp_path / "c", programs, against="one", grades=True, size=3)
    asked = answers(tmp_path / "c")
    assert asked["response_improvement"] == 3 and asked["pairwise_judge"] == 2 * 3
    assert asked["rubric_judge"] == 2 * 3 and server.stats()["repeated"] == 0
    two = line(made, "two")
    assert two.win_rate is not None and two.win_rate.mean == 50 and two.consistent == 1
    assert (two.calls, two.cost) == (line(made, "one").calls, line(made, "one").cost)
    assert line(made, "one").win_rate is None


@pytest.mark.slow
def test_a_program_that_differs_in_one_prompt_pays_for_that_alone(server: SimulatedTeacher, tmp_path: Path) -> None:
    saved = ReferenceLevelFeedback(guidance={"response_improvement": "Be brief."})
    save_program(saved, tmp_path / "ours.json")
    programs = {"plain": "instruction-only", "rlf": "reference-level", "ours": tmp_path / "ours.json"}
    made = run(server, tmp_path / "c", programs, against="plain")
    asked = answers(tmp_path / "c")
    assert asked["response_improvement"] == 18 and asked["response_generation"] == 9
    assert asked["response_feedback"] == line(made, "ours").feedback == line(made, "rlf").feedback == 3
    assert server.stats()["repeated"] == 0 and requests(server) == sum(asked.values())


@pytest.mark.slow
def test_a_saved_program_of_any_kind_can_be_what_others_are_compared_with(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    saved = SampleLevelFeedback(instructions_per_feature=3, guidance={"sample_feedback": "Look for sources."})
    save_program(saved, tmp_path / "ours.json")
    programs = {"ours": str(tmp_path / "ours.json"), "rlf": "reference-level"}
    made = run(server, tmp_path / "c", programs, against="ours")
    assert line(made, "ours").feedback == 9 and line(made, "rlf").feedback == 3
    assert line(made, "ours").win_rate is None and line(made, "rlf").win_rate is not None
    again = requests(server)
    run(server, tmp_path / "c", programs, against="ours")
    assert requests(server) == again


@pytest.mark.slow
def test_a_further_program_pays_for_its_own_questions_only(server: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    judge = teacher.model_copy(update={"temperature": 0.0})
    two = {"plain": "instruction-only", "rlf": "reference-level"}
    settings: dict[str, Any] = {"teacher": teacher, "judge": judge, "against": "plain", "size": 6, "embeddings": False}
    refed_dspy.compare(two, out=tmp_path / "two", **settings)
    server.reset()
    three = refed_dspy.compare(
        {**two, "sample": "sample-level"}, out=tmp_path / "three", reuse=tmp_path / "two", **settings
    )
    # Feedback and improvement of six, two verdicts of both orders each, and a grade.
    assert server.stats()["requests"] <= 6 * (2 + 2 + 1) and [row.rows for row in three.programs] == [6, 6, 6]


@pytest.mark.slow
def test_unknown_prices_are_shown_as_unknown(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", teacher=config(server, price=None), size=2)
    assert [row.cost for row in made.programs] == [0, None, None, None]
    figures = facts(tmp_path / "c")
    assert figures["programs"][1]["cost"] is None and figures["programs"][0]["cost"] == 0
    judge = config(server, model="sim/other-model", price=None)
    both = run(server, tmp_path / "d", teacher=config(server, price=None), size=2, judge=judge)
    assert facts(tmp_path / "d")["used"]["cost"] is None and both.used.unpriced
