"""A version as an MLflow model, which `mlflow.pyfunc.load_model` loads and `mlflow models serve` serves; and its
prompts in MLflow's prompt registry."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from refed_dspy.programs.mlflow_address import quiet_mlflow
from refed_dspy.programs.saved import manifest_of
from refed_dspy.records import digest
from refed_dspy.tracking.store import Store

LOADER = "refed_dspy.runs.served"
"""The module that reads a version's file for MLflow. Its name stands in every version that was ever registered."""
EXAMPLE = {
    "instruction": "Explain to a child why the sea rises and falls.",
    "response": "The moon pulls at the sea. Where it pulls most, the water rises: that is high tide.",
}
"""The reference that MLflow shows as an input."""
LONGEST_PROMPT = 100_000
"""Characters that MLflow takes as a prompt."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


def log_model(store: Store, run_id: str, program: Path, state: Any, under: str) -> None:
    """Log an MLflow model whose only data is the file `program`, with this `state`, `under` this path of the run's
    artifacts. It holds no pickle. Raises NotTracked."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        store.call(_write_model, model, run_id, manifest_of(state).get("inputs") or ())
        (model / program.name).write_bytes(program.read_bytes())
        store.call(store.client.log_artifacts, run_id, str(model), under)


def _write_model(folder: Path, run_id: str, inputs: Sequence[str]) -> None:
    mlflow = quiet_mlflow()
    columns = [mlflow.types.ColSpec("string", name) for name in inputs]
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        mlflow_model=mlflow.models.Model(run_id=run_id),
        pip_requirements=[f"refed-dspy=={installed('refed-dspy')}"],
        signature=mlflow.models.ModelSignature(mlflow.types.Schema(columns)) if columns else None,
        input_example=[EXAMPLE] if set(inputs) == set(EXAMPLE) else None,
    )


def register_prompts(store: Store, model: str, version: str, state: Mapping[str, Any]) -> None:
    """Have each stage's prompt be a version of the prompt `MODEL.STAGE` in MLflow's prompt registry, unless it is one;
    the tag `refed.prompt.STAGE` of the model's version names it. Raises NotTracked."""
    for stage, predictor in state.items():
        if not isinstance(predictor, dict) or "signature" not in predictor:
            continue
        name, text = _NOT_IN_NAMES.sub("-", f"{model}.{stage}"), prompt_text(predictor)
        mark = f"refed.text.{digest(text)}"  # MLflow 3.10 lists a prompt's versions in Unity Catalog alone
        found = store.call(store.client.search_prompts, filter_string=f"name = '{name}'")
        number = found[0].tags.get(mark) if found else None
        if number is None:
            said = f"{model} version {version}"
            number = str(store.call(store.client.register_prompt, name, text, commit_message=said).version)
            store.call(store.client.set_prompt_tag, name, mark, number)
        tag = f"refed.prompt.{_NOT_IN_NAMES.sub('-', stage)}"
        store.call(store.client.set_model_version_tag, model, version, tag, f"prompts:/{name}/{number}")


def prompt_text(predictor: Mapping[str, Any]) -> str:
    """A predictor's instructions and demonstrations as text, of at most LONGEST_PROMPT characters."""
    demos = [json.dumps(demo, ensure_ascii=False, indent=1) for demo in predictor.get("demos") or ()]
    shown = [f"Demonstration {number}:\n{demo}" for number, demo in enumerate(demos, 1)]
    text = "\n\n".join([str(predictor["signature"].get("instructions", "")), *shown])
    return text if len(text) <= LONGEST_PROMPT else text[: LONGEST_PROMPT - 1] + "…"
