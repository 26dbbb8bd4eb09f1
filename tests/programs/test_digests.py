"""Digests are equal exactly where the prompts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import program_digests, prompt_digest
from refed_dspy.records import Analysis, digest
from refed_dspy.signatures import ResponseGeneration
from tests.programs.test_saved import DEMO, KEY, RECORDS, STAGE
from tests.support.scripted_engine import Writer, fake_lm


def predictor() -> dspy.Predict:
    made = ReferenceLevelFeedback().response_generation
    made.demos = [dict(DEMO), {**DEMO, "instruction": "second"}]
    return made


def resigned(change: Callable[[Any], Any]) -> Callable[[dspy.Predict], None]:
    """A change of the predictor's signature."""

    def apply(made: dspy.Predict) -> None:
        made.signature = change(made.signature)

    return apply


CHANGES: dict[str, Callable[[dspy.Predict], Any]] = {
    "trailing word": resigned(lambda signature: signature.with_instructions(signature.instructions + " .")),
    "instructions": resigned(lambda signature: signature.with_instructions("Other.")),
    "desc of an output": resigned(lambda signature: signature.with_updated_fields("response", desc="other")),
    "desc of an input": resigned(lambda signature: signature.with_updated_fields("instruction", desc="other")),
    "new output": resigned(lambda signature: signature.append("mood", dspy.OutputField(desc="mood"), str)),
    "new input": resigned(lambda signature: signature.append("mood", dspy.InputField(desc="mood"), str)),
    "input gone": resigned(lambda signature: signature.delete("example_response")),
    "type of an output": resigned(lambda signature: signature.with_updated_fields("response", type_=list[str])),
    "demo gone": lambda made: made.demos.pop(),
    "demos swapped": lambda made: made.demos.reverse(),
    "new demo": lambda made: made.demos.append(dict(DEMO)),
    "demo changed": lambda made: made.demos[0].update(response="other"),
    "settings of its calls": lambda made: made.config.update(temperature=0.3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_digest_changes_with_what_decides_the_prompt(change: Callable[[dspy.Predict], None]) -> None:
    made = predictor()
    change(made)
    assert prompt_digest(made) != prompt_digest(predictor())


def set_lm(made: dspy.Predict) -> None:
    made.lm = dspy.LM("openai/other", api_key=KEY)


def call(made: dspy.Predict) -> None:
    with dspy.context(lm=fake_lm(Writer()), adapter=SchemaAdapter()):
        made(example_instruction="E", example_response="R", instruction="I")


def wrap_demos(made: dspy.Predict) -> None:
    made.demos = [dspy.Example(**demo).with_inputs("instruction") for demo in made.demos]


INSTRUCTION_DESC = ResponseGeneration.input_fields["instruction"].json_schema_extra["desc"]
NO_CHANGES: dict[str, Callable[[dspy.Predict], Any]] = {
    "language model": set_lm,
    "a call": call,
    "demos as Examples": wrap_demos,
    "same instructions": resigned(lambda signature: signature.with_instructions(signature.instructions)),
    "same desc": resigned(lambda signature: signature.with_updated_fields("instruction", desc=INSTRUCTION_DESC)),
    "traces": lambda made: made.traces.append("trace"),
    "same demos": lambda made: made.demos.append(made.demos.pop()),
    "a copy made": lambda made: made.reset_copy(),
}


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_a_digest_does_not_change_with_anything_else(change: Callable[[dspy.Predict], None]) -> None:
    made = predictor()
    change(made)
    assert prompt_digest(made) == prompt_digest(predictor())


def test_a_digest_tells_the_adapters_apart_by_their_class() -> None:
    digests = []
    for adapter in (None, SchemaAdapter(), SchemaAdapter(), dspy.ChatAdapter(), dspy.JSONAdapter()):
        with dspy.context(adapter=adapter):
            digests.append(prompt_digest(predictor()))
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_each_stage_has_a_digest_of_its_own_and_a_change_touches_no_other() -> None:
    plain = program_digests(ReferenceLevelFeedback())
    guided = program_digests(ReferenceLevelFeedback(guidance={STAGE: "Be brief."}))
    assert tuple(plain) == STAGES
    assert len(set(plain.values())) == len(STAGES)
    assert [stage for stage in STAGES if plain[stage] != guided[stage]] == [STAGE]


def test_the_order_of_features_is_part_of_the_prompt() -> None:
    features = {"tone": "x", "audience": "y"}
    turned = dict(reversed(features.items()))
    digests = [program_digests(ReferenceLevelFeedback(order)) for order in (features, turned)]
    assert digests[0]["instruction_feedback"] != digests[1]["instruction_feedback"]


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        ("1", 1, False),
        (None, "None", False),
        ("\ud800", "\ud801", False),
        (dspy.Example(a=1), {"a": 1}, True),
        (RECORDS["analysis"], Analysis.model_validate(RECORDS["analysis"]).model_dump(), True),
        (RECORDS["analysis"], RECORDS["implementation_strategy"], False),
    ],
    ids=ascii,
)
def test_digests_are_equal_where_the_content_is(left: Any, right: Any, equal: bool) -> None:
    assert (digest(left) == digest(right)) == equal
    assert len(digest(left)) == 16


def test_the_words_around_the_inputs_are_part_of_the_prompt() -> None:
    def ending_with(text: str) -> dspy.Adapter:
        def content(self: Any, signature: Any, inputs: Any, *args: Any, **kwargs: Any) -> str:
            return text

        return type("Ending", (SchemaAdapter,), {"format_user_message_content": content})()

    digests = []
    for text in ("Answer now.", "Answer now.", "Write it."):
        with dspy.context(adapter=ending_with(text)):
            digests.append(prompt_digest(predictor()))
    assert digests[0] == digests[1] != digests[2]
