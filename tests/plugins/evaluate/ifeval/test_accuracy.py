"""IFEval's accuracies and their intervals."""

from __future__ import annotations

import math
import random

import pytest

from refed_dspy.plugins.evaluate.ifeval.result import by_instruction, by_prompt


def test_shares_of_prompts_and_of_instructions() -> None:
    followed = [[True, True], [True, False], [False, False, True], [True]]
    assert by_prompt(followed).mean == 50 and by_prompt(followed).n == 4
    share = by_instruction(followed)
    assert share.mean == pytest.approx(100 * 5 / 8) and (share.n, share.clusters) == (8, 4)
    assert 0 <= share.low < share.mean < share.high <= 100


def test_the_interval_of_instructions_is_that_of_a_ratio_over_prompts() -> None:
    """Beside the normal one of the linearized ratio: its standard error, written out here."""
    rng = random.Random(4)
    followed = [[rng.random() < 0.9 - 0.2 * n] * n for n in rng.choices((1, 2, 3), k=500)]
    asked = sum(map(len, followed))
    share = sum(map(sum, followed)) / asked
    squares = sum((sum(each) - share * len(each)) ** 2 for each in followed)
    half = 196 * math.sqrt(squares * 500 / 499) / asked
    found = by_instruction(followed)
    assert found.low == pytest.approx(100 * share - half, abs=0.3)
    assert found.high == pytest.approx(100 * share + half, abs=0.3)
    naive = 196 * math.sqrt(share * (1 - share) / asked)
    assert abs(half - naive) > 1, "as if instructions were apart, it would be another"


def test_one_prompt_says_nothing_of_others() -> None:
    assert (by_prompt([[True]]).low, by_prompt([[True]]).high) == (0, 100)
    assert (by_instruction([[True, False]]).low, by_instruction([[True, False]]).high) == (0, 100)


def test_where_all_or_none_were_followed_the_bounds_stay_between_0_and_100() -> None:
    for value in (True, False):
        for share in (by_prompt([[value]] * 9), by_instruction([[value] * 2] * 9)):
            assert share.low == share.mean == share.high == 100 * value
