"""What a run is made of: its program, references, teachers and filters, the plan's settings, and its identity; checked
and opened from the arguments of `synthesize` (`prepare`)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import dspy

from refed_dspy.config.base import FromReferences
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.config.named import code_of
from refed_dspy.config.run import FromProgram, RunConfig
from refed_dspy.data.read import refuse_references
from refed_dspy.data.references import References, load_references
from refed_dspy.errors import ConfigError, setting, setting_text
from refed_dspy.filters.base import JudgeFilter
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import Screening
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.budget import Budget
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CALLS_A_SAMPLE, ENOUGH_CALLS
from refed_dspy.ledger.settings import WorkSettings, settings_of
from refed_dspy.ledger.states import has_begun
from refed_dspy.programs.asking import stages_of, without_models
from refed_dspy.programs.load import ProgramLike, open_program, warn_of_another_teacher
from refed_dspy.programs.mlflow_address import is_address
from refed_dspy.programs.reference_level import CRITERIA_STAGES, FEEDBACK_STAGES, extra_outputs
from refed_dspy.programs.saved import program_digests, program_state
from refed_dspy.programs.synthesis import SynthesisProgram
from refed_dspy.records import digest, dollars
from refed_dspy.runs.plan import CRITERIA, FEEDBACK_KINDS, PlanSettings, ToCome
from refed_dspy.runs.work import RunWork
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.by_stage import PoolShare, TeachersByStage, open_teachers, recorded
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import in_role, judge_for, open_judge_program, warn_of_unasked
from refed_dspy.text import counted

if TYPE_CHECKING:
    from refed_dspy.filters.guards import Known


log = logging.getLogger("refed_dspy")
run_keywords = with_keywords(RunConfig)
FULL_BATCH = 1_000
"""Requests: with smaller batches a run takes many rounds of them."""
_BESIDE = (*FromProgram.model_fields, *FromReferences.model_fields, "size", "cluster", "shards")
"""Settings that the record leaves out: what they made is recorded beside it, or each start names them anew."""
STUDIES = (*FEEDBACK_STAGES, *CRITERIA_STAGES)
"""The stages that study a reference."""
READ, WRITTEN = 900, 450
"""Usual tokens of a call (docs/how-to/costs.md)."""

Claim = Callable[[Sequence[bytes]], Awaitable[frozenset[bytes]]]


@dataclass(frozen=True)
class RunSpec:
    """Everything that one run is made of."""

    config: RunConfig
    """The settings that it was made by, checked."""
    program: dspy.Module
    references: References
    by_stage: TeachersByStage
    """Who answers each stage."""
    judge: Teacher | None = None
    """Who judges, where a filter or the program asks for it."""
    screening: Screening = field(default_factory=lambda: Screening(()))
    kind: str = "run"
    """What its folder is for (`Ledger.holds`)."""
    claim: Claim | None = None
    """Of a shard: asks for the digests of new instructions which of them other shards have."""

    @property
    def size(self) -> int:
        """Samples to keep, in all starts."""
        return self.config.size

    @property
    def folder(self) -> Path:
        """The run's folder: one whose name is a digest of everything that shapes the run, unless it is named."""
        shape = [self.identity(), self.by_stage.shape()] if self.by_stage.several else self.identity()
        return self.config.run_dir or Path("refed-runs") / digest(shape)

    @property
    def models(self) -> dict[str, Teacher]:
        """Role → model."""
        return self.by_stage.roles | ({"judge": self.judge} if self.judge is not None else {})

    @property
    def in_batches(self) -> bool:
        """Whether anyone is asked through a Batch API."""
        return any(model.batched for model in self.models.values())

    @property
    def slots(self) -> int:
        """Units of work at once: as many as the teachers take, or more where the judge's batches take more. A model
        that is asked interactively still gets no more calls at once than its own limit."""
        judge = self.judge.concurrency if self.judge is not None and self.judge.batched else 0
        return max(self.by_stage.slots, judge)

    @property
    def policy(self) -> CallPolicy:
        """How its models are asked. A judge's stages are not in `depth`: they count as deepest, and go first."""
        depth = {stage: depth for depth, stage in enumerate(getattr(self.program, "stage_names", ()))}
        return CallPolicy(self.config.seed, self.config.max_failure_share, depth=depth)

    def calls_of(self, to_come: ToCome) -> int:
        """About how many calls that is."""
        a_sample = int(getattr(self.program, "calls_a_sample", CALLS_A_SAMPLE))
        a_sample += sum(2 for step in self.screening.steps if isinstance(step.filter, JudgeFilter))
        studies = sum(stage in STUDIES for stage in getattr(self.program, "stage_names", FEEDBACK_STAGES))
        a_reference = studies + bool(getattr(self.program, "seed_graded", False))
        return a_sample * to_come.samples + a_reference * to_come.new + to_come.synthesis

    @property
    def synthesis_program(self) -> SynthesisProgram:
        return cast(SynthesisProgram, self.program)

    def identity(self) -> dict[str, Any]:
        """What may not change between starts. The keys appear in the message that refuses a change."""
        identity = {
            "references": digest([reference.id for reference in self.references]),
            "kind": type(self.program).__name__,
            "program": program_digests(self.program),
            "instructions_per_feature": self.synthesis_program.instructions_per_feature,
            "features": list(self.synthesis_program.features),
            "teacher": self.by_stage.identity(),
            "seed": self.config.seed,
        }
        if code := code_of(type(self.program)):
            identity["code of the program"] = code
        if self.judge is not None:
            identity["judge"] = self.judge.identity
        if self.screening.steps:
            identity["filters"] = self.screening.identity()
        return identity

    def as_begun(self) -> Self:
        """The same, where `per_reference` is not set with the one that the run was begun with, or another that it
        reuses: of references that were not asked about then, no answer could be reused. Raises RunDirError."""
        if self.config.per_reference is not None:
            return self
        for folder in filter(None, (self.folder, self.config.reuse)):
            if (folder / FILE).is_file():
                with Ledger.read(folder) as ledger:
                    if has_begun(ledger):
                        begun = {"per_reference": settings_of(ledger).values.get("per_reference")}
                        return replace(self, config=self.config.model_copy(update=begun))
        return self

    def work(self) -> Work:
        """The run as paid work."""
        reuse = setting_text("reuse", str(self.folder)) + " takes over what was paid for"
        return RunWork(
            kind=self.kind,
            identity=self.identity(),
            models=self.models,
            by_stage=self.by_stage,
            cluster=self.config.cluster or "",
            size=self.size,
            caps=caps_of(self.config),
            facts=self._facts(),
            references=self.references.items,
            policy=self.policy,
            calls_each=self.calls_of(self.plan_settings(self.size).to_come()) / self.size,
            unit="samples",
            traced=self.config.traced,
            reuse=self.config.reuse,
            way_out="choose another folder with " + setting("run_dir") + "; " + reuse,
        )

    def settings(self) -> WorkSettings:
        """What the ledger records of the run's settings and models, so that a resume from the folder uses it."""
        return WorkSettings.of(
            self.config,
            _BESIDE,
            program=getattr(self.program, "named", None),
            reuse=str(self.config.reuse.absolute()) if self.config.reuse else None,
            judge_program=absolute(self.config.judge_program),
            judge=None if self.judge is None else recorded(PoolShare(self.judge)),
            **self.by_stage.recorded(),
        )

    def _facts(self) -> dict[str, Any]:
        """What else the ledger records: of the program, the references and the prices."""
        return {
            "settings": self.settings().values,
            "program": program_state(self.program),
            "program_source": getattr(self.program, "source", None) or None,
            "features": dict(self.synthesis_program.features),
            "extra_outputs": extra_outputs(self.program) if self.kind == "run" else {},
            "final_stage": getattr(self.program, "final_stage", None),
            "left_out": dict(self.references.left_out),
            "price_source": self.by_stage.price_source,
        }

    def plan_settings(self, size: int) -> PlanSettings:
        return PlanSettings(
            size=size,
            references=len(self.references),
            features=tuple(self.synthesis_program.features),
            instructions_per_feature=self.synthesis_program.instructions_per_feature,
            per_reference=self.config.per_reference,
            seed=self.config.seed,
            lead=self._lead(),
            ahead=self.in_batches,
            studies=(*FEEDBACK_KINDS, CRITERIA) if getattr(self.program, "criteria", False) else FEEDBACK_KINDS,
        )

    def warn_of_small_batches(self) -> None:
        """Warn of a batch that takes so few requests that a run needs many of them."""
        for role, model in self.models.items():
            if model.batched and model.concurrency < FULL_BATCH:
                log.warning(
                    "%s: concurrency %d limits each batch to that many requests, and a batch may take hours; remove "
                    "it or set thousands",
                    role,
                    model.concurrency,
                )

    def _lead(self) -> bool:
        """Whether one unit of a reference goes ahead of the others (`PlanSettings.lead`): never where a model that
        such a unit asks is in batches, since the others would wait for a batch."""
        names = stages_of(self.program)
        models = [*self._teachers_except(STUDIES, names), *([self.judge] if self.judge is not None else [])]
        if any(model.batched for model in models):
            return False
        lengths = [len(reference.instruction) + len(reference.response) for reference in self.references]
        mean = sum(lengths) / len(lengths)
        return any(teacher.prompt_cache_helps(mean) for teacher in self._teachers_except((*STUDIES, "feedback"), names))

    def _teachers_except(self, endings: tuple[str, ...], names: Sequence[str]) -> list[Teacher]:
        """The teachers of the stages `names`, except those whose names end with one of `endings`."""
        pools = [self.by_stage.pool(name) for name in names if not name.endswith(endings)]
        return [share.teacher for pool in pools for share in pool]


