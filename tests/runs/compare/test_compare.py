"""Comparisons end to end: what is asked and paid, whose figures are what, and what is said of what is missing."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors
from typer.testing import CliRunner

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import Comparison, ReferenceLevelFeedback, TeacherConfig, compare, save_program
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError, MalformedAnswer, NoAnswer, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.metrics.intervals import Interval, mean_interval
from refed_dspy.programs import SampleLevelFeedback, SeedOnly
from refed_dspy.programs.baselines import METHODS
from refed_dspy.programs.side_by_side import SideBySide
from refed_dspy.records import Reference
from refed_dspy.runs.compare.result import Line, Subset
from refed_dspy.runs.compare.write import facts as in_json
from tests.support import ROOT
from tests.support.scripted_engine import Writer, fake_lm, references

RATES = {"prompt": 1.0, "completion": 10.0}
ALL = ("seed-only", "instruction-only", "sample-level", "reference-level")


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=8, items=3)
    return server


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "price": RATES, "max_tokens": 1024}
    return TeacherConfig.model_validate({**values, "concurrency": 4, **settings})


class Judge(Writer):
    """Says of a pair and of a text what the test wants: by default that the first answer is better, and a 4."""

    def __init__(self, verdict: str = "A>B", grade: str = "4") -> None:
        super().__init__()
        self.said = {"verdict": verdict, "grade": grade}
        self.on_request = self.decide

    def decide(self, request: Request) -> Any:
        fields = self.fields(request)
        return json.dumps({"reason": "it says so", fields[1]: self.said[fields[1]]})


SMALL: dict[str, Any] = {
    "size": 9, "per_reference": 3, "instructions_per_feature": 3, "embeddings": False, "track": False,
    "subsets": [9], "grades": False,
}  # fmt: skip


def run(
    server: SimulatedTeacher, out: Path, programs: Any = None, given: Any = None, judge: Any = None, **settings: Any
) -> Comparison:
    given = references(6) if given is None else given
    teacher = settings.pop("teacher", None) or config(server)
    judge = judge or config(server, model="sim/other-model")
    return compare(programs, given, teacher=teacher, judge=judge, out=out, **{**SMALL, **settings})


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


def line(made: Comparison, name: str) -> Line:
    return next(one for one in made.lines if one.program == name)


def answers(folder: Path) -> Counter[str]:
    with Ledger.read(folder) as ledger:
        return Counter(stage for (stage,) in ledger.db.execute("SELECT stage FROM answers"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "rows.jsonl").read_text().splitlines()]


def facts(folder: Path) -> dict[str, Any]:
    """The figures, read as strict JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return dict(json.loads((folder / "comparison.json").read_text(), parse_constant=refuse))


# --- what is paid


def test_shared_questions_are_paid_for_once_and_the_books_are_the_servers(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "c", grades=True)
    asked = answers(tmp_path / "c")
    assert asked["response_generation"] == 9, "one plain response an instruction, for three programs"
    assert asked["sample_feedback"] == asked["sample_improvement"] == asked["response_improvement"] == 9
    assert asked["pairwise_judge"] == 2 * 2 * 9 and asked["rubric_judge"] == 3 * 9 + 3
    assert requests(server) == sum(asked.values()) == made.used.calls
    assert server.stats()["repeated"] == 0
    plain = {row["instruction"]: row["response"] for row in rows(tmp_path / "c")}
    assert all(row["response"] == plain[row["instruction"]] for row in rows(tmp_path / "c")), "paired"
    assert [one.program for one in made.lines] == list(ALL) and [one.rows for one in made.lines] == [3, 9, 9, 9]
    assert {row["program"] for row in rows(tmp_path / "c")} == set(ALL[1:]) and len(rows(tmp_path / "c")) == 27


