from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.biased_judge import Bias, BiasedJudge
from refed_dspy.data.pairs import Pair
from refed_dspy.plugins.judge.training import learn
from refed_dspy.plugins.judge.training.result import JudgeTraining
from refed_dspy.plugins.judge.training.train import train_judge
from tests.support.judged_pairs import judged_pairs, written

BIASED = Bias(skill=1.5, position=1.2, length=2.5, style=2.0)


@pytest.fixture(scope="session")
def people() -> list[Pair]:
    """160 pairs of 40 instructions, by four criteria, of five systems, with three people's verdicts and grades."""
    return judged_pairs()


@pytest.fixture(scope="session")
def judge(people: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BiasedJudge]:
    """A judge, in a process of its own, that knows what these people said."""
    with BiasedJudge(written(tmp_path_factory.mktemp("people") / "people.json", people)) as started:
        yield started


@pytest.fixture(scope="session")
def made(people: list[Pair], judge: BiasedJudge, tmp_path_factory: pytest.TempPathFactory) -> JudgeTraining:
    """The biased judge, trained once on verdicts and grades. Nobody writes into its folder."""
    return train_judge(people, judge.teacher(BIASED), out=tmp_path_factory.mktemp("once") / "out", progress=False)


@pytest.fixture
def two_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit tries two penalties only, where how strong it is does not matter: it takes a fifth of the time."""
    monkeypatch.setattr(learn, "STRENGTHS", (0.03, 0.3))
