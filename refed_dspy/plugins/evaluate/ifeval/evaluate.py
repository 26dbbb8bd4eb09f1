"""IFEval: check answers with the official checker, as lm-eval has it. Nobody is asked, and nothing is paid for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.stored import EVALUATION, TABLE
from refed_dspy.errors import ConfigError, RunDirError, briefly, one_line
from refed_dspy.files import as_export_error, as_path, check_outputs, write_json, write_text
from refed_dspy.ledger.connection import FILE
from refed_dspy.plugins.evaluate.environment import LM_EVAL, environment
from refed_dspy.plugins.evaluate.facts import overlap_with
from refed_dspy.plugins.evaluate.ifeval.checker import check
from refed_dspy.plugins.evaluate.ifeval.files import Arm, load_instructions, load_responses
from refed_dspy.plugins.evaluate.ifeval.result import Accuracies
from refed_dspy.plugins.evaluate.settings import IFEvalConfig
from refed_dspy.plugins.evaluate.tracked import track_evaluation

LOG = "ifeval.log"


class IFEvalKeywords(TypedDict, total=False):
    """The keys of `IFEvalConfig` that `ifeval` takes besides its own."""

    environment: str | Path | None
    track: bool | None


@briefly
@with_keywords(IFEvalConfig, IFEvalKeywords)
def ifeval(
    prompts: str | Path,
    answers: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | Path,
    *,
    data: Any = None,
    **settings: Unpack[IFEvalKeywords],
) -> Accuracies:
    """Check whether models' answers follow IFEval's instructions, by its strict and its loose reading.

    The checker runs in an environment of its own, which is made at the first call, and then downloads a sentence model
    of NLTK's once.

    The other keywords are settings of `IFEvalConfig`.

    Args:
        prompts: the benchmark's `input_data.jsonl`: it is not shipped.
        answers: a file of rows with `prompt` and `response`, a folder of `refed evaluate answers --format ifeval`, or
            a list of such. Each is an arm, named after its file or folder.
        out: the folder for the figures.
        data: what the model was trained on, as `load_dataset` takes it; the result says what of it overlaps with the
            prompts. None: nothing is said of it.

    Raises:
        InputError: an argument cannot be used.
        RunStopped: the checker failed.
    """
    config = check_config(IFEvalConfig, settings)
    source = Path(as_path(prompts))
    rows = load_instructions(source)
    files = [Path(as_path(one)) for one in ([answers] if isinstance(answers, str | PathLike) else answers)]
    arms = [load_responses(rows, file) for file in files]
    _check_names(arms)
    found = overlap_with(data, [row["prompt"] for row in rows])
    folder = Path(out)
    if (folder / FILE).exists():
        raise RunDirError(f"{folder}: contains paid work; choose another folder")
    check_outputs(folder, [EVALUATION, TABLE], EVALUATION, source, *files)
    installed = environment(LM_EVAL, config.environment)
    with as_export_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    made = Accuracies(
        out=folder,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        checker=f"{LM_EVAL.name} {installed.version}",
        prompts=len(rows),
        instructions=sum(len(row["instruction_id_list"]) for row in rows),
        arms=run_blocking(check(installed, folder / LOG, rows, arms)),
        overlap=found,
    )
    write_json(folder / EVALUATION, made.facts())
    write_text(folder / TABLE, made.lines())
    track_evaluation(folder, config.track)
    return made


def _check_names(arms: Sequence[Arm]) -> None:
    """Raises ConfigError unless there are arms, which can be told apart."""
    if not arms:
        raise ConfigError("answers: none are named; name a file or folder with --answers")
    names = [arm.name for arm in arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"answers: two are named {one_line(twice, 60)}; arms are told apart by name: rename one")
