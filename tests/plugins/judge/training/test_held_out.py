"""What is held out: whole criteria and systems, instructions, and never too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.training.spec import CRITERIA, FEWEST_TRAIN, PAIRS, SYSTEMS, HeldOut, hold_out
from refed_dspy.programs.judges import OVERALL
from tests.support.judged_pairs import judged_pairs
from tests.support.said import Said


def held(pairs: Sequence[Pair], **settings: Any) -> HeldOut:
    return hold_out(pairs, JudgeTrainingConfig(**settings))


def plain(pairs: Sequence[Pair], **update: str) -> list[Pair]:
    """Pairs by overall quality, of unknown systems, unless `update` says otherwise."""
    nothing = {"criterion": "", "description": "", "system_a": "", "system_b": ""}
    return [pair.model_copy(update={**nothing, **update}) for pair in pairs]


MANY = judged_pairs(100, 4)


@pytest.mark.parametrize("seed", range(4))
def test_training_sees_nothing_of_what_is_held_out(seed: int) -> None:
    made = held(MANY, seed=seed)
    train = made.train(MANY)
    assert len(made.criteria) == 1 and len(made.systems) == 1 and len(train) >= FEWEST_TRAIN
    assert not {pair.criterion for pair in train} & {*made.criteria}
    assert not {system for pair in train for system in (pair.system_a, pair.system_b)} & {*made.systems}
    assert not {pair.instruction for pair in train} & made.instructions
    for pair in MANY:
        sets = made.of_pair(pair)
        assert (CRITERIA in sets) == (pair.criterion in made.criteria)
        assert (SYSTEMS in sets) == bool({pair.system_a, pair.system_b} & {*made.systems})
        assert (sets == (PAIRS,)) == (pair.instruction in made.instructions and not {CRITERIA, SYSTEMS} & {*sets})


def test_the_seed_draws_and_the_order_of_pairs_does_not() -> None:
    assert held(MANY, seed=4) == held(MANY[::-1], seed=4)
    assert len({held(MANY, seed=seed) for seed in range(8)}) > 4


def test_the_share_is_that_of_the_instructions(said: Said) -> None:
    pairs = plain(MANY)
    for share in (0.1, 0.25, 0.5):
        made = held(pairs, held_out=share)
        assert len(made.instructions) == 100 * share and (made.criteria, made.systems) == ((), ())
    said(made.lines())


def test_few_criteria_and_systems_are_held_out_only_by_name() -> None:
    two = [pair.model_copy(update={"criterion": "ab"[n % 2]}) for n, pair in enumerate(plain(MANY))]
    assert held(two).criteria == () and held(two, held_out_criteria=["b"]).criteria == ("b",)
    three = [p.model_copy(update={"system_a": "xy"[n % 2], "system_b": "z"}) for n, p in enumerate(plain(MANY))]
    assert held(three).systems == () and held(three, held_out_systems=["x"]).systems == ("x",)


def test_what_all_pairs_have_is_never_drawn() -> None:
    """A baseline that every answer is compared with: without it nothing would be left."""
    systems = "abcdefgh"
    against = [
        pair.model_copy(update={"system_a": systems[n % 8], "system_b": "base"}) for n, pair in enumerate(plain(MANY))
    ]
    drawn = {system for seed in range(12) for system in held(against, seed=seed).systems}
    assert "base" not in drawn and len(drawn) > 3


def test_few_pairs_are_left_whole() -> None:
    made = held(MANY[:60])
    assert made.criteria == () or made.systems == ()
    assert len(made.train(MANY[:60])) >= FEWEST_TRAIN


def test_names_may_be_written_either_way() -> None:
    pairs = plain(MANY[:200], criterion="content quality") + plain(MANY[200:])
    assert held(pairs, held_out_criteria=["content_quality"]).criteria == (pairs[0].criterion,)
    assert held(pairs, held_out_criteria=[OVERALL.name]).criteria == (OVERALL.name,)


@pytest.mark.parametrize(
    ("pairs", "settings"),
    [
        (MANY[:39], {}),
        (judged_pairs(9, 8), {}),
        (MANY, {"held_out_criteria": ["depth", "tone", "clarity", "accuracy"]}),
        (MANY, {"held_out_criteria": ["wit"]}),
        (plain(MANY), {"held_out_systems": ["ant"]}),
    ],
    ids=["few pairs", "few instructions", "all held out", "no such criterion", "no systems"],
)
def test_too_little_to_hold_out_is_one_line(said: Said, pairs: list[Pair], settings: dict[str, Any]) -> None:
    with said.by(ConfigError) as refused:
        held(pairs, **settings)
    assert "\n" not in str(refused.value)
