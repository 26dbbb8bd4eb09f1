"""Filters inside a run: what counts, what is paid for, what a resume knows, and when a run gives up."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request
from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.loading import check_filters
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.rows import dropped_rows
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherError
from refed_dspy.filters.base import Decision
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import FAR, INSTRUCTIONS_IN_A_ROW, SAMPLES_IN_A_ROW, _Streak
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Decided
from refed_dspy.records import DataRow
from refed_dspy.runs.forecast import forecast
from tests.support import ROOT
from tests.support.scripted_engine import Writer, fake_lm, references

_words = "amber birch cedar delta ember fjord grove heath islet jetty knoll lagoon marsh notch oasis plain quarry ridge"
WORDS = _words.split()


class Teacher(Writer):
    """Writes tasks whose words are by their number; `say` may give any field another text."""

    def __init__(self, *, per_call: int = 10, say: Callable[[str, int], str | None] = lambda _, __: None) -> None:
        super().__init__(per_call=per_call)
        self.say = say

    def _value(self, name: str) -> Any:
        if name == "new_instructions":
            return [self.said("instruction") for _ in range(self.per_call)]
        return self.said(name) if name in {"response", "improved_response"} else super()._value(name)

    def said(self, name: str) -> str:
        n = next(self.numbers)
        words = " ".join(WORDS[n // 18**place % 18] for place in range(3))
        return self.say(name, n) or f"{name} {n}: {words} {n} times."

    def asked(self, field: str) -> int:
        return sum(field in self.fields(request) for request in self.requests)


class Judge(Writer):
    """Prefers the improved response where the number in it is even; else the other."""

    def write(self, request: Request) -> str:
        text = str(request.messages[-1].text)
        number = re.search(r"improved_response (\d+)", text)
        if "verdict" not in self.fields(request):
            return json.dumps({"reason": "r", "grade": "5" if number and int(number[1]) % 2 == 0 else "1"})
        first = text.index("improved_response") < text.index("<answer_b>")
        better = number is not None and int(number[1]) % 2 == 0
        return json.dumps({"reason": "r", "verdict": "A>B" if first == better else "B>A"})


def run(folder: Path, teacher: Any, filters: list[Any], size: int = 12, count: int = 4, **more: Any) -> Any:
    if isinstance(teacher, Writer):
        teacher = fake_lm(teacher)
    if isinstance(more.get("judge"), Writer):
        more["judge"] = fake_lm(more["judge"])
    return refed_dspy.synthesize(
        None, references(count), size=size, teacher=teacher, run_dir=folder, filters=filters, track=False, **more
    )


def dropped(folder: Path) -> list[dict[str, Any]]:
    with Ledger.read(folder) as ledger:
        return list(dropped_rows(ledger))


def kept_by(folder: Path, label: str) -> list[str]:
    with Ledger.read(folder) as ledger:
        query = "SELECT i.text FROM decisions d JOIN instructions i ON i.id=d.instruction WHERE filter=? AND d.kept"
        return [text for (text,) in ledger.db.execute(query, (label,))]


def odd(texts: str) -> bool:
    found = re.search(r"\d+", texts)
    return found is not None and int(found[0]) % 2 == 1


class Even:
    """A filter of one's own, early or late."""

    name = "even"

    def __init__(self, of_instruction: bool) -> None:
        self.of_instruction = of_instruction
        self.seen: list[str] = []
        self.remembered: list[str] = []

    def check(self, row: DataRow) -> Decision:
        text = row.instruction if self.of_instruction else row.response
        self.seen.append(text)
        return Decision(not odd(text), "odd" if odd(text) else "", 1.0, text[:9])

    def remember(self, row: DataRow) -> None:
        self.remembered.append(row.instruction if self.of_instruction else row.response)


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


def test_an_instruction_is_filtered_before_a_response_is_paid_for(tmp_path: Path) -> None:
    teacher = Teacher()
    made = run(tmp_path / "run", teacher, [Even(of_instruction=True)], size=12)
    assert len(made.samples) == 12 and not any(odd(sample.instruction) for sample in made.samples)
    assert teacher.asked("response") == teacher.asked("improved_response") == 12
    lost = dropped(tmp_path / "run")
    assert len(lost) > 5 and all(row["response"] is row["improved_response"] is None for row in lost)


