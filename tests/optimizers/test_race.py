"""Several optimizers in one compile: whose turn it is, what they share, and what is told of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest

from benchmarks.preference import World
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.learned import learned_in
from refed_dspy.optimizers.race import BEHIND, CONVERGED, FAILED, FINISHED, NOTHING, Race, race_lines
from refed_dspy.optimizers.recorder import TurnScores
from tests.support.said import Said
from tests.support.simulated_compiles import PREFERENCE, QUESTIONS, Knows, Watched, answerer, compiled, marks, of_five

HALF_AND_WHOLE = {50: 50, 100: 100}


def turn_of(*candidates: str) -> TurnScores:
    """What was scored in a turn: each of these on one example of four."""
    scores = TurnScores(4)
    for each in candidates:
        scores.add(each, "1", "validation", 0.5)
    return scores


def raced(
    sizes: Mapping[str, Mapping[int, int]], gains: Mapping[str, float], ended: Mapping[str, str] = {}
) -> tuple[Race, list[tuple[str, int, float, bool]]]:
    """A race in which each optimizer tries one candidate, which gains this on each of four examples, more or less."""
    race = Race(sizes, lambda name: {str(at): gains[name] + (at % 2 - 0.5) * 0.02 for at in range(4)})
    turns = []
    for turn in race.turns():
        name = turn.runner.name
        turns.append((name, turn.size, round(turn.share, 2), turn.last))
        race.note(turn, turn_of(name), "first", (1.0, 2.0), ended.get(name, "") if not turn.last else "")
    return race, turns


def test_one_optimizer_has_one_turn_with_everything() -> None:
    _, turns = raced({"gepa": {100: 100}}, {"gepa": 0.1})
    assert turns == [("gepa", 100, 1.0, True)]


def test_who_falls_behind_gets_no_second_round() -> None:
    sizes = {"a": HALF_AND_WHOLE, "b": HALF_AND_WHOLE, "c": {50: 16}}
    race, turns = raced(sizes, {"a": 0.1, "b": 0.3, "c": 0.2})
    assert turns == [("a", 50, 0.25, False), ("b", 50, 0.33, False), ("c", 50, 0.5, False), ("b", 100, 1.0, False)]
    assert {each.name: each.ended for each in race.runners} == {"a": BEHIND, "b": FINISHED, "c": FINISHED}


def test_who_is_within_the_error_of_the_leader_goes_on_and_so_does_everybody_where_nothing_was_gained() -> None:
    sizes = {"a": HALF_AND_WHOLE, "b": HALF_AND_WHOLE}
    spread = {"a": [0.1, 0.5, 0.1, 0.5], "b": [0.4, 0.0, 0.5, 0.28]}
    race = Race(sizes, lambda name: dict(zip("1234", spread[name], strict=True)))
    for turn in race.turns():
        race.note(turn, turn_of(turn.runner.name), "first", (0.0, 0.0), "")
    assert [each.size for each in race.runners] == [100, 100]
    _, turns = raced(sizes, {"a": -0.1, "b": 0.0})
    assert [turn[:2] for turn in turns] == [("a", 50), ("b", 50), ("a", 100), ("b", 100)]


def test_who_is_still_rising_goes_on_though_it_is_behind_and_who_tried_nothing_does_not() -> None:
    sizes = {"a": HALF_AND_WHOLE, "b": HALF_AND_WHOLE, "c": HALF_AND_WHOLE}
    race = Race(sizes, lambda name: dict.fromkeys("1234", {"a": 0.1, "b": 0.3}[name]))
    rising = TurnScores(1)
    for name, score in (("first", 0.5), ("a", 0.6)):
        rising.add(name, "1", "validation", score)
    for turn in race.turns():
        scored = {"a": rising, "b": turn_of("b"), "c": turn_of("first")}[turn.runner.name]
        race.note(turn, scored, "first", (0.0, 0.0), "")
    assert {each.name: (each.size, each.ended) for each in race.runners} == {
        "a": (100, FINISHED), "b": (100, FINISHED), "c": (50, NOTHING),
    }  # fmt: skip


def test_what_is_left_goes_to_those_whom_a_cap_cut_short_the_leader_first() -> None:
    sizes = {"a": HALF_AND_WHOLE, "b": HALF_AND_WHOLE}
    _, turns = raced(sizes, {"a": 0.1, "b": 0.1}, {"a": "max_cost", "b": "max_cost"})
    assert turns[4:] == [("a", 100, 1.0, True), ("b", 100, 1.0, True)]
    _, turns = raced(sizes, {"a": 0.1, "b": 0.1}, {"a": CONVERGED})
    assert [turn[0] for turn in turns] == ["a", "b", "b"]


def test_a_search_has_converged_where_nothing_better_came_for_long() -> None:
    scores = TurnScores(whole=2, size=10)

    def scored(candidate: str, score: float, times: int = 1) -> bool:
        for _ in range(times):
            for example in "12":
                scores.add(candidate, example, "validation", score)
        return scores.converged

    assert not scored("first", 0.5) and not scored("better", 0.6)
    assert not scored("worse", 0.2, 4) and scored("worse", 0.2), "ten evaluations on: five times the validation set"
    assert not scored("best", 0.7), "going on was worth it"
    assert scored("perfect", 1.0)


def test_several_share_a_baseline_and_a_proof_and_the_best_is_kept(said: Said, tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, optimizer=["bootstrap", Knows], metric=marks)
    assert [each["name"] for each in made.manifest["race"]] == ["bootstrap", made.manifest["optimizer"].split(", ")[1]]
    assert made.changed and made.proof is not None and made.gain is not None and made.gain.mean > 0.4
    assert race_lines(made.manifest["race"])[1].startswith(made.manifest["race"][1]["name"]), "the leader comes first"
    asked = len(world.asked)
    again = compiled(tmp_path / "c", answerer(), QUESTIONS, world, optimizer=["bootstrap", Knows], metric=marks)
    assert len(world.asked) == asked and again.manifest["race"] == made.manifest["race"]
    kept = [each for each in made.candidates if each.kept]
    assert len(kept) == 1 and kept[0].optimizer.endswith("Knows") and kept[0].gain is not None
    frame = made.to_pandas()
    assert frame["gain"].max() == kept[0].gain and "program" not in frame and frame["number"].min() == 0
    assert any("Knows" in line for line in learned_in(made.folder).lines())


def test_half_of_a_turn_is_replayed_and_never_paid_for_again(tmp_path: Path) -> None:
    world = Watched()
    settings = {"optimizer": "gepa, bootstrap", "evaluations": 20, "metric": of_five, "validation": 3, "train": 1}
    made = compiled(tmp_path, answerer(), QUESTIONS, world, **settings)
    with Ledger.read(tmp_path) as ledger:
        answers = ledger.db.execute("SELECT count(*) FROM answers").fetchone()[0]
        assert len(ledger.meta("turns")["limits"]) == 3, "gepa had two turns"
    assert len(world.asked) == answers == made.manifest["calls"]


class Breaking(Knows):
    """It fails once it has asked."""

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        student(**trainset[0].inputs())
        raise ValueError("no such wheel")


def test_one_that_fails_ends_alone_and_the_others_come_to_their_proof(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = compiled(tmp_path, answerer(), QUESTIONS, optimizer=[Breaking, Knows], metric=marks)
    assert [each["ended"] for each in made.manifest["race"]] == [FAILED, FINISHED]
    assert made.proof is not None and made.changed and made.stopped == ""
    assert "no such wheel" in caplog.text and "the others go on" in caplog.text


@pytest.mark.parametrize(
    "mistake",
    [
        {"optimizer": ["gepa", "gepa"]},
        {"optimizer": []},
        {"optimizer": "gepa, bootstrap", "options": {"max_steps": 3}},
        {"optimizer": "gepa, bootstrap", "options": {"gepa": {"num_threads": 3}}},
        {"optimizer": "gepa, bootstrap", "options": {"bootstrap": {"no_such": 3}}},
        {"optimizer": "gepa", "proof_judge": "openai/gpt-4o-mini"},
    ],
)
def test_mistakes_are_told_before_anything_is_asked(said: Said, mistake: dict[str, Any], tmp_path: Path) -> None:
    world = Watched()
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=of_five, **mistake)
    assert not world.asked and not (tmp_path / "c").exists()
    said(str(caught.value))


class Restless(dspy.Module):  # type: ignore[misc]
    """It asks another question each time, and so do its copies."""

    times = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> response")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=f"{question}, time {next(self.times)}")


def test_answers_before_and_after_are_not_paid_for_where_the_proof_did_not_ask_them(tmp_path: Path) -> None:
    world, program = Watched(), Restless()
    made = compiled(tmp_path, program, QUESTIONS, world, optimizer=Knows, metric=marks)
    assert made.changed and made.manifest["answers"] is None
    assert len(world.asked) == made.manifest["calls"] == 2 * 2 + 2 * 5, "two programs on two and on five examples"


# --- a second judge, and answers of other work


class KnowsAll(Knows):
    """It tells every stage the secret."""

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        program = student.deepcopy()
        wishes = "".join(f"\nAlways {wish}." for wish in (*PREFERENCE.answers, *PREFERENCE.tasks))
        for predictor in program.predictors():
            predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions + wishes)
        return program


def second(world: World, name: str = "sim/second") -> dspy.LM:
    return dspy.LM(name, engine=world, async_engine=world.asynchronous, num_retries=0, cache=False)


def test_a_gain_that_the_second_judge_does_not_see_is_not_proved_and_asking_it_later_costs_its_calls_alone(
    said: Said, tmp_path: Path
) -> None:
    world, fixed = Watched(), {"optimizer": KnowsAll, "accept_longer": True}
    references = PREFERENCE.references(9)
    made = compiled(tmp_path, None, references, world, **fixed)
    assert made.proved
    asked, other = len(world.asked), Watched()
    tie, fair = '{"reason": "As good.", "verdict": "A=B"}', '{"reason": "It will do.", "grade": "3"}'
    other.answer = lambda text, fields: tie if "verdict" in fields else fair
    doubted = compiled(tmp_path, None, references, world, **fixed, proof_judge=second(other))
    assert len(world.asked) == asked and other.asked, "the answers are those of the first proof"
    assert not doubted.proved and doubted.proof is not None and doubted.proof.second is not None
    said(doubted.proof.doubts())
    assert compiled(tmp_path, None, references, world, **fixed).proved, "without it the first proof stands"
    agreeing = compiled(tmp_path, None, references, world, **fixed, proof_judge=second(Watched(), "sim/third"))
    assert agreeing.proved and agreeing.proof is not None and agreeing.proof.second is not None
    assert len(world.asked) == asked


def test_what_another_compile_was_answered_is_reused(tmp_path: Path) -> None:
    world = Watched()
    first = compiled(tmp_path / "a", answerer(), QUESTIONS, world, metric=marks)
    asked = len(world.asked)
    made = compiled(tmp_path / "b", answerer(), QUESTIONS, world, metric=marks, optimizer=Knows, reuse=first.folder)
    paid = len(world.asked) - asked
    assert made.manifest["calls"] == paid
    alone = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer=Knows)
    assert paid < alone.manifest["calls"]
