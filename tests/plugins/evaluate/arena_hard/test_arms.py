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
from tests.plugins.evaluate.arena_hard.conftest import QUESTIONS
from tests.support.said import Said
from tests.support.toy_arena_hard import BASELINE, BENCHMARK, rows_of, write, write_answers


@pytest.fixture
def opened(clone: Path) -> Clone:
    return open_clone(clone, BENCHMARK)


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


def test_what_cannot_be_an_arm_is_told_in_one_line(said: Said, opened: Clone, tmp_path: Path) -> None:
    whole = write_answers(tmp_path / "a.jsonl", QUESTIONS)
    text = whole.read_text()
    strange = [{"role": "assistant", "content": "text"}]
    wrong = {
        "of another benchmark": [write_answers(tmp_path / "other.jsonl", QUESTIONS, uid="328c149e")],
        "missing": [write_answers(tmp_path / "few.jsonl", QUESTIONS - 2)],
        "twice": [write(tmp_path / "twice.jsonl", text + text.splitlines()[0] + "\n")],
        "no answer": [write_answers(tmp_path / "strange.jsonl", QUESTIONS, messages=strange)],
        "of one name": [write_answers(tmp_path / "other" / "a.jsonl", QUESTIONS), whole],
    }
    names = (BASELINE, ".hidden", "7", "nan", "1e5", "b ", "a\nb", "2024-05-01")
    told = dict[str, str]()
    for name, files in {**wrong, **{name: [Path(f"{name}.jsonl")] for name in names}}.items():
        with pytest.raises(ConfigError) as refused:
            load_arms(opened, files)
        told[name] = str(refused.value)
    said(told)
