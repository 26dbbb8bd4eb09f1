"""The command `answers`: what it prints, its exit codes, one line for a mistake, and what other commands say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.plugins.evaluate.commands import FORMATS
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.command_line import refed, refusal, refused, teacher_file
from tests.support.said import Said

PROMPTS = [{"uid": f"u{n}", "category": "hard_prompt", "prompt": f"Name fish {n}."} for n in range(12)]


@pytest.fixture
def prompts(home: Path) -> str:
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return "q.jsonl"


def test_answers_and_what_other_commands_say_of_them(said: Said, prompts: str, server: SimulatedTeacher) -> None:
    teacher = teacher_file(Path(), server, price="{prompt: 1, completion: 2}")
    words = ("evaluate", "answers", "--prompts", prompts, "--model", teacher, "--out", "out")
    made = refed(*words, "--format", "arena_hard", "--generator", "mine")
    assert made.exit_code == 0 and made.stdout.startswith("12 of 12 prompts answered by mine, $0.0"), made.output
    assert made.stdout.endswith(", 12 calls\nanswers in out/mine.jsonl\n")
    assert len(Path("out/mine.jsonl").read_text().splitlines()) == 12
    assert refed(*words, "--format", "ifeval").exit_code == 0 and server.stats()["requests"] == 12
    assert refed("status", "out").stdout.startswith("done: answers, 12 of 12 prompts sent to the model, $0.0")
    assert "answers  done   12 of 12" in refed("status").stdout
    assert refed("show", "out", "-n", 1).stdout.startswith("── row 1 of 12\n  Name fish 0.\nresponse:\n")
    assert refed("export", "out", "--format", "messages", "--out", "m.jsonl").stdout == "12 rows in m.jsonl\n"
    said(
        [
            refusal(refed("export", "out", "--dropped")),
            refusal(refed("share", "out", "--out", "s")),
            refusal(refed("report", "out")),
            refusal(refed("resume", "out")),
            refusal(refed("recycle", prompts, "--teacher", teacher, "--out", "out")),
        ]
    )


def test_the_formats_of_the_command_are_those_of_the_setting() -> None:
    assert get_args(AnswerFormat) == FORMATS


def test_a_cap_and_prompts_without_an_answer_end_it_with_1(said: Said, prompts: str, server: SimulatedTeacher) -> None:
    words = ("evaluate", "answers", "--prompts", prompts, "--model", teacher_file(Path(), server), "--out", "out")
    capped = refed(*words, "--max-calls", 5)
    said(capped.stdout)
    said(refusal(capped, 1))
    server.control(faults={"refusal": 0.3})
    short = refed(*words, "--max-calls", 50)
    said(refusal(short, 1))


def test_a_model_by_variables_and_settings_in_a_file(
    said: Said, prompts: str, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TEACHER", "sim/sim-model")
    monkeypatch.setenv("REFED_TEACHER__API_BASE", locked.base_url)
    monkeypatch.setenv("REFED_TEACHER__API_KEY_ENV", KEY_VARIABLE)
    Path("answers.yaml").write_text("prompts: renamed.csv\ncolumns: {instruction: task}\nout: out\nsystem: Be kind.\n")
    Path("renamed.csv").write_text("task,level\nName a fish.,1\nName a cat.,2\n")
    made = refed("evaluate", "answers", "--config", "answers.yaml")
    assert made.exit_code == 0
    said(made.stdout)
    rows = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    said([(row["instruction"], row["system"]) for row in rows])  # fmt: skip
    assert not [path for path in Path("out").iterdir() if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "simulated", "--out", "o"), "prompts: no prompts; name their file with --prompts FILE"),
        (("--prompts", "q.jsonl", "--model", "simulated"), "out: no folder for the results; set one with --out DIR"),
        (("--prompts", "q.jsonl", "--out", "o"), "no model: choose one with --model"),
        (("--prompts", "none.jsonl", "--model", "simulated", "--out", "o"), "none.jsonl: no such file"),
        (
            ("--prompts", "bare.jsonl", "--model", "simulated", "--out", "o"),
            "bare.jsonl: no instructions: none of its rows has instruction or prompt or question; its columns are uid, "
            "task; name the right one in a --config file, or in Python: `columns: {instruction: …}`",
        ),
        (
            ("--prompts", "tasks.jsonl", "--model", "simulated", "--out", "o", "--format", "arena_hard"),
            "format: arena_hard needs the column uid, which tasks.jsonl row 1 lacks",
        ),
        (
            ("--prompts", "q.jsonl", "--model", "simulated", "--out", "o", "--format", "arena"),
            "format: input should be 'jsonl', 'alpaca_eval', 'arena_hard' or 'ifeval'",
        ),
        (
            ("--prompts", "q.jsonl", "--model", "simulated", "--out", "o", "--generator", "a/b"),
            "generator: takes up to 100 letters, digits and . _ - +",
        ),
        (("--prompts", "q.jsonl", "--model", "nosuch/model", "--out", "o"), "provider is unknown"),
    ],
)
def test_a_mistake_is_one_line(prompts: str, words: tuple[str, ...], message: str) -> None:
    Path("bare.jsonl").write_text('{"uid": "1", "task": "Hi"}\n')
    Path("tasks.jsonl").write_text('{"instruction": "Hi"}\n')
    refused(refed("evaluate", "answers", *words), message)
    assert not Path("o").exists()
