"""Which model judges: at temperature 0, and a word of warning where it is the teacher itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refed_dspy.config.loading import TeacherConfig
from refed_dspy.errors import ConfigError
from refed_dspy.teachers.teacher import Teacher, open_teacher

log = logging.getLogger("refed_dspy.teachers")


def judge_beside(teacher: Teacher, asked: Any) -> Teacher:
    """The judge `asked` for, or the teacher's own model. One that is the teacher's model is warned of.

    Raises:
        ConfigError: it cannot be used as it is set.
    """
    with in_role("judge"):
        if asked is not None:
            judge = open_judge_model(asked, teacher)
        else:
            judge = teacher if teacher.config is None else _cool(teacher.config, teacher)
    if judge.model == teacher.model:
        log.warning(
            "judge and teacher are one model (%s): models prefer their own words, so take the scores as a guide only, "
            "or name another judge",
            teacher.model,
        )
    return teacher if judge.config is not None and judge.config == teacher.config else judge


@contextmanager
def in_role(role: str) -> Iterator[None]:
    """Errors of setting a model up speak of a teacher, whatever it is for."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("teacher:", f"{role}:", 1)) from None


def open_judge_model(asked: Any, beside: Teacher | None = None) -> Teacher:
    """The judge `asked` for, at temperature 0 unless it is given another: verdicts should not depend on luck."""
    opened = open_teacher(asked, beside)
    if opened.config is not None and "temperature" not in opened.config.model_fields_set:
        return _cool(opened.config, beside)
    return opened


def _cool(config: TeacherConfig, beside: Teacher | None) -> Teacher:
    """`config`'s model at temperature 0, or as it is where the model takes no other temperature than its own."""
    try:
        return open_teacher(config.model_copy(update={"temperature": 0.0}), beside)
    except ConfigError:
        return open_teacher(config, beside)
