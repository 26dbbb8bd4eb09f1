"""A program's settings: features, guidance, copies."""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import program_digests
from tests.programs.test_reference_level import REFERENCE, called, prompt, stage_of
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm


def test_features_are_copied_decide_what_is_looked_for_and_are_described_to_the_teacher() -> None:
    features, writer = {"audience": "Who asks", "tone": "How formal {it} is"}, Writer()
    program = ReferenceLevelFeedback(features, 2)
    before = dict(features)
    features.clear()
    with dspy.context(lm=fake_lm(writer)):
        collected = asyncio.run(program.collect_features(REFERENCE))
    assert list(collected) == list(program.features) == writer.fields(writer.requests[0]) == list(before)
    assert all(f"- {name}: {text}" in str(writer.requests[0].system) for name, text in before.items())


@pytest.mark.parametrize("settings", [{"features": {}}, {"instructions_per_feature": 0}], ids=str)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ReferenceLevelFeedback(**settings)


ODD_NAMES = ["json", "score", "response", "instruction", "items", "values", "labels", "inputs", "fields", "signature"]


@pytest.mark.parametrize("name", [*ODD_NAMES, "reference_response", "reference_instruction"])
def test_a_features_name_is_either_served_or_refused(name: str) -> None:
    writer = Writer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = ReferenceLevelFeedback({name: "What it is"})
        except ConfigError:
            return
        with dspy.context(lm=fake_lm(writer)):
            features = asyncio.run(program.collect_features(REFERENCE))
    assert features == {name: f"{name} number 1"}
    assert REFERENCE.instruction in prompt(writer.requests[0])
    assert REFERENCE.response in prompt(writer.requests[0])


# --- guidance and copies

SENTENCE = "Write for {children} of <ten>."


@pytest.mark.parametrize("stage", STAGES)
def test_guidance_ends_the_instructions_of_its_stage_and_of_no_other(stage: str) -> None:
    writer = Writer(per_call=1)
    called(ReferenceLevelFeedback(guidance={stage: SENTENCE}), writer)
    assert {stage_of(writer, request) for request in writer.requests if SENTENCE in str(request.system)} == {stage}
    assert {stage_of(writer, request) for request in writer.requests} == set(STAGES)


def test_the_same_guidance_twice_is_added_once() -> None:
    program, more = ReferenceLevelFeedback(guidance={"response_generation": SENTENCE}), "And briefly."
    before = program_digests(program)
    program.add_guidance({"response_generation": SENTENCE})
    assert program_digests(program) == before
    program.add_guidance({"response_generation": more})
    instructions = program.response_generation.signature.instructions
    assert (instructions.count(SENTENCE), instructions.endswith(more)) == (1, True)


@pytest.mark.parametrize("stage", ["response", "Response_Generation", "add_guidance", "", "response_generation "])
def test_guidance_for_an_unknown_stage_is_refused_with_those_known(said: Said, stage: str) -> None:
    with said.by(ConfigError):
        ReferenceLevelFeedback(guidance={stage: SENTENCE})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda program: program.deepcopy()], ids=["copy", "dspy"])
def test_a_deep_copy_is_the_same_program_and_stands_alone(copied: Callable[[dspy.Module], Any]) -> None:
    program = ReferenceLevelFeedback(guidance={"response_generation": SENTENCE})
    twin = copied(program)
    before = program_digests(program)
    assert program_digests(twin) == before
    twin.add_guidance(dict.fromkeys(STAGES, "Never guess."))
    twin.response_generation.demos.append(dspy.Example(instruction="Q", response="A"))
    assert program_digests(program) == before
    assert all(program_digests(twin)[stage] != before[stage] for stage in STAGES)
    assert twin.features is not program.features
    assert len(called(twin, Writer(per_call=1)).samples) == 2


def test_a_program_leaves_no_guidance_behind_for_the_next() -> None:
    before = program_digests(ReferenceLevelFeedback())
    ReferenceLevelFeedback(guidance=dict.fromkeys(STAGES, SENTENCE))
    assert program_digests(ReferenceLevelFeedback()) == before
