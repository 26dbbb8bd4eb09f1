"""The commands below `evaluate` that take several arms, Arena-Hard and IFEval: what they print, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.plugins.evaluate.arena_hard.conftest import QUESTIONS, toy_python
from tests.plugins.evaluate.ifeval.test_evaluate import GOOD, POOR, PROMPTS, responses, toy_checker
from tests.support.command_line import refed, refusal, without_numbers
from tests.support.said import Said
from tests.support.toy_arena_hard import VERDICTS, make_clone, write_answers
from tests.support.toy_lm_eval import make_models

__all__ = ["toy_checker", "toy_python"]


# --- Arena-Hard


@pytest.fixture
def arena(home: Path, server: SimulatedTeacher, toy_python: Path) -> tuple[str, ...]:
    server.control(verdicts=VERDICTS)
    make_clone(Path("clone"), QUESTIONS)
    for name in ("short", "long"):
        write_answers(Path(f"{name}.jsonl"), QUESTIONS)
    Path("judge.yaml").write_text(
        f"model: sim/judge\napi_base: {server.base_url}\nprice: {{prompt: 1, completion: 2}}\nmax_tokens: 32\n"
    )
    files = ("--answers", "short.jsonl", "--answers", "long.jsonl", "--clone", "clone", "--environment")
    return ("evaluate", "arena-hard", "--judge", "judge.yaml", "--out", "out", *files, str(toy_python))


def test_arena_hard_prints_its_table_and_at_a_cap_what_it_has(
    said: Said, arena: tuple[str, ...], server: SimulatedTeacher
) -> None:
    capped = refed(*arena, "--max-calls", 7)
    assert capped.stdout.startswith("7 ")
    said((without_numbers(capped.stdout), refusal(capped, 1)))
    made = refed(*arena, "--max-calls", 48)
    assert made.exit_code == 0 and server.stats()["requests"] == 48
    said(
        (
            made.stdout.splitlines()[0].split(),
            made.stdout.splitlines()[-1],
            without_numbers(refed("status", "out").stdout),
        )
    )


def test_a_judge_that_may_write_too_little_is_told_of(
    said: Said, arena: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    refed(*arena, "--questions", 1)
    said(caplog.text)


def test_settings_of_arena_hard_in_a_file(said: Said, arena: tuple[str, ...]) -> None:
    Path("arena.yaml").write_text(
        "clone: clone\nanswers: [short.jsonl]\njudge: judge.yaml\nout: out\nquestions: 2\nstyle_control: false\n"
        f"environment: {arena[-1]}\n"
    )
    made = refed("evaluate", "arena-hard", "--config", "arena.yaml")
    assert made.exit_code == 0 and made.stdout.splitlines()[1].split()[:2] == ["short", "2"]
    said(without_numbers(made.stdout.partition("\n\n")[2]))


def test_what_arena_hard_lacks_or_cannot_use_is_one_line(
    said: Said, arena: tuple[str, ...], server: SimulatedTeacher
) -> None:
    first = arena.index("--answers")
    lines = {
        name: refusal(refed(*arena[: (at := arena.index(name))], *arena[at + 2 :]))
        for name in ("--clone", "--judge", "--out")
    }
    lines["no answers"] = refusal(refed(*arena[:first], *arena[first + 4 :]))
    write_answers(Path("short.jsonl"), QUESTIONS, uid="another")
    lines["of another"] = refusal(refed(*arena))
    write_answers(Path("short.jsonl"), QUESTIONS, metadata=None)
    lines["no metadata"] = refusal(refed(*arena))
    lines["no clone"] = refusal(refed(*arena, "--clone", "out"))
    said(lines)
    assert server.stats()["requests"] == 0


# --- IFEval


def test_ifeval_prints_its_table(
    said: Said,
    home: Path,
    toy_checker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NLTK_DATA", str(make_models(home / "models")))
    Path("input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    responses(Path("good.jsonl"), GOOD)
    responses(Path("poor/responses.jsonl"), POOR)
    words = ("evaluate", "ifeval", "--prompts", "input_data.jsonl", "--environment", toy_checker, "--out", "out")
    made = refed(*words, "--answers", "good.jsonl", "--answers", "poor")
    assert made.exit_code == 0
    said(made.stdout)
    assert [line.split()[:2] for line in made.stdout.splitlines()[1:3]] == [["good", "100.00"], ["poor", "25.00"]]
    said([refusal(refed(*words)), refusal(refed("evaluate", "ifeval", "--out", "out"))])
