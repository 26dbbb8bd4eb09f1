"""Compile end to end: every optimizer, programs of all kinds, and the estimate."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.learned import learned_in
from refed_dspy.optimizers.result import Compiled, why_stopped
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import load_into
from refed_dspy.programs.saved import program_digests, program_state
from refed_dspy.teachers.progress import CompileProgress
from tests.support.looks import small
from tests.support.said import Said
from tests.support.simulated_compiles import (
    ONE_CRITERION,
    OPTIONS,
    PREFERENCE,
    QUESTIONS,
    REFERENCES,
    SETS,
    Knows,
    Watched,
    answerer,
    check_folder,
    compiled,
    ledger_of,
    marks,
    of_five,
    of_two,
    pair,
    refed,
)

# --- every optimizer on our own program


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIONS)
def test_an_optimizer_runs_and_never_sees_what_is_held_out(optimizer: str, tmp_path: Path) -> None:
    world, program = Watched(), refed()
    before = program_digests(program)
    made = compiled(
        tmp_path / "c",
        program,
        REFERENCES,
        world,
        optimizer=optimizer,
        options=OPTIONS[optimizer],
        metric=ONE_CRITERION,
    )
    held = [row for row in REFERENCES if not [1 for phase, text in world.asked if " test " not in phase and
                                              row["instruction"] in text]]  # fmt: skip
    assert len(held) == 5, "five references are in no question before the proof"
    assert all(any(row["instruction"] in text for _, text in world.asked) for row in held)
    check_program(made, program, before)
    check_folder(made, optimizer)
    if optimizer in {"bootstrap", "gepa"}:  # the others ask the same again on purpose
        assert max(Counter(text for _, text in world.asked).values()) == 1, "nothing is asked twice"


def check_program(made: Compiled, program: ReferenceLevelFeedback, before: dict[str, str]) -> None:
    assert isinstance(made.program, ReferenceLevelFeedback)
    assert program_digests(program) == before and program.instructions_per_feature == 7, "what was given is left alone"
    assert made.program.instructions_per_feature == 7 and made.program.features == program.features
    assert made.program._compiled is False and all(p.lm is None for p in made.program.predictors())
    assert made.changed is (program_digests(made.program) != before)


@pytest.mark.slow
def test_the_same_seed_in_the_same_world_makes_the_same_program(tmp_path: Path) -> None:
    made = [
        compiled(tmp_path / str(n), answerer(), QUESTIONS, metric=of_five, seed=1, optimizer="gepa", evaluations=12)
        for n in range(2)
    ]
    assert made[0].changed and program_state(made[0].program) == program_state(made[1].program)
    assert made[0].manifest["validation"] == made[1].manifest["validation"] and made[0].proof == made[1].proof


@pytest.mark.parametrize("metric", [of_two, marks, of_five])
def test_any_program_with_a_metric_of_two_three_or_five_arguments(metric: Any, tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=metric, optimizer="gepa", evaluations=12)
    recorded = [text for _, text in world.asked if "<predict>" in text]
    assert bool(recorded) is (metric is of_five), "words of its own reach the model that rewrites"
    assert isinstance(made.program, dspy.ChainOfThought) and made.manifest["kind"] == "ChainOfThought"
    assert f".{metric.__name__} " in made.manifest["metric"]["function"] and made.proof is not None


def test_a_program_that_gains_is_what_is_kept(said: Said, tmp_path: Path) -> None:
    """The dotted name is a class of this module: it states what the judge looks for."""
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    train, held = ({example.question for example in part} for part in Knows.sets)
    assert len(train) == len(held) == 2 and not train & held, "it is given train and validation alone"
    assert made.manifest["sets"] == SETS and len(made.manifest["seen"]) == 4
    assert made.changed and made.proof is not None and made.proof.gain.raw.mean > 0.3
    assert PREFERENCE.answers[0] in made.program.predictors()[0].signature.instructions
    assert f"+Always {PREFERENCE.answers[0]}." in made.diff()
    assert made.manifest["validation"]["compiled"] > made.manifest["validation"]["uncompiled"]
    again = compiled(tmp_path / "again", made.program, QUESTIONS, metric=marks, seed=1)
    assert again.manifest["validation"]["uncompiled"] == pytest.approx(made.manifest["validation"]["compiled"], abs=0.2)
    assert program_digests(again.program) == program_digests(made.program)
    fresh = answerer()
    with said.by(ConfigError):
        refed_dspy.load_program(made.path)
    load_into(fresh, made.path)
    assert program_digests(fresh) == program_digests(made.program)


def test_a_registered_search_by_its_dotted_name(tmp_path: Path) -> None:
    name = "dspy.BootstrapFewShotWithRandomSearch"
    options = {"num_candidate_programs": 1, "max_labeled_demos": 1}
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer=name, options=options)
    assert made.manifest["optimizer"] == name and made.manifest["options"] == {k: str(v) for k, v in options.items()}
    assert len(ledger_of(made.folder)) > 1


def test_a_bare_predict_is_a_program_too(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", dspy.Predict("question -> response"), QUESTIONS, metric=marks)
    assert made.proof is not None


def test_a_judge_is_tuned_on_pairs_and_proved_on_criteria_it_never_saw(tmp_path: Path) -> None:
    pairs = [pair(n, criterion) for n in range(9) for criterion in ("depth", "style")]
    world, held_out = Watched(), pair(0, "style").description
    made = compiled(tmp_path / "c", PairwiseJudge(), pairs, world, held_out_criteria=["style"], optimizer="gepa")
    assert isinstance(made.program, PairwiseJudge) and made.proof is not None
    assert made.manifest["sets"] == {"train": 2, "validation": 2, "test": 10}
    assert made.proof.compiled.score.mean == 1 and made.proof.compiled.components == {"consistent": 1.0}
    seen = [text for phase, text in world.asked if " test " not in phase]
    assert seen and not [text for text in seen if held_out in text]
    assert sum(held_out in text for _, text in world.asked) == 10, "five pairs, in both orders, once"


# --- the estimate


def test_an_estimate_pays_for_the_validation_set_alone_and_the_compile_goes_on(said: Said, tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, estimate=True)
    assert world.requests == 2 and made.proof is None and not made.changed
    assert made.estimate["calls"] > 2 and made.estimate["cost"] is None, "the price is unknown"
    said(lines := made.estimate_lines())
    whole = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert whole.proof is not None and world.requests == 9, "train and test are new, validation is not"
    assert made.lines() == lines
    said(small(made))
    assert small(whole)


def test_an_error_in_on_progress_ends_the_compile(tmp_path: Path) -> None:
    def buggy(progress: CompileProgress) -> None:
        if progress.evaluations:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, on_progress=buggy)
    assert compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks).proof is not None


# --- a compile that has ended is printed again: nothing is asked, and no optimizer runs


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


def test_a_gain_that_rests_on_length_can_be_accepted_later(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    asked = world.requests
    again = questioned(tmp_path / "c", world, accept_longer=True)
    assert first.proof is not None and again.proof is not None and world.requests == asked
    assert (first.proof.accept_longer, again.proof.accept_longer) == (False, True)


def test_an_earlier_versions_outcome_is_told_its_money_in_dollars(tmp_path: Path) -> None:
    """It stored picodollars, no format of what had ended, and nothing of several optimizers."""
    first = questioned(tmp_path / "c", Watched())
    with Ledger.create(tmp_path / "c") as ledger:
        ended, manifest = ledger.meta("ended"), ledger.meta("outcome")
        for name in ("race", "answers"):
            del ended[name], manifest[name]
        del manifest["reused"]
        assert ended is not None and ended.pop("format") == 2
        ended["proof"]["baseline"]["unit_cost"] = 2e9
        del ended["proof"]["same"]
        ledger.set_meta(ended=ended, outcome=manifest)
    again = questioned(tmp_path / "c", Watched())
    assert again.lines() and again.candidates and learned_in(again.folder).lines()
    assert again.proof is not None and first.proof is not None
    assert again.proof.baseline.unit_cost == 0.002 and again.proof.gain == first.proof.gain


def test_an_estimate_of_an_ended_compile_is_still_told_and_leaves_its_program_alone(tmp_path: Path) -> None:
    world = Watched()
    first = questioned(tmp_path / "c", world)
    asked, before = world.requests, first.path.read_bytes()
    assert first.changed
    assert questioned(tmp_path / "c", world, estimate=True).estimate_lines() == first.estimate_lines()
    assert world.requests == asked and first.path.read_bytes() == before
    is_the_same(questioned(tmp_path / "c", world), first)


@pytest.mark.parametrize("stopped", ["max_cost", "no answer to 3 requests"])
def test_what_ended_it_early_is_said_in_one_way(said: Said, stopped: str) -> None:
    said([why_stopped(stopped), why_stopped(stopped, "; raise it")])
