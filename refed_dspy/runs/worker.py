"""The worker of a run: what each unit of a plan asks of the program, and what it commits."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from refed_dspy.concurrency import keep_running
from refed_dspy.errors import RowError
from refed_dspy.jobs.session import Session
from refed_dspy.ledger.ledger import Added
from refed_dspy.ledger.statements import DecisionRow, decided, sampled, text_digest, unusable
from refed_dspy.programs.asking import about_unnamed, predictor_names, returned, same_teacher
from refed_dspy.programs.question import UnnamedStage, asked_again
from refed_dspy.programs.synthesis import Proposal
from refed_dspy.records import TAKEN_SHOWN, Criteria, DataRow, Sample
from refed_dspy.runs.own_code import OwnCode
from refed_dspy.runs.plan import CRITERIA, Plan, Propose, Respond, Study, Unit
from refed_dspy.runs.spec import RunSpec

log = logging.getLogger("refed_dspy")
PLAIN = "response_generation"
"""The stage that writes the plain response."""


class SynthesisWorker:
    """Does the units of a run. Each method returns once its result is committed; a RowError fails the unit. Feedback on
    the references opened so far is in memory, all else in the ledger."""

    def __init__(self, spec: RunSpec, session: Session) -> None:
        self.program, self.references, self.screening = spec.synthesis_program, spec.references, spec.screening
        self.grace = session.grace
        """Seconds that units in flight get to finish when the run must end."""
        self.session, self.ledger, self.progress = session, session.ledger, session.progress
        self.screening.restore(self.ledger)
        self._by_stage = spec.by_stage
        self.own = OwnCode(session, spec.program, predictor_names(spec.program))
        self._final = str(getattr(spec.program, "final_stage", "response_improvement"))
        self._claim = spec.claim
        self._features: dict[int, dict[str, str]] = {}
        self._response_feedback: dict[int, Any] = {}
        self._criteria: dict[int, Criteria] = {}
        # A copy of a reference's instruction is no new instruction.
        self._barred = frozenset(text_digest(reference.instruction) for reference in self.references)

    @contextmanager
    def _unit(self, kind: str, item: str) -> Iterator[UnnamedStage]:
        """As `OwnCode.unit`, and traced in MLflow, if it is one of those."""
        with self.session.traces.row(kind, item), self.own.unit(kind, item) as question:
            yield question

    async def study(self, unit: Study) -> None:
        reference = self.references[unit.reference]
        with self._unit(unit.kind, reference.id) as question, about_unnamed(question):
            if unit.kind == "features":
                self._features[unit.reference] = await self.program.collect_features(reference)
            elif unit.kind == CRITERIA:
                self._criteria[unit.reference] = made = tuple(await self.program.collect_criteria(reference))
                if not made:
                    log.warning("reference %s has no criteria: too few that were written can be used", reference.id)
            else:
                self._response_feedback[unit.reference] = await self.program.collect_response_feedback(reference)

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        """Ids and texts of the instructions that are new."""
        # Only earlier rounds are shown as taken: they are settled, so the question stays the same on a resume.
        taken = self.ledger.texts_before(unit.reference, unit.round, TAKEN_SHOWN)
        reference = self.references[unit.reference]
        item = f"{reference.id}/{unit.feature}"
        with self._unit("propose", item) as question, about_unnamed(question):
            description = self._features[unit.reference][unit.feature]
            proposal = await self.program.propose(reference, unit.feature, description, taken, repetition=unit.round)
            texts = returned(proposal, Proposal, "propose").instructions
        barred = self._barred
        if self._claim is not None:
            barred |= await self._claim([text_digest(text) for text in texts])
        added = await self._store(unit, item, texts, proposal.surplus, barred)
        self.progress.dropped += added.dropped
        self.screening.check_hope()
        return list(added.new)

    async def _store(
        self, unit: Propose, item: str, texts: Sequence[str], surplus: int, barred: frozenset[bytes]
    ) -> Added:
        """Commit a proposal with its filters' decisions, which are made in a thread where the texts are long.

        An instruction on which a filter of the caller's own raised an error is left out. Where there is no other, that
        is raised, so that the next start decides on all of them anew.
        """
        reference = self.references[unit.reference]
        async with self.screening.one_at_a_time:
            new = {key: DataRow(0, text, "", reference=reference) for key, text in self._new(texts, barred).items()}
            made, errors = await self.screening.screen_instructions(new)
            self.own.worked("filter", len(made))
            failed = [self.own.filter_failed(error, item, key.hex()) for key, error in errors.items()]
            if failed and not made:
                raise failed[-1]
            texts = [text for text in texts if text_digest(text) not in errors]
            return self.ledger.commit_proposal(
                unit.reference, unit.feature, unit.round, texts, surplus, barred, lambda text: made[text_digest(text)]
            )

    def _new(self, texts: Sequence[str], barred: frozenset[bytes]) -> dict[bytes, str]:
        """Digest → text of those that are no instruction yet, in their order."""
        first = {text_digest(text): text for text in reversed(texts)}
        return {
            each: first[each] for each in reversed(first) if each not in barred and not self.ledger.is_instruction(each)
        }

    async def respond(self, unit: Respond) -> bool:
        """Whether it became a sample that is kept."""
        item = str(unit.instruction_id)
        with self._unit("respond", item) as question:
            decisions, sample = await self._judged_and_written(unit, item, question)
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

    async def _judged_and_written(
        self, unit: Respond, item: str, question: UnnamedStage
    ) -> tuple[list[DecisionRow], Sample | None]:
        """The decisions on an instruction and on its sample; without the sample where its instruction was dropped."""
        row = DataRow(0, unit.text, "", reference=self.references[unit.reference])
        decisions = await self.screening.judge_instruction(row, item)
        if not all(decision.kept for decision in decisions):
            return decisions, None
        sample, late = await self._screened(unit, item, question)
        return [*decisions, *late], sample

    async def _screened(self, unit: Respond, item: str, question: UnnamedStage) -> tuple[Sample, list[DecisionRow]]:
        """The sample and the decisions on it. Where a guard drops the first one, the stage at fault is asked again, and
        the second one counts."""
        sample = await self._written(unit, question)
        row = self._row(unit, sample)
        decisions = await self.screening.screen_sample(row, item)
        fault = await self.screening.fault(row, decisions)
        if fault is None or not self._may_differ(stage := PLAIN if fault.of_plain else self._final):
            return sample, decisions
        with asked_again(stage):
            sample = await self._written(unit, question)
        return sample, fault.after(await self.screening.screen_sample(self._row(unit, sample), item))

    async def _written(self, unit: Respond, question: UnnamedStage) -> Sample:
        reference, feedback = self.references[unit.reference], self._response_feedback[unit.reference]
        with same_teacher(unit.text), about_unnamed(question):
            sample = await self.program.respond(reference, feedback, unit.text, item=question.item)
            return returned(sample, Sample, "respond")

    def _may_differ(self, stage: str) -> bool:
        """Whether a second answer of `stage` may be another than the first: not at temperature 0."""
        return any(share.teacher.settings.get("temperature") != 0 for share in self._by_stage.pool(stage))

    def _row(self, unit: Respond, sample: Sample) -> DataRow:
        """What filters see of a sample. A program that improves none has no plain response beside the final one."""
        plain = None if self._final == PLAIN else sample.response
        reference = self.references[unit.reference]
        criteria = self._criteria.get(unit.reference, ())
        return DataRow(0, sample.instruction, sample.improved_response, plain, reference=reference, criteria=criteria)

    def response_failed(self, unit: Respond, error: RowError) -> None:
        if error.final:
            self.session.post(unusable(unit.instruction_id, unit.round))

    def proposal_failed(self, unit: Propose, error: RowError) -> None:
        if error.final:
            self.ledger.commit_proposal(unit.reference, unit.feature, unit.round, (), 0, self._barred)

    def affordable(self) -> int | None:
        """How many more samples the caps allow, at least one; None: no cap will be reached."""
        return self.session.affordable()

    def stop(self) -> None:
        """The run must end: calls in flight may finish, none may begin."""
        self.session.stop()


async def run_plan(plan: Plan, worker: SynthesisWorker, slots: int) -> None:
    """Run `plan` until it is complete or exhausted, at most `slots` units at once.

    Raises:
        Whatever `worker` raises except RowError: an error of the teacher or the ledger, or a bug. Then, and when this
        is cancelled, units in flight get the worker's grace to be committed before they are cancelled too.
    """

    def units() -> Iterator[Awaitable[None]]:
        plan.look_ahead(worker.affordable())
        while (unit := plan.next_unit()) is not None:
            yield _perform(plan, worker, unit)

    await keep_running(units, slots, worker.stop, worker.grace)


async def _perform(plan: Plan, worker: SynthesisWorker, unit: Unit) -> None:
    """Do one unit and report to the plan how it ended. A RowError fails the unit; any other error stops the run."""
    match unit:
        case Study():
            try:
                await worker.study(unit)
            except RowError:
                plan.studied(unit, failed=True)
            else:
                plan.studied(unit)
        case Propose():
            new: list[tuple[int, str]] = []
            try:
                new = await worker.propose(unit)
            except RowError as error:
                worker.proposal_failed(unit, error)
            plan.proposed(unit, new)
        case Respond():
            try:
                kept = await worker.respond(unit)
            except RowError as error:
                worker.response_failed(unit, error)
                plan.responded(unit, kept=False)
            else:
                plan.responded(unit, kept=kept)
