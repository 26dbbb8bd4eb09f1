"""Programs saved as files, and the digests of prompts and fields.

A program's file is DSPy's JSON state, without a language model, plus a digest of each signature's fields: DSPy itself
would silently load a state into a changed signature.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.config.keywords import checked
from refed_dspy.errors import ConfigError, briefly, one_line
from refed_dspy.files import read_bytes, whole_file
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import predictor_names
from refed_dspy.programs.changed import prompt_digests, refuse_changed
from refed_dspy.programs.mlflow_address import download_program, is_address, model_version
from refed_dspy.programs.rendering import rendering
from refed_dspy.records import digest, json_default

OWN = {"embedded": "embedded.json"}
"""The package's own programs: their name → their file. This one is for the embedded model: it has demonstrations."""
MANIFEST = "refed"
"""The key of this package's entry in a program's file."""
CORRECTIONS = "corrections"
"""The key of a trained judge's corrections there, and of their digest in the manifest."""
UNPROVED = "none"
"""What is remembered of the proof of a compiled program whose gain was not proved."""


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
    corrections = getattr(program, CORRECTIONS, None)
    scored = {} if corrections is None else {CORRECTIONS: digest(corrections.state())}
    return {name: prompt_digest(predictor) for name, predictor in program.named_predictors()} | scored


def _field_digests(program: dspy.Module) -> dict[str, str]:
    return {
        name: digest([list(p.signature.input_fields), rendering(p.signature).response_format])
        for name, p in program.named_predictors()
    }


def program_state(program: dspy.Module) -> dict[str, Any]:
    """`program` as JSON: instructions, demos, a trained judge's corrections, and digests, without a language model."""
    state: dict[str, Any] = without_models(program)[0].dump_state()  # an LM's state may hold addresses
    if isinstance(program, dspy.Predict):  # the state of a single predictor has no names
        state = {"self": state}
    state = json.loads(json.dumps(state, default=json_default))
    state[MANIFEST] = {
        "fields": _field_digests(program),
        "names": _field_names(program),
        "digests": prompt_digests(state),
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


def without_models(program: dspy.Module) -> tuple[dspy.Module, dict[str, Any]]:
    """A program without the language models that its predictors hold, and these by stage: they answer there, through
    the ledger. A program that holds none is returned as it is, another one as a copy."""
    names, bound = predictor_names(program), dict[str, Any]()
    for predictor in program.predictors():
        name = names[predictor.stage]
        if predictor.lm is not None and bound.setdefault(name, predictor.lm) is not predictor.lm:
            raise ConfigError(
                f"program: predictors called {name} have different language models; give them different names"
            )
    if not bound:
        return program, {}
    copied = program.deepcopy()
    copied.set_lm(None)
    return copied, bound


@briefly
@checked
def save_program(program: dspy.Module, path: Path | str) -> None:
    """Write `program`'s state to `path`, whole or not at all.

    Raises:
        ConfigError: it cannot be written there.
    """
    text = json.dumps(program_state(program), ensure_ascii=False, indent=1)
    try:
        with whole_file(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"program {path}: cannot be written: {one_line(error.strerror or error)}") from None


def load_into(program: dspy.Module, source: Path | str, accept_changed: bool = False) -> None:
    """Load the state at `source`, a JSON file or an MLflow address (`runs:/…`, `models:/…`), into `program`.

    Raises:
        ConfigError: no such file, not a program, one made for other fields, or, unless with `accept_changed`, one whose
            prompts were changed after it was saved.
    """
    state = read_state(source)
    load_saved(program, state, str(source), accept_changed)
    remember_origin(program, state, str(source))


def load_saved(program: dspy.Module, state: Any, source: str, accept_changed: bool = False) -> None:
    """`load_state` of what was read from a file or MLflow: its prompts must be those that it was saved with."""
    refuse_changed(state, manifest_of(state).get("digests"), program_state(program), source, accept_changed)
    load_state(program, state, source)


def remember_origin(program: dspy.Module, state: Any, source: str) -> None:
    """Store in `program` where its prompts came from (`source`) and which clusters of examples they were tuned on
    (`tuned_on`), as far as the state's manifest says."""
    manifest = manifest_of(state)
    models = manifest.get("models")
    entry = models.get("teacher") if isinstance(models, dict) else None
    teacher = entry.get("model") if isinstance(entry, dict) else None
    origin = {"run_id": manifest.get("run_id"), "candidate": manifest.get("candidate"), "teacher": teacher}
    texts = {name: one_line(value, 200) for name, value in origin.items() if isinstance(value, str)}
    if "proof" in manifest and not (isinstance(proof := manifest["proof"], dict) and proof.get("proved")):
        texts["proof"] = UNPROVED
    program.source = {"address": source, **texts, **model_version(source)}
    seen = manifest.get("seen")
    program.tuned_on = [str(cluster) for cluster in seen] if isinstance(seen, list) else []


def read_state(source: Path | str) -> Any:
    """What the program file at `source` holds; an MLflow address, or the name of one of `OWN`, included.

    Raises ConfigError.
    """
    name = str(source)
    if name in OWN:
        return json.loads(files("refed_dspy.programs").joinpath(OWN[name]).read_text(encoding="utf-8"))
    path = download_program(name) if is_address(name) else Path(name)
    try:
        return json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        raise ConfigError(f"program {name}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"program {name}: not a saved program (JSON): {one_line(error)}") from None


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
        program.load_state(prompts["self"] if isinstance(program, dspy.Predict) else prompts)
    except Exception as error:  # noqa: BLE001 — DSPy raises many kinds of errors for a malformed state
        raise ConfigError(f"program {source}: cannot be loaded: {one_line(error)}") from None


def _field_names(program: dspy.Module) -> dict[str, list[str]]:
    """Predictor → the names of its fields."""
    return {name: list(predictor.signature.fields) for name, predictor in program.named_predictors()}


def _field_difference(program: dspy.Module, manifest: dict[str, Any], changed: list[str]) -> str:
    """The fields that only the file or only the program has, as far as the file says."""
    saved, current = manifest.get("names"), _field_names(program)
    if not isinstance(saved, dict):
        return ""
    for name in changed:
        saved_names, current_names = set(saved.get(name) or ()), set(current[name])
        differences = []
        if only_saved := sorted(saved_names - current_names):
            differences.append(f"it has {', '.join(map(str, only_saved))}")
        if only_current := sorted(current_names - saved_names):
            differences.append(f"this program has {', '.join(only_current)}")
        if differences:
            return f" ({one_line('; '.join(differences), 200)})"
    return " (the same names, but other types or bounds)"


def _prompt_of(state: dict[str, Any]) -> dict[str, Any]:
    """The instructions and demos of a predictor's state, in DSPy's form. Raises ValueError where it is malformed."""
    signature, demos = state.get("signature"), state.get("demos", [])
    if not isinstance(signature, dict) or not isinstance(signature.get("instructions"), str):
        raise ValueError("a signature's instructions must be text")
    if not isinstance(demos, list) or not all(isinstance(demo, dict) for demo in demos):
        raise ValueError("demos must be a list of objects")
    return {"signature": signature, "demos": demos, "traces": [], "train": [], "lm": None}
