"""Tables that the code prints, read back: these have the form that `show_result.py` gives them."""

from __future__ import annotations

from refed_dspy.plugins.evaluate.arena_hard.result import Score, read_table
from tests.support.said import Said

PRINTED = """Loading sorted judgments...
Number of null judgments found: 0
##### Category: hard_prompt #####
                    Model  Scores (%)          CI (%)
0  my model 2.0 (-1 / +1)        58.3  (-8.5 / +11.0)
1                   short        51.9   (-8.3 / +9.9)
2      o3-mini-2025-01-31        50.0   (-0.0 / +0.0)
3                     bad         0.2   (-0.2 / +-0.0)
Feature Coefs: tensor([ 0.0345, -0.3531,  0.0850, -0.1004])

  0%|          | 0/100 [00:00<?, ?it/s]
100%|##########| 100/100 [00:03<00:00, 30.76it/s]
"""


def test_scores_and_intervals_are_read_whatever_an_arm_is_called() -> None:
    scores = read_table(PRINTED, ["short", "my model 2.0 (-1 / +1)", "bad"])
    assert [*scores.values()] == [Score(51.9, 43.6, 61.8), Score(58.3, 49.8, 69.3), Score(0.2, 0.0, 0.2)]
    assert str(scores["short"]) == "51.9 (43.6 to 61.8)"


def test_only_the_last_table_counts() -> None:
    assert read_table(PRINTED + PRINTED.replace("51.9", "52.9"), ["short"])["short"].value == 52.9


def test_what_is_not_there_is_named(said: Said) -> None:
    with said.by(ValueError):
        read_table(PRINTED, ["a", "short", "b"])
    with said.by(ValueError):
        read_table("Traceback", ["a"])
