"""Programs opened: the one of a run, saved ones and judges, a caller's own; and checks before a program is used."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, overload

import dspy
from pydantic import Field

from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.keywords import checked
from refed_dspy.config.named import PROGRAMS, is_named, made, resolve
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, briefly, one_line, setting
from refed_dspy.files import read_bytes
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.mlflow_address import TEXTS_TAG, fetch_program, is_address
from refed_dspy.programs.reference_level import CRITERIA_STAGES, METHODS, ReferenceLevelFeedback
from refed_dspy.programs.saved import CORRECTIONS, load_state, manifest_of, prompt_digests, state_in
from refed_dspy.programs.synthesis import SynthesisProgram, refuse_incomplete
from refed_dspy.records import digest
from refed_dspy.registry import JUDGES, plugged_in
from refed_dspy.signatures import DEFAULT_FEATURES

log = logging.getLogger("refed_dspy.optimizers")
D = TypeVar("D", bound=dspy.Module)
OWN = {"embedded": "embedded.json"}
"""The package's own programs: their name → their file. This one is for the embedded model: it has demonstrations."""
UNPROVED = "none"
"""What is remembered of the proof of a compiled program whose gain was not proved."""
ProgramLike: TypeAlias = Any
"""A program (`dspy.Module`), the file or MLflow address of one, or None."""


def open_program(program: ProgramLike, config: RunConfig) -> dspy.Module:
    """The program of a run: an object as it is; a file's, an address's or a new one with what `config` sets of it.

    Raises:
        ConfigError: it cannot be run at scale, or `config` sets what it has itself.
    """
    said = config.model_fields_set
    number = config.instructions_per_feature if program is None or "instructions_per_feature" in said else None
    made, opened = as_module(program, config, METHODS[config.method], number, config.criteria)
    if made:
        if program is not None and "method" in said and type(opened) is not METHODS[config.method]:
            raise ConfigError(f"method: {program} is a {type(opened).__name__}; remove method")
        return opened
    refuse_incomplete(opened)
    if own := said & {"method", "features", "instructions_per_feature", "guidance", "criteria"}:
        raise ConfigError(f"{min(own)}: the program you pass has its own; remove it")
    return opened


def open_tunable(program: ProgramLike, config: CompileConfig, judge: bool) -> dspy.Module:
    """The program that a compile tunes, opened as that of a run; with `judge` one that learns from pairs.

    Raises:
        ConfigError: it has nothing to tune, or a language model of its own; or is another one than a `judge` is; or
            `config` sets what does not apply to it.
    """
    if judge and program is None:
        program = PairwiseJudge()
    if judge and isinstance(program, str | Path):
        program = load_into(PairwiseJudge(), program, config.accept_changed)
    if judge and not isinstance(program, PairwiseJudge):
        needs = f"{type(program).__name__} needs " + setting("references")
        raise ConfigError("pairs: only a PairwiseJudge learns from pairs; " + needs)
    made, opened = as_module(program, config, ReferenceLevelFeedback, None)
    if getattr(opened, CORRECTIONS, None) is not None:
        raise ConfigError(
            "program: a trained judge, whose correction fits its prompts; compile a PairwiseJudge, and train that one"
        )
    if not isinstance(opened, dspy.Module):
        got = type(opened).__name__
        raise ConfigError(f"program: got a {got}; pass a dspy.Module, a program's file or its MLflow address")
    if not made:
        refuse_bound_models(opened)
    if not opened.named_predictors():
        raise ConfigError(f"program: {type(opened).__name__} has no predictors to tune")
    if isinstance(opened, SynthesisProgram):
        refuse_incomplete(opened)
    _refuse_unused(opened, program, config)
    return opened


def _refuse_unused(module: dspy.Module, program: Any, config: CompileConfig) -> None:
    """Raises ConfigError for a setting that says nothing of this program."""
    unused: set[str] = set()
    if not isinstance(module, SynthesisProgram):
        unused |= {"columns", "turns", "features", "instructions_per_feature", "guidance"}
    elif isinstance(program, dspy.Module):
        unused |= {"features", "guidance"}
    if not isinstance(module, PairwiseJudge):
        unused |= {"held_out_criteria"}
    defaults = {name: CompileConfig.model_fields[name].get_default(call_default_factory=True) for name in unused}
    # Who passes a default on says nothing.
    if said := [name for name in unused & config.model_fields_set if getattr(config, name) != defaults[name]]:
        raise ConfigError(f"{min(said)}: does not apply to the {type(module).__name__} that is compiled; remove it")


