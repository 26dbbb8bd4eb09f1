"""Look before you pay: the prompts as the teacher would get them, and one sample that is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.errors import MalformedAnswer
from refed_dspy.programs import SynthesisProgram
from refed_dspy.programs.adapter import SchemaAdapter, checked_adapter, messages_of
from refed_dspy.programs.asking import name_of
from refed_dspy.programs.fast_path import Engine
from refed_dspy.programs.question import current_question
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers.by_stage import ANY, TeachersByStage
from refed_dspy.teachers.check import calls_listed
from refed_dspy.teachers.recorded import recorded_lm
from refed_dspy.teachers.teacher import at_once

Message = dict[str, Any]


def rendered_prompts(program: SynthesisProgram, reference: Reference) -> dict[str, list[Message]]:
    """Stage → messages for `reference`. What an earlier stage would have written stands in «guillemets»."""
    feature, new = next(iter(program.features)), reference.posed("«a new instruction»")
    pair = {"reference_instruction": reference.shown, "reference_response": reference.response}
    inputs: dict[str, dict[str, Any]] = {"instruction_feedback": pair, "response_feedback": pair}
    inputs["plain_answer"] = {"instruction": reference.shown}
    inputs["reference_criteria"] = {**pair, "plain_response": "«the plain answer to the instruction»"}
    inputs["instruction_synthesis"] = {
        "how_many": program.instructions_per_feature,
        "reference_instruction": reference.shown,
        "feature_name": feature.replace("_", " "),
        "feature": f"«{feature}, from instruction feedback»",
        "taken": [],
    }
    inputs["response_generation"] = {
        "example_instruction": reference.shown,
        "example_response": reference.response,
        "instruction": new,
    }
    inputs["response_improvement"] = {
        "reference_feedback": "«the response feedback of the reference»",
        "instruction": new,
        "response": "«the response to it»",
    }
    inputs["sample_feedback"] = {"instruction": new, "response": "«the response to it»"}
    inputs["sample_improvement"] = {**inputs["sample_feedback"], "response_feedback": "«the feedback on the response»"}
    adapter = dspy.settings.adapter or SchemaAdapter()
    prompts = {}
    for stage, predictor in _predictors(program).items():
        shown = inputs.get(stage) or {name: f"«{name}»" for name in predictor.signature.input_fields}
        prompts[stage] = messages_of(adapter, predictor.signature, predictor.demos, shown)
    return prompts


def _predictors(program: SynthesisProgram) -> dict[str, dspy.Predict]:
    """Stage → its predictor, those that the program names first; of a module in a stage's place, the first one."""
    named = {stage: getattr(program, stage).predictors()[0] for stage in getattr(program, "stage_names", ())}
    own = {name_of(path): each for path, each in program.named_predictors() if path.partition(".")[0] not in named}
    return {**named, **own}


async def one_sample(program: SynthesisProgram, reference: Reference, by_stage: TeachersByStage) -> Sample:
    """One sample from the first feature of `reference`, a call a stage, nothing kept. Of a pool the first is asked; a
    teacher in batches is asked interactively, since a look at five calls is not worth hours.

    Raises as a run does.
    """
    async with AsyncExitStack() as stack:
        engines: dict[int, Engine] = {}
        for teacher in by_stage.teachers:
            asked = at_once(teacher)
            engines[id(teacher)] = await stack.enter_async_context(asked.running())
        lm = recorded_lm(by_stage.first, _FirstOfPool(by_stage, engines))
        with calls_listed(), dspy.context(lm=lm, adapter=checked_adapter()):
            features, feedback = await asyncio.gather(
                program.collect_features(reference), program.collect_response_feedback(reference)
            )
            feature = next(iter(features))
            proposal = await program.propose(reference, feature, features[feature])
            if not proposal.instructions:
                raise MalformedAnswer("instruction_synthesis", reference.id, "no instruction was written")
            return await program.respond(reference, feedback, proposal.instructions[0])


class _FirstOfPool:
    """The first teacher of each stage's pool, as an engine that keeps nothing."""

    def __init__(self, by_stage: TeachersByStage, engines: Mapping[int, Engine]) -> None:
        self._by_stage, self._engines = by_stage, engines

    async def complete(self, request: Request) -> Response:
        question = current_question()
        pool = self._by_stage.pool(question.stage if question else ANY)
        return await self._engines[id(pool[0].teacher)].complete(request)
