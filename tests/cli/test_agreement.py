"""refed judge agreement as a person meets it: a table, exit codes, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.saved import program_digests, save_program
from tests.cli import test_compile
from tests.cli.test_compile import agreement, no_traceback, pairs
from tests.support import mlflow_stores
from tests.support.command_line import refed, refused
from tests.support.mlflow_stores import Mlflow
from tests.support.said import Said

home = test_compile.home
mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


def test_agreement_is_a_table_and_costs_nothing_again(said: Said, home: Path, server: SimulatedTeacher) -> None:
    first = agreement(home, server)
    assert first.exit_code == 0, first.output
    said(first.stdout.splitlines()[-1])
    paid = server.stats()["requests"]
    assert paid == 20 and f"{paid} calls" in first.stdout  # each in both orders
    assert agreement(home, server).stdout == first.stdout and server.stats()["requests"] == paid


def test_agreement_heeds_no_teacher(home: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_TEACHER__TEMPERATURE", "0.5")  # of a teacher that this command does not take
    assert agreement(home, server).exit_code == 0


def test_agreement_of_a_draw(said: Said, home: Path, server: SimulatedTeacher) -> None:
    drawn = agreement(home, server, "--count", 3)
    assert drawn.exit_code == 0
    said(drawn.stdout)
    refused(agreement(home, server, "--count", 4), "verdicts", "--out")
    assert server.stats()["requests"] == 6
    for count in (0, -1):
        flags = "--pairs", "pairs.jsonl", "--judge", home / "teacher.yaml", "--out", f"v{count}"
        many = refed("judge", "agreement", *flags, "--count", count)
        refused(many, "count")


def test_agreement_at_a_cap_goes_on_later(said: Said, home: Path, server: SimulatedTeacher) -> None:
    cut = agreement(home, server, "--max-calls", 6, concurrency=2)
    no_traceback(cut)
    assert cut.exit_code == 1 and server.stats()["requests"] == 6
    said(cut.output)
    done = agreement(home, server, "--max-calls", 100, concurrency=2)
    assert done.exit_code == 0
    said(done.stdout)
    assert server.stats()["requests"] == 20 and server.stats()["repeated"] == 0


def test_agreement_at_a_cap_before_the_first_verdict(said: Said, home: Path, server: SimulatedTeacher) -> None:
    cut = agreement(home, server, "--max-calls", 1)
    no_traceback(cut)
    assert cut.exit_code == 1
    said(cut.stdout)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pairs", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["--pairs", "broken.jsonl"], ["broken.jsonl line 2"]),
        (["--pairs", "references.jsonl"], ["references.jsonl"]),
        (["--judge", "nosuch/model"], ["provider is unknown"]),
        (["--judge", "none.yaml"], ["none.yaml"]),
        (["--program", "none.json"], ["none.json", "no such file"]),
        (["--max-calls", "0"], ["max_calls"]),
        (["--max-cost", "-1"], ["max_cost"]),
        (["--max-minutes", "0"], ["max_minutes"]),
        (["--out", "broken.jsonl"], ["broken.jsonl", "cannot be written"]),
    ],
)
def test_agreement_of_what_cannot_be_used_is_one_line(
    home: Path, server: SimulatedTeacher, words: list[str], expected: list[str]
) -> None:
    good = json.dumps(pairs(1)[0])
    (home / "broken.jsonl").write_text(f'{good}\n{{"instruction": "a"\n')
    result = agreement(home, server, *words)
    no_traceback(result)
    refused(result, *expected)
    assert server.stats()["requests"] == 0


@pytest.mark.slow
def test_agreement_by_a_compiled_judge(home: Path, server: SimulatedTeacher) -> None:
    judge = PairwiseJudge()
    for predictor in judge.predictors():
        predictor.signature = predictor.signature.with_instructions("Prefer what is shorter.")
    save_program(judge, "judge.json")
    assert program_digests(judge) != program_digests(PairwiseJudge())
    assert agreement(home, server, "--program", "judge.json").exit_code == 0
    refused(agreement(home, server), "contains other verdicts", "program")


@pytest.mark.slow
def test_track_of_a_folder_of_verdicts_says_that_it_is_none_to_track(
    home: Path, server: SimulatedTeacher, tracked: Mlflow
) -> None:
    agreement(home, server)
    result = refed("track", "verdicts")
    refused(result, "verdicts")
    assert tracked.runs() == []
