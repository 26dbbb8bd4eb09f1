"""refed judge train as a person meets it: tables, exit codes, one line for a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from benchmarks.biased_judge import Bias, BiasedJudge
from tests.support.command_line import refed, refusal, without_numbers
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
    said([without_numbers(line) for line in first.stdout.splitlines() if ": " in line])
    assert {path.name for path in (home / "out").iterdir()} >= {"judge.json", "training.txt", "reliability.png"}
    assert judge.requests - paid == 112
    status = refed("status", "out")
    assert status.exit_code == 0 and "training" in status.stdout and "done" in status.stdout


UNUSABLE = [
    ("--pairs", "none.jsonl"), ("--pairs", ""), ("--judge", ""), ("--out", ""), ("--pairs", "few.jsonl"),
    ("--program", "none.json"), ("--optimizer", "luck"), ("--config", "wrong.yaml"), ("--config", "nobody.yaml"),
    ("--max-cost", "-1"), ("--reuse", "nowhere"), ("--out", "pairs.jsonl"),
]  # fmt: skip


def test_what_cannot_be_used_is_one_line(said: Said, home: Path, judge: BiasedJudge) -> None:
    (home / "few.jsonl").write_text('{"instruction": "i", "answer_a": "a", "answer_b": "b", "preferred": "A"}\n')
    (home / "wrong.yaml").write_text("held_out_criterion: [wit]\n")
    (home / "nobody.yaml").write_text("held_out_criteria: [wit]\n")
    paid = judge.requests
    said({" ".join(words): refusal(train(home, judge, *words)) for words in UNUSABLE})
    assert judge.requests == paid
