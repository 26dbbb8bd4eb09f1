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
from tests.support.command_line import refed, refusal, without_numbers
from tests.support.mlflow_stores import Mlflow
from tests.support.said import Said

home = test_compile.home
mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


def test_agreement_is_a_table(
    said: Said, home: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TEACHER__TEMPERATURE", "0.5")  # of a teacher that this command does not take
    first = agreement(home, server)
    assert first.exit_code == 0, first.output
    head, _, last = first.stdout.splitlines()
    said((head.split(), without_numbers(last)))
    paid = server.stats()["requests"]
    assert paid == 20 and f"{paid} calls" in first.stdout  # each in both orders


def test_agreement_of_a_draw(home: Path, server: SimulatedTeacher) -> None:
    assert agreement(home, server, "--count", 3).exit_code == 0
    assert server.stats()["requests"] == 6


def test_agreement_at_a_cap_before_the_first_verdict(said: Said, home: Path, server: SimulatedTeacher) -> None:
    cut = agreement(home, server, "--max-calls", 1)
    no_traceback(cut)
    assert cut.exit_code == 1
    said(without_numbers(cut.stdout))


UNUSABLE: list[list[object]] = [
    ["--pairs", "none.jsonl"], ["--pairs", "broken.jsonl"], ["--pairs", "references.jsonl"], ["--count", 0],
    ["--judge", "nosuch/model"], ["--judge", "none.yaml"], ["--program", "none.json"], ["--max-calls", 0],
    ["--max-cost", -1], ["--max-minutes", 0], ["--count", -1], ["--out", "broken.jsonl"],
]  # fmt: skip


def test_agreement_of_what_cannot_be_used_is_one_line(said: Said, home: Path, server: SimulatedTeacher) -> None:
    good = json.dumps(pairs(1)[0])
    (home / "broken.jsonl").write_text(f'{good}\n{{"instruction": "a"\n')
    said({" ".join(map(str, words)): refusal(agreement(home, server, *words)) for words in UNUSABLE})
    assert server.stats()["requests"] == 0


@pytest.mark.slow
def test_agreement_by_a_compiled_judge(said: Said, home: Path, server: SimulatedTeacher) -> None:
    judge = PairwiseJudge()
    for predictor in judge.predictors():
        predictor.signature = predictor.signature.with_instructions("Prefer what is shorter.")
    save_program(judge, "judge.json")
    assert program_digests(judge) != program_digests(PairwiseJudge())
    assert agreement(home, server, "--program", "judge.json").exit_code == 0
    said(refusal(agreement(home, server)))


@pytest.mark.slow
def test_track_of_a_folder_of_verdicts_says_that_it_is_none_to_track(
    said: Said, home: Path, server: SimulatedTeacher, tracked: Mlflow
) -> None:
    agreement(home, server)
    result = refed("track", "verdicts")
    said(refusal(result))
    assert tracked.runs() == []
