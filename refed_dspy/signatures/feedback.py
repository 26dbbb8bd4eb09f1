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
Guidance = Annotated[str, AtMost(1_999)]  # a little over 300 words, where 250 are asked for at most

_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"instructions", "signature", "fields", "input_fields", "output_fields"}  # names that DSPy's signatures use

DEFAULT_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "subject_areas": "Every field and topic that the task covers, what it draws on from each, and the closest "
        "related fields",
        "relevant_skills": "The skills that a good response takes, from reasoning to writing, and how the wording and "
        "structure of the instruction make clear that they are wanted",
    }
)
"""The paper's two features: name → what its description should contain."""


HEADINGS = """- Content: is it accurate? Does it cover what matters, in enough depth, with the reasoning, examples or
      evidence that it needs?
    - Communication: is it clear and complete? Does each point lead to the next, and do structure and formatting help?
      Do depth and tone suit the reader, and does it hold the reader's interest?
    - Alignment with the instruction: does it do all that was asked, with the right scope and focus, within every
      constraint? Does it meet the needs that the user implies but does not state?"""
"""What a response is judged by, on a reference and on a sample."""
FEEDBACK = "strengths to keep and ways to improve, under the three headings, in 150 to 250 words"


class InstructionFeedback(dspy.Signature):
    """Work out what makes this example an excellent task, so that new ones as good can be written from what you say.

    These new tasks will train a language model to understand what people want, to see what form a request takes, and to
    respond well. So consider:

    - every field that the task touches, and every skill that a good response takes;
    - why a reader knows at once what to do;
    - how its structure helps: the context it gives, the limits it sets, the form it asks for.

    Be general enough to fit many other tasks, and specific enough that an expert would know the field: two to four
    sentences for each output. Neither repeat the instruction nor answer it.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()


class ResponseFeedback(dspy.Signature):
    __doc__ = f"""Study an excellent example, so that other responses can be made as good or better.

    Give detailed feedback on the reference response, as a demanding editor would, under three headings:

    {HEADINGS}

    Under each heading, say which qualities make the response effective and why, and what would make it better still, as
    advice that can be acted on. Be specific: name each technique, and say where this response uses it or lacks it, and
    with what effect. Put it so that it helps somebody who answers a related instruction, and leave out only facts that
    are of no use beyond this example.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(desc=FEEDBACK)


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
