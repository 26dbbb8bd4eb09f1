"""A trained judge that is a ruler says so, and one that is more is proved all the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.biased_judge import Bias, BiasedJudge
from refed_dspy.data.pairs import Pair
from refed_dspy.plugins.judge.training.result import JudgeTraining
from refed_dspy.plugins.judge.training.train import train_judge
from tests.support.judged_pairs import judged_pairs, without_grades, written
from tests.support.said import Said

AT_RANDOM, LONGER, USEFUL = Bias(skill=0.0), Bias(skill=0.0, length=4.0), Bias(skill=1.5, length=1.0, position=1.5)


def people_who_prefer_longer(share: float) -> list[Pair]:
    """In `share` of the pairs the answer that they prefer is the longer one; which, nothing else tells."""
    rng, made = random.Random(f"longer {share}"), []
    for pair in without_grades(judged_pairs(48, 4, annotators=1)):
        longer = 1.0 if len(pair.answer_a) > len(pair.answer_b) else -1.0
        verdict = longer if rng.random() < share else -longer
        said = {name: each.model_copy(update={"verdict": verdict}) for name, each in pair.annotations.items()}
        made.append(pair.model_copy(update={"verdict": verdict, "annotations": said}))
    return made


def trained(share: float, bias: Bias, folder: Path) -> JudgeTraining:
    pairs = people_who_prefer_longer(share)
    with BiasedJudge(written(folder / "people.json", pairs)) as judge:
        return train_judge(pairs, judge.teacher(bias), out=folder / "out", progress=False)


@pytest.mark.parametrize(
    "bias", [pytest.param(AT_RANDOM, marks=pytest.mark.slow), LONGER], ids=["at random", "by length"]
)
def test_a_judge_that_learned_to_measure_length_is_not_proved_and_says_so_first(
    said: Said, bias: Bias, tmp_path: Path
) -> None:
    made = trained(0.95, bias, tmp_path)
    assert made.report is not None and made.report.length is not None and not made.report.proved
    first, *others = made.lines()
    said(first)
    said(others[-3:-1])
    assert (made.folder / "training.txt").read_text().startswith(first) and first in made._repr_html_()
    assert json.loads((made.folder / "training.json").read_text())["report"]["ruler"] == first
    assert json.loads(made.path.read_text())["refed"]["proof"]["proved"] is False


@pytest.mark.slow
def test_a_judge_that_knows_more_than_length_is_proved(said: Said, tmp_path: Path) -> None:
    made = trained(0.75, USEFUL, tmp_path)
    report = made.report
    assert report is not None and report.length is not None and report.length.accuracy is not None
    assert report.length.accuracy.low > 0.55, "length tells something here, too"
    assert report.proved and report.ruler == ""
    said(made.lines()[:-1])
