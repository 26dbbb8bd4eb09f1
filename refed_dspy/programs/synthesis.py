"""The protocol of programs that a run can execute: `SynthesisProgram`, and the check that a program keeps to it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy

from refed_dspy.concurrency import all_of, together
from refed_dspy.errors import ConfigError, RefedError, RowError, one_line
from refed_dspy.programs.asking import about_unnamed, predictor_names, stages_of
from refed_dspy.programs.own_code import code_failed
from refed_dspy.programs.program import AsyncProgram, trace_in_order
from refed_dspy.programs.question import UnnamedStage
from refed_dspy.records import Criteria, Failure, Feedback, Reference, Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """Instructions proposed for one feature: at most the number asked for; `surplus` counts the rest."""

    instructions: tuple[str, ...]
    surplus: int = 0


class SynthesisProgram(AsyncProgram):
    """A program that makes new samples from references: what a run, an estimate, a comparison and a compile call.

    A reference is studied once (`collect_features`, `collect_response_feedback`), asked for instructions of each of its
    `features` (`propose`), and each new instruction is answered (`respond`). Only the last two must be written: by
    default nothing is asked about a reference.

        class Echo(SynthesisProgram):
            def __init__(self):
                super().__init__()
                self.ask = dspy.Predict("instruction, taken: list[str] -> new_instruction")
                self.response_generation = dspy.Predict("instruction -> response")

            async def propose(self, reference, feature, description, taken=(), repetition=0):
                made = await self.ask.acall(instruction=reference.instruction, taken=list(taken))
                return Proposal((made.new_instruction,))

            async def respond(self, reference, response_feedback, instruction, item=""):
                made = await self.response_generation.acall(instruction=instruction)
                return Sample.of(instruction, made.response)

    What its methods return may depend on their arguments and on the answers that they get, and on nothing else: no
    clock, no chance without a seed. A start that goes on calls them again, and the ledger answers.
    """

    features: Mapping[str, str] = {"new": "a new instruction"}
    """Name → description of each kind of instruction that a reference gives; a row's `feature` is the name."""
    instructions_per_feature: int = 1
    """How many instructions a call of `propose` is expected to give."""
    stage_names: tuple[str, ...] = ()
    """Stages that `about` names, from the first to the deepest; each is the name of a predictor. The name of any other
    predictor is a stage, too."""
    final_stage: str = "response_generation"
    """The stage whose answer is the final response: it is asked once more where a guard drops what it wrote. With
    `response_generation`, which writes the plain response, no response counts as an improved one."""
    criteria: bool = False
    """Whether a reference is asked for criteria, too (`collect_criteria`)."""
    calls_a_sample: int = 1
    """Calls of a sample, without those that are made once per reference: what progress and outlook count with."""

    async def collect_features(self, reference: Reference) -> dict[str, str]:  # noqa: ARG002 — nothing is asked
        """What is learnt from the reference's instruction: each of `features` → the description that `propose` gets.
        By default `features`."""
        return dict(self.features)

    async def collect_response_feedback(self, reference: Reference) -> Any:  # noqa: ARG002 — nothing is asked
        """What is learnt from the reference's response, and `respond` gets as `response_feedback`. By default an empty
        text."""
        return ""

    async def collect_criteria(self, reference: Reference) -> Criteria:  # noqa: ARG002 — nothing is asked
        """What an answer of the reference's kind must do; by default nothing. A run asks where `criteria` is True."""
        return ()

    @abstractmethod
    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        """New instructions of `feature`. `taken`: the newest ones that this reference gave before. `repetition`: how
        often it was asked before; `config={"rollout_id": repetition}` gets another answer to the same question."""
        raise NotImplementedError

    @abstractmethod
    async def respond(self, reference: Reference, response_feedback: Any, instruction: str, item: str = "") -> Sample:
        """The sample that answers `instruction`. `item`: what failures of its calls are listed under."""
        raise NotImplementedError

    async def collect(self, reference: Reference) -> Feedback:
        """All feedback on one reference, its kinds concurrently."""
        async with together() as group:
            features = group.create_task(self.collect_features(reference))
            response = group.create_task(self.collect_response_feedback(reference))
            criteria = group.create_task(self.collect_criteria(reference)) if self.criteria else None
        made = criteria.result() if criteria is not None else ()
        return Feedback(features=features.result(), response=response.result(), criteria=made)

    async def aforward(self, reference: Reference | Mapping[str, str]) -> dspy.Prediction:
        """All of one reference's samples.

        Returns:
            A prediction with `feedback` (Feedback, or None where it failed), `samples` (list of Sample) and
            `failures` (list of Failure). A failed row is a Failure; a teacher that cannot go on raises.
        """
        with trace_in_order(self):
            return await self._flow(as_reference(reference))

    async def _flow(self, reference: Reference) -> dspy.Prediction:
        failures: list[Failure] = []
        names = predictor_names(self)

        def unit(item: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T | None]:
            return _or_failure(failures, UnnamedStage(item, names), work)

        feedback = await unit(reference.id, self.collect(reference))
        samples: list[Sample] = []
        if feedback is not None:
            proposals = await all_of(
                unit(f"{reference.id}/{name}", self.propose(reference, name, description))
                for name, description in feedback.features.items()
            )
            # dict.fromkeys: two features may propose the same instruction; it is answered once.
            instructions = dict.fromkeys(
                text for proposal in proposals if proposal is not None for text in proposal.instructions
            )
            responses = await all_of(
                unit(item_of(reference, text), self.respond(reference, feedback.response, text))
                for text in instructions
            )
            samples = [sample for sample in responses if sample is not None]
        # In the order of stages, not of completion: optimizers read them, and a resumed compile must read the same.
        place = {stage: number for number, stage in enumerate(stages_of(self))}
        failures.sort(
            key=lambda failed: (place.get(failed.stage, len(place)), failed.stage, failed.item, failed.reason)
        )
        return dspy.Prediction(feedback=feedback, samples=samples, failures=failures)


