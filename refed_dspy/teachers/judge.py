"""Opens the judge: at temperature 0 where the model takes one, with a warning where it is the teacher's own model; and
the program that it judges by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refed_dspy.config.teacher import TeacherConfig, WithJudge, takes_zero
from refed_dspy.errors import ConfigError, ModelError
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.load import open_judge
from refed_dspy.teachers.teacher import Teacher, open_teacher

log = logging.getLogger("refed_dspy.teachers")


def open_judge_program(settings: WithJudge) -> PairwiseJudge | None:
    """The compiled or trained judge of `settings.judge_program`, with the model that computes its perplexities where it
    was trained with them; None where none is set. Raises ConfigError."""
    path, scorer = settings.judge_program, settings.judge_scorer
    judge = None if path is None else open_judge(path, settings.accept_changed)
    needed = judge is not None and judge.needs_scorer
    if needed and scorer is None:
        raise ConfigError(
            f"judge_program {path}: it was trained with perplexities; name the model that computes them with "
            "judge_scorer: {model: …}"
        )
    if scorer is not None:
        if judge is None or not needed:
            raise ConfigError("judge_scorer: no judge_program was trained with perplexities; remove it")
        judge.use_scorer(scorer)
    return judge


def judge_for(teacher: Teacher, asked: Any) -> Teacher:
    """`judge_beside`. Logs a warning where judge and teacher are one model."""
    judge = judge_beside(teacher, asked)
    warn_of_one_model(judge, teacher)
    return judge


def judge_beside(teacher: Teacher, asked: Any) -> Teacher:
    """The judge `asked` for; without one, the teacher's own model.

    Raises:
        ConfigError: the judge cannot be used with its settings.
    """
    with in_role("judge"):
        if asked is not None:
            judge = open_judge_model(asked, teacher)
        else:
            judge = teacher if teacher.config is None else _at_temperature_zero(teacher.config, teacher)
    return teacher if judge.config is not None and judge.config == teacher.config else judge


def warn_of_one_model(judge: Teacher, teacher: Teacher) -> None:
    """Warn where the judge is to judge its own model's words."""
    if judge.model == teacher.model:
        log.warning(
            "judge and teacher are the same model (%s), and models prefer their own words: treat scores as a guide "
            "only, or choose another judge",
            teacher.model,
        )


@contextmanager
def in_role(role: str) -> Iterator[None]:
    """Name `role` in the errors of a model that is opened inside the block."""
    try:
        yield
    except ModelError as error:
        raise ModelError(error.reason, role if error.role == "teacher" else error.role) from None


def open_judge_model(asked: Any, beside: Teacher | None = None, role: str = "judge") -> Teacher:
    """The judge `asked` for, at temperature 0 if its settings name none: verdicts must not depend on chance."""
    with in_role(role):
        judge = open_teacher(asked, beside, role=role)
        if judge.config is not None and "temperature" not in judge.config.model_fields_set:
            return _at_temperature_zero(judge.config, beside)
        return judge


def warn_of_unasked(judge: Any) -> None:
    """Warn of a judge (None: there is none) that no filter asks. Raises as `open_judge_model`: a wrong one is refused,
    needed or not."""
    if judge is not None:
        open_judge_model(judge)
        log.warning("judge: none of the filters asks one, so it is not used")


def _at_temperature_zero(config: TeacherConfig, beside: Teacher | None) -> Teacher:
    """`config`'s model at temperature 0, or as it is where the model does not take that."""
    if config.without_endpoint or takes_zero(str(config.model), config.params):
        config = config.model_copy(update={"temperature": 0.0})
    return open_teacher(config, beside)