def test_early_filters_go_first_and_the_first_that_drops_ends_it(tmp_path: Path) -> None:
    teacher = Teacher(say=lambda name, n: "no" if name == "improved_response" and n % 3 == 0 else None)
    early, late = Even(of_instruction=True), Even(of_instruction=False)
    early.name, late.name = "first", "last"
    run(tmp_path / "run", teacher, [{"length": {"min_words": 2}}, late, early], size=10)
    assert all(text != "no" for text in late.seen), "what length dropped was not shown to the next"
    with Ledger.read(tmp_path / "run") as ledger:
        order = ledger.db.execute("SELECT DISTINCT filter, position FROM decisions ORDER BY position").fetchall()
        several = ledger.db.execute("SELECT instruction FROM decisions WHERE NOT kept GROUP BY 1 HAVING count(*) > 1")
        assert order == [("length", 0), ("last", 1), ("first", 2)] and not several.fetchall()


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
    teacher = Teacher(say=lambda name, n: None if n % 10 == 0 else "no" if name == "instruction" else None)
    few = Even(of_instruction=True)
    few.check = lambda row: Decision(row.instruction != "no", "dull")  # type: ignore[method-assign]
    teacher.say = lambda name, n: f"dull {n}" if name == "instruction" and n % 10 else None
    few.check = lambda row: Decision("dull" not in row.instruction, "dull")  # type: ignore[method-assign]
    made = run(tmp_path / "run", teacher, [few], size=30, count=30)
    assert made.complete and len(dropped(tmp_path / "run")) >= 200


# --- what a resume knows


def test_after_a_resume_near_duplicates_of_what_was_kept_are_dropped(tmp_path: Path) -> None:
    def task(n: int) -> str:
        return " ".join(f"{word}{n}" for word in WORDS[:8])

    def first(name: str, n: int) -> str | None:
        return task(n) if name == "instruction" else None

    def alike(name: str, n: int) -> str | None:
        return (task(1000 + n) if n % 2 else f"{task(n // 2)}!") if name == "instruction" else None

    for name in ("near_duplicates", "rouge"):
        run(tmp_path / name, Teacher(say=first), [name], size=20, count=3)
        before = kept_by(tmp_path / name, name)
        made = run(tmp_path / name, Teacher(say=alike), [name], size=36, count=3)
        texts = kept_by(tmp_path / name, name)
        assert made.complete and len(texts) > len(before) >= 20 and dropped(tmp_path / name)
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


