"""What a run is made of."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import dspy

from refed_dspy.data.references import References
from refed_dspy.errors import RunDirError
from refed_dspy.filters.base import JudgeFilter
from refed_dspy.filters.screening import Screening
from refed_dspy.ledger.identity import differences, has_begun, refuse_other_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CALLS_A_SAMPLE
from refed_dspy.programs.mlflow_address import is_address
from refed_dspy.programs.reference_level import Proposal
from refed_dspy.programs.saved import program_digests, program_state
from refed_dspy.records import Reference, Sample, digest
from refed_dspy.runs.plan import PlanSettings
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.by_stage import ANY, TeachersByStage, rates_of, stages_of
from refed_dspy.teachers.caps import CapSettings
from refed_dspy.teachers.pool import PoolSetup
from refed_dspy.teachers.recorded import CallPolicy

STUDIES = ("instruction_feedback", "response_feedback")
"""The stages that collect feedback on a reference."""


class SynthesisProgram(Protocol):
    """What a program must offer to be run at scale: the stages of Reference-Level Feedback."""

    features: Mapping[str, str]
    instructions_per_feature: int

    async def collect_features(self, reference: Reference) -> dict[str, str]: ...

    async def collect_response_feedback(self, reference: Reference) -> Any:
        """What `respond` gets as `response_feedback`."""
        ...

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal: ...

    async def respond(
        self, reference: Reference, response_feedback: Any, instruction: str, item: str = ""
    ) -> Sample: ...


@dataclass(frozen=True)
class RunSpec:
    """The parts of one run."""

    program: dspy.Module
    references: References
    teacher: Teacher
    """The one that stands for all where one must."""
    seed: int
    per_reference: int | None
    max_failure_share: float
    limits: CapSettings
    reuse: Path | None
    track: bool | None = None
    judge: Teacher | None = None
    """Who judges, where a filter or the program asks for it."""
    screening: Screening = field(default_factory=lambda: Screening(()))
    judge_program: str | None = None
    """Where the judge's prompts came from."""
    work: str = "run"
    """What its folder is for (`Ledger.holds`)."""
    stage_teachers: TeachersByStage | None = None
    """Who is asked, where that is not `teacher` alone."""

    @property
    def by_stage(self) -> TeachersByStage:
        return self.stage_teachers or TeachersByStage.of(self.teacher)

    @property
    def models(self) -> dict[str, Teacher]:
        """Role → model."""
        return self.by_stage.roles | ({"judge": self.judge} if self.judge is not None else {})

    @property
    def in_batches(self) -> bool:
        """Whether anyone is asked through a Batch API."""
        return any(one.batched for one in self.models.values())

    @property
    def slots(self) -> int:
        """Units of work at once: what the staff takes, or more where the judge's batches take more. Whoever is asked
        interactively is asked no more at once for that."""
        judge = self.judge.concurrency if self.judge is not None and self.judge.batched else 0
        return max(self.by_stage.slots, judge)

    @property
    def policy(self) -> CallPolicy:
        return CallPolicy(self.seed, self.max_failure_share)

    @property
    def depth(self) -> dict[str, int]:
        """Stage → how deep it is; a judge's stages, which are not in it, are deeper than all."""
        return {stage: depth for depth, stage in enumerate(getattr(self.program, "stage_names", ()))}

    @property
    def calls_a_sample(self) -> float:
        """About how many calls a kept sample takes."""
        judged = sum(2 for step in self.screening.steps if isinstance(step.filter, JudgeFilter))
        return float(getattr(self.program, "calls_a_sample", CALLS_A_SAMPLE)) + judged

    @property
    def stages(self) -> SynthesisProgram:
        return cast(SynthesisProgram, self.program)

    def identity(self) -> dict[str, Any]:
        """What may not change between starts, in the words that a refusal uses."""
        identity = {
            "references": digest([reference.id for reference in self.references]),
            "kind": type(self.program).__name__,
            "program": program_digests(self.program),
            "instructions_per_feature": self.stages.instructions_per_feature,
            "features": list(self.stages.features),
            "teacher": self.by_stage.identity(),
            "seed": self.seed,
        }
        if self.judge is not None:
            identity["judge"] = self.judge.identity
        if self.screening.steps:
            identity["filters"] = self.screening.identity()
        return identity

    def plan_settings(self, size: int) -> PlanSettings:
        return PlanSettings(
            size=size,
            references=len(self.references),
            features=tuple(self.stages.features),
            instructions_per_feature=self.stages.instructions_per_feature,
            per_reference=self.per_reference,
            seed=self.seed,
            lead=self._lead(),
            ahead=self.in_batches,
        )

    def _lead(self) -> bool:
        """Whether one unit of a reference is to go ahead of the others (`PlanSettings.lead`): never where anyone whom
        such a unit asks is in batches, since the others would wait for a batch."""
        names = stages_of(self.program)
        if any(one.batched for one in (*self._asked(STUDIES, names), self.judge) if one is not None):
            return False
        lengths = [len(reference.instruction) + len(reference.response) for reference in self.references]
        mean = sum(lengths) / len(lengths)
        return any(one.warm_pays(mean) for one in self._asked(("feedback",), names))

    def _asked(self, but: tuple[str, ...], names: Sequence[str]) -> list[Teacher]:
        """Who is asked in the program's stages but those whose names end with one of these."""
        pools = [self.by_stage.pool(name) for name in names if not name.endswith(but)]
        return [share.teacher for pool in pools for share in pool]


