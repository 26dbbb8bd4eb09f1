"""Prepares a run from the arguments of `synthesize`: settings are checked, teachers, judge and filters opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dspy

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.data.read import refuse_references
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from refed_dspy.filters.base import JudgeFilter
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import Screening
from refed_dspy.programs.asking import stages_of, without_models
from refed_dspy.programs.load import ProgramLike, open_program, warn_of_another_teacher
from refed_dspy.runs.spec import RunSpec
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.by_stage import TeachersByStage, open_teachers
from refed_dspy.teachers.judge import in_role, judge_for, open_judge_program, warn_of_unasked

if TYPE_CHECKING:
    from refed_dspy.filters.guards import Known

run_keywords = with_keywords(RunConfig)


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
        teacher = by_stage.first if asked is None else _teacher_of_model(by_stage, open_teacher(asked, role="judge"))
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


def _teacher_of_model(by_stage: TeachersByStage, judge: Teacher) -> Teacher:
    """The teacher that is the judge's model, which would judge its own answers; else the first teacher."""
    return next((teacher for teacher in by_stage.teachers if teacher.model == judge.model), by_stage.first)
