"""Opening a judge."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import WithJudge
from refed_dspy.plugins.judge.trained_judge import PAIRS, Correction, Corrections, Term, TrainedJudge
from refed_dspy.plugins.metrics import figures
from refed_dspy.programs.saved import save_program
from refed_dspy.teachers.judge import open_judge_program

PERPLEX = Correction(terms={"log_perplexity": Term(mean=0, scale=1, coefficient=-5.0)}, thresholds=(-0.0, 0.0))


class Weights:
    """What stands for a scorer that takes a while to load."""


def test_a_judge_that_is_opened_again_uses_the_weights_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[ScorerConfig]()

    def load(config: ScorerConfig) -> Weights:
        loaded.append(config)
        return Weights()

    monkeypatch.setattr(figures, "open_scorer", load)
    save_program(TrainedJudge(Corrections({PAIRS: PERPLEX})), tmp_path / "judge.json")
    settings = WithJudge(judge_program=str(tmp_path / "judge.json"), judge_scorer=ScorerConfig(model="toy"))
    judge = open_judge_program(settings)
    again = open_judge_program(settings)
    assert judge is not again and len(loaded) == 1
    open_judge_program(settings.model_copy(update={"judge_scorer": ScorerConfig(model="another")}))
    assert len(loaded) == 2
    del judge, again
    gc.collect()
    open_judge_program(settings)
    assert len(loaded) == 3, "nobody uses them any more, so their memory was free"