def absolute(source: str | None) -> str | None:
    """The absolute path of a program's file, so that it is found from any working folder; an MLflow address as is."""
    return source if source is None or is_address(source) else str(Path(source).absolute())


# --- from the arguments of `synthesize`


def prepare(
    program: ProgramLike,
    references: Any,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    **settings: Any,
) -> RunSpec:
    """What the run is made of, checked; its folder is not touched. Raises InputError.

    The models are no part of the settings: they may be objects, which no file can hold, and are opened as they are.
    """
    config = check_config(RunConfig, settings)
    if config.shards is not None and config.cluster is None:
        raise ConfigError("shards: only a run on a cluster has shards; set cluster, too, or remove it")
    refuse_references(program, "program")
    module, bound = without_models(open_program(program, config))
    if teacher is None and dspy.settings.lm is None:
        teacher = next(iter(bound.values()), None)
    by_stage = open_teachers(teacher, {**bound, **(teachers or {})}, stages_of(module))
    usable = load_references(references, config.columns or None, config.turns)
    for each in by_stage.teachers:
        usable = usable.fitting(each.window, each.max_tokens)
    tuned_with = str(getattr(module, "source", {}).get("teacher", ""))
    warn_of_another_teacher(module, tuned_with if by_stage.asks(tuned_with) else by_stage.first.model)
    screening, asked = _screening(module, by_stage, config, judge)
    return RunSpec(config, module, usable, by_stage, asked, screening)


