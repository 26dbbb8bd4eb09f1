"""No control character of a reference, a model, a file or a folder reaches a terminal, whatever the command."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sqlite3
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.printing import PlainFormatter, printable
from refed_dspy.errors import FORCE, SAME_CALL, ConfigError, Wording, as_options, one_line, setting, setting_text
from tests.support.command_line import refed, refused, synth, teacher_file
from tests.support.hostile import EVERY, STEERING, TERMINAL
from tests.support.said import Said

EVIL = f"{EVERY}\x00"
ODD = f"odd{TERMINAL[:5]}\u202e\x9bname"


def harmless(*words: object) -> str:
    """What a command printed, all of it harmless."""
    done = refed(*words)
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
    assert not STEERING.search(done.output + done.stderr), (words, done.output[:2000])
    return str(done.output)


def test_every_control_character_is_written_out() -> None:
    for number in [*range(32), *range(127, 160), 0x202E, 0x2066, 0xDCFF]:
        shown = printable(f"a{chr(number)}b")
        assert shown == (f"a{chr(number)}b" if chr(number) in "\t\n" else f"a\\u{number:04x}b")
    assert printable("naïve — 東京 👩‍💻 שלום\tx\r\ny") == "naïve — 東京 👩‍💻 שלום\tx\ny"
    assert json.loads(printable(json.dumps({"a": EVIL}, ensure_ascii=False))) == {"a": EVIL}


def test_references_and_what_a_model_wrote_in_preview(home: Path, server: SimulatedTeacher) -> None:
    row = {"instruction": f"Say {EVIL}", "response": f"Said {EVIL}"}
    (home / f"{ODD}.jsonl").write_text(json.dumps(row) + "\n")
    teacher = teacher_file(home, server)
    shown = harmless("synth", "--preview", "--references", f"{ODD}.jsonl", "--teacher", teacher, "--sample")
    assert "\\u001b]0;title" in shown


@pytest.mark.slow
def test_every_command_that_shows_a_run(
    home: Path,
    server: SimulatedTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    (home / "f.yaml").write_text("filters: [refusals]\nguards: false\n")
    assert synth("--size", 3, "--teacher", teacher_file(home, server), "--config", "f.yaml").exit_code == 0
    folder = home / ODD
    shutil.move(home / "run", folder)
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        evil = EVIL.replace("\x00", "")
        db.execute("UPDATE calls SET model = model || ?, endpoint = endpoint || ?", (evil, evil))
        db.execute("UPDATE calls SET stage = stage || ? WHERE id % 5 = 0", (evil,))
        db.execute("INSERT INTO failures VALUES ('k', ?, ?, ?, ?, 1, 1.0)", (evil,) * 4)
        db.execute("UPDATE decisions SET filter = ?, reason = ?, kept = instruction % 2", (evil, evil))
        db.execute("UPDATE meta SET sum = NULL, value = ? WHERE name = 'price_source'", (json.dumps(evil),))
        end = json.dumps({"state": evil, "reason": evil, "at": 1.0})
        db.execute("UPDATE meta SET sum = NULL, value = ? WHERE name = 'last_end'", (end,))
        db.execute("INSERT INTO batches VALUES (1, ?, ?, ?, ?, NULL, 2, 1.0, NULL)", (evil,) * 4)
        db.execute("INSERT INTO batched VALUES (1, 1, NULL)")
    assert json.loads(harmless("status", folder, "--json"))["reason"] == evil
    for words in (
        ["status", folder], ["status", folder, "--tokens"], ["status"], ["status", "--json"],
        ["report", folder, "--out", "r.html"], ["report", folder, "--out", "r.html"], ["export", folder],
        ["export", folder, "--format", ODD], ["share", folder, "--out", "shared"], ["share", folder, "--license", ODD],
        ["stats", folder], ["filter", folder, "--filter", "refusals", "--out", "kept"], ["resume", folder],
        ["compare", "--references", folder, "--out", "c"], ["push", folder, ODD],
        ["filter", folder, "--filter", ODD, "--out", "x"], [ODD], ["status", folder, ODD], ["status", f"--{ODD}"],
        ["synth", "--size", ODD], ["synth", "--config", f"{ODD}.yaml"], ["judge", "agreement", "--pairs", ODD],
        ["teacher", "fetch", ODD], ["compile", "--pairs", ODD, "--teacher", ODD, "--out", ODD],
    ):  # fmt: skip
        harmless(*words)


def test_a_logs_lines() -> None:
    record = logging.LogRecord("refed_dspy", logging.WARNING, "", 0, "%s", (EVIL,), None)
    assert not STEERING.search(PlainFormatter("%(message)s").format(record))


def test_a_name_that_is_no_utf_8(home: Path) -> None:
    folder = home / "caf\udce9"
    folder.mkdir()
    for words in (["push", folder, "a/b"], ["status", folder], ["report", folder]):
        refused(refed(*words))


@pytest.mark.parametrize(
    ("message", "python", "command"),
    [
        ("replace it with " + FORCE, "replace it with force=True", "replace it with --force"),
        (SAME_CALL + " with " + setting("max_calls", "MORE"), "the same call with max_calls=MORE",
         "the same command with --max-calls MORE"),
        (setting("run_dir") + "; " + setting_text("reuse", "a b"), "run_dir=…; reuse='a b'",
         "--run-dir …; --reuse 'a b'"),
    ],
)  # fmt: skip
def test_a_message_in_both_wordings(said: Said, message: Wording, python: str, command: str) -> None:
    """Also as an error that crosses processes, and in a log; the words of others, which look the same, are let be."""
    error = pickle.loads(pickle.dumps(ConfigError("at force=True: " + message)))
    said((str(error), as_options(one_line(error))))
    record = logging.LogRecord("refed_dspy", logging.WARNING, "", 0, "%s: %d", (message, 3), None)
    assert PlainFormatter("%(message)s").format(record) == f"{command}: 3" and record.getMessage() == f"{python}: 3"