@pytest.mark.parametrize(
    ("size", "each"),
    [(12, 4), pytest.param(12, 2, marks=pytest.mark.slow), pytest.param(20, 5, marks=pytest.mark.slow)],
)
def test_feedback_is_one_a_sample_or_one_a_reference(
    server: SimulatedTeacher, tmp_path: Path, size: int, each: int
) -> None:
    """The paper's 1,000 / 50: `size` against `size / each`, read from the ledger."""
    made = run(server, tmp_path / "c", given=references(10), size=size, per_reference=each)
    asked = answers(tmp_path / "c")
    assert line(made, "sample-level").feedback == asked["sample_feedback"] == size
    assert line(made, "reference-level").feedback == asked["response_feedback"] == size // each
    assert line(made, "instruction-only").feedback == line(made, "seed-only").feedback == 0
    assert made.references == size // each


@pytest.mark.parametrize(
    "method", ["sample-level", *(pytest.param(one, marks=pytest.mark.slow) for one in (ALL[1], ALL[3]))]
)
def test_a_programs_cost_is_what_it_pays_alone(server: SimulatedTeacher, tmp_path: Path, method: str) -> None:
    teacher = config(server, concurrency=1)
    made = line(run(server, tmp_path / "c", teacher=teacher), method)
    server.reset()
    refed_dspy.synthesize(
        METHODS[method](instructions_per_feature=3),
        *(references(6),),
        size=9, per_reference=3, teacher=teacher, run_dir=tmp_path / "alone", track=False,
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
        shown = "".join(str(getattr(part, "text", "")) for m in request.messages for part in m.parts)
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
    made = run(server, tmp_path / "c", programs, against="one", grades=True)
    asked = answers(tmp_path / "c")
    assert asked["response_improvement"] == 9 and asked["pairwise_judge"] == 2 * 9
    assert asked["rubric_judge"] == 2 * 9 and server.stats()["repeated"] == 0
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


class Shouting(ReferenceLevelFeedback):
    """A program of the caller's own: the plain answer in capitals, at no further call."""

    stage_names = ("instruction_feedback", "instruction_synthesis", "response_generation")

    async def collect_response_feedback(self, reference: Reference) -> str:
        return ""

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Any:
        said = await self.first_response(reference, instruction, item)
        parts: dict[str, Any] = {
            "analysis": {"original_strengths": [], "improvement_opportunities": [], "relevant_feedback": []},
            "implementation_strategy": {"planned_changes": [], "rationale": ""},
        }
        return refed_dspy.Sample(instruction=instruction, response=said, improved_response=said.upper(), **parts)


@pytest.mark.slow
def test_a_program_of_ones_own_and_a_seed_object(server: SimulatedTeacher, tmp_path: Path) -> None:
    programs = {"plain": "instruction-only", "seed-only": Shouting(), "seed": SeedOnly()}
    made = run(server, tmp_path / "c", programs, against="plain", grades=True)
    own = line(made, "seed-only")
    assert own.rows == 9 and own.win_rate is not None, "a name says nothing of what a program is"
    assert own.calls == line(made, "plain").calls == 2 * 3 + 9
    assert line(made, "seed").rows == 3 and line(made, "seed").grade is not None
    shouted = [row for row in rows(tmp_path / "c") if row["program"] == "seed-only"]
    assert all(row["improved_response"] == row["response"].upper() for row in shouted)


# --- stopped and started again


@pytest.mark.slow
def test_the_same_command_again_asks_nothing_and_says_the_same(server: SimulatedTeacher, tmp_path: Path) -> None:
    first = run(server, tmp_path / "c")
    files = {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir() if "ledger" not in file.name}
    before = requests(server)
    again = run(server, tmp_path / "c")
    assert requests(server) == before and again.table() == first.table()
    same = {name for name in files if (tmp_path / "c" / name).read_bytes() == files[name]}
    assert same == set(files)
    larger = run(server, tmp_path / "c", size=10)
    assert larger.instructions == 10 and server.stats()["repeated"] == 0


def test_a_cap_leaves_a_table_and_says_how_to_go_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    short = run(server, tmp_path / "c", max_calls=60)
    assert 0 < short.instructions < 9 and requests(server) <= 60
    assert "max_calls 60 is reached" in short.stopped and "the same command with --max-calls" in short.stopped
    assert "refed resume" not in short.stopped and not (tmp_path / "c" / "samples-at-cap.jsonl").exists()
    text = (tmp_path / "c" / "comparison.txt").read_text()
    assert f"not complete: {short.stopped}" in text and "sample-level" in text
    assert line(short, "sample-level").rows == short.instructions
    made = run(server, tmp_path / "c", max_calls=10_000)
    assert made.instructions == 9 and not made.stopped and server.stats()["repeated"] == 0
    assert (tmp_path / "c" / "comparison.txt").read_text() != text


@pytest.mark.slow
def test_a_cap_in_dollars_holds_over_teacher_and_judge(server: SimulatedTeacher, tmp_path: Path) -> None:
    short = run(server, tmp_path / "c", max_cost=0.05)
    assert "max_cost $0.050 is reached" in short.stopped and short.instructions < 9
    assert short.used.cost <= 0.05 * 10**12
    assert run(server, tmp_path / "c", max_cost=math.inf).instructions == 9


@pytest.mark.slow
def test_a_cap_before_the_first_row_is_one_line(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="nothing to compare yet; max_calls 4 is reached") as told:
        run(server, tmp_path / "c", max_calls=4)
    assert "\n" not in str(told.value)
    assert run(server, tmp_path / "c", max_calls=10_000).instructions == 9 and server.stats()["repeated"] == 0


_KILLED = """
import json, sys
from refed_dspy import TeacherConfig, compare
from tests.runs.compare.test_compare import SMALL
from tests.support.scripted_engine import references
teacher, judge = (TeacherConfig.model_validate_json(text) for text in sys.argv[1:3])
compare(None, references(6), teacher=teacher, judge=judge, out=sys.argv[3], **SMALL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [10, 40, 90])
def test_killed_anywhere_it_pays_nothing_twice_but_what_was_in_flight(
    server: SimulatedTeacher, tmp_path: Path, after: int
) -> None:
    server.control(latency=0.03)
    models = [
        one.model_dump_json(exclude_unset=True) for one in (config(server), config(server, model="sim/other-model"))
    ]
    command = [sys.executable, "-c", _KILLED, *models, str(tmp_path / "c")]
    process = subprocess.Popen(command, cwd=ROOT)
    while server.stats()["answered"] < after and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.control(latency=0)
    made = run(server, tmp_path / "c")
    assert made.instructions == 9 and not made.stopped
    assert server.stats()["repeated"] <= 8, "four units, each of which has two calls on their way at the most"
    assert answers(tmp_path / "c")["response_generation"] == 9 + made.used.calls * 0


@pytest.mark.slow
def test_an_endpoint_that_dies_leaves_the_table_of_what_there_is(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(down_after=70)
    teacher = config(server, retries=0, timeout=2)
    judge = config(server, model="sim/other-model", retries=0, timeout=2)
    with pytest.raises(RunStopped):
        run(server, tmp_path / "c", given=references(80), teacher=teacher, judge=judge, size=200)
    assert 0 < facts(tmp_path / "c")["instructions"] < 200
    assert "not complete: " in (tmp_path / "c" / "comparison.txt").read_text()


# --- whose folder it is


def test_another_comparison_in_the_folder_is_refused(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "c", size=2)
    before, files = requests(server), (tmp_path / "c" / "comparison.json").read_bytes()
    others: list[tuple[dict[str, Any], str]] = [
        ({"against": "reference-level"}, "against was instruction-only, is reference-level"),
        ({"grades": True}, "grades was False, is True"),
        ({"seed": 3}, "seed was 0, is 3"),
        ({"programs": {"instruction-only": "instruction-only", "sample-level": "sample-level"}}, "program.reference"),
        ({"judge": "sim-model"}, "judge.model was"),
        ({"features": {"topic": "what it is about"}}, "features was"),
    ]
    for other, told in others:
        given = dict(other)
        if "judge" in given:
            given["judge"] = config(server, model=f"sim/{given['judge']}", temperature=0.5)
        with pytest.raises(RunDirError, match=told) as error:
            run(server, tmp_path / "c", size=2, **given)
        assert "holds another comparison" in str(error.value) and "name another folder" in str(error.value)
    assert requests(server) == before and (tmp_path / "c" / "comparison.json").read_bytes() == files


@pytest.mark.slow
def test_a_compiled_program_is_part_of_what_a_comparison_is(server: SimulatedTeacher, tmp_path: Path) -> None:
    """DSPy passes over the predictors of a compiled program inside another one."""

    def tuned(wish: str) -> dict[str, Any]:
        program = ReferenceLevelFeedback(guidance={"response_improvement": wish})
        program._compiled = True
        return {"plain": "instruction-only", "ours": program}

    run(server, tmp_path / "c", tuned("Be brief."), against="plain", size=2)
    with pytest.raises(RunDirError, match=r"program\.ours\.response_improvement was"):
        run(server, tmp_path / "c", tuned("Be long."), against="plain", size=2)


@pytest.mark.slow
def test_a_folder_of_a_run_is_refused_and_one_of_a_comparison_is_no_run(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    refed_dspy.synthesize(None, references(3), size=2, teacher=config(server), run_dir=tmp_path / "run")
    with pytest.raises(RunDirError, match="holds a run, not a comparison; name another folder"):
        run(server, tmp_path / "run")
    run(server, tmp_path / "c", size=2)
    with pytest.raises(RunDirError, match="holds a comparison, not a run"):
        refed_dspy.synthesize(None, references(6), size=2, teacher=config(server), run_dir=tmp_path / "c")
    done = CliRunner().invoke(app, ["resume", str(tmp_path / "c")])
    assert done.exit_code == 2 and "holds a comparison, not a run; go on with the command that began it" in done.output


# --- programs and judges that fail


@pytest.mark.parametrize(
    "failing",
    [
        "response_feedback",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("sample_feedback", "response_improvement")),
    ],
)
def test_one_programs_failures_lose_no_row_of_the_others(tmp_path: Path, failing: str) -> None:
    """At every stage, also where one reference's feedback fails."""
    mark = {
        "sample_feedback": "<response>\nresponse number",
        "response_feedback": "Topic 1 is about",
        "response_improvement": "<reference_feedback>",
    }[failing]
    writer = Writer(per_call=3)
    size = 6  # three tries each: 18 failures of one stage in a row do not stop a run, 20 do

    def spoil(request: Request) -> str | None:
        shown = "".join(str(getattr(part, "text", "")) for m in request.messages for part in m.parts)
        fields = writer.fields(request)
        wanted = ["response_feedback"] if failing.endswith("feedback") else ["analysis", "implementation_strategy"]
        return "no JSON" if fields[: len(wanted)] == wanted and mark in shown else None

    writer.on_request = spoil
    made = compare(
        None, references(3), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "max_failure_share": 1, "size": size, "per_reference": 2},
    )  # fmt: skip
    lost = "sample-level" if failing == "sample_feedback" else "reference-level"
    other = "reference-level" if failing == "sample_feedback" else "sample-level"
    gone = 2 if failing == "response_feedback" else size
    assert made.instructions == size and made.references == 3 and line(made, other).rows == size
    assert line(made, lost).rows == size - gone and line(made, lost).failed == {"malformed": gone}
    assert f"{lost} has no answer to {gone} (malformed)" in made.text()
    assert line(made, lost).feedback == {"sample_feedback": 0, "response_feedback": 2}.get(failing, 3)
    assert facts(tmp_path / "c")["lines"][2 if lost == "sample-level" else 3]["failed"] == {"malformed": gone}


