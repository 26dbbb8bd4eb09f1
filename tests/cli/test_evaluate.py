"""The commands below `evaluate`: what they print, their exit codes, and one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.alpaca import DATA
from benchmarks.simulated import SimulatedTeacher
from tests.runs.evaluation.alpaca_eval.conftest import SIZE, outputs, toy
from tests.support.command_line import refed, refusal, refused
from tests.support.said import Said

__all__ = ["toy"]
TABLE = "model  baseline  n   win rate %  standard error  95% interval"


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
    assert made.exit_code == 0 and made.stdout.startswith(TABLE), made.output
    assert "\nnot checked for overlap with the training data; name it with --data …\n" in made.stdout
    assert made.stdout.endswith("24 calls\ntable, figures, picture and annotations in out\n")
    assert refed("status", "out").stdout.startswith("done: evaluation, 24 of 24 comparisons sent to the judge, $0.0")
    assert "evaluation  done   24 of 24" in refed("status").stdout
    said(refusal(refed("report", "out")))
    figures = refed("evaluate", "annotations", "out/annotations.json")
    assert figures.exit_code == 0 and figures.stdout.splitlines()[1].startswith("mine   24  ")
    assert refed(*words).stdout == made.stdout and server.stats()["requests"] == SIZE


def test_settings_in_a_file_and_a_cap(words: tuple[str, ...]) -> None:
    Path("evaluate.yaml").write_text(
        "outputs: mine.json\nbaseline: theirs.json\njudge: judge.yaml\nout: out\nmax_calls: 5\n"
        f"environment: {words[-1]}\n"
    )
    made = refed("evaluate", "alpaca-eval", "--config", "evaluate.yaml")
    assert made.exit_code == 1 and made.stdout.startswith("5 of 24 comparisons judged by sim/judge, $0.0")
    why = "refed: max_calls is reached; paid answers are kept in out: to continue, run the same command with a larger"
    assert made.stderr.splitlines()[-1] == f"{why} --max-calls"


def test_what_failed_is_told_with_exit_code_1(said: Said, words: tuple[str, ...], server: SimulatedTeacher) -> None:
    server.control(logprobs=False)
    said(refusal(refed(*words), 1))
    assert server.stats()["requests"] == 1
    server.control(logprobs=True, rules=["no logprobs"])
    said(refusal(refed(*words[:-4], "--out", "other", *words[-2:])))
    assert server.stats()["requests"] == 2


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("--outputs", "outputs: no answers to judge; name their file or folder with --outputs"),
        ("--baseline", "baseline: no answers to compare with; name their file or folder with --baseline"),
        ("--judge", "no judge: choose one with --judge (PROVIDER/NAME, or a teacher file) or REFED_JUDGE"),
        ("--out", "out: no folder for the results; set one with --out DIR"),
    ],
)
def test_what_is_missing_is_one_line(words: tuple[str, ...], left_out: str, message: str) -> None:
    place = words.index(left_out)
    refused(refed(*words[:place], *words[place + 2 :]), message)


@pytest.mark.skipif(not DATA.is_file(), reason="the published preferences are not here")
def test_published_preferences_have_their_published_figures() -> None:
    made = refed("evaluate", "annotations", DATA)
    lines = made.stdout.splitlines()
    assert made.exit_code == 0 and [line.split()[:4] for line in lines[1:]] == [
        ["FuseChat-Llama-3.1-8B-Instruct", "805", "63.33", "1.42"],
        ["FuseChat-Qwen-2.5-7B-Instruct", "805", "64.64", "1.43"],
    ]


def test_a_file_that_has_no_annotations_is_one_line(said: Said, home: Path) -> None:
    for text, message in {
        "": "a.json: cannot be read as annotations: ",
        "{}": "a.json: no annotations; AlpacaEval's code writes a list of comparisons",
        "[]": "a.json: no comparison has a preference from 1 to 2",
        '[{"output": "x"}]': "a.json row 1: no preference",
        '[{"preference": null}, {"preference": -1}]': "a.json: no comparison has a preference from 1 to 2",
    }.items():
        Path("a.json").write_text(text)
        refused(refed("evaluate", "annotations", "a.json"), message)
    said(refusal(refed("evaluate", "annotations", "none.json")))
