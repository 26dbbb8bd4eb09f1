"""All the work below a folder, newest first; what cannot be read gets a word, and nothing is looked at for damage."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from refed_dspy.cli.lines import listing_lines, work_lines
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.states import DONE, End, write_end
from refed_dspy.ledger.summary import (
    LIVE,
    live_numbers,
    seconds_left,
    seconds_left_by_calls,
    span,
    time_left,
    works_below,
)
from refed_dspy.runs.result import full_status
from tests.support.said import Said


def work(folder: Path, kind: str, size: int, active: float) -> None:
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work=kind, size=size)
        begin_start(ledger)
        row = ("INSERT INTO calls VALUES (1,'k','s','i','m','e','ok',0.0,1,0,1,0,2500000000,?,NULL)", (active,))
        ledger.commit([row])
        write_end(ledger, End(DONE))


def test_works_are_listed_the_last_active_first(tmp_path: Path) -> None:
    work(tmp_path / "old", "run", 20, 4e9)
    work(tmp_path / "a" / "b" / "new", "filtering", 7, 5e9)
    work(tmp_path / "tuned", "compile", 1, 4.5e9)
    works, unreadable = works_below(tmp_path)
    assert unreadable == [] and [each["unit"] for each in works] == ["", "evaluations", ""]
    facts = [(each["folder"], each["work"], each["state"], each["count"], each["size"], each["cost"]) for each in works]
    assert facts == [
        (str(tmp_path / "a" / "b" / "new"), "filtering", "done", 1, 7, 0.0025),
        (str(tmp_path / "tuned"), "compile", "done", 0, None, 0.0025),
        (str(tmp_path / "old"), "run", "done", 0, 20, 0.0025),
    ]


def test_the_folder_itself_counts_and_deep_or_hidden_ones_do_not(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "1" / "2" / "3" / "4", tmp_path / ".cache"):
        work(folder, "run", 1, 4e9)
    (tmp_path / "link").symlink_to(tmp_path / "1" / "2")
    assert [each["folder"] for each in works_below(tmp_path)[0]] == [str(tmp_path)]


def test_what_cannot_be_read_gets_a_word(said: Said, tmp_path: Path) -> None:
    work(tmp_path / "run", "run", 1, 4e9)
    for name in ("text", "older", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / FILE).write_text("no database")
    sqlite3.connect(tmp_path / "older" / FILE).execute("PRAGMA user_version=3")
    work(tmp_path / "odd", "run", 1, 4e9)
    with sqlite3.connect(tmp_path / "odd" / FILE) as db:
        db.execute("UPDATE meta SET value='[' WHERE name='last_end'")
    works, unreadable = works_below(tmp_path)
    assert [each["folder"] for each in works] == [str(tmp_path / "run")]
    said(unreadable)


def test_what_calls_in_flight_may_cost_is_told_apart_while_they_are(said: Said, tmp_path: Path) -> None:
    sent = "INSERT INTO calls (id,key,stage,item,model,endpoint,outcome,seconds,cost,created) VALUES "
    with Ledger.create(tmp_path / "run") as ledger:
        ledger.set_meta(work="answers", size=9)
        begin_start(ledger)
        answered = "(1,'k','s','i','m','e','ok',0.0,2000000000,1)"
        ledger.commit([(f"{sent} {answered}, (2,'l','s','j','m','e','sent',0.0,?,1)", (10**9,))])
        (working,) = works_below(tmp_path)[0]
        status = status_of(ledger)
    assert (working["cost"], working["in_flight_cost"]) == (0.003, 0.001)
    assert "$0.0020" in listing_lines([working])[1].split()
    said(work_lines(status))
    (killed,) = works_below(tmp_path)[0]
    assert killed["in_flight_cost"] == 0, "nobody knows whether it was billed"


# --- the numbers of a run on a cluster while it is at work

NUMBERS = {"kept": 70, "cost": 0.25, "calls": 150, "calls_a_second": 31.5, "nodes": 2, "workers": 2, "deaths": 1,
           "shards": {"all": 8, "done": 1, "dry": 0}, "slow": []}  # fmt: skip


def test_while_it_is_at_work_they_stand_for_what_the_ledger_does_not_have_yet(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(work="run", size=100)
        (tmp_path / LIVE).write_text(json.dumps(NUMBERS))
        status, ((listed,), _) = full_status(ledger), works_below(tmp_path)
        assert (status["kept"], status["cost"], status["cluster"]) == (70, 0.25, NUMBERS)
        assert (listed["count"], listed["size"], listed["cost"]) == (70, 100, 0.25)
    with Ledger.read(tmp_path) as ledger:
        assert (full_status(ledger)["kept"], works_below(tmp_path)[0][0]["count"]) == (0, 0), "its ledger has them now"


def test_a_run_that_was_never_on_a_cluster_has_none(tmp_path: Path) -> None:
    assert live_numbers(tmp_path) is None
    (tmp_path / LIVE).write_text("{")
    assert live_numbers(tmp_path) is None


# --- how long work still takes: the pace of the last half of what came, and no word before there is enough


SLOW, FAST = [float(n) for n in range(100)], [0.1 * n for n in range(1, 101)]


@pytest.mark.parametrize(
    ("moments", "pause", "missing", "left"),
    [
        pytest.param([100 + 0.1 * n for n in range(200)], 0, 1000, 100, id="100 s until the first, then ten a second"),
        pytest.param([*SLOW, *(99 + at for at in FAST)], 0, 50, 5, id="the pace of the last half"),
        pytest.param(SLOW[:40], 0, 10, 10, id="one a second"),
        pytest.param(SLOW[:40], 20, 10, 20, id="a pause"),
    ],
)
def test_the_pace_is_that_of_the_last_half_of_what_came(
    moments: list[float], pause: float, missing: int, left: float
) -> None:
    assert seconds_left(moments, moments[-1] + pause, missing, in_flight=4) == pytest.approx(left)


@pytest.mark.parametrize(("came", "in_flight"), [(0, 0), (1, 1), (19, 1), (63, 32)])
def test_nothing_is_told_of_too_little(came: int, in_flight: int) -> None:
    assert seconds_left([0.5 * n for n in range(came)], came, 100, in_flight) is None


def test_the_first_samples_are_judged_by_calls() -> None:
    assert seconds_left_by_calls(10, 5, 64, in_flight=1) == 118
    assert seconds_left_by_calls(10, 4, 64, 1) is seconds_left_by_calls(10, 9, 64, in_flight=32) is None
    assert seconds_left_by_calls(10, 70, 64, 1) is None, "more than were expected"


def test_time_is_rounded(said: Said) -> None:
    minute, hour = 60, 3600
    times = (0, 12, 57, 58, 200, 23 * minute, 89 * minute, 100 * minute, 20.4 * hour)
    said({seconds: span(seconds) for seconds in times})


def test_the_end_is_near(said: Said) -> None:
    said(time_left(0.2))
    said(time_left(61))
