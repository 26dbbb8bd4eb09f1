"""What a program's stages write beyond what a sample has a place for: a subclass's `why`, a predictor of its own."""

from __future__ import annotations

from typing import Any

import dspy

from refed_dspy.programs.asking import name_of
from refed_dspy.signatures import InstructionSynthesis, ResponseFeedback, ResponseGeneration, ResponseImprovement

_OWN = (ResponseFeedback, InstructionSynthesis, ResponseGeneration, ResponseImprovement)
_PLACED = {name for signature in _OWN for name in signature.output_fields}
_PLAIN = (str, int, float, bool)


def extra_outputs(program: dspy.Module) -> dict[str, dict[str, str]]:
    """Stage → output field → the name of its type: `str`, `int`, `float`, `bool`, or `json` for any other."""
    stages, features = getattr(program, "stage_names", ()), getattr(program, "features", {})
    found: dict[str, dict[str, str]] = {}
    for path, predictor in program.named_predictors():
        stage = place if (place := path.partition(".")[0]) in stages else name_of(path)
        for name, field in predictor.signature.output_fields.items():
            if name not in _PLACED and name not in features:
                kind: Any = field.annotation
                found.setdefault(stage, {})[name] = kind.__name__ if kind in _PLAIN else "json"
    return found
