"""Feedback on a reference: on its instruction and on its response (paper, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import dspy

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.records import AtMost

Description = Annotated[str, AtMost(1_500)]
Guidance = Annotated[str, AtMost(1_999)]  # a little over 300 words, where 200 are asked for

_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"instructions", "signature", "fields", "input_fields", "output_fields"}  # names that DSPy's signatures use

DEFAULT_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "subject_areas": "The subject, its neighbours, and what in them the task draws on: two or three sentences",
        "relevant_skills": "The skills that a good answer shows, from reasoning to writing: two or three sentences",
    }
)
"""The paper's two features: name → what its description should contain."""


class InstructionFeedback(dspy.Signature):
    """Describe what kind of task this excellent example is, so that new tasks as good can be written.

    Be general enough to fit many other tasks, and specific enough that an expert would recognise the field. Neither
    repeat the instruction nor answer it.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()


class ResponseFeedback(dspy.Signature):
    """Study an excellent example so that other responses can be made as good.

    Judge the reference response as a demanding editor would, under three heads: content (accuracy, depth, relevance),
    communication (clarity, flow, structure, tone) and alignment with the instruction (scope, implied needs,
    constraints). Name what makes it strong and what would make it stronger still, as advice that someone answering a
    similar but different instruction could follow.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(
        desc="strengths to keep and ways to improve, under the three heads, in 100 to 200 words"
    )


def instruction_feedback(features: Mapping[str, str] = DEFAULT_FEATURES) -> type[dspy.Signature]:
    """The instruction-feedback signature with one output per feature, in their order.

    Raises:
        ConfigError: a name that cannot be a field's name, or is an input's name.
    """
    signature: type[dspy.Signature] = InstructionFeedback
    for name, description in features.items():
        if not _FIELD_NAME.fullmatch(name) or name in _RESERVED or name in InstructionFeedback.input_fields:
            raise ConfigError(
                f"features: {one_line(name, 40)!r} cannot be a feature's name; use others, in a-z, 0-9 and _"
            )
        signature = signature.append(name, dspy.OutputField(desc=description), Description)
    return signature
