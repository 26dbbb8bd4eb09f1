"""Answers as arms: how they are named, what they must hold, and what of them the code gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.evaluate.arena_hard.clone import (
    STYLE,
    Clone,
    check_styled,
    load_arms,
    load_baseline,
    open_clone,
)
from tests.runs.evaluation.arena_hard.conftest import QUESTIONS
from tests.support.said import Said
from tests.support.toy_arena_hard import BASELINE, BENCHMARK, rows_of, write, write_answers


@pytest.fixture
def opened(clone: Path) -> Clone:
    return open_clone(clone, BENCHMARK)


def refused(opened: Clone, *files: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load_arms(opened, files)
    return str(raised.value)


def test_arms_are_named_after_their_files_in_the_order_of_names(opened: Clone, tmp_path: Path) -> None:
    files = [write_answers(tmp_path / f"{name}.jsonl", QUESTIONS) for name in ("zeta", "b 2.0", "alpha")]
    arms = load_arms(opened, files)
    assert [arm.name for arm in arms] == ["alpha", "b 2.0", "zeta"]
    assert all([*arm.answers] == [question["uid"] for question in opened.questions] for arm in arms)
    assert {row["model"] for arm in arms for row in arm.answers.values()} == {"alpha", "b 2.0", "zeta"}


def test_answers_to_questions_that_are_not_judged_now_are_left_out(clone: Path, tmp_path: Path) -> None:
    few = open_clone(clone, BENCHMARK, count=3)
    (arm,) = load_arms(few, [write_answers(tmp_path / "a.jsonl", QUESTIONS)])
    assert [*arm.answers] == ["q00", "q01", "q02"] and [*load_baseline(few).answers] == [*arm.answers]


def test_style_is_given_in_the_order_in_which_the_code_reads_it(opened: Clone, tmp_path: Path) -> None:
    """It takes the first for the tokens, whatever it is called."""
    path = write_answers(tmp_path / "a.jsonl", QUESTIONS)
    rows = [{**row, "metadata": dict(reversed(row["metadata"].items()))} for row in rows_of(path)]
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    (arm,) = load_arms(opened, [path])
    assert all(tuple(row["metadata"]) == STYLE for row in arm.answers.values()) and not arm.unstyled


@pytest.mark.parametrize("style", [None, {}, {"token_len": 3, "header_count": {}, "list_count": {}}])
def test_style_that_is_missing_or_not_whole_is_told(said: Said, opened: Clone, tmp_path: Path, style: Any) -> None:
    (arm,) = load_arms(opened, [write_answers(tmp_path / "a.jsonl", QUESTIONS, metadata=style)])
    assert arm.unstyled == QUESTIONS
    with said.by(ConfigError):
        check_styled([arm], load_baseline(opened))
    write_answers(opened.baseline_answers, QUESTIONS, metadata=style)
    with said.by(ConfigError):
        check_styled([arm], load_baseline(opened))


def test_answers_of_another_benchmark_are_refused(said: Said, opened: Clone, tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.jsonl", QUESTIONS, uid="328c149e")
    said(refused(opened, path))


def test_missing_answers_are_counted(said: Said, opened: Clone, tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.jsonl", QUESTIONS - 2)
    said(refused(opened, path))


def test_other_faults_are_one_line(said: Said, opened: Clone, tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.jsonl", QUESTIONS)
    first = path.read_text().splitlines()[0]
    write(path, path.read_text() + first + "\n")
    said(refused(opened, path))
    path = write_answers(tmp_path / "a.jsonl", QUESTIONS, messages=[{"role": "assistant", "content": "text"}])
    said(refused(opened, path))
    same = write_answers(tmp_path / "other" / "a.jsonl", QUESTIONS)
    said(refused(opened, same, path))
    said(refused(opened, Path(f"{BASELINE}.jsonl")))
    for name in (".hidden", "7", "nan", "1e5", "b ", "a\nb", "2024-05-01"):
        said(refused(opened, Path(f"{name}.jsonl")))