@pytest.mark.slow
def test_an_answer_that_failed_in_passing_is_shown_as_that(tmp_path: Path) -> None:
    writer = Writer(per_call=3)
    down = lm_errors.LMServerError("the endpoint is down", model="fake")
    shown = "<reference_feedback>"
    writer.on_request = lambda r: (
        down if any(shown in str(getattr(p, "text", "")) for m in r.messages for p in m.parts) else None
    )
    made = compare(
        None, references(3), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "max_failure_share": 1},
    )  # fmt: skip
    assert line(made, "reference-level").failed == {"no answer": 9} and line(made, "sample-level").rows == 9


def test_a_failure_in_passing_of_a_references_feedback_waits_for_the_next_start() -> None:
    class Silent(ReferenceLevelFeedback):
        error: Any = NoAnswer

        async def collect_response_feedback(self, reference: Reference) -> str:
            raise self.error("response_feedback", reference.id, "nothing")

    import asyncio

    one = Reference(instruction="a", response="b")
    side = SideBySide({"plain": METHODS["instruction-only"](), "ours": Silent()}, "plain")
    with pytest.raises(NoAnswer):
        asyncio.run(side.collect_response_feedback(one))
    Silent.error = MalformedAnswer
    learned = asyncio.run(side.collect_response_feedback(one))
    assert learned["plain"] == "" and isinstance(learned["ours"], MalformedAnswer)


