"""What chaos would say of work that breaks a promise. Whether work breaks any, `make chaos` finds out."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_books import Books, Moment
from benchmarks.chaos_disk import SizeLimit
from benchmarks.chaos_jobs import rows_wrong, run_wrong
from benchmarks.chaos_rounds import leaks
from benchmarks.chaos_starts import Ended
from benchmarks.chaos_weather import Event
from benchmarks.chaos_written import Written
from refed_dspy import synthesize
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

GOOD = Books(frozenset({("answer", "a")}), 5, 3, 900_000, 600_000, 0, 0, 2, "ok")
STATS = {"requests": 5, "batch_requests": 0, "billed_prompt_tokens": 4, "billed_completion_tokens": 0,
         "batch_billed_prompt_tokens": 0, "batch_billed_completion_tokens": 0}  # fmt: skip
CAPS = {"max_cost": 9e-7, "max_calls": 5}


def broken(books: Books = GOOD, caps: dict[str, Any] | None = None, in_flight: int = 2, **stats: int) -> list[str]:
    return list(Moment(books, {**STATS, **stats}).broken(GOOD, caps or CAPS, in_flight))


def test_work_that_keeps_all_promises() -> None:
    assert broken() == []


BROKEN = {
    "a row is gone": broken(replace(GOOD, rows=frozenset())),
    "sent after its answer": broken(replace(GOOD, sent_again=1)),
    "paid twice": broken(replace(GOOD, twice=1)),
    "not in the ledger": broken(requests=4, batch_requests=2, caps={"max_calls": 9}),
    "more lost than in flight": broken(in_flight=1),
    "billed more than charged": broken(replace(GOOD, charged=600_000, known=0), billed_prompt_tokens=5),
    "charged otherwise than known": broken(replace(GOOD, known=700_000)),
    "a cap in dollars": broken(caps={"max_cost": 8e-7}),
    "a cap in calls": broken(caps={"max_calls": 4}),
    "a damaged ledger": broken(replace(GOOD, whole="page 3 is never used")),
}
ENDED = {
    "a signal": Ended(None, -11, False, False, "", ""),
    "nothing said": Ended(None, 1, False, False, "", ""),
    "a traceback": Ended(None, 1, False, False, "", "Traceback (most recent call last)\nValueError"),
    "control characters": Ended(None, 1, False, False, "", "refed: \x1b[31mno"),
    "stopped by nobody": Ended(None, 130, False, False, "", "refed: stopped"),
    "no end": Ended(None, -9, False, True, "", ""),
}


def test_each_broken_promise_is_told_alone_and_how_a_start_must_not_end(said: Said) -> None:
    assert not [what for what, found in BROKEN.items() if len(found) != 1]
    said(BROKEN)
    said({what: list(ended.broken()) for what, ended in ENDED.items()})


@pytest.mark.parametrize(
    ("what", "code"), [("interrupt", 130), ("terminate", 143), ("interrupt", 0), ("kill", -9), ("full disk", 1)]
)
def test_how_a_start_may_end(what: str, code: int) -> None:
    assert list(Ended(Event(what), code, True, False, "", f"refed: {what}").broken()) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four samples, in `out`."""
    home = tmp_path_factory.mktemp("made")
    synthesize(None, references(2), size=4, teacher=fake_lm(Writer()), run_dir=home / "out", track=False)
    return home


def changed(made: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(made / "out" / "ledger.sqlite")) as whole:
        (made / "changed").mkdir(exist_ok=True)
        (path := made / "changed" / "ledger.sqlite").unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as db:
            whole.backup(db)
            for statement in statements:
                db.execute(statement)
            db.commit()
    return made / "changed"


LAST_CALL = "SELECT {} FROM calls WHERE outcome = 'ok' ORDER BY id DESC LIMIT 1"
AGAIN = "INSERT INTO calls (id, key, stage, item, model, endpoint, outcome, seconds, created) " + LAST_CALL.format(
    "id + 1000, key, stage, item, model, endpoint, outcome, seconds, created + 1000"
)