@pytest.mark.slow
def test_killed_and_resumed_it_keeps_the_size_and_no_two_alike(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.03, sigma=0.5, duplicates=0.3)
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, references(8))))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 16\n")
    filters = [{"near_duplicates": {"threshold": 0.6}}, {"random": {"share": 0.7}}, {"length": {"min_words": 39}}]
    (tmp_path / "run.yaml").write_text(json.dumps({"filters": filters}))
    command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--config", "run.yaml", "--size", "60"]
    command += ["--references", "references.jsonl", "--teacher", "teacher.yaml", "--run-dir", "run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as begun:
        while server.stats()["answered"] < 60:
            time.sleep(0.01)
        begun.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    made = refed_dspy.resume(tmp_path / "run")
    assert len(made.samples) == 60 and server.stats()["repeated"] <= 16, "those in flight"
    texts = kept_by(tmp_path / "run", "near_duplicates")
    fresh = build(check_filters(filters[:1]), 0)[0].filter
    assert all(fresh.check(DataRow(0, text, "")).kept for text in texts)  # type: ignore[union-attr]
    asked = server.stats()["requests"]
    assert len(refed_dspy.resume(tmp_path / "run").samples) == 60 and server.stats()["requests"] == asked


def test_other_filters_are_another_run(tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [{"length": {"min_words": 1}}, "refusals"], size=3)
    for other in ([], ["refusals", {"length": {"min_words": 1}}], [{"length": {"min_words": 2}}, "refusals"]):
        with pytest.raises(RunDirError, match="holds another run: filters was"):
            run(tmp_path / "run", Teacher(), other, size=4)
    fresh = Teacher()
    made = run(tmp_path / "other", fresh, [{"length": {"min_words": 2}}], size=3, reuse=tmp_path / "run")
    assert made.complete and not fresh.requests, "another run takes over what was paid for"


# --- judges


def test_a_judge_decides_and_is_paid_once(tmp_path: Path) -> None:
    judge = Judge()
    made = run(tmp_path / "run", Teacher(), ["judge", {"rubric": {"at_least": 3}}], size=8, judge=judge)
    assert len(made.samples) == 8 and not any(odd(sample.improved_response) for sample in made.samples)
    assert made.usage["pairwise_judge"]["calls"] == 2 * (8 + len(dropped(tmp_path / "run")))
    assert made.usage["rubric_judge"]["calls"] == 8
    assert {(row["reason"], row["score"]) for row in dropped(tmp_path / "run")} == {("improved loses", -1.0)}
    more = Judge()
    run(tmp_path / "run", Teacher(), ["judge", {"rubric": {"at_least": 3}}], size=8, judge=more)
    assert not more.requests


def test_without_a_judge_the_teacher_judges_at_temperature_zero(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, temperature=0.9)
    with caplog.at_level(logging.WARNING):
        made = run(tmp_path / "run", teacher, [{"rubric": {"at_least": 2}}], size=4)
    assert len(made.samples) == 4 and "judge and teacher are one model" in caplog.text
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.meta("judge")["config"]["temperature"] == 0.0
        assert ledger.meta("identity")["teacher"] != ledger.meta("identity")["judge"]


def test_a_sample_that_the_judge_did_not_answer_on_is_not_lost(tmp_path: Path) -> None:
    busy = LMServerError(message="busy", status=503)
    judge = Judge(busy, busy, busy, busy)
    teacher = Teacher()
    run(tmp_path / "run", teacher, ["judge"], size=6, judge=judge)
    with Ledger.read(tmp_path / "run") as ledger:
        waiting = [id_ for _, id_, _ in ledger.open_instructions()][:2]
        assert not any(row["reason"] == "judge abstained" for row in dropped_rows(ledger))
    again, asked = Teacher(), Judge()
    run(tmp_path / "run", again, ["judge"], size=7, judge=asked)
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        decided = {id_ for (id_,) in db.execute("SELECT instruction FROM decisions")}
    assert decided & set(waiting), "asked about again, with the responses that were paid for"
    assert again.asked("improved_response") == 0 or len(asked.requests) > 2


@pytest.mark.parametrize("api_base", ["", "http://127.0.0.1:9/v1"])
def test_a_judge_that_cannot_be_asked(
    server: SimulatedTeacher, locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api_base: str
) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-and-secret")
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=2)
    judge = TeacherConfig(model="sim/other-model", api_base=api_base or locked.base_url, api_key_env="OTHER_KEY")
    with pytest.raises((RunStopped, TeacherError)) as raised:
        run(tmp_path / "run", teacher, ["judge"], judge=judge)
    told = str(raised.value)
    assert ("pairwise_judge" in told or "127.0.0.1:9" in told) and "\n" not in told and "wrong-and-secret" not in told
    paid = server.stats()["requests"]
    good = judge.model_copy(update={"api_base": locked.base_url, "api_key_env": "SIMULATED_TEACHER_KEY"})
    with_rubric = refed_dspy.resume(tmp_path / "run", judge=good, size=1)
    assert len(with_rubric.samples) >= 1 and server.stats()["repeated"] == 0 and paid < 20


def test_a_judge_that_always_abstains_ends_the_run_and_a_second_start_pays_nothing(tmp_path: Path) -> None:
    judge = Judge()
    judge.on_request = lambda _: '{"reason": "who knows", "verdict": "cannot tell"}'
    teacher = Teacher()
    for start in range(2):
        with pytest.raises(
            RunStopped, match=r"judge: the judge abstained on each of the \d+ rows .* name another judge"
        ):
            run(tmp_path / "run", teacher, ["judge"], size=60, count=9, judge=judge)
        if not start:
            paid = len(teacher.requests) + len(judge.requests)
    assert len(teacher.requests) + len(judge.requests) == paid < 200


# --- filters that drop everything


