"""Opening saved programs and judges, and checks before a program is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

import dspy
from pydantic import Field

from refed_dspy.config.keywords import checked
from refed_dspy.config.named import PROGRAMS, is_named, made, resolve
from refed_dspy.errors import ConfigError, briefly, one_line
from refed_dspy.programs.baselines import program_class_of
from refed_dspy.programs.changed import refuse_changed_corrections
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.reference_level import ReferenceLevelFeedback
from refed_dspy.programs.saved import (
    CORRECTIONS,
    UNPROVED,
    load_into,
    load_saved,
    manifest_of,
    read_state,
    remember_origin,
)
from refed_dspy.registry import JUDGES, plugged_in
from refed_dspy.signatures import DEFAULT_FEATURES

log = logging.getLogger("refed_dspy.optimizers")
D = TypeVar("D", bound=dspy.Module)


@overload
def load_program(source: Path | str, *, into: D, accept_changed: bool = False) -> D: ...
@overload
def load_program(
    source: Path | str,
    features: Mapping[str, str] | None = None,
    instructions_per_feature: int | None = None,
    *,
    accept_changed: bool = False,
) -> ReferenceLevelFeedback: ...
@briefly
@checked
def load_program(
    source: Any,
    features: Mapping[str, str] | None = None,
    instructions_per_feature: Annotated[int, Field(ge=1, le=100)] | None = None,
    *,
    into: dspy.Module | None = None,
    accept_changed: bool = False,
) -> Any:
    """The program at `source`: a file, or an MLflow address (`models:/NAME@ALIAS`, `models:/NAME/N`, `runs:/…`).

    A `ReferenceLevelFeedback` or a baseline, which follows from its stages, with the features and the number of
    instructions that it was compiled with, unless the arguments set others. Any other module, a judge say, is loaded
    `into` one of its kind, which is returned; so is a program of a class of the caller's own, which no file can have
    imported: it is named (`module:Name@FILE`) or passed. The program's `source` says where it came from.

    Raises:
        ConfigError: there is no program, or it does not fit `features` or the module, or is of a class of the caller's
            own; or its prompts were edited after it was saved or registered in MLflow: the error's note shows the
            difference, and `accept_changed` accepts it.
    """
    if not isinstance(source, str | Path) or source == "":
        got = "an empty text" if source == "" else type(source).__name__
        raise ConfigError(f"source: {got} is neither a file nor an MLflow address; load into a module with into=")
    if into is not None:
        load_into(into, source, accept_changed)
        return into
    state = read_state(source)
    manifest = manifest_of(state)
    _refuse_own_class(manifest, source)
    saved = manifest.get("features")
    valid = isinstance(saved, dict) and all(isinstance(text, str) for pair in saved.items() for text in pair)
    number = manifest.get("instructions_per_feature")
    if instructions_per_feature is None:
        instructions_per_feature = number if isinstance(number, int) and 1 <= number <= 100 else 10
    program = program_class_of(state)(
        features or (saved if valid and saved else DEFAULT_FEATURES), instructions_per_feature
    )
    load_saved(program, state, str(source), accept_changed)
    _check_descriptions(program, features, str(source))
    remember_origin(program, state, str(source))
    return program


def _refuse_own_class(manifest: Mapping[str, Any], source: Path | str) -> None:
    """Raises ConfigError for a program of a class of the caller's own: to import what a file names would be to run
    code that nobody asked for."""
    if own := manifest.get("class"):
        name = one_line(own, 80)
        if is_named(own, PROGRAMS) and not name.startswith(("__main__", "dspy.")):
            way = f"is imported only if you name it, too: {name}@{source} (in Python also load_program(…, into=…))"
        else:
            way = "cannot be had by its name alone; in Python use load_program(…, into=…)"
        raise ConfigError(f"program {source}: its class {name} {way}")


def names_own_program(source: Any) -> bool:
    """Whether `source` names a program of the caller's own (`config.named`), perhaps with the file or address of its
    prompts (`module:Name@FILE`), and not a file or an address alone."""
    if not isinstance(source, str):
        return False
    name, at, _ = source.partition("@")
    return (bool(at) or not source.endswith(".json")) and is_named(name, PROGRAMS) and not Path(source).exists()


def own_program(source: Any, accept_changed: bool = False) -> Any:
    """The caller's own program that `source` names: an object, or what a class or a function makes, with the prompts
    of the file behind its name; it remembers its name (`named`). `source` itself where it names none.

    Raises ConfigError where it cannot be had.
    """
    if not names_own_program(source):
        return source
    name, _, file = source.partition("@")
    own = resolve(name, PROGRAMS, "program:")
    if callable(own) and not isinstance(own, dspy.Module):
        own = made(own, f"program: {name}")
    if isinstance(own, dspy.Module):
        own.named = name
        if file:
            load_into(own, file, accept_changed)
    return own


def open_judge(source: Path | str | None, accept_changed: bool = False) -> PairwiseJudge:
    """The compiled or trained judge at `source`; None: the judge with its own prompts. Raises ConfigError as
    `load_program`."""
    judge = PairwiseJudge()
    if source is None:
        return judge
    state = read_state(source)
    if isinstance(state, dict) and CORRECTIONS in state:
        judge = plugged_in(JUDGES, CORRECTIONS)(state[CORRECTIONS], str(source))
        refuse_changed_corrections(state[CORRECTIONS], manifest_of(state).get(CORRECTIONS), str(source), accept_changed)
    load_saved(judge, state, str(source), accept_changed)
    remember_origin(judge, state, str(source))
    return judge


def _check_descriptions(program: ReferenceLevelFeedback, features: Mapping[str, str] | None, source: str) -> None:
    """Raises ConfigError for a feature whose description differs from the file's: the loaded prompts keep theirs."""
    for name, description in (features or {}).items():
        loaded = (
            program.instruction_feedback.predictors()[0].signature.output_fields[name].json_schema_extra or {}
        ).get("desc")
        if loaded != description:
            raise ConfigError(
                f"program {source}: it was made with another description of the feature {name}; remove features or "
                "make the program again"
            )


def refuse_bound_models(program: dspy.Module, name: str = "") -> None:
    """Raises ConfigError if a predictor has its own LM: it would bypass caps and ledger. `name`: the program's."""
    if bound := [
        predictor_name for predictor_name, predictor in program.named_predictors() if predictor.lm is not None
    ]:
        what, of = ("programs", f" of {name}") if name else ("program", "")
        raise ConfigError(
            f"{what}: {', '.join(bound)}{of} has an LM of its own; call set_lm(None) and pass the LM as teacher="
        )


def warn_of_another_teacher(program: Any, model: str) -> None:
    """Warn if a program's gain was never proved, or with another teacher than `model`."""
    source = getattr(program, "source", {})
    tuned_with = source.get("teacher")
    if source.get("proof") == UNPROVED:
        log.warning("the program was tuned with %s, and its gain was never proved", tuned_with or "an unknown model")
    elif tuned_with and tuned_with != model:
        log.warning("the program was tuned with %s; with %s its gain is not proved", tuned_with, model)
