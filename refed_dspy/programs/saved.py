"""What is saved of a program: DSPy's JSON state, without a language model, and the digests of its prompts and fields.

DSPy itself would silently load a state into a changed signature, and a changed prompt under an old proof.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.saving import get_dependency_versions

from refed_dspy.config.keywords import checked
from refed_dspy.errors import ConfigError, briefly, one_line
from refed_dspy.files import whole_file
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.programs.asking import without_models
from refed_dspy.records import digest, json_default

log = logging.getLogger("refed_dspy.optimizers")
MANIFEST = "refed"
"""The key of this package's entry in a program's file."""
CORRECTIONS = "corrections"
"""The key of a trained judge's corrections there, and of their digest in the manifest."""
METADATA = "metadata"
"""The key of DSPy's entry."""
OUTPUTS = "outputs"
"""The key of each predictor's output fields in the manifest."""
SINGLE = "self"
"""The name of the only predictor of a program that is one, as DSPy has it."""


def prompt_digest(predictor: dspy.Predict) -> str:
    """A digest of all that determines a predictor's prompt except its inputs: instructions, fields, demos, LM settings,
    adapter, and the text around the inputs: a version of this package that changes it asks another question."""
    fixed = rendering(predictor.signature)
    adapter = dspy.settings.adapter or SchemaAdapter()
    around = adapter.format_user_message_content(
        predictor.signature, dict.fromkeys(fixed.inputs, ""), main_request=True
    )
    own = [fixed.system, fixed.response_format, predictor.demos, predictor.config]
    return digest([*own, type(adapter).__name__, around])


def program_digests(program: dspy.Module) -> dict[str, str]:
    """Predictor name → digest of its prompt; of a trained judge also that of its corrections."""
    digests = {name: prompt_digest(predictor) for name, predictor in program.named_predictors()}
    if (corrections := getattr(program, CORRECTIONS, None)) is not None:
        digests[CORRECTIONS] = digest(corrections.state())
    return digests


def prompt_digests(state: Any) -> dict[str, dict[str, str]]:
    """Predictor → part of its prompt (`_texts`) → digest, for a program's state. They depend on the state alone, so
    every version of this package finds the same."""
    return {
        name: {part: digest(text) for part, text in _texts(predictor).items()}
        for name, predictor in (state.items() if isinstance(state, dict) else ())
        if isinstance(predictor, dict) and isinstance(predictor.get("signature"), dict)
    }


def prompts_digest(state: Any) -> str:
    """Sixteen hex digits of all prompts in a program's state: what MLflow's registry has of a version."""
    return digest(prompt_digests(state))


