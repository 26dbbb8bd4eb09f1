"""Nothing is paid for twice, and what ends a recycling early leaves its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ExportError, ReferencesError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import CAPPED
from tests.plugins.recycle.helpers import mentions, read, recycled, told
from tests.programs.test_reflection import Reflecting
from tests.support.compiling import config, requests
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm, references


def test_a_file_that_cannot_be_written_loses_no_answer(said: Said, tmp_path: Path) -> None:
    recycled(tmp_path, fake_lm(Reflecting()))
    (tmp_path / "recycled.jsonl").unlink()
    (tmp_path / "recycled.jsonl").mkdir()
    with said.by(RunStopped):
        recycled(tmp_path, fake_lm(again := Reflecting()))
    (tmp_path / "recycled.jsonl").rmdir()
    assert len(recycled(tmp_path, fake_lm(again)).rows) == 6 and not again.requests


def test_at_a_cap_the_rows_so_far_are_written_and_counted(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = recycled(tmp_path / "r", config(server, concurrency=1), max_calls=7)
    assert (made.state, made.stopped, len(made.rows), made.used.calls) == (CAPPED, "max_calls", 3, 7)
    assert len(read(tmp_path / "r" / "recycled.jsonl")) == 3
    said([made.lines()[0], made.lines()[-1]])


def test_a_row_that_got_no_answer_is_asked_again_and_costs_no_other_row_its_place(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    """The row is the first, and the cap is reached: what the others have is there all the same."""
    teacher = config(server, concurrency=1)
    recycled(tmp_path / "r", teacher)
    with Ledger.create(tmp_path / "r") as ledger:  # as if its second pass had got no answer
        ledger.commit([("DELETE FROM answers WHERE item='1' AND stage='response_reflection'", ())])
    before = requests(server)
    made = recycled(tmp_path / "r", teacher, max_calls=12)
    assert made.stopped == "max_calls" and requests(server) == before
    assert [row["row"] for row in read(tmp_path / "r" / "recycled.jsonl")] == [2, 3, 4, 5, 6]


def test_a_passing_failure_falls_back_and_says_that_it_is_asked_again(said: Said, tmp_path: Path) -> None:
    writer = Reflecting()
    down = LMServerError("the endpoint is down", model="fake")
    writer.on_request = lambda request: down if mentions(request, "topic 2") else None
    made = recycled(tmp_path / "r", fake_lm(writer), max_failure_share=1.0)
    assert [row["row"] for row in made.kept() if row["instruction_reason"] or row["response_reason"]] == [3]
    said(told(made))
    made = recycled(tmp_path / "r", fake_lm(again := Reflecting()))
    assert not [row for row in made.kept() if row["instruction_reason"] or row["response_reason"]]
    assert 0 < len(again.requests) <= 2


def test_too_many_failures_stop_it_in_one_line_and_keep_the_rows(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    teacher = config(server, concurrency=1, malformed_retries=0)
    recycled(tmp_path / "r", teacher, references(60), max_calls=10)
    server.control(faults={"malformed": 1.0})
    with said.by(RunStopped) as stopped:
        recycled(tmp_path / "r", teacher, references(60), max_calls=1_000)
    assert "\n" not in str(stopped.value) and requests(server) < 60
    rows = read(tmp_path / "r" / "recycled.jsonl")
    assert [row["row"] for row in rows[:5]] == [1, 2, 3, 4, 5]
    assert len(rows) > 10 and all(row["response_reason"].startswith("malformed") for row in rows[5:])


def test_other_data_and_none_are_refused(said: Said, tmp_path: Path) -> None:
    recycled(tmp_path / "r", fake_lm(Reflecting()))
    with said.by(RunDirError):
        recycled(tmp_path / "r", fake_lm(again := Reflecting()), references(7))
    with said.by(ReferencesError):
        recycled(tmp_path / "s", fake_lm(again), [])
    assert not again.requests


def test_a_run_that_is_still_growing(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(items=3)
    settings: Any = {"teacher": config(server, max_tokens=2048), "run_dir": tmp_path / "run"}
    refed_dspy.synthesize(None, references(4), size=4, **settings)
    with said.by(ExportError):
        recycled(tmp_path / "run", config(server), tmp_path / "run")
    first = recycled(tmp_path / "r", config(server), tmp_path / "run")
    with Ledger.create(tmp_path / "run"):  # as the run that is writing it has
        assert len(recycled(tmp_path / "r", config(server), str(tmp_path / "run")).rows) == 4
    refed_dspy.synthesize(None, references(4), size=6, **settings)
    before = requests(server)
    made = recycled(tmp_path / "r", config(server), tmp_path / "run")
    assert requests(server) == before + 4 and list(made.kept())[:4] == list(first.kept())
