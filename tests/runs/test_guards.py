"""Guards in a run: what is asked again, what is made up for, what is counted, and what a resume does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import filter_data
from refed_dspy.cli.lines import run_lines
from refed_dspy.errors import ConfigError, InputError, NothingKept
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.glance import unchanged
from refed_dspy.plugins.share.report.rows import measured
from refed_dspy.programs.asking import about
from refed_dspy.programs.question import SECOND
from refed_dspy.records import Reference
from refed_dspy.runs.forecast import forecast
from refed_dspy.runs.result import Synthesis
from tests.filters.filtered_runs import WORDS, dropped
from tests.support.said import Said
from tests.support.scripted_batches import bill, simulated
from tests.support.scripted_engine import Killed, Writer, fake_lm

COPY = " ".join(f"word{number}" for number in range(30))
REFERENCES = [{"instruction": f"Explain in detail what {n} apples cost.", "response": f"{COPY} {n}"} for n in range(4)]
AGAIN = "asked again"
TALK = "As the feedback suggests, here is more."


class Teacher(Writer):
    """Writes something new, or what `bad` gives for (field, how many instructions were answered up to this one, how
    often it was asked for the field of this one)."""

    def __init__(self, bad: Callable[[str, int, int], str | None] = lambda field, task, asked: None) -> None:
        super().__init__()
        self.bad = bad
        self.tasks: dict[str, int] = {}
        self.asked: dict[tuple[str, int], int] = {}

    def write(self, request: Any) -> str:
        answer: dict[str, Any] = json.loads(super().write(request))
        for field in {"response", "improved_response"} & answer.keys():
            [*_, instruction] = re.findall(r"Task \d+: do it", str(request.messages[-1].text))
            task = self.tasks.setdefault(instruction, len(self.tasks) + 1)
            self.asked[field, task] = self.asked.get((field, task), 0) + 1
            answer[field] = self.bad(field, task, self.asked[field, task]) or answer[field]
        return json.dumps(answer)

    def calls(self, field: str) -> int:
        return sum(field in self.fields(request) for request in self.requests)


def run(folder: Path, teacher: Teacher, size: int = 6, **more: Any) -> Synthesis:
    lm = fake_lm(teacher, **({"temperature": more.pop("temperature")} if "temperature" in more else {}))
    return refed_dspy.synthesize(
        more.pop("program", None), REFERENCES, size=size, teacher=lm, run_dir=folder, track=False, **more
    )


def counts(made: Synthesis, label: str) -> dict[str, Any]:
    return next(counts for counts in made.status["filters"] if counts["filter"] == label)


# --- asked again


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter()], ids=["ours", "JSONAdapter"])
@pytest.mark.parametrize(("field", "plain", "improved"), [("response", 7, 7), ("improved_response", 6, 7)])
def test_the_stage_at_fault_is_asked_again_once(
    said: Said, tmp_path: Path, adapter: Any, field: str, plain: int, improved: int
) -> None:
    teacher = Teacher(lambda name, task, asked: COPY if (name, task, asked) == (field, 3, 1) else None)
    with dspy.context(adapter=adapter):
        made = run(tmp_path, teacher)
    assert made.complete and not dropped(tmp_path)
    assert (teacher.calls("response"), teacher.calls("improved_response")) == (plain, improved)
    assert counts(made, "response_guard")["remarks"] == {AGAIN: 1}
    texts = [row["response"] + row["improved_response"] for row in made.samples.rows()]
    assert not any(COPY in text for text in texts), "the second answer is the sample"
    with Ledger.read(tmp_path) as ledger:
        asked = ledger.db.execute("SELECT stage, repetition FROM answers WHERE repetition > 0").fetchall()
        detail = ledger.db.execute("SELECT detail FROM decisions WHERE reason = ?", (AGAIN,)).fetchall()
    stage = "response_generation" if field == "response" else "response_improvement"
    assert asked == [(stage, SECOND)]
    said(detail)


def test_what_is_bad_twice_is_dropped_and_made_up_for(said: Said, tmp_path: Path) -> None:
    teacher = Teacher(lambda name, task, asked: (COPY, TALK)[asked - 1] if (name, task) == ("response", 3) else None)
    made = run(tmp_path, teacher)
    assert made.complete and len(made.samples) == 6
    [lost] = dropped(tmp_path)
    assert (lost["filter"], lost["response"]) == ("response_guard", TALK)
    said((lost["reason"], lost["detail"]))
    assert teacher.calls("response") == teacher.calls("improved_response") == 6 + 2
    again = Teacher()
    assert run(tmp_path, again).complete and not again.requests


def test_bad_instructions_are_not_asked_again(said: Said, tmp_path: Path) -> None:
    teacher = Teacher()
    bad = ["Explain in detail what 9 apples cost.", "Summarize the following article.", "Copy the reference response."]
    teacher.on_request = lambda request: (
        json.dumps({"new_instructions": [*bad, "Task 1: do it.", "Task 2: do it."]})
        if teacher.fields(request) == ["new_instructions"]
        else None
    )
    made = run(tmp_path, teacher, size=2, per_reference=20)
    said([row["reason"] for row in dropped(tmp_path)])
    assert made.complete and teacher.calls("response") == 2 and teacher.calls("new_instructions") == 1


def test_at_temperature_0_nothing_is_asked_again(tmp_path: Path) -> None:
    teacher = Teacher(lambda name, task, asked: COPY if (name, task) == ("response", 3) else None)
    made = run(tmp_path, teacher, temperature=0.0)
    assert made.complete and teacher.calls("response") == 6 + 1 and len(dropped(tmp_path)) == 1


def test_no_other_filter_sees_the_first_answer(tmp_path: Path) -> None:
    """A filter that compares rows would take the second answer for a duplicate of the first."""

    def talks(name: str, task: int, asked: int) -> str | None:
        text = " ".join(f"{word}{task}" for word in WORDS)
        return f"{text}." if asked > 1 or name == "response" else f"{text}. {TALK}"

    made = run(tmp_path, Teacher(talks), filters=[{"near_duplicates": {"of": "response", "threshold": 0.9}}])
    assert made.complete and counts(made, "response_guard")["remarks"][AGAIN] >= 6
    assert {row["filter"] for row in dropped(tmp_path)} <= {"near_duplicates"}


# --- unchanged


def same(name: str, task: int, asked: int) -> str | None:
    return f"The answer to {task}." if task % 3 == 0 and (name == "response" or asked == 1) else None


def test_unchanged_improvements_are_counted(said: Said, tmp_path: Path) -> None:
    made = run(tmp_path, Teacher(same))
    assert counts(made, "response_guard")["remarks"] == {"unchanged": 2}
    said(run_lines(made.status))
    with Ledger.read(tmp_path) as ledger:
        (fact,) = unchanged(measured(ledger))
    said((fact.name, fact.value, fact.note))


def test_unchanged_improvements_may_be_asked_again_and_dropped(said: Said, tmp_path: Path) -> None:
    teacher = Teacher(same)
    made = run(tmp_path / "again", teacher, guards={"unchanged": "drop"})
    assert not dropped(tmp_path / "again") and counts(made, "response_guard")["remarks"] == {AGAIN: 2}
    assert teacher.calls("response") == 6 and teacher.calls("improved_response") == 8
    never = Teacher(lambda name, task, asked: same(name, task, 1))
    made = run(tmp_path / "never", never, guards={"unchanged": "drop"})
    assert made.complete and {row["reason"] for row in dropped(tmp_path / "never")} == {"unchanged"}
    with said.by(ConfigError):  # nothing is improved there
        run(tmp_path / "other", Teacher(), method="instruction-only", guards={"unchanged": "drop"})
    made = run(tmp_path / "plain", Teacher(), method="instruction-only")
    assert made.complete and not counts(made, "response_guard")["remarks"]


# --- money, and later starts


@pytest.mark.parametrize("after", [6, 7, 9])
def test_a_run_broken_off_around_the_second_answer_pays_for_nothing_twice(tmp_path: Path, after: int) -> None:
    def bad(name: str, task: int, asked: int) -> str | None:
        return COPY if name == "improved_response" and asked == 1 else None

    first = Teacher(bad)

    def break_off(request: Any) -> None:
        if len(first.requests) >= after:
            raise Killed

    first.on_request = break_off
    with pytest.raises(Killed):
        run(tmp_path, first, size=2, per_reference=20)
    second = Teacher(bad)
    second.numbers, second.asked, second.tasks = first.numbers, first.asked, first.tasks
    made = run(tmp_path, second, size=2, per_reference=20)
    assert made.complete and not dropped(tmp_path)
    paid = after - 1 + len(second.requests)
    assert paid == 3 + 2 * 3, "three calls a reference, three a sample"
    assert sum(use["answered"] for use in made.usage.values()) == paid


def test_a_resume_has_the_guards_of_its_folder(tmp_path: Path) -> None:
    for name, guards in (("with", {"unchanged": "drop"}), ("without", False)):
        run(tmp_path / name, Teacher(), size=3, guards=guards)
        teacher = Teacher(lambda field, task, asked: COPY if asked == 1 and field == "response" else None)
        made = refed_dspy.resume(tmp_path / name, size=5, teacher=fake_lm(teacher))
        copies = [row for row in made.samples.rows() if COPY in row["response"]]
        assert made.complete and bool(copies) == (name == "without")
    assert counts(refed_dspy.read_run(tmp_path / "with"), "response_guard")["remarks"][AGAIN] == 2


def test_the_forecast_counts_second_answers(tmp_path: Path) -> None:
    def bad(name: str, task: int, asked: int) -> str | None:
        return COPY if name == "response" and asked == 1 and task % 2 else None

    run(tmp_path, Teacher(bad), size=15)
    with Ledger.read(tmp_path) as ledger:
        foreseen = forecast(ledger, size=30)
    made = run(tmp_path, Teacher(bad), size=30)
    calls = sum(use["calls"] for use in made.usage.values())
    assert foreseen is not None and foreseen.calls == pytest.approx(calls, rel=0.1)


def test_any_program_is_asked_again(tmp_path: Path) -> None:
    """A stage may be a module: its own repetitions and the second answer are other answers."""

    class Twice(refed_dspy.ReferenceLevelFeedback):
        async def first_response(self, reference: Any, instruction: str, item: str = "") -> str:
            await super().first_response(reference, instruction, item)
            with about("response_generation", item):
                answer = await self.response_generation.acall(
                    config={"rollout_id": 1}, example_instruction=reference.instruction,
                    example_response=reference.response, instruction=instruction,
                )  # fmt: skip
            return str(answer.response)

    teacher = Teacher(lambda name, task, asked: COPY if (name, task) == ("response", 1) and asked <= 2 else None)
    made = run(tmp_path, teacher, size=2, program=Twice())
    assert made.complete and not dropped(tmp_path) and teacher.calls("response") == 6
    with Ledger.read(tmp_path) as ledger:
        asked = ledger.db.execute("SELECT DISTINCT repetition FROM answers WHERE stage = 'response_generation'")
        assert sorted(number for (number,) in asked) == [0, 1, SECOND, SECOND + 1]


def test_a_batch_asks_again_too_after_a_stop(tmp_path: Path, server: SimulatedTeacher) -> None:
    """The first start ends with the instructions; the second before the second answers, which the third asks for."""
    settings: dict[str, Any] = {"teacher": simulated(server), "run_dir": tmp_path, "track": False, "size": 2}
    for signature, calls in (("", 3), ("This response incorporates", 7)):
        server.control(batch_seconds=0, signature=signature)
        made = refed_dspy.synthesize(None, REFERENCES[:1], max_calls=calls, **settings)
        assert server.stats()["batch_requests"] == calls and not made.samples
    server.control(signature="")
    made = refed_dspy.synthesize(None, REFERENCES[:1], max_calls=100, **settings)
    assert made.complete and not dropped(tmp_path)
    assert counts(made, "response_guard")["remarks"][AGAIN] == 2
    assert server.stats()["batch_requests"] == 7 + 4
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9)


# --- demonstrations of the program


def test_what_repeats_a_demonstration_is_dropped(said: Said, tmp_path: Path) -> None:
    program = refed_dspy.ReferenceLevelFeedback()
    shown = " ".join(f"shown{number}" for number in range(30))
    program.response_generation.demos = [dspy.Example(instruction="Tell me why.", response=shown)]
    made = run(tmp_path / "run", Teacher(lambda field, task, asked: shown if task == 2 else None), 4, program=program)
    assert len(made.samples) == 4
    said(counts(made, "response_guard")["reasons"])
    program.instruction_synthesis.demos = [dspy.Example(new_instructions=["Task 2: do it"], how_many=1)]
    with said.by(NothingKept):
        run(tmp_path / "other", Teacher(), size=4, program=program)  # all of this teacher's are like it


# --- over data sets: whose references they compare with, and what they tell where there are none


GUARDS = ["instruction_guard", "response_guard"]


def reasons_of(made: Any) -> list[str]:
    return [row["refed_filters"]["reason"] for row in made.dropped()]


def test_the_rows_of_a_run_know_their_references(said: Said, tmp_path: Path) -> None:
    bad = Teacher(
        lambda name, task, asked: COPY if (name, task) in {("response", 2), ("improved_response", 4)} else None
    )
    run(tmp_path / "run", bad, guards=False)
    made = filter_data(tmp_path / "run", GUARDS, out=tmp_path / "out")
    said(reasons_of(made))
    assert [entry["remarks"] for entry in made.funnel()] == [{}, {}]


def test_without_references_it_is_told_that_nothing_was_compared(said: Said, tmp_path: Path) -> None:
    rows = [
        {"instruction": REFERENCES[0]["instruction"], "response": "a b", "improved_response": "a b"},
        {"instruction": "Name a fruit.", "response": "a b", "improved_response": f"a b {COPY}"},
    ]
    made = filter_data(rows, GUARDS, out=tmp_path / "none")
    assert not reasons_of(made)
    said(made.lines()[3:5])
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, REFERENCES)))
    given = {"references": str(tmp_path / "references.jsonl")}
    made = filter_data(rows, [{name: given} for name in GUARDS], out=tmp_path / "given")
    said(reasons_of(made))
    ids = [Reference(**reference).id for reference in REFERENCES]
    named = [{**rows[1], "improved_response": f"{COPY[:-30]} {n}", "reference": ids[n]} for n in (0, 1)]
    said(reasons_of(filter_data(named, [{"response_guard": given}], out=tmp_path / "named")))


def test_a_bad_file_of_references_is_one_line(said: Said, tmp_path: Path) -> None:
    with said.by(InputError):
        filter_data([{"instruction": "a", "response": "b"}], [{"response_guard": {"references": "nowhere.jsonl"}}])