def as_module(
    program: ProgramLike,
    config: RunConfig | CompileConfig,
    kind: type[ReferenceLevelFeedback],
    number: int | None,
    criteria: bool = False,
) -> tuple[bool, Any]:
    """Whether it was made here, and the program: a new one of `kind` for None, or a file's or an address's, both with
    the features, guidance and `number` of instructions that are set, and with stages for `criteria` if these are; else
    the object, or the one that a name of the caller's own means, as it is; of a finished compile its program.

    Raises ConfigError for what cannot be opened, and for a class.
    """
    program = own_program(program, config.accept_changed)
    if program is None or isinstance(program, str | Path):
        module = (
            kind(config.features or DEFAULT_FEATURES, 10 if number is None else number)
            if program is None
            else load_program(program, config.features, number, accept_changed=config.accept_changed)
        )
        if criteria:
            module.add_criteria()
        module.add_guidance(config.guidance)
        return True, module
    if isinstance(program, type):
        raise ConfigError(f"program: {program.__name__} is a class; pass one of its objects, {program.__name__}()")
    return False, program if isinstance(program, dspy.Module) else getattr(program, "program", program)


@dataclass(frozen=True)
class SavedProgram:
    """What a program's file holds, or MLflow has at an address: read once. `source`: its name. `version`: of MLflow's
    registered model that the address means."""

    source: str
    state: Any
    version: Any = None

    @property
    def manifest(self) -> dict[str, Any]:
        """As `manifest_of`."""
        return manifest_of(self.state)

    def into(self, program: D, accept_changed: bool = False) -> D:
        """Load its prompts into `program`, which remembers where they came from (`source`) and which clusters of
        examples they were tuned on (`tuned_on`), as far as the manifest says.

        Raises ConfigError as `load_state`, and where they are not the prompts that it was saved with, or that MLflow
        registered; with `accept_changed` it warns.
        """
        self._refuse_changed(accept_changed)
        load_state(program, self.state, self.source)
        program.source = {"address": self.source, **self._origin()}
        seen = self.manifest.get("seen")
        program.tuned_on = [str(cluster) for cluster in seen] if isinstance(seen, list) else []
        return program

    def _refuse_changed(self, accept: bool) -> None:
        saved, current = self.manifest.get("digests"), prompt_digests(self.state)
        changed = [] if saved is None else list(_changed(saved, current))
        registered = None if self.version is None else self.version.tags.get(TEXTS_TAG)
        unlike = "" if registered in {None, digest(current)} else "; not what MLflow registered"
        if changed or unlike:
            named = ", ".join(changed) or "all of them by its own digests"
            what = f"its prompts were edited after it was saved: {named}{unlike}"
            self._refuse(what, "the proof of its gain no longer applies", accept)
        corrections = self.state.get(CORRECTIONS) if isinstance(self.state, dict) else None
        if corrections is not None and self.manifest.get(CORRECTIONS) != digest(corrections):
            what = "its corrections were edited after it was saved"
            self._refuse(what, "how well it agrees with people is no longer known", accept)

    def _refuse(self, what: str, so: str, accept: bool) -> None:
        message = one_line(f"program {self.source}: {what}")
        if not accept:
            raise ConfigError(f"{message}; restore it or accept it with " + setting("accept_changed", True))
        log.warning("%s; %s", message, so)

    def _origin(self) -> dict[str, str]:
        """Run, candidate, teacher, proof and version, as far as they are known."""
        manifest = self.manifest
        models = manifest.get("models")
        teacher = models.get("teacher") if isinstance(models, dict) else None
        known = {name: manifest.get(name) for name in ("run_id", "candidate")}
        known["teacher"] = teacher.get("model") if isinstance(teacher, dict) else None
        origin = {name: one_line(value, 200) for name, value in known.items() if isinstance(value, str)}
        if "proof" in manifest and not (isinstance(proof := manifest["proof"], dict) and proof.get("proved")):
            origin["proof"] = UNPROVED
        if self.version is not None:
            origin |= {"model": self.version.name, "version": str(self.version.version)}
        return origin