def item_of(reference: Reference, instruction: str) -> str:
    """What calls for a sample are about, where no run numbers its instructions."""
    return f"{reference.id}/{instruction[:40]}"


def as_reference(value: Reference | Mapping[str, Any]) -> Reference:
    """`value` as a Reference: a Reference, or a mapping or dspy.Example with `instruction` and `response`, and with or
    without a `system` prompt."""
    if isinstance(value, Reference):
        return value
    try:
        system = value.get("system", "")
        return Reference(instruction=value["instruction"], response=value["response"], system=system)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("reference: needs text in `instruction` and `response`") from error


async def _or_failure(failures: list[Failure], unit: UnnamedStage, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work` on a unit; None if it raised a RowError, or the program's own code an error that is to be
    one (in a compile), which is then added to `failures`."""
    try:
        with about_unnamed(unit):
            return await work
    except RowError as error:
        failed = error
    except Exception as error:
        if isinstance(error, RefedError) or not dspy.settings.get("refed_failing_rows"):
            raise
        failed = code_failed(unit.stage, unit.item, error)
    failures.append(Failure(stage=failed.stage, item=failed.item, kind=failed.kind, reason=failed.reason))
    return None


# --- the check


DERIVE = "derive its class from refed_dspy.programs.SynthesisProgram"
_CALLED_WITH: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "collect_features": (("reference",), ()),
    "collect_response_feedback": (("reference",), ()),
    "propose": (("reference", "feature", "description", "taken"), ("repetition",)),
    "respond": (("reference", "response_feedback", "instruction"), ("item",)),
}
"""Method → the arguments that it is given by place and by name."""


def refuse_incomplete(program: Any, where: str = "program") -> None:
    """Raises ConfigError, with `where` in front, for a program that no run can execute: what it lacks, or has
    otherwise than a `SynthesisProgram`."""
    kind = type(program).__name__
    cannot = f"{where}: {kind} cannot run: "
    if not isinstance(program, dspy.Module):
        raise ConfigError(cannot + "it is no dspy.Module; " + DERIVE)
    of_criteria = {"collect_criteria": (("reference",), ())} if getattr(program, "criteria", False) else {}
    called = {**_CALLED_WITH, **of_criteria}
    needed = ("features", "instructions_per_feature", *called)
    if missing := [name for name in needed if not _has(program, name)]:
        remedy = "write it" if isinstance(program, SynthesisProgram) else DERIVE
        raise ConfigError(f"{cannot}it lacks {', '.join(missing)}; {remedy}")
    for name, arguments in called.items():
        if fault := _fault(getattr(program, name), *arguments):
            raise ConfigError(f"{cannot}{name} {fault}")
    features, number = program.features, program.instructions_per_feature
    texts = [text for pair in features.items() for text in pair] if isinstance(features, Mapping) else []
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{cannot}features must map names to descriptions; got {one_line(features, 60)}")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{cannot}instructions_per_feature must be 1 or more; got {one_line(number, 60)}")


def _has(program: dspy.Module, name: str) -> bool:
    value = getattr(program, name, None)
    return value is not None and not getattr(value, "__isabstractmethod__", False)


def _fault(method: Any, placed: Sequence[str], named: Sequence[str]) -> str:
    """What is wrong with a method that a run calls with such arguments; empty where nothing is."""
    if not inspect.iscoroutinefunction(inspect.unwrap(method)):
        return "is no method written with async def"
    try:
        inspect.signature(method).bind(*placed, **dict.fromkeys(named))
    except TypeError as error:
        return f"cannot be called with ({', '.join([*placed, *(f'{name}=…' for name in named)])}): {one_line(error)}"
    return ""
