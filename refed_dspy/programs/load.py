"""Open a saved program for use: built as it was, and remembering where its prompts came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.errors import ConfigError
from refed_dspy.programs.baselines import kind_of
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.mlflow_address import _version
from refed_dspy.programs.reference_level import ReferenceLevelFeedback
from refed_dspy.programs.saved import load_program, load_state, manifest_of, read_state, remember_origin
from refed_dspy.signatures import DEFAULT_FEATURES

log = logging.getLogger("refed_dspy.optimizers")


def open_program(
    source: Path | str,
    features: Mapping[str, str] | None = None,
    instructions_per_feature: int | None = None,
) -> ReferenceLevelFeedback:
    """The program at `source`: a file, or an MLflow address (`models:/NAME@ALIAS`, `models:/NAME/N`, `runs:/…`).

    It is of the kind that its stages tell, and has the features that it was compiled with, unless others are given. Its
    `source` says where it came from.

    Raises:
        ConfigError: there is none, or it does not fit the features given.
    """
    state = read_state(source)
    told = manifest_of(state)
    kept = told.get("features")
    whole = isinstance(kept, dict) and all(isinstance(text, str) for pair in kept.items() for text in pair)
    asked = told.get("instructions_per_feature")
    known = asked if isinstance(asked, int) and 1 <= asked <= 100 else 10
    program = kind_of(state)(
        features or (kept if whole and kept else DEFAULT_FEATURES),
        known if instructions_per_feature is None else instructions_per_feature,
    )
    load_state(program, state, str(source))
    _check_words(program, features, str(source))
    remember_origin(program, state, str(source))
    program.source |= _version(str(source))
    return program


def open_judge(source: Path | str) -> PairwiseJudge:
    """The compiled judge at `source`. Raises ConfigError."""
    judge = PairwiseJudge()
    load_program(judge, source)
    return judge


def _check_words(program: ReferenceLevelFeedback, features: Mapping[str, str] | None, source: str) -> None:
    """Raises ConfigError where features are given in other words than the file's, which its prompts keep."""
    for name, words in (features or {}).items():
        told = (program.instruction_feedback.signature.output_fields[name].json_schema_extra or {}).get("desc")
        if told != words:
            raise ConfigError(
                f"program {source}: it was made with other words for the feature {name}; leave features out, or make "
                "the program anew"
            )


def refuse_bound(program: dspy.Module, name: str = "") -> None:
    """Raises ConfigError where a predictor asks a model of its own, past caps and books. `name`: the program's."""
    if bound := [inner for inner, predictor in program.named_predictors() if predictor.lm is not None]:
        what, of = ("programs", f" of {name}") if name else ("program", "")
        raise ConfigError(
            f"{what}: {', '.join(bound)}{of} has an LM of its own; pass the LM as teacher=, after set_lm(None)"
        )


def warn_of_another_teacher(program: Any, model: str) -> None:
    """Say so where a program was tuned with another teacher than it is now used with."""
    tuned_with = getattr(program, "source", {}).get("teacher")
    if tuned_with and tuned_with != model:
        log.warning("the program was tuned with %s; with %s its gain is not proved", tuned_with, model)
