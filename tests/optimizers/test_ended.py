"""A compile that has ended is printed again: nothing is asked, and no optimizer runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.saved import program_digests
from tests.support.simulated_compiles import (
    ONE_CRITERION,
    OPTIONS,
    QUESTIONS,
    REFERENCES,
    Watched,
    answerer,
    compiled,
    marks,
    pair,
    refed,
)

KNOWS = "tests.support.simulated_compiles.Knows"


def questioned(folder: Path, world: Watched, **more: Any) -> Compiled:
    return compiled(folder, answerer(), QUESTIONS, world, **{"metric": marks, "optimizer": KNOWS, **more})


def is_the_same(again: Compiled, first: Compiled) -> None:
    assert again.lines() == first.lines() and again.manifest == first.manifest and again.proof == first.proof
    assert program_digests(again.program) == program_digests(first.program)
    assert again.program.tuned_on == first.program.tuned_on and again.changed is first.changed
    assert again.estimate_lines() == first.estimate_lines() and again.judge == first.judge


def test_it_is_printed_again_and_nothing_is_run(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    files = {path.name: path.read_bytes() for path in first.folder.glob("*.[jdt]*")}
    asked, world.progress = world.requests, None
    again = questioned(tmp_path / "c", world, threads=1)
    is_the_same(again, first)
    assert world.requests == asked and world.progress is None, "nothing is evaluated"
    assert {name: (first.folder / name).read_bytes() for name in files} == files and len(files) == 3


def test_an_interval_without_ends_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version scored a single held-out example."""
    monkeypatch.setattr("refed_dspy.optimizers.compile.refuse_unprovable", lambda *_: None)
    world = Watched()
    first = questioned(tmp_path / "c", world, test=1)
    assert first.proof is not None and math.isinf(first.proof.gain.raw.high)
    is_the_same(questioned(tmp_path / "c", world, test=1), first)


def test_a_judge_s_agreement_comes_back(tmp_path: Path) -> None:
    world, pairs = Watched(), [pair(number, name) for number in range(9) for name in ("rigor", "warmth")]
    first, again = (
        compiled(tmp_path / "c", PairwiseJudge(), pairs, world, held_out_criteria=["warmth"]) for _ in range(2)
    )
    assert first.judge is not None
    is_the_same(again, first)


def test_a_missing_file_is_written_again_and_one_that_was_edited_stays(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    before = first.path.read_bytes()
    first.path.unlink()
    (first.folder / "prompts.diff").write_text("mine")
    again = questioned(tmp_path / "c", world)
    assert first.path.read_bytes() == before and again.diff() == "mine"


def test_the_estimate_of_an_ended_compile_is_still_told(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    asked = world.requests
    assert questioned(tmp_path / "c", world, estimate=True).estimate_lines() == first.estimate_lines()
    assert world.requests == asked
    is_the_same(questioned(tmp_path / "c", world), first)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIONS)
def test_whatever_the_optimizer(optimizer: str, tmp_path: Path) -> None:
    world = Watched()
    more: dict[str, Any] = {"optimizer": optimizer, "options": OPTIONS[optimizer], "metric": ONE_CRITERION}
    first = compiled(tmp_path / "c", refed(), REFERENCES, world, **more)
    asked = world.requests
    is_the_same(compiled(tmp_path / "c", refed(), REFERENCES, world, **more), first)
    assert world.requests == asked and first.proof is not None


def test_a_gain_that_rests_on_length_can_be_accepted_later(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    asked = world.requests
    again = questioned(tmp_path / "c", world, accept_longer=True)
    assert first.proof is not None and again.proof is not None and world.requests == asked
    assert (first.proof.accept_longer, again.proof.accept_longer) == (False, True)


def test_the_money_of_an_earlier_versions_outcome_is_in_dollars_too(tmp_path: Path) -> None:
    """It stored picodollars, and no format of what had ended."""
    first = questioned(tmp_path / "c", Watched())
    with Ledger.create(tmp_path / "c") as ledger:
        ended = ledger.meta("ended")
        assert ended is not None and ended.pop("format") == 2
        ended["proof"]["baseline"]["unit_cost"] = 2e9
        del ended["proof"]["same"]
        ledger.set_meta(ended=ended)
    again = questioned(tmp_path / "c", Watched())
    assert again.proof is not None and first.proof is not None
    assert again.proof.baseline.unit_cost == 0.002 and again.proof.gain == first.proof.gain
