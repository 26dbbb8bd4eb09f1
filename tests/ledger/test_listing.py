"""All the work below a folder, newest first; what cannot be read gets a word, and nothing is looked at for damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from refed_dspy.cli.lines import listing_lines, work_lines
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.states import DONE, End, write_end
from refed_dspy.ledger.summary import works_below
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


def test_what_cannot_be_read_gets_a_word(tmp_path: Path) -> None:
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
    assert [Path(line.partition(":")[0]).name for line in unreadable] == ["odd", "older", "text"]
    assert "format 3" in unreadable[1]


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
    assert "$0.0020" in listing_lines([working])[1] and work_lines(status)[0].endswith("$0.0020")
    said(work_lines(status))
    (killed,) = works_below(tmp_path)[0]
    assert killed["in_flight_cost"] == 0, "nobody knows whether it was billed"
