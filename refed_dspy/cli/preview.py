"""Look before you pay: the prompts as the teacher would get them, and one sample that is not kept."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import dspy

from refed_dspy.errors import MalformedAnswer
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import Question, answered_by, ask_teacher
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.by_stage import TeachersByStage

Message = dict[str, Any]


def rendered_prompts(program: ReferenceLevelFeedback, reference: Reference) -> dict[str, list[Message]]:
    """Stage → messages for `reference`. What an earlier stage would have written stands in «guillemets»."""
    feature = next(iter(program.features))
    pair = {"reference_instruction": reference.instruction, "reference_response": reference.response}
    inputs: dict[str, dict[str, Any]] = {"instruction_feedback": pair, "response_feedback": pair}
    inputs["instruction_synthesis"] = {
        "how_many": program.instructions_per_feature,
        "reference_instruction": reference.instruction,
        "feature_name": feature.replace("_", " "),
        "feature": f"«{feature}, from instruction feedback»",
        "taken": [],
    }
    inputs["response_generation"] = {
        "example_instruction": reference.instruction,
        "example_response": reference.response,
        "instruction": "«a new instruction»",
    }
    inputs["response_improvement"] = {
        "reference_feedback": "«the response feedback of the reference»",
        "instruction": "«a new instruction»",
        "response": "«the response to it»",
    }
    adapter = dspy.settings.adapter or SchemaAdapter()
    prompts = {}
    inputs["sample_feedback"] = {"instruction": "«a new instruction»", "response": "«the response to it»"}
    inputs["sample_improvement"] = {**inputs["sample_feedback"], "response_feedback": "«the feedback on the response»"}
    for stage in program.stage_names:
        predictor = getattr(program, stage)
        prompts[stage] = adapter.format(predictor.signature, predictor.demos, inputs[stage])
    return prompts


async def one_sample(program: ReferenceLevelFeedback, reference: Reference, by_stage: TeachersByStage) -> Sample:
    """One sample from the first feature of `reference`, a call a stage, nothing kept. Of a pool the first is asked; a
    teacher in batches is asked interactively, since a look at five calls is not worth hours.

    Raises as a run does.
    """
    async with AsyncExitStack() as stack:
        running = {
            id(teacher): await stack.enter_async_context(_at_once(teacher).running()) for teacher in by_stage.teachers
        }

        async def asked(question: Question) -> dspy.Prediction:
            with dspy.context(lm=running[id(by_stage.pool(question.stage)[0].teacher)]):
                return await ask_teacher(question)

        with answered_by(asked):
            features, feedback = await asyncio.gather(
                program.collect_features(reference), program.collect_response_feedback(reference)
            )
            feature = next(iter(features))
            proposal = await program.propose(reference, feature, features[feature])
            if not proposal.instructions:
                raise MalformedAnswer("instruction_synthesis", reference.id, "no instruction was written")
            return await program.respond(reference, feedback, proposal.instructions[0])


def _at_once(teacher: Teacher) -> Teacher:
    """The same one, asked interactively."""
    if teacher.config is None or not teacher.batched:
        return teacher
    return open_teacher(teacher.config.model_copy(update={"mode": "interactive", "concurrency": None}))
