"""Reflection-Tuning: two passes of reflection improve an existing pair (Li et al. 2023; paper notes, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import dspy

from refed_dspy.errors import NO_REASON, PASSING, ConfigError, NoConnection, Reason, RowError, one_line
from refed_dspy.programs.asking import about
from refed_dspy.programs.program import AsyncProgram
from refed_dspy.records import Note, Notes, Prose, under_system
from refed_dspy.signatures.stages import NewInstruction
from refed_dspy.text import find_placeholder

INSTRUCTION_CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        "complexity of the topic": "the more there is to think about, the better",
        "level of detail required": "the further a good answer has to go into particulars, the better",
        "knowledge required": "the more one has to know to answer it well, the better",
        "ambiguity": "the fewer ways it can be read in, the better",
        "logical reasoning or problem solving involved": "the more steps of thought a good answer takes, the better",
    }
)
RESPONSE_CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        "helpfulness": "the further it takes the person who asked, the better",
        "relevance": "all of it bears on what was asked",
        "accuracy": "all of it is right",
        "level of details": "the more it says of what matters, with reasons and examples, the better",
    }
)
"""The paper's criteria, each with the direction that its authors ask for."""
ORIGINAL, REFLECTED, IMPROVED = "original", "instruction reflection", "response reflection"
Reflected: TypeAlias = tuple[tuple[str, str] | None, Reason]
"""The first pass: the new pair, or None and why there is none."""
Improved: TypeAlias = tuple[str | None, Reason]
"""The second pass: the better response, or None and why there is none."""
_PASSING = tuple(f"{kind}:" for kind in PASSING)


class InstructionReflection(dspy.Signature):
    """You review instructions and responses that a language model is to learn from. You are precise, helpful and hard
    to please. Replace a weak pair by a far better one, in this order:

    1. Say why the instruction is not good: go through its criteria one by one.
    2. Say why the response is not good for it: go through the response criteria one by one.
    3. Say how the first led to the second: what the instruction left out, left open or made too easy, so that the
       response came out as it did.
    4. Write a new instruction that follows from these findings. It is complex and cannot be answered off the cuff: it
       takes knowledge, judgement and several steps of thought, and says clearly what is wanted. It stays with the
       subject, but stands by itself: a reader who has never seen the old instruction can answer it, since any text,
       data or figures it speaks of are in it.
    5. Answer the new instruction as fully and in as much detail as you can: every part of it, with the reasoning step
       by step, explanations and concrete examples where they help, correct throughout, and easy to follow.

    Neither the new instruction nor its answer mentions the old pair or this review.
    """

    instruction_criteria: list[str] = dspy.InputField(desc="what instructions are judged by")
    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="its response")
    instruction_weaknesses: Notes = dspy.OutputField(desc="why the instruction is not good, a note a criterion")
    response_weaknesses: Notes = dspy.OutputField(desc="why the response is not good, a note a criterion")
    cause: Note = dspy.OutputField(desc="how the instruction's weaknesses led to the response's")
    new_instruction: NewInstruction = dspy.OutputField(desc="complete in itself")
    new_response: Prose = dspy.OutputField(desc="its answer, in as much detail as possible")


class ResponseReflection(dspy.Signature):
    """You review responses that a language model is to learn from. You are precise, helpful and hard to please. Replace
    a weak response by a far better one, in this order:

    1. Say why the response is not good for its instruction: go through the criteria one by one, and say what would be
       better.
    2. Write a better response that follows from these findings: new, complete, and in as much detail as possible. Cover
       every part of the instruction, with the reasoning step by step, explanations and concrete examples where they
       help. Keep what was right, put right what was wrong, and give it a form that is easy to follow.

    It answers the instruction by itself and mentions neither the earlier response nor this review.
    """

    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to make better")
    weaknesses: Notes = dspy.OutputField(desc="why it is not good and what would be better, a note a criterion")
    better_response: Prose = dspy.OutputField(desc="complete, in as much detail as possible")


@dataclass(frozen=True)
class Recycled:
    """The result for one pair. Instruction and response are each the new one, or the original with the reason."""

    instruction: str
    response: str
    reflected_response: str
    """The response before the second pass: to the new instruction, or the original."""
    instruction_from: str
    """ORIGINAL or REFLECTED."""
    response_from: str
    """ORIGINAL, REFLECTED or IMPROVED."""
    instruction_reason: Reason = NO_REASON
    response_reason: Reason = NO_REASON
    """Why a pass changed nothing; empty where it did."""

    @property
    def unanswered(self) -> bool:
        """Whether a pass got no answer. It may get one when it is asked again."""
        return not PASSING.isdisjoint((self.instruction_reason.kind, self.response_reason.kind))

    @classmethod
    def of(cls, pair: tuple[str, str], reflected: Reflected, improved: Improved) -> Recycled:
        """The original `pair` after both passes. `improved` is about the pair that the first pass left."""
        (new_pair, instruction_reason), (new_response, response_reason) = reflected, improved
        instruction, response = pair if new_pair is None else new_pair
        origin = ORIGINAL if new_pair is None else REFLECTED
        return cls(
            instruction=instruction,
            response=response if new_response is None else new_response,
            reflected_response=response,
            instruction_from=origin,
            response_from=origin if new_response is None else IMPROVED,
            instruction_reason=instruction_reason,
            response_reason=response_reason,
        )


