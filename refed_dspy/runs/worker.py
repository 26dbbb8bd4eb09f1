"""The worker of a run: what each unit of a plan asks of the program, and what it commits."""

from __future__ import annotations

from typing import Any

from refed_dspy.errors import RowError
from refed_dspy.ledger.statements import decided, sampled, text_digest, unusable
from refed_dspy.programs.asking import about_item, predictor_names, same_teacher
from refed_dspy.programs.reference_level import TAKEN_SHOWN
from refed_dspy.runs.plan import Propose, Respond, Study
from refed_dspy.runs.spec import RunSpec
from refed_dspy.teachers.session import Session


class SynthesisWorker:
    """Does the units of a run (`scheduler.Worker`). Feedback on the references opened so far is in memory, all else in
    the ledger."""

    def __init__(self, spec: RunSpec, session: Session) -> None:
        self.program, self.references, self.screening = spec.synthesis_program, spec.references, spec.screening
        self.session, self.ledger, self.progress = session, session.ledger, session.progress
        self.screening.restore(self.ledger)
        self._names = predictor_names(spec.program)
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
        with about_item(self._names, f"{reference.id}/{unit.feature}"):
            proposal = await self.program.propose(reference, unit.feature, description, taken, repetition=unit.round)
        added = self.ledger.commit_proposal(
            unit.reference,
            unit.feature,
            unit.round,
            proposal.instructions,
            proposal.surplus,
            self._barred,
            self.screening.screen_instruction,
        )
        self.progress.dropped += added.dropped
        self.screening.check_hope()
        return list(added.new)

    async def respond(self, unit: Respond) -> bool:
        item = str(unit.instruction_id)
        decisions, sample = await self.screening.judge_instruction(unit.text, item), None
        kept = all(decision.kept for decision in decisions)
        if kept:
            feedback = self._response_feedback[unit.reference]
            with same_teacher(unit.text), about_item(self._names, item):
                sample = await self.program.respond(self.references[unit.reference], feedback, unit.text, item=item)
            decisions += await self.screening.screen_sample(sample, item)
            kept = all(decision.kept for decision in decisions)
        self.screening.count_sample(decisions)
        done = (
            sampled(unit.instruction_id, unit.round, sample)
            if sample is not None and kept
            else unusable(unit.instruction_id, unit.round, sample)
        )
        await self.session.commit([*done, *decided(unit.instruction_id, decisions)])
        if kept:
            self.progress.kept += 1
        else:
            self.progress.dropped += 1
            self.screening.check_hope()
        return kept

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
