"""The command `answers`: what it prints, its exit codes, one line for a mistake, and what other commands say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.plugins.evaluate.commands import FORMATS
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from tests.conftest import KEY_VARIABLE
from tests.support.command_line import refed, refusal, teacher_file, without_numbers
from tests.support.said import Said

NAMED, KIND = ["Name a fish.", "Name a cat."], "Be kind."
PROMPTS = [{"uid": f"u{n}", "category": "hard_prompt", "prompt": f"Name fish {n}."} for n in range(12)]


@pytest.fixture
def prompts(home: Path) -> str:
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return "q.jsonl"


def test_answers_and_what_other_commands_say_of_them(said: Said, prompts: str, server: SimulatedTeacher) -> None:
    teacher = teacher_file(Path(), server, price="{prompt: 1, completion: 2}", concurrency=1)
    words = ("evaluate", "answers", "--prompts", prompts, "--model", teacher, "--out", "out")
    made = refed(*words, "--format", "arena_hard", "--generator", "mine")
    assert made.exit_code == 0 and len(Path("out/mine.jsonl").read_text().splitlines()) == 12
    assert refed(*words, "--format", "ifeval").exit_code == 0 and server.stats()["requests"] == 12
    said({
        "made": made.stdout, "status": refed("status", "out").stdout,
        "all": refed("status").stdout.splitlines()[1][:40],
        "show": refed("show", "out", "-n", 1).stdout.partition("\nresponse:")[0],
        "export": refed("export", "out", "--format", "messages", "--out", "m.jsonl").stdout,
        "dropped": refusal(refed("export", "out", "--dropped")),
        "share": refusal(refed("share", "out", "--out", "s")),
        "report": refusal(refed("report", "out")),
        "resume": refusal(refed("resume", "out")),
        "recycle": refusal(refed("recycle", prompts, "--teacher", teacher, "--out", "out")),
    })  # fmt: skip


def test_the_formats_of_the_command_are_those_of_the_setting() -> None:
    assert get_args(AnswerFormat) == FORMATS


def test_prompts_without_an_answer_end_it_with_1(said: Said, prompts: str, server: SimulatedTeacher) -> None:
    server.control(faults={"refusal": 0.3})
    words = ("evaluate", "answers", "--prompts", prompts, "--model", teacher_file(Path(), server), "--out", "out")
    said(without_numbers(refusal(refed(*words), 1)))


def test_a_model_by_variables_and_settings_in_a_file(
    said: Said, prompts: str, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TEACHER", "sim/sim-model")
    monkeypatch.setenv("REFED_TEACHER__API_BASE", locked.base_url)
    monkeypatch.setenv("REFED_TEACHER__API_KEY_ENV", KEY_VARIABLE)
    Path("answers.yaml").write_text(
        "prompts: renamed.csv\ncolumns: {instruction: task}\nout: out\n" + f"system: {KIND}\n"
    )
    Path("renamed.csv").write_text("task,level\n{},1\n{},2\n".format(*NAMED))
    made = refed("evaluate", "answers", "--config", "answers.yaml")
    assert made.exit_code == 0
    said(made.stdout)
    rows = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in rows] == NAMED and {row["system"] for row in rows} == {KIND}


OUT = ("--model", "simulated", "--out", "o")
MISTAKES: list[tuple[str, ...]] = [
    OUT, ("--prompts", "q.jsonl", "--model", "simulated"), ("--prompts", "q.jsonl", "--out", "o"),
    ("--prompts", "none.jsonl", *OUT), ("--prompts", "bare.jsonl", *OUT),
    ("--prompts", "tasks.jsonl", *OUT, "--format", "arena_hard"), ("--prompts", "q.jsonl", *OUT, "--format", "arena"),
    ("--prompts", "q.jsonl", *OUT, "--generator", "a/b"),
    ("--prompts", "q.jsonl", "--model", "nosuch/model", "--out", "o"),
]  # fmt: skip


def test_a_mistake_is_one_line(said: Said, prompts: str) -> None:
    Path("bare.jsonl").write_text('{"uid": "1", "task": "Hi"}\n')
    Path("tasks.jsonl").write_text('{"instruction": "Hi"}\n')
    said({" ".join(words): refusal(refed("evaluate", "answers", *words)) for words in MISTAKES})
    assert not Path("o").exists()