def _screening(
    program: dspy.Module, by_stage: TeachersByStage, config: RunConfig, asked: TeacherLike | None
) -> tuple[Screening, Teacher | None]:
    """The run's filters, and the judge that they ask, if any does: the one that is `asked` for, or the teacher's model.

    Raises ConfigError for what compares improved responses with plain ones, in a program that improves none.
    """
    opened_judge = open_judge_program(config)
    guards = config.guards.filters() if config.guards else []
    screening = Screening(build([*guards, *config.filters], config.seed, opened_judge))
    for step in screening.steps:
        if hasattr(step.filter, "demonstrations"):  # a guard
            step.filter.demonstrations = _demonstrations(program)
    judges = [step.filter for step in screening.steps if isinstance(step.filter, JudgeFilter)]
    if any(filter_.needs_criteria for filter_ in judges) and not getattr(program, "criteria", False):
        raise ConfigError(
            "filters: criteria needs references that are asked for them; set criteria: true, or remove it"
        )
    compared = {
        "filters: judge compares improved responses with plain ones": any(filter_.needs_plain for filter_ in judges),
        "guards: unchanged concerns improved responses": config.guards and config.guards.unchanged == "drop",
    }
    if getattr(program, "final_stage", "") == "response_generation" and any(compared.values()):
        what = next(what for what, asked in compared.items() if asked)
        raise ConfigError(f"{what}, and {type(program).__name__} makes none; remove it or use another method")
    if not judges:
        warn_of_unasked(asked)
        return screening, None
    with in_role("judge"):
        model = by_stage.first.model if asked is None else open_teacher(asked, role="judge").model
    # The teacher that is the judge's model, which would judge its own answers; else the first one.
    teacher = next((each for each in by_stage.teachers if each.model == model), by_stage.first)
    judge = judge_for(teacher, asked)
    warn_of_another_teacher(opened_judge, judge.model)
    return screening, judge


def _demonstrations(program: dspy.Module) -> Known:
    """The instructions and the responses in the demonstrations of `program`."""
    from refed_dspy.filters.guards import RUN_SHOWN, Known  # numpy comes with it

    fields = [field for predictor in program.predictors() for demo in predictor.demos for field in demo.items()]
    listed = [text for name, texts in fields if name == "new_instructions" for text in texts]
    return Known(
        list(dict.fromkeys([*listed, *(text for name, text in fields if name.endswith("instruction"))])),
        list(dict.fromkeys(text for name, text in fields if name.endswith("response"))),
        RUN_SHOWN,
    )


# --- what a start will take, in one line that is told before its first call


def outlook(spec: RunSpec, to_come: ToCome, budget: Budget) -> str:
    """From how many references the samples come, and about how many calls and dollars that is: at what calls have cost
    so far, or at usual lengths. No dollars where several teachers share the work, a price is unknown, or answers are
    reused."""
    more = "more " if to_come.new < to_come.used else ""
    made = counted(to_come.samples, more + spec.work().unit.removesuffix("s"))
    calls = spec.calls_of(to_come)
    line = f"{made} from {of_all(to_come.used, len(spec.references))}: about {counted(calls, 'call')}"
    if spec.config.reuse is not None:
        return f"{line}, less what is reused"
    prices = [model.price for model in spec.models.values()]
    if spec.by_stage.several or None in prices:
        return line
    if (settled := budget.calls - budget.in_flight) >= ENOUGH_CALLS:
        return f"{line}, {dollars(budget.spent / settled * calls)}" if budget.spent else line
    usual = prices[0].cost(READ, 0, 0, WRITTEN) if prices[0] is not None else 0
    return f"{line}, {dollars(usual * calls)} at usual lengths" if usual else line


def of_all(used: int, references: int) -> str:
    """So many of the references, in words."""
    if used < references:
        return f"{used:,} of {references:,} references"
    return f"all {references:,} references" if references > 1 else "the one reference"