@pytest.mark.parametrize(("of_instruction", "what"), [(True, "instructions"), (False, "samples")])
def test_filters_that_drop_everything_end_the_run(tmp_path: Path, of_instruction: bool, what: str) -> None:
    nothing = {"length": {"min_words": 900}} if not of_instruction else {"random": {"share": 1e-12}}
    teacher = Teacher()
    bounds = {"instructions": INSTRUCTIONS_IN_A_ROW, "samples": SAMPLES_IN_A_ROW}[what]
    said = f"filters: the last \\d+ {what} were all dropped, \\d+ of them by .* reuse: .*run, which takes over"
    with pytest.raises(RunStopped, match=said) as raised:
        run(tmp_path / "run", teacher, [nothing], size=1000, count=40)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1
    assert bounds <= len(dropped(tmp_path / "run")) <= bounds + 10 * 32, "and what was in flight"
    paid = len(teacher.requests)
    with pytest.raises(RunStopped, match=said):
        run(tmp_path / "run", teacher, [nothing], size=1000, count=40)
    with pytest.raises(RunStopped, match=said):
        run(tmp_path / "run", teacher, [nothing], size=20, count=40)
    assert len(teacher.requests) == paid, "a start that would only pay for more of the same pays nothing"


def said(kept: bool) -> Decided:
    return Decided("length", 0, kept, None, "" if kept else "too short", "")


def test_a_filter_that_keeps_few_is_not_taken_for_one_that_keeps_none() -> None:
    streak = _Streak("samples", 50)
    for n in range(1, 1001):
        streak.count(said(n % 20 == 0))
    for _ in range(20 * FAR - 1):
        streak.count(said(False))
        assert not streak.hopeless()
    streak.count(said(False))
    assert (
        streak.hopeless() == f"the last {20 * FAR} samples were all dropped, {20 * FAR} of them by length (too short)"
    )
    streak.count(said(True))
    assert not streak.hopeless()


# --- filters of one's own, and what cannot be


def test_what_ones_own_raises_tells_its_name(tmp_path: Path) -> None:
    broken = Even(of_instruction=True)
    nothing: dict[str, Decision] = {}
    broken.check = lambda row: nothing[row.instruction]  # type: ignore[method-assign]
    with pytest.raises(KeyError) as raised:
        run(tmp_path / "run", Teacher(), [broken])
    assert raised.value.__notes__[0].startswith("raised by the filter even, on: instruction ")
    broken.check = lambda row: bool(row)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(RunStopped, match="filters: even said a bool; it must be a Decision"):
        run(tmp_path / "run", Teacher(), [broken])
    made = run(tmp_path / "run", Teacher(), [Even(of_instruction=True)], size=3)
    assert made.complete, "nothing of the proposal was stored, so it is decided on anew"
    with pytest.raises(RunDirError, match="a script's own"):
        refed_dspy.resume(tmp_path / "run", size=4, teacher=fake_lm(Teacher()))


def test_keep_is_for_data_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep is for a data set that is there; a run keeps `size` samples"):
        run(tmp_path / "run", Teacher(), [{"rouge": {"keep": 5}}])
    with pytest.raises(ConfigError, match="Even is a class"):
        run(tmp_path / "run", Teacher(), [Even])
    assert not (tmp_path / "run").exists()


def test_caps_hold_with_a_judge_and_count_its_worst_case(server: SimulatedTeacher, tmp_path: Path) -> None:
    price = {"prompt": 1.0, "completion": 2.0}
    common: dict[str, Any] = {"api_base": server.base_url, "price": price, "concurrency": 4}
    teacher = TeacherConfig(model="sim/sim-model", max_tokens=2000, **common)
    dear = TeacherConfig(model="sim/other-model", max_tokens=100_000, **common)
    with pytest.raises(ConfigError, match="judge's max_tokens"):
        run(tmp_path / "run", teacher, ["judge"], judge=dear, max_cost=0.1)
    assert server.stats()["requests"] == 0
    judge = TeacherConfig(model="sim/other-model", max_tokens=300, **common)
    made = run(tmp_path / "run", teacher, [{"rubric": {"at_least": 2}}], judge=judge, max_calls=40, size=90)
    assert made.stopped is not None and server.stats()["requests"] == 40
    assert made.usage["rubric_judge"]["calls"] > 0
    assert made.status["kept"] + len(dropped(tmp_path / "run")) == made.usage["rubric_judge"]["calls"]


def test_the_forecast_knows_what_filters_drop(tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [Even(of_instruction=False)], size=24, count=30)
    with Ledger.read(tmp_path / "run") as ledger:
        foreseen = forecast(ledger, size=60)
    assert foreseen is not None
    made = run(tmp_path / "run", Teacher(), [Even(of_instruction=False)], size=60, count=30)
    calls = sum(stage["calls"] for stage in made.usage.values())
    assert foreseen.calls == pytest.approx(calls, rel=0.25)
