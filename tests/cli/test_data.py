"""compare, filter, recycle and stats on the command line: one line for a mistake, the right exit code, nothing paid
twice, no key in any file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.support.command_line import DOWN, judge_file, refed, refusal, synth, teacher_file, without_numbers, written
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


def test_filter_and_status(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    before = Path(rows).read_bytes()
    words = (
        "filter",
        rows,
        "--filter",
        "refusals",
        "--filter",
        "judge",
        "--judge",
        judge_file(home, server, concurrency=1),
    )
    made = refed(*words, "--config", "plain.yaml", "--out", "out")
    assert made.exit_code == 0, made.output
    kept, dropped = (Path("out", name).read_text().splitlines() for name in ("kept.jsonl", "dropped.jsonl"))
    assert len(kept) + len(dropped) == 24 and kept and Path(rows).read_bytes() == before
    facts = json.loads(refed("status", "out", "--json").stdout)
    assert facts["work"] == "filtering" and facts["asked"] == 24 and facts["usage"]["pairwise_judge"]["calls"] == 48
    shown = refed("status", "out", "--tokens").stdout
    said(shown)
    said(refusal(refed("resume", "out")))
    said(refed("export", "out", "--out", "x").stdout)
    said(refusal(refed("recycle", rows, "--out", "out", "--teacher", "judge.yaml")))


def write_bad_files(folder: Path) -> None:
    written(folder, "empty.jsonl", "")
    written(folder, "shapeless.jsonl", '{"q": "a", "a": "b"}\n')
    written(folder, "broken.jsonl", '{"instruction": "a", "resp')
    written(folder, "down.yaml", DOWN)
    written(folder, "bad.yaml", "filters: [\n b")
    written(folder, "wrong.yaml", "columns: {plain: nosuch}\n")
    written(folder, "typo.yaml", "columns: {plian: first}\n")


JUDGED: list[object] = ["rows.jsonl", "--filter", "judge", "--judge", "down.yaml"]
BAD_FILTERINGS: dict[str, list[object]] = {
    "empty": ["empty.jsonl", "--filter", "refusals"],
    "shapeless": ["shapeless.jsonl", "--filter", "refusals"],
    "broken": ["broken.jsonl", "--filter", "refusals"],
    "missing file": ["none.jsonl", "--filter", "refusals"],
    "a folder": [".", "--filter", "refusals"],
    "no data": ["--filter", "refusals"],
    "no filter": ["rows.jsonl"],
    "unknown filter": ["rows.jsonl", "--filter", "rogue"],
    "not YAML": ["rows.jsonl", "--filter", "rouge: {threshold"],
    "nothing": ["rows.jsonl", "--filter", ""],
    "wrong type": ["rows.jsonl", "--filter", "rouge: 5"],
    "no braces": ["rows.jsonl", "--filter", "near_duplicates:0.8"],
    "a list's braces": ["rows.jsonl", "--filter", "language: de"],
    "no space": ["rows.jsonl", "--filter", "length:{min_words: 3}"],
    "broken config": ["rows.jsonl", "--config", "bad.yaml"],
    "no benchmark": ["rows.jsonl", "--filter", "overlap: {against: none.txt}"],
    "no judge": ["rows.jsonl", "--filter", "rubric"],
    "no plain column": JUDGED,
    "wrong column": [*JUDGED, "--config", "wrong.yaml"],
    "misspelt column": [*JUDGED, "--config", "typo.yaml"],
    "judge down": [*JUDGED, "--config", "plain.yaml"],
    "cap too low": [*JUDGED, "--config", "plain.yaml", "--max-cost", "1e-9"],
    "over the data": ["rows.jsonl", "--filter", "refusals", "--out", "rows.jsonl"],
}


def test_bad_input_to_filter_is_one_line(said: Said, rows: str, home: Path) -> None:
    write_bad_files(home)
    before = Path(rows).read_bytes()
    said({case: refusal(refed("filter", "--out", "out", *words)) for case, words in BAD_FILTERINGS.items()})
    said(refusal(refed("filter", rows, "--filter", "length: {min_words: 50}", "--out", "none"), 1))
    assert Path(rows).read_bytes() == before


def test_a_judge_that_abstains_everywhere_is_an_error(
    said: Said, rows: str, home: Path, server: SimulatedTeacher
) -> None:
    server.control(fail_stage="compare two answers")
    words = ("filter", rows, "--filter", "judge", "--judge", judge_file(home, server, malformed_retries=0))
    stats = ("stats", rows, "--judge", "judge.yaml", "--config", "plain.yaml", "--out", "st")
    for line in ((*words, "--config", "plain.yaml", "--out", "out"), stats):
        said(without_numbers(refusal(refed(*line), 1)))


# --- recycle, stats, compare


def test_recycle(said: Said, rows: str, home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server)
    words = ("recycle", rows, "--out", "r", "--teacher", teacher)
    none = ("recycle", "none.jsonl", *words[2:])
    said([refusal(refed(*each)) for each in (words[:-2], (*words, "--selective"), none)])
    refed(*words, "--size", 5, "--max-calls", 4)
    said(refed("status", "r").stdout)
    made = refed(*words, "--size", 5, "--max-calls", 10)
    assert made.exit_code == 0 and server.stats()["repeated"] == 0
    said(without_numbers(made.stdout))


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
    said(without_numbers(refed(*judged).stdout))
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
    said(refed("status", "c").stdout)
    said(
        [
            refusal(refed("export", "c")),
            refusal(refed("resume", "c")),
            refusal(synth("--run-dir", "c", "--teacher", "teacher.yaml")),
        ]
    )