def _texts(predictor: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a predictor's state as text, by their names for people."""
    signature, demos = predictor["signature"], predictor.get("demos")
    lines = {"fields": signature.get("fields"), "demonstrations": demos}
    return {
        "instructions": str(signature.get("instructions", "")),
        **{part: "\n".join(map(_as_line, each if isinstance(each, list) else [each])) for part, each in lines.items()},
    }


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _field_digests(program: dspy.Module) -> dict[str, str]:
    return {
        name: digest([list(p.signature.input_fields), rendering(p.signature).response_format])
        for name, p in program.named_predictors()
    }


def program_state(program: dspy.Module) -> dict[str, Any]:
    """`program` as JSON: instructions, demos, a trained judge's corrections, and digests, without a language model."""
    state: dict[str, Any] = without_models(program)[0].dump_state()  # an LM's state may hold addresses
    if isinstance(program, dspy.Predict):  # the state of a single predictor has no names
        state = {SINGLE: state}
    state = json.loads(json.dumps(state, default=json_default))
    state[MANIFEST] = {
        "fields": _field_digests(program),
        "names": _field_names(program),
        OUTPUTS: {name: list(each.signature.output_fields) for name, each in program.named_predictors()},
        "digests": prompt_digests(state),
        "inputs": _inputs(program),
        **_own_class(program),
    }
    if (corrections := getattr(program, CORRECTIONS, None)) is not None:
        state[CORRECTIONS] = corrections.state()
        state[MANIFEST][CORRECTIONS] = digest(state[CORRECTIONS])
    return state


def _own_class(program: dspy.Module) -> dict[str, str]:
    """The manifest's entry for a program of a class of the caller's own: the name that it was given by, else its
    class's. Nothing imports it unless the caller names it, too (`load.own_program`)."""
    kind = type(program)
    if kind.__module__.partition(".")[0] == "refed_dspy":
        return {}
    return {"class": getattr(program, "named", None) or f"{kind.__module__}:{kind.__qualname__}"}


def _inputs(program: dspy.Module) -> list[str]:
    """The names of a program's inputs, each a text; empty where that is not known. Those of a ReferenceLevelFeedback
    are a reference's."""
    if hasattr(program, "collect_features"):
        return ["instruction", "response"]
    fields = getattr(getattr(program, "signature", None), "input_fields", {})
    return list(fields) if all(field.annotation is str for field in fields.values()) else []


def in_dspys_form(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds of a program's state, so that `dspy.Module.load` reads it, too: with the versions that it asks
    for, and the parts of a single predictor without a name."""
    parts = {name: value for name, value in state.items() if name != SINGLE}
    return {**state.get(SINGLE, {}), **parts, METADATA: {"dependency_versions": get_dependency_versions()}}


def state_in(text: str | bytes) -> Any:
    """The program's state in a file of this package's or DSPy's. Raises ValueError where it is no JSON."""
    state = json.loads(text)
    if not isinstance(state, dict):
        return state
    state.pop(METADATA, None)
    if not isinstance(state.get("signature"), dict) or SINGLE in state:
        return state
    kept = {name: state.pop(name) for name in (MANIFEST, CORRECTIONS) if name in state}
    return {SINGLE: state, **kept}


@briefly
@checked
def save_program(program: dspy.Module, path: Path | str) -> None:
    """Write `program`'s state to `path`, whole or not at all. `dspy.Module.load` reads it, too.

    Raises:
        ConfigError: it cannot be written there.
    """
    text = json.dumps(in_dspys_form(program_state(program)), ensure_ascii=False, indent=1)
    try:
        with whole_file(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"program {path}: cannot be written: {one_line(error.strerror or error)}") from None


def manifest_of(state: Any) -> dict[str, Any]:
    """The manifest in a program's state: how it was compiled, and digests of its fields; empty if it has none."""
    manifest = state.get(MANIFEST) if isinstance(state, dict) else None
    return manifest if isinstance(manifest, dict) else {}


def load_state(program: dspy.Module, state: Any, source: str) -> None:
    """Load a program's state that was read from `source`. Raises ConfigError where it does not fit.

    Only instructions and demos are loaded. DSPy itself would set any attribute that the file names, an LM's address
    among them.
    """
    expected = {name for name, _ in program.named_predictors()}
    lacking = sorted(name for name in expected if not (isinstance(state, dict) and isinstance(state.get(name), dict)))
    if lacking:
        raise ConfigError(f"program {source}: not saved from this program: it lacks {', '.join(lacking)}")
    manifest = state.get(MANIFEST, {"fields": {}})  # a state that DSPy saved has none
    fields = manifest.get("fields") if isinstance(manifest, dict) else None
    if not isinstance(fields, dict):
        raise ConfigError(f"program {source}: its {MANIFEST} entry is damaged; save it again")
    changed = [name for name, value in _field_digests(program).items() if fields.get(name, value) != value]
    if changed:
        difference = _field_difference(program, manifest, changed)
        raise ConfigError(
            f"program {source}: made for other fields of {', '.join(changed)}{difference}; set the same features or "
            "make the program again"
        )
    try:
        prompts = {name: _prompt_of(state[name]) for name in expected}
        program.load_state(prompts[SINGLE] if isinstance(program, dspy.Predict) else prompts)
    except Exception as error:  # noqa: BLE001 — DSPy raises many kinds of errors for a malformed state
        raise ConfigError(f"program {source}: cannot be loaded: {one_line(error)}") from None


def _field_names(program: dspy.Module) -> dict[str, list[str]]:
    """Predictor → the names of its fields."""
    return {name: list(predictor.signature.fields) for name, predictor in program.named_predictors()}


def _field_difference(program: dspy.Module, manifest: dict[str, Any], changed: list[str]) -> str:
    """The fields that only the file or only the program has, as far as the file says."""
    if not isinstance(saved := manifest.get("names"), dict):
        return ""
    for name in changed:
        its, ours = {str(each) for each in saved.get(name) or ()}, set(_field_names(program)[name])
        only = {"it has": sorted(its - ours), "this program has": sorted(ours - its)}
        if told := "; ".join(f"{whose} {', '.join(names)}" for whose, names in only.items() if names):
            return f" ({one_line(told, 200)})"
    return " (the same names, but other types or bounds)"


def _prompt_of(state: dict[str, Any]) -> dict[str, Any]:
    """The instructions and demos of a predictor's state, in DSPy's form. Raises ValueError where it is malformed."""
    signature, demos = state.get("signature"), state.get("demos", [])
    if not isinstance(signature, dict) or not isinstance(signature.get("instructions"), str):
        raise ValueError("a signature's instructions must be text")
    if not isinstance(demos, list) or not all(isinstance(demo, dict) for demo in demos):
        raise ValueError("demos must be a list of objects")
    return {"signature": signature, "demos": demos, "traces": [], "train": [], "lm": None}