def _changed(saved: Any, current: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What is not as it was saved: "instructions of respond"."""
    for name, parts in current.items():
        before = saved.get(name) if isinstance(saved, dict) else None
        for part, value in parts.items():
            if (before.get(part) if isinstance(before, dict) else None) != value:
                yield f"{part} of {name}"


def read_saved(source: Path | str) -> SavedProgram:
    """What is saved at `source`: a file, an MLflow address or the name of one of `OWN`. Raises ConfigError."""
    name = str(source)
    if name in OWN:
        return SavedProgram(name, json.loads(files("refed_dspy.programs").joinpath(OWN[name]).read_text("utf-8")))
    path, version = fetch_program(name) if is_address(name) else (Path(name), None)
    try:
        return SavedProgram(name, state_in(read_bytes(path).decode()), version)
    except FileNotFoundError:
        raise ConfigError(f"program {name}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"program {name}: not a saved program (JSON): {one_line(error)}") from None


def load_into(program: D, source: Path | str, accept_changed: bool = False) -> D:
    """Load what is saved at `source`, a JSON file or an MLflow address (`runs:/…`, `models:/…`), into `program`.

    Raises:
        ConfigError: no such file, not a program, one made for other fields, or, unless with `accept_changed`, one whose
            prompts were changed after it was saved.
    """
    return read_saved(source).into(program, accept_changed)


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
    source: Path | str,
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
            own; or its prompts were edited after it was saved or registered in MLflow: the error names which, and
            `accept_changed` accepts it.
    """
    if into is not None:
        return load_into(into, source, accept_changed)
    saved = read_saved(source)
    manifest = saved.manifest
    if own_class := manifest.get("class"):  # to import what a file names would be to run code that nobody asked for
        name = repr(str(own_class)[:80])[1:-1]
        way = f"is imported only if you name it, too: {name}@{source} (in Python also load_program(…, into=…))"
        raise ConfigError(f"program {source}: its class {name} {way}")
    own, number = manifest.get("features"), manifest.get("instructions_per_feature")
    valid = isinstance(own, dict) and all(isinstance(text, str) for pair in own.items() for text in pair)
    if instructions_per_feature is None:
        instructions_per_feature = number if isinstance(number, int) and 1 <= number <= 100 else 10
    kind = program_class_of(saved.state)
    features_of = features or (own if valid and own else DEFAULT_FEATURES)
    program = kind(features_of, instructions_per_feature, criteria=has_criteria(saved.state))
    saved.into(program, accept_changed)
    _check_descriptions(program, features, str(source))
    return program


def program_class_of(state: Any) -> type[ReferenceLevelFeedback]:
    """The class in METHODS of a saved program's state: of those whose stages it all has, the one with most stages."""
    saved = set(state) if isinstance(state, Mapping) else set()
    fitting = [program for program in METHODS.values() if saved.issuperset(program.stage_names)]
    return max(fitting, key=lambda program: len(program.stage_names), default=ReferenceLevelFeedback)


def has_criteria(state: Any) -> bool:
    """Whether the saved program of this state has the stages that criteria take."""
    return isinstance(state, Mapping) and set(state).issuperset(CRITERIA_STAGES)


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
    saved = read_saved(source)
    if isinstance(saved.state, dict) and CORRECTIONS in saved.state:
        judge = plugged_in(JUDGES, CORRECTIONS)(saved.state[CORRECTIONS], str(source))
    return saved.into(judge, accept_changed)


def _check_descriptions(program: ReferenceLevelFeedback, features: Mapping[str, str] | None, source: str) -> None:
    """Raises ConfigError for a feature whose description differs from the file's: the loaded prompts keep theirs."""
    fields = program.instruction_feedback.predictors()[0].signature.output_fields
    for name, description in (features or {}).items():
        if (fields[name].json_schema_extra or {}).get("desc") != description:
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