@pytest.mark.slow
def test_a_judge_that_abstains_everywhere_is_a_clear_line_and_no_picture(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "c", judge=fake_lm(Judge("cannot tell", "cannot tell")), grades=True)
    assert "the judge decided none of 18 pairs, first because: the judge could not tell" in made.stopped
    assert "name another judge" in made.stopped and "\n" not in made.stopped
    assert line(made, "sample-level").abstained == 9 and line(made, "sample-level").win_rate is None
    assert "sample-level: the judge decided none of its 9 pairs" in made.text()
    assert any("grades: the judge gave none to 27 responses" in text for text in made.lacking)
    assert not (tmp_path / "c" / "win-rates.png").exists()
    assert line(made, "sample-level").feedback == 9, "what does not depend on a judge is told all the same"


@pytest.mark.slow
def test_an_abstaining_judge_ends_the_command_with_1(server: SimulatedTeacher, tmp_path: Path) -> None:
    settings = {**SMALL, "size": 2, "out": str(tmp_path / "c"), "references": str(tmp_path / "refs.jsonl")}
    settings["teacher"] = config(server).model_dump(mode="json", exclude_unset=True)
    settings["judge"] = config(server, model="sim/other-model", max_tokens=16, malformed_retries=0).model_dump(
        mode="json", exclude_unset=True
    )
    (tmp_path / "refs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references(3)))
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    done = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml")])
    assert done.exit_code == 1 and "the judge decided none of 4 pairs, first because: cut" in done.output
    good = {**settings, "judge": config(server, model="sim/other-model").model_dump(mode="json", exclude_unset=True)}
    (tmp_path / "c.yaml").write_text(json.dumps({**good, "out": str(tmp_path / "d")}))
    done = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml"), "--seed", "5"])
    assert done.exit_code in {0, 1} and "instruction-only" in done.output
    wrong = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml"), "--against", "nobody"])
    assert wrong.exit_code == 2 and "against: name one of the programs" in wrong.output


@pytest.mark.slow
def test_references_that_run_dry_are_told(tmp_path: Path) -> None:
    writer = Writer(per_call=3, repeat=True)
    made = compare(
        None, references(2), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c", **SMALL
    )  # fmt: skip
    assert made.instructions == 3
    assert "the references gave 3 of 9 instructions" in made.stopped and "add references" in made.stopped


# --- figures


@pytest.mark.slow
def test_figures_are_by_reference_and_by_hand(server: SimulatedTeacher, tmp_path: Path) -> None:
    """A judge that prefers whatever is `improved`: shown by its marks in the rows, counted again here."""
    server.control(response_words=30)
    made = run(server, tmp_path / "c", given=references(12), size=36, grades=True)
    for name in ("sample-level", "reference-level"):
        own = [row for row in rows(tmp_path / "c") if row["program"] == name]
        decided = [row for row in own if row["preference"] is not None]
        wins = [100 * (0.5 if row["preference"] == 0 else float(row["preference"] > 0)) for row in decided]
        told = line(made, name)
        assert told.abstained == len(own) - len(decided) and told.win_rate is not None
        expected = mean_interval(wins, [row["reference"] for row in decided])
        assert told.win_rate.mean == pytest.approx(expected.mean)
        assert (told.win_rate.low, told.win_rate.high) == (max(0, expected.low), min(100, expected.high))
        assert told.win_rate.clusters == len({row["reference"] for row in decided})
        graded = [row for row in own if row["grade"] is not None]
        by_reference: dict[str, list[int]] = {}
        for row in graded:
            by_reference.setdefault(row["reference"], []).append(row["grade"])
        assert told.grade is not None
        assert told.grade.mean == pytest.approx(fmean(fmean(grades) for grades in by_reference.values()))
        assert told.consistent == pytest.approx(fmean(row["consistent"] for row in decided))
        assert told.length_controlled is not None and told.length_controlled.interval is not None
    assert (tmp_path / "c" / "win-rates.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "c" / "filters.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_who_wins_is_the_first_named_and_not_the_one_compared_with(server: SimulatedTeacher, tmp_path: Path) -> None:
    """A judge to whom the longer answer is the better one, and a program that makes every answer longer."""

    class Longer(Judge):
        def decide(self, request: Request) -> Any:
            if "grade" in self.fields(request):
                return super().decide(request)
            shown = "".join(str(getattr(part, "text", "")) for m in request.messages for part in m.parts)
            first, second = (shown.partition(f"<{n}>\n")[2].partition("\n</>")[0] for n in ("answer_a", "answer_b"))
            return json.dumps({"reason": "longer", "verdict": "A>>B" if len(first) > len(second) else "B>>A"})

    class Padding(Shouting):
        async def respond(self, *given: Any, **named: Any) -> Any:
            sample = await super().respond(*given, **named)
            return sample.model_copy(update={"improved_response": sample.response + " and so on" * 3})

    made = run(
        server, tmp_path / "c", {"plain": "instruction-only", "long": Padding()}, judge=fake_lm(Longer()),
        against="plain", size=3,
    )  # fmt: skip
    assert line(made, "long").win_rate is not None
    assert line(made, "long").win_rate.mean == 100 and line(made, "long").consistent == 1  # type: ignore[union-attr]
    turned = run(
        server, tmp_path / "d", {"plain": "instruction-only", "long": Padding()}, judge=fake_lm(Longer()),
        against="long", size=3,
    )  # fmt: skip
    assert line(turned, "plain").win_rate.mean == 0  # type: ignore[union-attr]


@pytest.mark.slow
def test_one_reference_gives_figures_without_intervals_and_strict_json(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "c", given=references(1), per_reference=None, size=4, grades=True)
    assert made.references == 1
    told = {one["program"]: one for one in facts(tmp_path / "c")["lines"]}
    assert told["sample-level"]["rows"] == 4 and told["sample-level"]["grade"]["low"] in {None, 1.0}
    assert told["seed-only"]["rows"] == 1
    assert "nan" not in "\n".join(made.text()).lower() and "inf" not in "\n".join(made.table()).lower()


def test_an_interval_without_bounds_is_strict_json(tmp_path: Path) -> None:
    one = Interval(3.0, -math.inf, math.inf, 1, 1)
    empty = Comparison(
        tmp_path, "plain", "judge", "teacher", 1, 1, [], [Subset("ours", "random", 1, one, None)],
        Spent(0, 0, 0, 0.0), "", [],
    )  # fmt: skip
    (told,) = in_json(empty)["subsets"]
    assert (told["grade"]["mean"], told["grade"]["low"], told["grade"]["high"]) == (3.0, None, None)
    assert "inf" not in "\n".join(empty.filter_table())


@pytest.mark.slow
def test_unknown_prices_are_told_as_unknown(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", teacher=config(server, price=None), size=2)
    assert [one.cost for one in made.lines] == [0, None, None, None]
    told = facts(tmp_path / "c")
    assert told["lines"][1]["cost"] is None and told["lines"][0]["cost"] == 0
    both = run(
        server, tmp_path / "d", teacher=config(server, price=None), size=2,
        judge=config(server, model="sim/other-model", price=None),
    )  # fmt: skip
    assert facts(tmp_path / "d")["used"]["cost"] is None and "price unknown" in "\n".join(both.text())


@pytest.mark.slow
def test_filters_keep_what_they_should_at_the_sizes_given(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", given=references(12), size=30, subsets=[3, 10, 20, 500], grades=True)
    own = [row for row in rows(tmp_path / "c") if row["program"] == "sample-level"]
    won = sum((row["preference"] or 0) > 0 for row in own)
    sizes = {
        which: [one.size for one in made.subsets if (one.program, one.filter) == ("sample-level", which)]
        for which in ("random", "rouge", "judge")
    }
    assert sizes["random"] == [3, 10, 20, 30], "500 stands for all of them"
    assert sizes["judge"] == [size for size in (3, 10, 20, 30) if size <= won], "too few pass: no line"
    for one in made.subsets:
        assert one.win_rate is None or one.win_rate.n <= one.size
        if one.filter == "judge":
            assert one.win_rate is not None and one.win_rate.mean == 100
    assert not [one for one in made.subsets if one.program in {"instruction-only", "seed-only"}]
    everything = next(
        one for one in made.subsets if (one.program, one.filter, one.size) == ("sample-level", "random", 30)
    )
    assert everything.win_rate == line(made, "sample-level").win_rate
    assert everything.grade == line(made, "sample-level").grade


@pytest.mark.slow
def test_likeness_is_what_rouge_drops(server: SimulatedTeacher, tmp_path: Path) -> None:
    writer = Writer(per_call=3)  # "Task 1: do it.", "Task 2: do it.", …: three words of four are the same
    made = compare(
        None, references(6), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "subsets": [1, 2, 9]},
    )  # fmt: skip
    of = {(one.program, one.filter, one.size) for one in made.subsets}
    assert ("sample-level", "random", 9) in of and ("sample-level", "rouge", 1) in of
    assert ("sample-level", "rouge", 2) not in of


@pytest.mark.slow
def test_without_grades_no_response_is_graded(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", size=3)
    assert answers(tmp_path / "c")["rubric_judge"] == 0
    assert all(one.grade is None for one in made.lines) and not (tmp_path / "c" / "filters.png").exists()
    assert made.subsets and all(one.grade is None for one in made.subsets)


# --- what is given


@pytest.mark.parametrize("name", ["a\nb", "x\x1b[31m", "\u202eback", "nul\0"])
def test_names_that_cannot_be_shown_are_refused(server: SimulatedTeacher, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name") as told:
        run(server, tmp_path / "c", {"plain": "instruction-only", name: "sample-level"}, against="plain")
    assert str(told.value).isprintable() and requests(server) == 0 and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_odd_names_are_shown_as_they_are(server: SimulatedTeacher, tmp_path: Path) -> None:
    odd = ["$\\frac{a}{", "it's ['x'].y", "{0.__class__}%s", "../../etc", "[bold]名前", "_hidden"]
    made = run(
        server, tmp_path / "c", {odd[0]: "instruction-only", **dict.fromkeys(odd[1:], "sample-level")},
        against=odd[0], size=3,
    )  # fmt: skip
    assert [one["program"] for one in facts(tmp_path / "c")["lines"]] == odd
    assert all(any(text.startswith(name) for text in made.table()) for name in odd)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c"]


def test_programs_that_cannot_be_compared_are_told_by_name(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="programs: odd is a dict"):
        run(server, tmp_path / "c", {"plain": "instruction-only", "odd": {}}, against="plain")
    with pytest.raises(ConfigError, match="no such file"):
        run(server, tmp_path / "c", {"plain": "instruction-only", "odd": "sample_level"}, against="plain")
    bound = ReferenceLevelFeedback()
    bound.set_lm(fake_lm(Writer()))
    with pytest.raises(ConfigError, match="of ours has an LM of its own"):
        run(server, tmp_path / "c", {"plain": "instruction-only", "ours": bound}, against="plain")
    with pytest.raises(ConfigError, match="the seed set answers none of the new instructions"):
        run(server, tmp_path / "c", {"plain": "instruction-only", "s": SeedOnly()}, against="s")
    with pytest.raises(ConfigError, match="programs: name at least two"):
        run(server, tmp_path / "c", {"plain": "instruction-only"}, against="plain")
    assert requests(server) == 0 and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_what_is_given_stays_as_it_was(server: SimulatedTeacher, tmp_path: Path) -> None:
    given, ours = references(6), ReferenceLevelFeedback()
    programs = {"plain": "instruction-only", "ours": ours}
    before, prompts = json.dumps(given), ours.dump_state()
    run(server, tmp_path / "c", programs, given, against="plain", size=2)
    assert json.dumps(given) == before and ours.dump_state() == prompts
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path.cwd().glob("refed-comparisons"))


def test_stages_are_ordered_by_how_deep_they_are_anywhere() -> None:
    side = SideBySide(
        {name: METHODS[name]() for name in ("instruction-only", "sample-level", "reference-level")}, ALL[1]
    )
    order = side.stage_names
    assert order[0] == "instruction_feedback" and order.index("response_feedback") < order.index("response_generation")
    assert set(order[-3:]) == {"sample_feedback", "sample_improvement", "response_improvement"}


# --- time


@pytest.mark.slow
def test_a_hundred_rows_are_read_back_in_no_time(tmp_path: Path) -> None:
    """1,000 rows take two seconds or so; a tenth of them with the books' figures must not take more than this."""
    writer = Writer()
    settings = {**SMALL, "size": 100, "per_reference": 20, "instructions_per_feature": 10}
    given: dict[str, Any] = {"teacher": fake_lm(writer), "judge": fake_lm(Judge()), "out": tmp_path / "c"}
    compare(None, references(6), **given, **settings)
    begun = time.process_time()
    made = compare(None, references(6), **given, **settings)
    assert made.instructions == 100 and time.process_time() - begun < 2.5


@pytest.mark.slow
def test_a_further_program_pays_for_its_own_questions_only(server: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    judge = teacher.model_copy(update={"temperature": 0.0})
    two = {"plain": "instruction-only", "rlf": "reference-level"}
    given: dict[str, Any] = {"teacher": teacher, "judge": judge, "against": "plain", "size": 6, "embeddings": False}
    refed_dspy.compare(two, out=tmp_path / "two", **given)
    server.reset()
    three = refed_dspy.compare(
        {**two, "sample": "sample-level"}, out=tmp_path / "three", reuse=tmp_path / "two", **given
    )
    # Feedback and improvement of six, two verdicts of both orders each, and a grade.
    assert server.stats()["requests"] <= 6 * (2 + 2 + 1) and [line.rows for line in three.lines] == [6, 6, 6]
