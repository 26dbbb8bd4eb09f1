"""The commands below `evaluate`: what they print, their exit codes, and one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.alpaca import DATA
from benchmarks.simulated import SimulatedTeacher
from tests.plugins.evaluate.alpaca_eval.conftest import SIZE, outputs, toy
from tests.support.command_line import refed, refusal, without_numbers
from tests.support.said import Said

__all__ = ["toy"]


@pytest.fixture
def words(home: Path, server: SimulatedTeacher, toy: Path) -> tuple[str, ...]:
    server.control(verdicts=["m", "M"])
    for name in ("mine", "theirs"):
        Path(f"{name}.json").write_text(json.dumps(outputs(name)), "utf-8")
    Path("judge.yaml").write_text(
        f"model: sim/judge\napi_base: {server.base_url}\nprice: {{prompt: 1, completion: 2}}\n"
    )
    files = ("--outputs", "mine.json", "--baseline", "theirs.json", "--judge", "judge.yaml", "--out", "out")
    return ("evaluate", "alpaca-eval", *files, "--environment", str(toy))


def test_an_evaluation_and_what_other_commands_say_of_it(
    said: Said, words: tuple[str, ...], server: SimulatedTeacher
) -> None:
    made = refed(*words)
    figures = refed("evaluate", "annotations", "out/annotations.json")
    assert made.exit_code == figures.exit_code == 0 and server.stats()["requests"] == SIZE, made.output
    said({
        "made": [without_numbers(line) for line in made.stdout.splitlines() if not line.startswith("mine")],
        "status": without_numbers(refed("status", "out").stdout), "all": refed("status").stdout.splitlines()[1][:40],
        "report": refusal(refed("report", "out")), "figures": figures.stdout.splitlines()[1][:10],
    })  # fmt: skip


def test_settings_in_a_file_and_a_cap(said: Said, words: tuple[str, ...]) -> None:
    Path("evaluate.yaml").write_text(
        "outputs: mine.json\nbaseline: theirs.json\njudge: judge.yaml\nout: out\nmax_calls: 5\n"
        f"environment: {words[-1]}\n"
    )
    made = refed("evaluate", "alpaca-eval", "--config", "evaluate.yaml")
    said((made.stdout.partition(", $")[0], refusal(made, 1)))


def test_what_failed_is_told_with_exit_code_1(said: Said, words: tuple[str, ...], server: SimulatedTeacher) -> None:
    server.control(logprobs=False)
    said(refusal(refed(*words), 1))
    assert server.stats()["requests"] == 1
    server.control(logprobs=True, rules=["no logprobs"])
    said(refusal(refed(*words[:-4], "--out", "other", *words[-2:])))
    assert server.stats()["requests"] == 2


def test_what_is_missing_is_one_line(said: Said, words: tuple[str, ...]) -> None:
    said({
        name: refusal(refed(*words[: (at := words.index(name))], *words[at + 2 :]))
        for name in ("--outputs", "--baseline", "--judge", "--out")
    })  # fmt: skip


@pytest.mark.skipif(not DATA.is_file(), reason="the published preferences are not here")
def test_published_preferences_have_their_published_figures() -> None:
    made = refed("evaluate", "annotations", DATA)
    lines = made.stdout.splitlines()
    assert made.exit_code == 0 and [line.split()[:4] for line in lines[1:]] == [
        ["FuseChat-Llama-3.1-8B-Instruct", "805", "63.33", "1.42"],
        ["FuseChat-Qwen-2.5-7B-Instruct", "805", "64.64", "1.43"],
    ]


def test_a_file_that_has_no_annotations_is_one_line(said: Said, home: Path) -> None:
    lines = {"none": refusal(refed("evaluate", "annotations", "none.json"))}
    for text in ("", "{}", "[]", '[{"output": "x"}]', '[{"preference": null}, {"preference": -1}]'):
        Path("a.json").write_text(text)
        lines[text] = refusal(refed("evaluate", "annotations", "a.json"))
    said(lines)
