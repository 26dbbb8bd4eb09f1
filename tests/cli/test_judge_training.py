"""refed judge train as a person meets it: tables, exit codes, one line for a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from benchmarks.biased_judge import Bias, BiasedJudge
from tests.cli.test_compile import no_traceback
from tests.support.command_line import refed, refused
from tests.support.judged_pairs import judged_pairs, lines_of, without_grades, written
from tests.support.said import Said

PEOPLE = without_grades(judged_pairs(14, 4))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BiasedJudge]:
    with BiasedJudge(written(tmp_path_factory.mktemp("people") / "people.json", PEOPLE)) as started:
        yield started


def train(home: Path, judge: BiasedJudge, *words: object, **bias: Any) -> Result:
    (home / "judge.yaml").write_text(yaml.safe_dump(judge.teacher(Bias(length=2.0, **bias))))
    (home / "pairs.jsonl").write_text(lines_of(PEOPLE))
    named = {"--pairs": "pairs.jsonl", "--judge": "judge.yaml", "--out": "out"}
    named |= dict(zip(words[::2], words[1::2], strict=True))  # type: ignore[arg-type]
    return refed("judge", "train", *(word for pair in named.items() for word in pair if pair[1]))


def test_a_training_says_what_it_held_out_and_what_it_is_worth(said: Said, home: Path, judge: BiasedJudge) -> None:
    paid = judge.requests
    first = train(home, judge)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    said(lines[0])
    said(lines[1])
    assert any(line.startswith("held out ") and "accuracy before" in line for line in lines)
    assert any(line.startswith(("proved: ", "not proved: ")) for line in lines)
    said(lines[-1])
    assert {path.name for path in (home / "out").iterdir()} >= {"judge.json", "training.txt", "reliability.png"}
    assert judge.requests - paid == 112
    assert train(home, judge).stdout == first.stdout and judge.requests - paid == 112
    status = refed("status", "out")
    assert status.exit_code == 0 and "training" in status.stdout and "done" in status.stdout
    assert refed("filter", "data.jsonl", "--filter", "judge", "--out", "f").exit_code == 2


def test_a_training_at_a_cap_ends_with_1_and_goes_on(said: Said, home: Path, judge: BiasedJudge) -> None:
    cut = train(home, judge, "--max-calls", 20, seed=2)
    no_traceback(cut)
    assert cut.exit_code == 1
    said(cut.output)
    said(cut.stdout)
    assert train(home, judge, "--max-calls", 1000, seed=2).exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pairs", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["--pairs", ""], ["pairs", "no verdicts of people"]),
        (["--judge", ""], ["no judge", "REFED_JUDGE"]),
        (["--out", ""], ["no folder for the results"]),
        (["--pairs", "few.jsonl"], ["1 pair of 1 instruction are too few"]),
        (["--program", "none.json"], ["none.json", "no such file"]),
        (["--optimizer", "luck"], ["optimizer", "too few to compile the prompts"]),
        (["--config", "wrong.yaml"], ["held_out_criterion", "did you mean held_out_criteria"]),
        (["--config", "nobody.yaml"], ["nobody judged by 'wit'"]),
        (["--max-cost", "-1"], ["max_cost"]),
        (["--reuse", "nowhere"], ["nowhere"]),
        (["--out", "pairs.jsonl"], ["pairs.jsonl: is where the results would go"]),
    ],
)
def test_what_cannot_be_used_is_one_line(home: Path, judge: BiasedJudge, words: list[str], expected: list[str]) -> None:
    (home / "few.jsonl").write_text('{"instruction": "i", "answer_a": "a", "answer_b": "b", "preferred": "A"}\n')
    (home / "wrong.yaml").write_text("held_out_criterion: [wit]\n")
    (home / "nobody.yaml").write_text("held_out_criteria: [wit]\n")
    paid = judge.requests
    result = train(home, judge, *words)
    no_traceback(result)
    refused(result, *expected)
    assert judge.requests == paid
