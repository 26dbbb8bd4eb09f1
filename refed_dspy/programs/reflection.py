"""Reflection-Tuning: an existing pair is reflected on twice, and recycled (Li et al. 2023; paper notes, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import ConfigError, NoAnswer, NoConnection, RowError, one_line
from refed_dspy.programs.asking import ask
from refed_dspy.signatures.reflection import InstructionReflection, ResponseReflection
from refed_dspy.text import placeholder

INSTRUCTION_CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        "complexity of the topic": "how much there is to think about in what it asks",
        "level of detail required": "how far a good answer has to go into particulars",
        "knowledge required": "how much one has to know to answer it",
        "ambiguity": "whether it can be read in one way only",
        "logical reasoning or problem solving involved": "how many steps of thought a good answer takes",
    }
)
RESPONSE_CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        "helpfulness": "how far it takes the person who asked",
        "relevance": "whether all of it bears on what was asked",
        "accuracy": "whether it is right",
        "level of details": "whether it goes into what matters, and no further",
    }
)
"""The paper's criteria."""
ORIGINAL, REFLECTED, IMPROVED = "original", "instruction reflection", "response reflection"


@dataclass(frozen=True)
class Recycled:
    """What became of a pair. Each part is the new one, or the original with the reason why."""

    instruction: str
    response: str
    reflected_response: str
    """The response before the second pass: to the new instruction, or the original."""
    instruction_from: str
    """ORIGINAL or REFLECTED."""
    response_from: str
    """ORIGINAL, REFLECTED or IMPROVED."""
    instruction_reason: str = ""
    response_reason: str = ""
    """Why a pass changed nothing; empty where it did."""

    @property
    def unanswered(self) -> bool:
        """Whether a pass got no answer, which it may get when it is asked again."""
        return self.instruction_reason.startswith(_PASSING) or self.response_reason.startswith(_PASSING)

    @classmethod
    def of(cls, pair: tuple[str, str], reflected: Reflected, improved: Improved) -> Recycled:
        """`pair`, the original one, after both passes: what `improved` says is of the pair that `reflected` left."""
        (new, why), (better, why_not) = reflected, improved
        instruction, response = pair if new is None else new
        first = ORIGINAL if new is None else REFLECTED
        return cls(
            instruction=instruction,
            response=response if better is None else better,
            reflected_response=response,
            instruction_from=first,
            response_from=first if better is None else IMPROVED,
            instruction_reason=why,
            response_reason=why_not,
        )


Reflected: TypeAlias = tuple[tuple[str, str] | None, str]
"""The new pair, or None and why there is none."""
Improved: TypeAlias = tuple[str | None, str]
"""The better response, or None and why there is none."""
_PASSING = (f"{NoAnswer.kind}:", f"{NoConnection.kind}:")


class ReflectionTuning(dspy.Module):
    """Instruction reflection, then response reflection. A pass whose output is missing or a placeholder is passed over.

    Args:
        instruction_criteria, response_criteria: name → what it means. The paper's five and four by default. They are
            inputs: what is tuned and saved are the prompts, and a program that is loaded has the criteria it was
            made with here.
    """

    stage_names = ("instruction_reflection", "response_reflection")

    def __init__(
        self,
        instruction_criteria: Mapping[str, str] = INSTRUCTION_CRITERIA,
        response_criteria: Mapping[str, str] = RESPONSE_CRITERIA,
    ) -> None:
        super().__init__()
        if not instruction_criteria or not response_criteria:
            raise ConfigError("criteria: name at least one for instructions and one for responses")
        self.of_instructions = [f"{name}: {text}" for name, text in instruction_criteria.items()]
        self.of_responses = [f"{name}: {text}" for name, text in response_criteria.items()]
        self.instruction_reflection = dspy.Predict(InstructionReflection)
        self.response_reflection = dspy.Predict(ResponseReflection)

    async def recycle(self, instruction: str, response: str, item: str = "") -> Recycled:
        """Both passes, the second on what the first left. One that fails (a RowError) or changes nothing falls back,
        with the reason. `item` is what the ledger and messages call the pair; empty, its instruction's beginning."""
        item = item or one_line(instruction, 40)
        pair = instruction, response
        reflected = await self.reflect(*pair, item)
        return Recycled.of(pair, reflected, await self.improve(*(reflected[0] or pair), item))

    async def reflect(self, instruction: str, response: str, item: str = "") -> Reflected:
        """The first pass: the new pair, or None and why: a RowError, a placeholder, the same instruction again.

        A new instruction and its answer stand or fall together: an answer to another instruction would be wrong.
        """
        try:
            said = await ask(
                "instruction_reflection",
                item or one_line(instruction, 40),
                self.instruction_reflection,
                instruction_criteria=self.of_instructions,
                response_criteria=self.of_responses,
                instruction=instruction,
                response=response,
            )
        except RowError as error:
            return None, f"{error.kind}: {error.reason}"
        text, answer = said.new_instruction.strip(), said.new_response.strip()
        if found := placeholder(text):
            return None, f"placeholder instruction: {found}"
        if found := placeholder(answer):
            return None, f"placeholder response: {found}"
        if text == instruction.strip():
            return None, "the same instruction again"
        return (text, answer), ""

    async def improve(self, instruction: str, response: str, item: str = "") -> Improved:
        """The second pass: the better response, or None and why: a RowError, a placeholder, the same one again."""
        try:
            said = await ask(
                "response_reflection",
                item or one_line(instruction, 40),
                self.response_reflection,
                response_criteria=self.of_responses,
                instruction=instruction,
                response=response,
            )
        except RowError as error:
            return None, f"{error.kind}: {error.reason}"
        better = said.better_response.strip()
        if found := placeholder(better):
            return None, f"placeholder response: {found}"
        if better == response.strip():
            return None, "the same response again"
        return better, ""

    async def aforward(self, instruction: str, response: str) -> dspy.Prediction:
        """A prediction with the fields of Recycled. Raises NoConnection where the teacher was not reached at all."""
        made = await self.recycle(instruction, response)
        unreached = f"{NoConnection.kind}: "
        if made.instruction_reason.startswith(unreached) and made.response_reason.startswith(unreached):
            reason = made.response_reason.removeprefix(unreached)
            raise NoConnection(self.stage_names[1], one_line(instruction, 40), reason)
        return dspy.Prediction(**{name: getattr(made, name) for name in made.__dataclass_fields__})

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward`, for callers without an event loop."""
        return run_blocking(self.aforward(*inputs, **named))