class ReflectionTuning(AsyncProgram):
    """Instruction reflection, then response reflection. A pass without output, or with a placeholder, changes nothing.

    Args:
        instruction_criteria, response_criteria: name → meaning. The paper's five and four by default. They are inputs,
            not part of the prompts: loading a saved program's prompts does not change them.
    """

    stage_names = ("instruction_reflection", "response_reflection")

    def __init__(
        self,
        instruction_criteria: Mapping[str, str] = INSTRUCTION_CRITERIA,
        response_criteria: Mapping[str, str] = RESPONSE_CRITERIA,
    ) -> None:
        super().__init__()
        if not instruction_criteria or not response_criteria:
            raise ConfigError("criteria: needs at least one for instructions and one for responses")
        self.of_instructions = [f"{name}: {text}" for name, text in instruction_criteria.items()]
        self.of_responses = [f"{name}: {text}" for name, text in response_criteria.items()]
        self.instruction_reflection = dspy.Predict(InstructionReflection)
        self.response_reflection = dspy.Predict(ResponseReflection)

    async def recycle(self, instruction: str, response: str, item: str = "", system: str = "") -> Recycled:
        """Both passes, the second on the first one's result. A pass that fails (a RowError) or changes nothing leaves
        its input, with the reason. `item` names the pair in the ledger and in messages; "": by its instruction.
        `system` is the system prompt that the pair stands under, which stays."""
        item = item or one_line(instruction, 40)
        reflected = await self.reflect(instruction, response, item, system)
        new_instruction, new_response = reflected[0] or (instruction, response)
        improved = await self.improve(new_instruction, new_response, item, system)
        return Recycled.of((instruction, response), reflected, improved)

    async def reflect(self, instruction: str, response: str, item: str = "", system: str = "") -> Reflected:
        """The first pass: the new pair, or None and why: a RowError, a placeholder, the same instruction again.

        A new instruction is taken only together with its answer: the old answer would be wrong for it.
        """
        prediction = await self._ask(
            "instruction_reflection",
            item,
            instruction_criteria=self.of_instructions,
            response_criteria=self.of_responses,
            instruction=under_system(instruction, system),
            response=response,
        )
        if isinstance(prediction, Reason):
            return None, prediction
        new_instruction, new_response = prediction.new_instruction.strip(), prediction.new_response.strip()
        if placeholder := find_placeholder(new_instruction):
            return None, Reason("placeholder instruction", placeholder)
        if placeholder := find_placeholder(new_response):
            return None, Reason("placeholder response", placeholder)
        if new_instruction == instruction.strip():
            return None, Reason("the same instruction again")
        return (new_instruction, new_response), NO_REASON

    async def improve(self, instruction: str, response: str, item: str = "", system: str = "") -> Improved:
        """The second pass: the better response, or None and why: a RowError, a placeholder, the same one again."""
        posed = under_system(instruction, system)
        inputs = {"response_criteria": self.of_responses, "instruction": posed, "response": response}
        prediction = await self._ask("response_reflection", item, **inputs)
        if isinstance(prediction, Reason):
            return None, prediction
        better = prediction.better_response.strip()
        if placeholder := find_placeholder(better):
            return None, Reason("placeholder response", placeholder)
        if better == response.strip():
            return None, Reason("the same response again")
        return better, NO_REASON

    async def _ask(self, stage: str, item: str, **inputs: Any) -> Any:
        """The stage's answer, or a Reason why there is none."""
        try:
            with about(stage, item or one_line(inputs["instruction"], 40)):
                return await getattr(self, stage).acall(**inputs)
        except RowError as error:
            return error.told

    async def aforward(self, instruction: str, response: str) -> dspy.Prediction:
        """A prediction with the fields of Recycled. Raises NoConnection where the teacher was not reached at all."""
        recycled = await self.recycle(instruction, response)
        if recycled.instruction_reason.kind == recycled.response_reason.kind == NoConnection.kind:
            raise NoConnection(self.stage_names[1], one_line(instruction, 40), recycled.response_reason.detail)
        return dspy.Prediction(**asdict(recycled))