def test_books_of_a_ledger_tell_what_was_lost_and_paid_twice(made: Path) -> None:
    whole = Books.of(made / "out")
    assert Books.of(changed(made)).rows == {(kind, text.replace("out ", "changed ", 1)) for kind, text in whole.rows}
    assert (whole.twice, whole.sent_again, whole.lost, whole.whole) == (0, 0, 0, "ok")
    fewer = Books.of(changed(made, "DELETE FROM answers WHERE rowid = 1"))
    assert (len(fewer.rows), fewer.answers) == (len(whole.rows) - 1, whole.answers - 1)
    again = Books.of(changed(made, AGAIN))
    assert (again.twice, again.sent_again, again.calls) == (1, 1, whole.calls + 1)
    unsettled = Books.of(changed(made, "UPDATE calls SET outcome = 'lost' WHERE id = 1"))
    assert unsettled.lost == 1


def test_books_of_shards_are_added_up(made: Path) -> None:
    whole = Books.of(made / "out")
    for shard in ("000", "001"):
        (folder := made / "clustered" / "shards" / shard).mkdir(parents=True)
        (folder / "ledger.sqlite").write_bytes((changed(made) / "ledger.sqlite").read_bytes())
    both = Books.of(made / "clustered")
    assert (both.calls, both.answers, len(both.rows)) == (2 * whole.calls, 2 * whole.answers, 2 * len(whole.rows))


def test_rows_that_are_missing_or_wrong_are_told(said: Said, made: Path) -> None:
    statements = [
        ("SELECT 1", True),
        (missing := "DELETE FROM samples WHERE seq = 1", False),
        (missing, True),
        ("UPDATE answers SET output = 'another' WHERE stage = 'response_generation'", False),
        ("UPDATE instructions SET text = 'one'", False),
    ]
    told = [run_wrong(changed(made, statement), done, 4) for statement, done in statements]
    assert told[:2] == ["", ""] and all(told[2:])
    said(told[2:])


def test_a_key_in_files_and_lines_and_rows_that_are_there_twice_are_told(said: Said, tmp_path: Path) -> None:
    key = "sk-chaos-" + "abcdefghij" * 6
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"\x00\xff" + key[:28].encode() + b"\xff")
    said(list(leaks(key, tmp_path)))
    (tmp_path / "deep" / "file").write_text(key[:27])
    assert list(leaks(key, tmp_path)) == []
    said(list(leaks(key, tmp_path, f"... {key[-28:]}")))
    assert rows_wrong(["a", "b"], 2, done=True) == rows_wrong(["a"], 2, done=False) == ""
    said([rows_wrong(["a", "a"], 2, done=False), rows_wrong(["a"], 2, done=True)])


NEW = b'{"new": 1}\n'
FINE: list[tuple[bytes | None, bytes | None, int]] = [(None, NEW, 0), (NEW, NEW, 0), (None, None, 1)]
BAD: list[tuple[bytes | None, bytes | None, int]] = [
    (NEW[:4], NEW, 0), (b"", NEW, 0), (None, NEW[:4], 0), (None, b"", 0), (None, NEW, 1),
]  # fmt: skip
"""What the disturbed command and the last one leave in the file, None: they leave it alone; and the last one's code."""


def test_a_file_is_the_old_one_or_the_new_one(said: Said, tmp_path: Path) -> None:
    def told(disturbed: bytes | None, last: bytes | None, code: int) -> list[str]:
        def start(_words: str, event: Event | None, _happened: Callable[[], int], _every: float) -> Ended:
            if (content := last if event is None else disturbed) is not None:
                path.write_bytes(content)
            return Ended(event, code if event is None else -9, event is not None, False, "", "")

        path.unlink(missing_ok=True)
        return list(Written(tmp_path, path.name, "export").broken(random.Random(0), start))

    path = tmp_path / "rows.jsonl"
    assert not [case for case in FINE if told(*case)]
    said([told(*case) for case in BAD])


def test_a_size_limit_stands_for_a_full_disk(tmp_path: Path) -> None:
    limited = SizeLimit(tmp_path / "disk")
    script = "input(); open('file', 'wb').write(bytes(20_000))"
    writer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    limited.fill(writer.pid, 8192)
    writer.communicate("\n")
    assert writer.returncode == 1 and (tmp_path / "file").stat().st_size <= 8192
