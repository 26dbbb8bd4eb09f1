"""A run's status while a process works on it: the time that is left, from the moments at which samples came."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import read_run, synthesize
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.runs.result import full_status
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def test_the_time_left_is_told_of_a_run_at_work_alone(said: Said, tmp_path: Path) -> None:
    made = synthesize(None, references(9), size=60, teacher=fake_lm(Writer()), run_dir=tmp_path, track=False)
    assert (made.state, made.reason, made.status["seconds_left"]) == ("done", "", None)
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        ledger.set_meta(size=160)
        assert full_status(ledger)["seconds_left"] is None, "what earlier starts made says nothing of the pace"
        now = time.time()
        ledger.commit([("UPDATE starts SET begun = ?", (now - 1_000,))])
        ledger.commit([("UPDATE samples SET created = ? - (60 - seq) * 2.0", (now,))])
        status = full_status(ledger)
    assert status["state"] == "running" and status["seconds_left"] == pytest.approx(200, rel=0.05)
    killed = read_run(tmp_path)
    assert killed.state == "killed"
    said(killed.reason)


def test_a_result_shows_its_run_as_it_is_now(said: Said, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"references": references(4), "run_dir": tmp_path, "track": False}
    first = synthesize(size=3, teacher=fake_lm(Writer()), **settings)
    said(repr(first))
    synthesize(size=6, teacher=fake_lm(Writer()), **settings)
    said(repr(first))
    assert (first.size, len(first), first.complete, first.status["size"]) == (6, 6, True, 3)
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        ledger.set_meta(size=9)
        said(repr(first))
        assert not first.complete
    said(repr(first))
    assert first.state == "killed"


def test_a_result_says_that_its_rows_are_simulated(said: Said, tmp_path: Path) -> None:
    made = synthesize(None, references(4), size=3, teacher="simulated", run_dir=tmp_path, track=False, progress=False)
    said(repr(made))
    assert html.escape(repr(made)) in made._repr_html_()
