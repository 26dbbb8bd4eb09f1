"""compare, filter, recycle and stats on the command line: one line for a mistake, the right exit code, nothing paid
twice, no key in any file."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.command_line import DOWN, REFED, judge_file, refed, refusal, refused, synth, teacher_file, written
from tests.support.said import Said


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with references, and the figures that need no model."""
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    return home


@pytest.fixture
def rows(home: Path) -> str:
    """A data set with plain responses, in columns that a config names."""
    written(home, "plain.yaml", "columns: {plain: first}\n")
    many = [{"instruction": f"Say {i}.", "response": f"Word {i} at length.", "first": f"Word {i}."} for i in range(24)]
    return written(home, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in many))


# --- filter


def test_filter_status_and_again(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    before = Path(rows).read_bytes()
    words = ("filter", rows, "--filter", "refusals", "--filter", "judge", "--judge", judge_file(home, server))
    made = refed(*words, "--config", "plain.yaml", "--out", "out")
    assert made.exit_code == 0, made.output
    kept, dropped = (Path("out", name).read_text().splitlines() for name in ("kept.jsonl", "dropped.jsonl"))
    assert len(kept) + len(dropped) == 24 and kept and Path(rows).read_bytes() == before
    paid = server.stats()["requests"]
    assert refed(*words, "--config", "plain.yaml", "--out", "out").stdout == made.stdout
    assert server.stats()["requests"] == paid
    facts = json.loads(refed("status", "out", "--json").stdout)
    assert facts["work"] == "filtering" and facts["asked"] == 24 and facts["usage"]["pairwise_judge"]["calls"] == 48
    shown = refed("status", "out", "--tokens").stdout
    said(shown)
    said(refusal(refed("resume", "out")))
    said(refed("export", "out", "--out", "x").stdout)
    said(refusal(refed("recycle", rows, "--out", "out", "--teacher", "judge.yaml")))


def test_filter_at_a_cap_says_how_to_go_on(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    words = ("filter", rows, "--filter", "judge", "--judge", judge_file(home, server), "--config", "plain.yaml")
    said(refusal(refed(*words, "--out", "out", "--max-calls", 9), 1))
    assert refed(*words, "--out", "out", "--max-calls", 48).exit_code == 0
    assert server.stats()["requests"] == 48 and server.stats()["repeated"] == 0


def write_bad_files(folder: Path) -> None:
    written(folder, "empty.jsonl", "")
    written(folder, "shapeless.jsonl", '{"q": "a", "a": "b"}\n')
    written(folder, "broken.jsonl", '{"instruction": "a", "resp')
    written(folder, "down.yaml", DOWN)
    written(folder, "bad.yaml", "filters: [\n b")
    written(folder, "wrong.yaml", "columns: {plain: nosuch}\n")
    written(folder, "typo.yaml", "columns: {plian: first}\n")


JUDGED: list[object] = ["rows.jsonl", "--filter", "judge", "--judge", "down.yaml"]
BAD_FILTERINGS: dict[str, tuple[list[object], list[str], int]] = {
    "empty": (["empty.jsonl", "--filter", "refusals"], ["empty.jsonl: no rows"], 2),
    "shapeless": (["shapeless.jsonl", "--filter", "refusals"], ["no usable row", "q, a", "columns"], 2),
    "broken": (["broken.jsonl", "--filter", "refusals"], ["broken.jsonl line 1"], 2),
    "missing file": (["none.jsonl", "--filter", "refusals"], ["none.jsonl: no such file"], 2),
    "a folder": ([".", "--filter", "refusals"], ["is a folder"], 2),
    "no data": (["--filter", "refusals"], ["data: no data set"], 2),
    "no filter": (["rows.jsonl"], ["filters: needs at least one"], 2),
    "unknown filter": (["rows.jsonl", "--filter", "rogue"], ["no filter 'rogue'; did you mean rouge?"], 2),
    "not YAML": (["rows.jsonl", "--filter", "rouge: {threshold"], ["--filter", "not YAML"], 2),
    "nothing": (["rows.jsonl", "--filter", ""], ["--filter is empty"], 2),
    "wrong type": (
        ["rows.jsonl", "--filter", "rouge: 5"],
        ["filters 1: a filter's settings need their names: 'rouge: {threshold: …}'"],
        2,
    ),
    "no braces": (["rows.jsonl", "--filter", "near_duplicates:0.8"], ["'near_duplicates: {threshold: …}'"], 2),
    "a list's braces": (["rows.jsonl", "--filter", "language: de"], ["'language: {allowed: …}'"], 2),
    "no space": (["rows.jsonl", "--filter", "length:{min_words: 3}"], ["'length: {min_words: …}'"], 2),
    "broken config": (["rows.jsonl", "--config", "bad.yaml"], ["bad.yaml line 2: not YAML"], 2),
    "no benchmark": (["rows.jsonl", "--filter", "overlap: {against: none.txt}"], ["none.txt", "no such file"], 2),
    "no judge": (["rows.jsonl", "--filter", "rubric"], ["judge", "--judge"], 2),
    "no plain column": (JUDGED, ["judge", "24 rows", "plain"], 2),
    "wrong column": ([*JUDGED, "--config", "wrong.yaml"], ["rows.jsonl", "plain"], 2),
    "misspelt column": ([*JUDGED, "--config", "typo.yaml"], ["plian: unknown key; did you mean plain?"], 2),
    "judge down": ([*JUDGED, "--config", "plain.yaml"], ["127.0.0.1:9", "cannot be reached"], 2),
    "keeps nothing": (["rows.jsonl", "--filter", "length: {min_words: 50}"], ["length", "too short", "loosen"], 1),
    "cap too low": ([*JUDGED, "--config", "plain.yaml", "--max-cost", "1e-9"], ["max_cost", "price"], 2),
    "over the data": (["rows.jsonl", "--filter", "refusals", "--out", "rows.jsonl"], ["rows.jsonl", "folder"], 2),
}


@pytest.mark.parametrize("case", BAD_FILTERINGS)
def test_bad_input_to_filter_is_one_line(rows: str, home: Path, case: str) -> None:
    write_bad_files(home)
    words, expected, code = BAD_FILTERINGS[case]
    before = Path(rows).read_bytes()
    refused(refed("filter", *words, *(() if "--out" in words else ("--out", "out"))), *expected, code=code)
    assert Path(rows).read_bytes() == before


def test_a_judge_that_abstains_everywhere_is_an_error(
    said: Said, rows: str, home: Path, server: SimulatedTeacher
) -> None:
    server.control(fail_stage="compare two answers")
    words = ("filter", rows, "--filter", "judge", "--judge", judge_file(home, server, malformed_retries=0))
    said(
        [
            refusal(refed(*words, "--config", "plain.yaml", "--out", "out"), 1),
            refusal(refed("stats", rows, "--judge", "judge.yaml", "--config", "plain.yaml", "--out", "st"), 1),
        ]
    )


def test_no_key_is_in_any_file(rows: str, home: Path, locked: SimulatedTeacher) -> None:
    judge = judge_file(home, locked, api_key_env=KEY_VARIABLE)
    common = ("--config", "plain.yaml", "--judge", judge)
    for words in (("filter", rows, "--filter", "judge", "--out", "f"), ("stats", rows, "--out", "s")):
        done = refed(*words, *common)
        assert done.exit_code == 0 and KEY not in done.output, done.output
    assert refed("recycle", rows, "--size", 2, "--out", "r", "--teacher", judge).exit_code == 0
    for path in (p for p in home.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_ctrl_c_in_filter_keeps_what_was_paid_for(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.3)
    words = ["filter", rows, "--filter", "judge", "--judge", judge_file(home, server, concurrency=2)]
    command = [*REFED, *words, "--config", "plain.yaml", "--out", "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while server.stats()["answered"] < 6:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    said(stderr.strip().splitlines()[-1])
    assert "Traceback" not in stderr
    server.control(latency=0)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0 and server.stats()["repeated"] == 0


# --- recycle, stats, compare


def test_recycle(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server)
    said(
        [
            refusal(refed("recycle", rows, "--out", "r")),
            refusal(refed("recycle", rows, "--out", "r", "--teacher", teacher, "--selective")),
            refusal(refed("recycle", "none.jsonl", "--out", "r", "--teacher", teacher)),
        ]
    )
    short = refed("recycle", rows, "--size", 5, "--out", "r", "--teacher", teacher, "--max-calls", 4)
    said(refusal(short, 1))
    said(refed("status", "r").stdout)
    made = refed("recycle", rows, "--size", 5, "--out", "r", "--teacher", teacher, "--max-calls", 10)
    assert made.exit_code == 0 and server.stats()["repeated"] == 0
    said(made.stdout)
    said(refed("status", "r").stdout)


def test_stats(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    shown = refed("stats", rows)
    assert shown.exit_code == 0 and not server.stats()["requests"]
    said(shown.stdout)
    facts = json.loads(refed("stats", rows, "--json").stdout)
    assert facts["data"]["rows"] == 24 and all(
        not isinstance(v, float) or math.isfinite(v) for v in facts["data"].values()
    )
    said(
        [
            refusal(refed("stats", rows, "--judge", judge_file(home, server))),
            refusal(refed("stats", rows, "--sample", 3)),
        ]
    )
    judged = ("stats", rows, "--config", "plain.yaml", "--judge", "judge.yaml", "--out", "st")
    said(refusal(refed(*judged, "--max-calls", 8), 1))
    said(refed(*judged, "--max-calls", 60).stdout)
    said(refed("status", "st").stdout)
    said(refusal(refed("resume", "st")))


def test_compare_refuses_before_anything_is_asked(said: Said, home: Path, server: SimulatedTeacher) -> None:
    teacher, judge = teacher_file(home, server), judge_file(home, server)
    words = ("compare", "--references", "references.jsonl", "--out", "c", "--judge", judge)
    written(home, "typo.yaml", "programs: {a: reference-level, b: refrence-level}\nagainst: a\n")
    written(home, "nofile.yaml", "programs: {a: reference-level, b: mine.json}\nagainst: a\n")
    written(home, "sizes.yaml", "subsets: [0]\n")
    said(
        [
            refusal(refed(*words)),
            refusal(refed(*words, "--teacher", teacher, "--against", "nobody")),
            refusal(refed(*words, "--teacher", teacher, "--config", "typo.yaml")),
            refusal(refed(*words, "--teacher", teacher, "--config", "nofile.yaml")),
            refusal(refed(*words, "--teacher", teacher, "--config", "sizes.yaml")),
        ]
    )
    assert not server.stats()["requests"] and not (home / "c").exists()


@pytest.mark.slow
def test_compare_status_and_export(said: Said, home: Path, server: SimulatedTeacher) -> None:
    first = ("compare", "--references", "references.jsonl", "--size", 4, "--out", "c")
    words = (*first, "--judge", judge_file(home, server), "--teacher", teacher_file(home, server))
    made = refed(*words)
    assert made.exit_code == 0 and "reference-level" in made.stdout, made.output
    paid = server.stats()["requests"]
    assert refed(*words).exit_code == 0 and server.stats()["requests"] == paid
    said(refed("status", "c").stdout)
    said(
        [
            refusal(refed("export", "c")),
            refusal(refed("resume", "c")),
            refusal(synth("--run-dir", "c", "--teacher", "teacher.yaml")),
        ]
    )


def test_help_names_every_command() -> None:
    shown = refed("--help").stdout
    for command in ("compare", "filter", "recycle", "stats"):
        assert command in shown and refed(command, "--help").exit_code == 0
