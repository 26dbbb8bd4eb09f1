"""A comparison's rows, read from its ledger: the programs run again, and the ledger answers every question."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.errors import NoAnswer, RowError, UnfitRequest
from refed_dspy.jobs.session import LEAN
from refed_dspy.ledger.connection import damaged
from refed_dspy.ledger.history import kept_instructions, opened_references, tried_in_vain
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.programs.adapter import checked_adapter
from refed_dspy.programs.asking import with_roles
from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.programs.lm_errors import in_transit
from refed_dspy.programs.own_code import code_failed, has_own_code
from refed_dspy.programs.question import PROGRAM
from refed_dspy.programs.synthesis import SynthesisProgram
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.recorded import Asked, key_function, recorded_lm, remembered, response_of


class NotAsked(RowError):
    """A request that was never made."""

    kind = "not asked"


class Replay:
    """An engine that gives back what a teacher's ledger holds, failures too."""

    def __init__(self, ledger: Ledger, teacher: Teacher) -> None:
        self.ledger, self.teacher = ledger, teacher
        self._key = key_function(teacher.identity, teacher.settings)
        self.asked: set[str] = set()
        """The keys of all requests, failed ones too."""
        self.missing = 0
        """Requests without an answer or a final failure."""

    async def complete(self, request: Request) -> Response:
        """The recorded answer. Raises LMError (`in_transit`)."""
        asked = Asked.now(request)
        key = self._key(asked)
        self.asked.add(key.digest)
        try:
            if (answer := remembered(self.ledger, asked, key)) is not None:
                return response_of(self.teacher.model, answer)
        except RowError as error:
            raise in_transit(error) from None
        self.missing += 1
        if (failure := self.ledger.failure(key.digest)) is None:
            raise in_transit(NotAsked(key.stage, key.item, "was never asked"))
        kind, reason, _ = failure
        # Not NoConnection: that would be about the endpoint, which is not called here.
        raise in_transit((UnfitRequest if kind == UnfitRequest.kind else NoAnswer)(key.stage, key.item, reason))


@contextmanager
def replaying(replay: Replay, roles: Mapping[str, Replay]) -> Iterator[None]:
    """Have `replay` answer inside the block, and those of `roles` for their roles. On a running event loop."""
    lms = {role: recorded_lm(engine.teacher, engine) for role, engine in roles.items()}
    lm = recorded_lm(replay.teacher, replay)
    with dspy.context(lm=lm, adapter=checked_adapter(), **LEAN), with_roles(lms):
        yield


@dataclass(frozen=True, repr=False)
class ComparedAnswers:
    """The answers to one instruction: program → its sample, or why there is none; and the judge's verdicts."""

    samples: Mapping[str, Sample]
    failed: Mapping[str, str]
    verdicts: Mapping[str, Verdict]
    """Program → the judge's verdict on (its response, the baseline's response)."""
    grades: Mapping[str, Graded]
    """Program → its response's grade by overall quality."""


@dataclass(frozen=True, repr=False)  # asyncio builds the repr of a task's result: a second's work for all rows
class ComparedRow:
    """One instruction, what each program made of it, and the judge's verdicts."""

    number: int
    reference: str
    feature: str
    instruction: str
    answered: ComparedAnswers


@dataclass(frozen=True, repr=False)
class Replayed:
    """A comparison as its ledger holds it. Every mapping is by program unless it says otherwise."""

    rows: Sequence[ComparedRow]
    references: Sequence[Reference]
    """Those that gave rows."""
    seed_grades: Mapping[str, Graded]
    """Reference id → the grade of its own response."""
    asked: Mapping[str, set[str]]
    """Program → the key of every question that the program would have asked alone, without the writing of the
    instructions: for every reference that was opened and every instruction that was tried, with or without a row."""
    shared: set[str]
    """The keys of the questions about the references' instructions."""


async def read_compared(ledger: Ledger, program: SideBySide, models: Mapping[str, Teacher]) -> Replayed:
    """The comparison so far."""
    references, reader = ledger.references(), _Reader(program, Replay(ledger, models["teacher"]))
    rows = []
    with replaying(reader.replay, {"judge": Replay(ledger, models["judge"])}):
        for index in opened_references(ledger):
            await reader.learn(index, references[index])
        kept = kept_instructions(ledger)
        for number, index, feature, text in kept:
            answered = await reader.answered(index, references[index], text, str(number))
            rows.append(ComparedRow(number, references[index].id, feature, text, answered))
        for number, index, text in tried_in_vain(ledger):
            await reader.written(index, references[index], text, str(number))
        used = [references[index] for index in sorted({index for _, index, _, _ in kept})]
        grades = {ref.id: await program.grade_reference(ref) for ref in used} if program.seed_graded else {}
    return Replayed(rows, used, grades, reader.asked, reader.shared)


class _Reader:
    """Runs each program by itself, and notes what it asks."""

    def __init__(self, side_by_side: SideBySide, replay: Replay) -> None:
        self.side_by_side, self.replay = side_by_side, replay
        self.asked: dict[str, set[str]] = {name: set() for name in side_by_side.programs}
        self.shared = set[str]()
        """The keys of the questions about the references' instructions, from which the baseline makes new ones."""
        self.learned: dict[int, dict[str, Any]] = {}
        """Reference → program → its feedback on the response, or the RowError that it failed with."""

    async def learn(self, index: int, reference: Reference) -> None:
        """Collect each program's feedback on the reference's response."""
        learned = self.learned.setdefault(index, {})
        self.replay.asked = self.shared
        await _tried(self.side_by_side.lead, self.side_by_side.collect_features(reference))
        for name, program in self.side_by_side.programs.items():
            self.replay.asked = self.asked[name]
            learned[name] = await _tried(program, program.collect_response_feedback(reference))

    async def written(self, index: int, reference: Reference, text: str, item: str) -> ComparedAnswers:
        """What each program made of an instruction, not judged."""
        if index not in self.learned:
            await self.learn(index, reference)
        samples, failed = {}, {}
        for name, program in self.side_by_side.programs.items():
            self.replay.asked = self.asked[name]
            made = self.learned[index][name]
            if not isinstance(made, RowError):
                made = await _tried(program, program.respond(reference, made, text, item))
            if isinstance(made, RowError):
                failed[name] = made.kind
            else:
                samples[name] = made
        return ComparedAnswers(samples, failed, {}, {})

    async def answered(self, index: int, reference: Reference, text: str, item: str) -> ComparedAnswers:
        """What each program made of an instruction, and the judge's verdicts and grades."""
        made = await self.written(index, reference, text, item)
        if self.side_by_side.against not in made.samples:
            raise damaged(self.replay.ledger.path, f"row {item} has no answer")
        verdicts, grades = await self.side_by_side.judged(reference.posed(text), made.samples, item)
        return replace(made, verdicts=verdicts, grades=grades)


async def _tried(program: SynthesisProgram, work: Awaitable[Any]) -> Any:
    """What a method of `program` returns, or the RowError that it fails with: also by its caller's own code, as in the
    run."""
    try:
        return await work
    except RowError as error:
        return error
    except Exception as error:
        if not has_own_code(program):
            raise
        return code_failed(PROGRAM, "", error)
