"""Filters inside a run: what counts, what is paid for, what a resume remembers, and when a run gives up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError, NothingKept, RunDirError, RunStopped
from refed_dspy.filters.base import Decision
from refed_dspy.filters.screening import FAR, INSTRUCTIONS_IN_A_ROW, SAMPLES_IN_A_ROW, Streak
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow
from refed_dspy.records import DataRow
from tests.filters.filtered_runs import WORDS, Even, Teacher, dropped, kept_by, odd, run
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm

# --- what counts


def test_size_counts_what_is_kept(tmp_path: Path) -> None:
    teacher = Teacher()
    late = Even(of_instruction=False)
    made = run(tmp_path / "run", teacher, [late], size=12)
    assert len(made.samples) == 12 and made.complete
    assert not any(odd(sample.improved_response) for sample in made.samples)
    lost = dropped(tmp_path / "run")
    assert teacher.asked("improved_response") == 12 + len(lost) == len(late.seen)
    assert {(row["filter"], row["reason"], row["score"]) for row in lost} == {("even", "odd", 1.0)}
    assert all(odd(row["improved_response"]) and row["response"] and row["detail"] for row in lost)
    again = Teacher()
    assert run(tmp_path / "run", again, [Even(of_instruction=False)], size=12).complete and not again.requests


def test_without_filters_and_guards_every_sample_is_kept(tmp_path: Path) -> None:
    teacher = Teacher()
    assert run(tmp_path / "run", teacher, [], size=2, guards=False).complete
    assert teacher.asked("improved_response") == 2 and not dropped(tmp_path / "run")


def test_an_instruction_is_filtered_before_a_response_is_paid_for(tmp_path: Path) -> None:
    teacher = Teacher()
    made = run(tmp_path / "run", teacher, [Even(of_instruction=True)], size=12)
    assert len(made.samples) == 12 and not any(odd(sample.instruction) for sample in made.samples)
    assert teacher.asked("response") == teacher.asked("improved_response") == 12
    lost = dropped(tmp_path / "run")
    assert len(lost) > 5 and all(row["response"] is row["improved_response"] is None for row in lost)


def test_early_filters_go_first_and_the_first_that_drops_ends_it(tmp_path: Path) -> None:
    teacher = Teacher(text_of=lambda name, n: "no" if name == "improved_response" and n % 3 == 0 else None)
    early, late = Even(of_instruction=True), Even(of_instruction=False)
    early.name, late.name = "first", "last"
    run(tmp_path / "run", teacher, [{"length": {"min_words": 2}}, late, early], size=10)
    assert all(text != "no" for text in late.seen), "what length dropped was not shown to the next"
    with Ledger.read(tmp_path / "run") as ledger:
        order = ledger.db.execute("SELECT DISTINCT filter, position FROM decisions ORDER BY position").fetchall()
        drops = ledger.db.execute("SELECT instruction FROM decisions WHERE NOT kept").fetchall()
    guards = [("instruction_guard", 0), ("response_guard", 1)]
    assert order == [*guards, ("length", 2), ("last", 3), ("first", 4)] and len(set(drops)) == len(drops)


def test_many_slots_keep_exactly_the_size(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.005, sigma=0.5)
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=32)
    filters: list[Any] = [{"random": {"share": 0.4}}, {"near_duplicates": {"of": "response"}}]
    made = run(tmp_path / "run", teacher, filters, size=40, count=8)
    assert len(made.samples) == made.status["kept"] == 40
    paid = made.usage["response_generation"]["calls"]
    assert paid == 40 + sum(row["response"] is not None for row in dropped(tmp_path / "run"))
    assert server.stats()["repeated"] == 0 and server.stats()["max_in_flight"] > 8


def test_many_instructions_dropped_at_once_do_not_end_a_run_that_keeps_others(tmp_path: Path) -> None:
    """Five references side by side: a hundred instructions, a tenth of them kept, before there is one sample."""
    teacher = Teacher(text_of=lambda name, n: f"dull {n}" if name == "instruction" and n % 10 else None)
    few = Even(of_instruction=True)
    few.check = lambda row: Decision("dull" not in row.instruction, "dull")  # type: ignore[method-assign]
    made = run(tmp_path / "run", teacher, [few], size=30, count=30)
    assert made.complete and len(dropped(tmp_path / "run")) >= 200


# --- what a resume remembers


def test_after_a_resume_near_duplicates_of_what_was_kept_are_dropped(tmp_path: Path) -> None:
    def task(n: int) -> str:
        return " ".join(f"{word}{n}" for word in WORDS[:8])

    def first(name: str, n: int) -> str | None:
        return task(n) if name == "instruction" else None

    def alike(name: str, n: int) -> str | None:
        return (task(1000 + n) if n % 2 else f"{task(n // 2)}!") if name == "instruction" else None

    for name in ("near_duplicates", "rouge"):
        run(tmp_path / name, Teacher(text_of=first), [name], size=10, count=2)
        before = kept_by(tmp_path / name, name)
        made = run(tmp_path / name, Teacher(text_of=alike), [name], size=26, count=2)
        texts = kept_by(tmp_path / name, name)
        assert made.complete and len(texts) > len(before) >= 10 and dropped(tmp_path / name)
        assert len({text.rstrip("!") for text in texts}) == len(texts)


def test_each_filter_is_reminded_of_what_it_kept_itself_in_order(tmp_path: Path) -> None:
    early, late = Even(of_instruction=True), Even(of_instruction=False)
    late.name = "late"
    run(tmp_path / "run", Teacher(), [early, late], size=6)
    again, once_more = Even(of_instruction=True), Even(of_instruction=False)
    once_more.name = "late"
    run(tmp_path / "run", Teacher(), [again, once_more], size=9)
    assert again.remembered == [text for text in early.seen if not odd(text)]
    assert once_more.remembered == [text for text in late.seen if not odd(text)]


def test_other_filters_are_another_run(said: Said, tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [{"length": {"min_words": 1}}, "refusals"], size=3)
    for other in ([], ["refusals", {"length": {"min_words": 1}}], [{"length": {"min_words": 2}}, "refusals"]):
        with said.by(RunDirError):
            run(tmp_path / "run", Teacher(), other, size=4)
    fresh = Teacher()
    made = run(tmp_path / "other", fresh, [{"length": {"min_words": 2}}], size=3, reuse=tmp_path / "run")
    assert made.complete and not fresh.requests, "another run takes over what was paid for"


# --- filters that drop everything


@pytest.mark.parametrize(
    ("nothing", "bound"),
    [({"random": {"share": 1e-12}}, INSTRUCTIONS_IN_A_ROW), ({"length": {"min_words": 900}}, SAMPLES_IN_A_ROW)],
    ids=["instructions", "samples"],
)
def test_filters_that_drop_everything_end_the_run(tmp_path: Path, nothing: dict[str, Any], bound: int) -> None:
    folder, teacher = tmp_path / "run", Teacher()
    for size, paid in ((1000, None), (1000, "no more"), (20, "no more")):
        before = len(teacher.requests)
        with pytest.raises(NothingKept) as raised:
            run(folder, teacher, [nothing], size=size, count=40)
        assert raised.value.run_dir == folder and raised.value.exit_code == 1
        assert "\n" not in str(raised.value) and "resume" not in str(raised.value)
        assert paid is None or len(teacher.requests) == before, "a start that would only pay for more of the same"
    assert bound <= len(dropped(folder)) <= bound + 10 * 32, "and what was in flight"


def decision(kept: bool) -> DecisionRow:
    return DecisionRow("length", 0, kept, None, "" if kept else "too short", "")


def test_a_filter_that_keeps_few_is_not_taken_for_one_that_keeps_none(said: Said) -> None:
    streak = Streak("samples", 50)
    for n in range(1, 1001):
        streak.count(decision(n % 20 == 0))
    for _ in range(20 * FAR - 1):
        streak.count(decision(False))
        assert not streak.hopeless()
    streak.count(decision(False))
    said(streak.hopeless())
    streak.count(decision(True))
    assert not streak.hopeless()


# --- custom filters, and what is refused


def test_an_error_of_a_custom_filter_names_the_filter(said: Said, tmp_path: Path) -> None:
    broken = Even(of_instruction=True)
    nothing: dict[str, Decision] = {}
    broken.check = lambda row: nothing[row.instruction]  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match="in filters: even of"):
        run(tmp_path / "run", Teacher(), [broken])
    broken.check = lambda row: bool(row)  # type: ignore[method-assign, assignment, return-value]
    with said.by(RunStopped):
        run(tmp_path / "run", Teacher(), [broken])
    made = run(tmp_path / "run", Teacher(), [Even(of_instruction=True)], size=3)
    assert made.complete, "nothing of the proposal was stored, so it is decided on anew"
    with said.by(RunDirError):
        refed_dspy.resume(tmp_path / "run", size=4, teacher=fake_lm(Teacher()))


def test_a_repaired_filter_takes_over_what_was_paid_for(said: Said, tmp_path: Path) -> None:
    class Repaired(Even):
        def check(self, row: DataRow) -> Decision:
            return super().check(row)

    run(tmp_path / "run", Teacher(), [Even(of_instruction=True)], size=3)
    with said.by(RunDirError):
        run(tmp_path / "run", Teacher(), [Repaired(of_instruction=True)], size=3)


def test_keep_is_for_data_sets(said: Said, tmp_path: Path) -> None:
    with said.by(ConfigError):
        run(tmp_path / "run", Teacher(), [{"rouge": {"keep": 5}}])
    with said.by(ConfigError):
        run(tmp_path / "run", Teacher(), [Even])
    assert not (tmp_path / "run").exists()
