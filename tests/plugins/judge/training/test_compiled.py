"""A training that compiles the judge's prompts first, one with perplexities, and one that is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.biased_judge import BiasedJudge
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.judge.agree import measure_agreement
from refed_dspy.plugins.judge.training.result import JudgeTraining
from refed_dspy.plugins.judge.training.train import train_judge
from refed_dspy.programs.load import open_judge
from refed_dspy.records import digest
from tests.plugins.judge.training.conftest import BIASED
from tests.support.judged_pairs import without_grades
from tests.support.said import Said
from tests.support.toy_server import ToyServer, toy_served

pytestmark = pytest.mark.slow


def bootstrapped(people: list[Pair], judge: BiasedJudge, out: Path, **settings: Any) -> JudgeTraining:
    teacher = judge.teacher(replace(BIASED, seed=11))
    named = {"optimizer": "bootstrap", "evaluations": 12, "held_out_criteria": ["tone"], "held_out_systems": ["elk"]}
    return train_judge(without_grades(people), teacher, out=out, progress=False, **{**named, **settings})


def test_prompts_are_compiled_on_training_pairs_alone(
    said: Said, people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    before = judge.requests
    made = bootstrapped(people, judge, tmp_path)
    assert made.judge is not None
    paid = judge.requests - before
    assert made.calls == paid
    said(made.notes)
    with Ledger.read(tmp_path / "compile") as ledger:
        compiled = spent(ledger).calls
    assert 0 < compiled < paid
    train = {digest(pair.instruction) for pair in made.held_out.train(people)}
    program = json.loads((tmp_path / "compile" / "program.json").read_text())
    seen = set(program["refed"]["seen"])
    assert seen and seen < train
    held_out = {pair.instruction for pair in people} - {pair.instruction for pair in made.held_out.train(people)}
    shown = json.dumps(program["compare"]["demos"])
    assert not any(text in shown for text in held_out) and '"tone"' not in shown
    rows = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    assert rows and not {digest(row["instruction"]) for row in rows} & seen
    assert bootstrapped(people, judge, tmp_path).lines() == made.lines() and judge.requests - before == paid
    loaded = open_judge(made.path)
    assert loaded.compare.demos == made.judge.compare.demos
    with said.by(RunDirError):
        bootstrapped(people, judge, tmp_path, seed=1)


def test_one_cap_holds_over_the_compile_and_the_training(
    people: list[Pair], judge: BiasedJudge, tmp_path: Path
) -> None:
    before, cap = judge.requests, 200
    cut = bootstrapped(people, judge, tmp_path, max_calls=cap)
    assert cut.stopped == "max_calls" and cut.calls == judge.requests - before <= cap
    again = bootstrapped(people, judge, tmp_path)  # the cap stays
    assert again.stopped == "max_calls" and judge.requests - before <= cap
    done = bootstrapped(people, judge, tmp_path, max_calls=10_000)
    assert done.judge is not None and done.calls == judge.requests - before


@pytest.fixture
def toy() -> Iterator[ToyServer]:
    with toy_served() as server:
        yield server


def test_a_judge_that_reads_perplexities_needs_their_model(
    said: Said, people: list[Pair], judge: BiasedJudge, toy: ToyServer, tmp_path: Path
) -> None:
    scorer = {"model": "toy", "api_base": toy.url, "template": "none"}
    pairs, teacher = without_grades(people), judge.teacher(BIASED)
    made = train_judge(pairs, teacher, out=tmp_path / "out", scorer=scorer, progress=False)
    assert made.judge is not None and made.judge.corrections.read_perplexity
    assert "log_perplexity" in json.loads(made.path.read_text())["corrections"]["pairs"]["terms"]
    with said.by(ConfigError):
        measure_agreement(pairs, teacher, tmp_path / "a", program=made.path, progress=False)
    asked = len(toy.prompts)
    rows = measure_agreement(
        pairs, teacher, tmp_path / "a", program=made.path, judge_scorer=scorer, progress=False
    ).rows
    assert len(toy.prompts) > asked
    own = measure_agreement(pairs, teacher, tmp_path / "b", program=made.judge, progress=False).rows
    assert own == rows
    with said.by(ConfigError):
        measure_agreement(pairs, teacher, tmp_path / "c", judge_scorer=scorer, progress=False)
