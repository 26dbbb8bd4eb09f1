"""The test for headroom: what other prompts gain beside the noise of one program's own runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.lm15 import Request, Response
from typer.testing import CliRunner

from benchmarks.preference import WORDS, Preference, World, model
from refed_dspy import plan_compile
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.optimizers.headroom import AGAIN, Headroom, fixed_variants, headroom_in
from refed_dspy.programs import ReferenceLevelFeedback
from tests.support.said import Said
from tests.support.scripted_engine import response

FIRST = {"answer": "Answer the question."}
NOISE = 0.1


def models(world: World) -> dict[str, Any]:
    return {
        "teacher": model(world),
        "judge": model(world, 0.0),
        "reflection": model(world),
    }


def candidate(prompts: Any, gains: Any) -> Candidate:
    state = {name: {"signature": {"instructions": text}} for name, text in prompts.items()}
    scores = {f"e{number}": 0.5 + float(gain) for number, gain in enumerate(gains)}
    return Candidate(str(prompts), 0, state, 0.0, {"validation": scores}, {}, 0, 0)


def outcome(seed: int, **gains: float) -> Headroom:
    """A test of programs without a gain, but for these: label → true gain."""
    rng = np.random.default_rng(seed)
    variants = {**fixed_variants(FIRST), "rewritten 1": {"answer": "Answer in verse."}}
    others = [candidate(each, rng.normal(gains.get(name, 0), NOISE, 8)) for name, each in variants.items()]
    made = headroom_in([candidate(FIRST, [0] * 8), *others], {})
    assert made is not None
    assert {each.label for each in made.variants} == {name for name in variants if not name.startswith(AGAIN)}
    return made


def test_chance_is_no_sign_and_a_gain_is_one_of_no_more_than_it_is(said: Said) -> None:
    assert sum(outcome(seed).at_least > 0 for seed in range(200)) <= 10, "one in twenty"
    found = [outcome(seed, **{"rewritten 1": 0.25}).at_least for seed in range(100)]
    assert sum(each > 0 for each in found) >= 90
    assert sum(each > 0.25 for each in found) <= 5
    said([outcome(0).said, outcome(0, terse=0.3).said, outcome(0, contrary=-0.4).said])


class Tidal(World):
    """Answers whatever comes to mind, and with the tide where it is told to; rewrites prompts as their judge says."""

    def complete(self, request: Request) -> Response:
        self.requests += 1
        text = f"{request.system} {request.messages}"
        if "new_instruction" in str(request.config.response_format):
            return response(
                json.dumps({"new_instruction": "Speak of the tide." if "lacks the tide" in text else "Go."})
            )
        words = random.Random(text).sample(WORDS[1:], 3)
        return response(json.dumps({"answer": " ".join([*words, *["tide"] * ("the tide" in str(request.system))])}))


def likes_the_tide(example: Any, prediction: Any, trace: Any = None, name: Any = None, steps: Any = None) -> Any:
    score = 0.2 * ("s" in prediction.answer) + 0.5 * ("tide" in prediction.answer)
    return dspy.Prediction(score=score, feedback="It lacks the tide.")


def test_what_no_fixed_prompt_asks_for_is_found_and_told_again_for_nothing(tmp_path: Path) -> None:
    world, program = Tidal(Preference(0)), dspy.Predict("question -> answer")
    questions = [dspy.Example(question=f"question number {n}").with_inputs("question") for n in range(15)]
    test = {**models(world), "metric": likes_the_tide, "out": tmp_path / "p"}
    plan = plan_compile(program, questions, **test)
    assert plan.headroom is not None and 0.2 < plan.headroom.at_least <= 0.5
    assert {each.label for each in plan.headroom.variants if each.gain > 0.2} == {"rewritten 1"}, "twice the same"
    assert plan.gains[-1] == round(plan.headroom.at_least, 2) and plan.needed(plan.gains[-1]) is not None
    asked = world.requests
    assert plan_compile(program, questions, **test).lines() == plan_compile(tmp_path / "p").lines() == plan.lines()
    assert world.requests == asked


def test_what_could_tell_nothing_is_refused_before_anything_is_asked(said: Said, tmp_path: Path) -> None:
    world = Tidal(Preference(0))
    with said.by(ConfigError):
        plan_compile(ReferenceLevelFeedback(), world.preference.references(6), out=tmp_path / "p", **models(world))
    with said.by(ConfigError):
        plan_compile(ReferenceLevelFeedback(), world.preference.references(15))
    assert not world.requests and not (tmp_path / "p").exists()


@pytest.mark.parametrize("given", [["--teacher", "simulated"], ["DIR", "--out", "elsewhere"]])
def test_the_command_names_one_folder(given: list[str], said: Said) -> None:
    told = CliRunner().invoke(app, ["compile", "plan", *given])
    assert told.exit_code == 2
    said(told.stderr)
