"""Opens the program of a run, from the argument of `synthesize` and the run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import dspy

from refed_dspy.config.run import RunConfig
from refed_dspy.data.references import refuse_references
from refed_dspy.errors import ConfigError
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.baselines import METHODS
from refed_dspy.programs.load import load_program, own_program
from refed_dspy.signatures import DEFAULT_FEATURES

ProgramLike: TypeAlias = Any
"""A program (`dspy.Module`), the file or MLflow address of one, or None."""


def open_program(program: ProgramLike, config: RunConfig) -> dspy.Module:
    """The program of a run: an object as it is; a file's, an address's or a new one with what `config` sets of it.

    Raises:
        ConfigError: it cannot be run at scale, or `config` sets what it has itself.
    """
    refuse_references(program, "program")
    program = own_program(program, config.accept_changed)
    if program is None or isinstance(program, str | Path):
        module = _new_program(config) if program is None else _saved_program(program, config)
        module.add_guidance(config.guidance)
        return module
    program = getattr(program, "program", program)  # a finished compile has one
    if isinstance(program, type):
        raise ConfigError(f"program: {program.__name__} is a class; pass one of its objects, {program.__name__}()")
    missing = [name for name in ("collect_features", "propose", "respond") if not hasattr(program, name)]
    if missing:
        raise ConfigError(f"program: {type(program).__name__} cannot run: it lacks {', '.join(missing)}")
    if own := config.model_fields_set & {"method", "features", "instructions_per_feature", "guidance"}:
        raise ConfigError(f"{min(own)}: the program you pass has its own; remove it")
    return program


def _new_program(config: RunConfig) -> ReferenceLevelFeedback:
    return METHODS[config.method](config.features or DEFAULT_FEATURES, config.instructions_per_feature)


def _saved_program(source: str | Path, config: RunConfig) -> ReferenceLevelFeedback:
    number = config.instructions_per_feature if "instructions_per_feature" in config.model_fields_set else None
    program = load_program(source, config.features, number, accept_changed=config.accept_changed)
    if "method" in config.model_fields_set and type(program) is not METHODS[config.method]:
        raise ConfigError(f"method: {source} is a {type(program).__name__}; remove method")
    return program
