"""The worker of a run: what each unit of a plan asks of the program, and what it commits."""

from __future__ import annotations

from typing import Any

from refed_dspy.errors import RowError
from refed_dspy.ledger.statements import DecisionRow, decided, sampled, text_digest, unusable
from refed_dspy.programs.asking import about_item, predictor_names, same_teacher
from refed_dspy.programs.question import asked_again
from refed_dspy.records import TAKEN_SHOWN, DataRow, Sample
from refed_dspy.runs.plan import Propose, Respond, Study
from refed_dspy.runs.spec import RunSpec
from refed_dspy.teachers.session import Session

PLAIN = "response_generation"
"""The stage that writes the plain response."""


class SynthesisWorker:
    """Does the units of a run (`scheduler.Worker`). Feedback on the references opened so far is in memory, all else in
    the ledger."""

    def __init__(self, spec: RunSpec, session: Session) -> None:
        self.program, self.references, self.screening = spec.synthesis_program, spec.references, spec.screening
        self.session, self.ledger, self.progress = session, session.ledger, session.progress
        self.screening.restore(self.ledger)
        self._by_stage = spec.by_stage
        self._names = predictor_names(spec.program)
        self._final = str(getattr(spec.program, "final_stage", "response_improvement"))
        self._claim = spec.claim
        self._features: dict[int, dict[str, str]] = {}
        self._response_feedback: dict[int, Any] = {}
        # A copy of a reference's instruction is no new instruction.
        self._barred = frozenset(text_digest(reference.instruction) for reference in self.references)

    async def study(self, unit: Study) -> None:
        reference = self.references[unit.reference]
        with about_item(self._names, reference.id):
            if unit.kind == "features":
                self._features[unit.reference] = await self.program.collect_features(reference)
            else:
                self._response_feedback[unit.reference] = await self.program.collect_response_feedback(reference)

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        # Only earlier rounds are shown as taken: they are settled, so the question stays the same on a resume.
        taken = self.ledger.texts_before(unit.reference, unit.round, TAKEN_SHOWN)
        description = self._features[unit.reference][unit.feature]
        reference = self.references[unit.reference]

        def screen(text: str) -> list[DecisionRow]:
            return self.screening.screen_instruction(DataRow(0, text, "", reference=reference))

        with about_item(self._names, f"{reference.id}/{unit.feature}"):
            proposal = await self.program.propose(reference, unit.feature, description, taken, repetition=unit.round)
        barred = self._barred
        if self._claim is not None:
            barred |= await self._claim([text_digest(text) for text in proposal.instructions])
        added = self.ledger.commit_proposal(
            unit.reference,
            unit.feature,
            unit.round,
            proposal.instructions,
            proposal.surplus,
            barred,
            screen,
        )
        self.progress.dropped += added.dropped
        self.screening.check_hope()
        return list(added.new)

    async def respond(self, unit: Respond) -> bool:
        item = str(unit.instruction_id)
        row = DataRow(0, unit.text, "", reference=self.references[unit.reference])
        decisions, sample = await self.screening.judge_instruction(row, item), None
        kept = all(decision.kept for decision in decisions)
        if kept:
            sample, late = await self._screened(unit, item)
            decisions += late
            kept = all(decision.kept for decision in decisions)
        self.screening.count_sample(decisions)
        done = (
            sampled(unit.instruction_id, unit.round, sample)
            if sample is not None and kept
            else unusable(unit.instruction_id, unit.round, sample)
        )
        await self.session.commit([*done, *decided(unit.instruction_id, decisions)])
        if kept:
            self.progress.keep()
        else:
            self.progress.dropped += 1
            self.screening.check_hope()
        return kept

    async def _screened(self, unit: Respond, item: str) -> tuple[Sample, list[DecisionRow]]:
        """The sample and the decisions on it. Where a guard drops the first one, the stage at fault is asked again, and
        the second one counts."""
        sample = await self._written(unit, item)
        row = self._row(unit, sample)
        decisions = await self.screening.screen_sample(row, item)
        fault = self.screening.fault(row, decisions)
        if fault is None or not self._may_differ(stage := PLAIN if fault.of_plain else self._final):
            return sample, decisions
        with asked_again(stage):
            sample = await self._written(unit, item)
        return sample, fault.after(await self.screening.screen_sample(self._row(unit, sample), item))

    async def _written(self, unit: Respond, item: str) -> Sample:
        reference, feedback = self.references[unit.reference], self._response_feedback[unit.reference]
        with same_teacher(unit.text), about_item(self._names, item):
            return await self.program.respond(reference, feedback, unit.text, item=item)

    def _may_differ(self, stage: str) -> bool:
        """Whether a second answer of `stage` may be another than the first: not at temperature 0."""
        return any(share.teacher.settings.get("temperature") != 0 for share in self._by_stage.pool(stage))

    def _row(self, unit: Respond, sample: Sample) -> DataRow:
        """What filters see of a sample. A program that improves none has no plain response beside the final one."""
        plain = None if self._final == PLAIN else sample.response
        reference = self.references[unit.reference]
        return DataRow(0, sample.instruction, sample.improved_response, plain, reference=reference)

    def response_failed(self, unit: Respond, error: RowError) -> None:
        if error.final:
            self.session.post(unusable(unit.instruction_id, unit.round))

    def proposal_failed(self, unit: Propose, error: RowError) -> None:
        if error.final:
            self.ledger.commit_proposal(unit.reference, unit.feature, unit.round, (), 0, self._barred)

    def affordable(self) -> int | None:
        return self.session.affordable()

    def stop(self) -> None:
        self.session.stop()
