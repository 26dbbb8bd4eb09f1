"""What a compile's gateway tells apart: the candidate that a call is made for, and what its calls cost."""

from __future__ import annotations

from collections import defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property

from refed_dspy.errors import CutAnswer, MalformedAnswer
from refed_dspy.jobs.gateway import Gateway, GatewayTeacher
from refed_dspy.ledger.statements import Answer
from refed_dspy.programs.question import Question
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import ROWS_OWN, CallPolicy
from refed_dspy.teachers.recorded import Asked

_OF_PROMPTS = (*ROWS_OWN, MalformedAnswer, CutAnswer)
UNCOUNTED = {"teacher": _OF_PROMPTS, "reflection": _OF_PROMPTS}
"""Role → failures that are no sign of a bad model: a candidate's prompts may spoil the teacher's answers, and an
optimizer's own questions, with which it goes on, those of the model that rewrites prompts."""
current_candidate: ContextVar[str] = ContextVar("refed_evaluating", default="")
"""The digest of the candidate program that the calls of this context are made for."""
in_metric: ContextVar[bool] = ContextVar("refed_judging", default=False)
"""Whether the calls of this context are made by the metric, not by the candidate itself."""


class CompileGateway(Gateway):
    """The gateway of a compile."""

    @cached_property
    def candidate_costs(self) -> defaultdict[str, int]:
        """Candidate → what its own calls cost in picodollars, including those that another candidate paid for first."""
        return defaultdict(int)

    def recorded_teacher(self, role: str, teacher: Teacher, seed: int) -> GatewayTeacher:
        """What answers for `teacher` in this role."""
        # Roles may have one model at two endpoints; in a compile these are two models.
        teacher = replace(teacher, identity={**teacher.identity, "endpoint": teacher.endpoint})
        return CompileTeacher(self, role, teacher, CallPolicy(seed, uncounted=UNCOUNTED.get(role, ())))


@dataclass
class _RoleQuestion(Question):
    """A request of a candidate to the model of a role. What the reflection model writes belongs to no candidate yet."""

    def __str__(self) -> str:
        return self.stage


class CompileTeacher(GatewayTeacher):
    """The recorded teacher of a role in a compile: its calls are kept by role and candidate."""

    _gateway: CompileGateway

    async def answer(self, asked: Asked) -> Answer:
        candidate = "" if self.role == "reflection" else current_candidate.get()
        asked = replace(asked, question=_RoleQuestion(self.role, candidate, asked.question.lm))
        answer = await super().answer(asked)
        if not in_metric.get():
            self._gateway.candidate_costs[candidate] += self.ledger.paid_for(self.key(asked).digest)
        return answer