log = logging.getLogger("refed_dspy.teachers")


def begin_or_continue(ledger: Ledger, parts: RunSpec, size: int) -> int:
    """Write a new run's facts, or check that these are the same. Returns the size to reach. Who is asked may be others
    than before, as long as one of them is still there: what the others answered counts.

    That is the size asked for now, larger or smaller than before; what is kept already stays.

    Raises:
        RunDirError: the folder holds another run; the differences are named.
    """
    identity = _identity(parts)
    target = max(size, ledger.kept())
    current = _current(parts, target)
    stored = ledger.meta("identity")
    refuse_other_work(ledger, parts.work)
    if stored != identity and not has_begun(ledger):  # new, or refused before its first answer
        ledger.begin(
            parts.references.items,
            identity=identity,
            program=program_state(parts.program),
            features=dict(parts.stages.features),
            left_out=dict(parts.references.left_out),
            seed=parts.seed,
            final_stage=getattr(parts.program, "final_stage", None),
            filters=parts.screening.identity(),
            asked_teachers=_listed(identity["teacher"]),
            **({} if parts.work == "run" else {"work": parts.work}),
            **current,
        )
    else:
        check_same(ledger, parts)
        _tell_of_others(ledger, parts)
        known = _taught(ledger)
        new = [one for one in _listed(identity["teacher"]) if one not in known]
        ledger.set_meta(**current, asked_teachers=[*known, *new])
    return target


def assigned(ledger: Ledger, parts: RunSpec) -> PoolSetup | None:
    """Who is asked at which stage, and who was before; None where it is one teacher, and always was."""
    now = _listed(_identity(parts)["teacher"])
    former = [one for one in _taught(ledger) if one not in now]
    return PoolSetup(parts.by_stage, former) if parts.by_stage.several or former else None


def _taught(ledger: Ledger) -> list[Any]:
    """The identities of all teachers that were asked in any start."""
    return list(ledger.meta("asked_teachers") or _listed((ledger.meta("identity") or {}).get("teacher") or []))


def _listed(identity: Any) -> list[Any]:
    """A teacher's identity, or those of several, as a list of different ones: a model may stand in two places."""
    each = identity if isinstance(identity, list) else [identity]
    return [one for place, one in enumerate(each) if one not in each[:place]]


def _tell_of_others(ledger: Ledger, parts: RunSpec) -> None:
    """Say so where a stage asks others than at the last start: what comes next costs another price."""
    before = ledger.meta("pools") or {ANY: [ledger.meta("teacher") or {}]}
    now = parts.by_stage.facts() or {ANY: [{"model": parts.teacher.model, "endpoint": parts.teacher.endpoint}]}
    for stage in sorted({*before, *now}):
        was, is_ = (_shares(facts.get(stage, facts[ANY])) for facts in (before, now))
        if was != is_:
            log.warning("%s: was %s, is now %s; what is answered stays", stage or "teacher", was, is_)


def _shares(members: Sequence[Mapping[str, Any]]) -> str:
    if len(members) == 1:
        return str(members[0].get("model"))
    several = len({one["model"] for one in members}) < len(members)
    names = [f"{one['model']} at {one['endpoint']}" if several else one["model"] for one in members]
    return ", ".join(f"{name} (weight {one['weight']:g})" for name, one in zip(names, members, strict=True))


def check_same(ledger: Ledger, parts: RunSpec) -> None:
    """Raises RunDirError where the folder holds another run; the differences are named."""
    stored, given = ledger.meta("identity"), _identity(parts)
    if any(isinstance(one["teacher"], list) for one in (stored, given)) or len(_taught(ledger)) > 1:
        known, now = _taught(ledger), _listed(given["teacher"])
        stored["teacher"] = given["teacher"] = ""
        if not any(one in known for one in now):
            stored["teacher"], given["teacher"] = (", ".join(str(one["model"]) for one in who) for who in (known, now))
    if found := differences(stored, given):
        raise RunDirError(
            f"{ledger.path.parent}: holds another run: {'; '.join(found)}; set these back, or use a new --run-dir"
        )


def _identity(parts: RunSpec) -> dict[str, Any]:
    """As it is stored: keys are text, tuples are lists."""
    return dict(json.loads(json.dumps(parts.identity())))


def _current(parts: RunSpec, size: int) -> dict[str, Any]:
    """What may change between starts. It is stored as it is now, so that a resume from the folder goes on with it."""
    config, judge = parts.teacher.config, parts.judge
    return {
        "size": size,
        "per_reference": parts.per_reference,
        "max_failure_share": parts.max_failure_share,
        "rates": rates_of(parts.teacher),
        "price_source": parts.by_stage.price_source,
        "stopped": None,
        **parts.limits,
        "track": parts.track,
        "program_source": getattr(parts.program, "source", None) or None,
        "reuse": str(parts.reuse.absolute()) if parts.reuse else None,
        "teacher": {"model": parts.teacher.model, "config": config and config.model_dump(mode="json")},
        "pools": parts.by_stage.facts(),
        "judge_program": _found_again(parts.judge_program),
        "judge": judge
        and {
            "model": judge.model,
            "config": judge.config and judge.config.model_dump(mode="json"),
            "rates": rates_of(judge),
        },
    }


def _found_again(source: str | None) -> str | None:
    """A program's file by its whole path, so that it is found from any folder; an MLflow address as it is."""
    return source if source is None or is_address(source) else str(Path(source).absolute())
