"""Make `refed_dspy/programs/embedded.json` of the demonstrations for the embedded model, and prove that they help it.

    python examples/embedded/compile.py save
    python examples/embedded/compile.py [FOLDER]

The first writes the program with the demonstrations, unproved. The second is a compile with an optimizer of one step,
which gives each stage its demonstrations of demonstrations.yaml. The proof compares the samples with those of the same
program without them, on five of the short references, by a metric that asks no judge: the share of samples that pass
the guards, have a task for an instruction and code where code is asked for, and whose improvement planned a change and
made one. It takes forty minutes on two quiet cores.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import dspy
import yaml

import refed_dspy
from refed_dspy.filters.guards import InstructionGuard, ResponseGuard
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs.saved import MANIFEST, program_state
from refed_dspy.records import DataRow

HERE = Path(__file__).parent
WRITTEN = yaml.safe_load((HERE / "demonstrations.yaml").read_text(encoding="utf-8"))
PROGRAM = Path(refed_dspy.__file__).parent / "programs" / "embedded.json"
DEMO = yaml.safe_load((HERE.parent / "demo.yaml").read_text(encoding="utf-8"))
EMBEDDED = refed_dspy.TeacherConfig.model_validate(DEMO["teacher"])
SAMPLES = 6
"""Of a reference: it has two features, and is asked for three instructions of each."""
_TASK = re.compile(
    "(?:write|explain|give|compare|describe|define|name|list|show|create|convert|rewrite|what|how|why|when|which|is|are)"
    r"\b", re.IGNORECASE,
)  # fmt: skip
_FOR_CODE = re.compile(r"(?:write|create) an? .*\b(?:function|program|script|class)\b", re.IGNORECASE)


class WrittenDemonstrations:
    """An optimizer that gives each stage the demonstrations written for it."""

    def __init__(self, **_: object) -> None:
        pass

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example]) -> dspy.Module:
        for stage, demonstrations in WRITTEN["demonstrations"].items():
            predictor = getattr(student, stage)
            inputs = list(predictor.signature.input_fields)
            predictor.demos = [dspy.Example(one).with_inputs(*inputs) for one in demonstrations]
        return student


def usable_share(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:  # noqa: ARG001
    """The share of the samples asked for that came and are usable."""
    guards = InstructionGuard(), ResponseGuard(unchanged="drop")
    usable = 0
    for sample in prediction.samples:
        instruction, response = sample.instruction, sample.improved_response
        row = DataRow(0, instruction, response, sample.response, reference=example.reference)
        usable += (
            _TASK.match(instruction) is not None
            and ("```" in response or not _FOR_CODE.match(instruction))
            and bool(sample.implementation_strategy.planned_changes)
            and all(guard.check(row).kept for guard in guards)
        )
    return min(1.0, usable / SAMPLES)


def plain() -> refed_dspy.ReferenceLevelFeedback:
    """The program without demonstrations."""
    return refed_dspy.ReferenceLevelFeedback(instructions_per_feature=3, guidance=WRITTEN["guidance"])


def save() -> None:
    program = plain()
    state = program_state(WrittenDemonstrations().compile(program, trainset=[]))
    state[MANIFEST]["instructions_per_feature"] = program.instructions_per_feature
    PROGRAM.write_text(json.dumps(state, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def compiled(out: Path | str, teacher: Any = EMBEDDED) -> Compiled:
    return refed_dspy.compile(
        plain(),
        "builtin-short",
        optimizer=f"{__name__}.WrittenDemonstrations",
        metric=usable_share,
        teacher=teacher,
        instructions_per_feature=3,
        train=1,
        validation=1,
        test=5,
        threads=1,
        out=out,
        name="embedded",
        track=False,
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["save"]:
        save()
        sys.exit()
    made = compiled(sys.argv[1] if len(sys.argv) > 1 else "compiles/embedded")
    print("\n".join(made.lines()))
    if made.changed:
        shutil.copy(made.path, PROGRAM)
