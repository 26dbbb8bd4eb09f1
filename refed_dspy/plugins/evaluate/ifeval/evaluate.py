"""IFEval: check answers with the official checker, as lm-eval has it. Nobody is asked, and nothing is paid for."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.read import read_rows
from refed_dspy.data.stored import EVALUATION, TABLE
from refed_dspy.errors import ConfigError, InputError, RunDirError, RunStopped, briefly, one_line
from refed_dspy.files import as_export_error, as_path, check_outputs, read_bytes, write_json, write_lines, write_text
from refed_dspy.ledger.connection import FILE
from refed_dspy.plugins.evaluate.ifeval.result import Accuracies, Accuracy, accuracy
from refed_dspy.plugins.evaluate.judged import overlap_with
from refed_dspy.plugins.evaluate.program import LM_EVAL, Command, Installed, environment, run_command
from refed_dspy.plugins.evaluate.prompts import answers_by, check_told_apart
from refed_dspy.plugins.evaluate.settings import IFEvalConfig
from refed_dspy.plugins.evaluate.tracked import track_evaluation

if TYPE_CHECKING:
    from refed_dspy.keywords import IFEvalKeywords

LOG = "ifeval.log"
NAME = "ifeval"
_MODELS = "NLTK_DATA"
"""The variable that names the folders with NLTK's models. Unset, they go beside the code, not into a person's home."""
RESPONSES = "responses.jsonl"
"""The file that `refed evaluate answers --format ifeval` writes into its folder."""
_INPUT = "the official one is input_data.jsonl of google-research's instruction_following_eval"


@briefly
@with_keywords(IFEvalConfig)
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
    check_told_apart([arm.name for arm in arms])
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


# --- the prompts and the responses


@dataclass(frozen=True)
class IFEvalArm:
    """A model's `responses`, one for each prompt, in their order."""

    name: str
    responses: Sequence[str]


def load_instructions(path: Path) -> list[Mapping[str, Any]]:
    """The prompts, each with `key`, `prompt`, `instruction_id_list`, and `kwargs` for each instruction.

    Raises:
        ReferencesError: the file cannot be read.
        ConfigError: a row is no such prompt, or a prompt comes twice.
    """
    prompts: dict[str, Mapping[str, Any]] = {}
    for number, row in read_rows(path):
        where = f"{one_line(path, 120)} row {number}"
        if not _is_prompt(row):
            raise ConfigError(
                f"{where}: needs key, prompt, instruction_id_list, and kwargs for each instruction; {_INPUT}"
            )
        if row["prompt"] in prompts:
            raise ConfigError(f"{where}: the prompt was there before; remove one, since responses are found by prompt")
        prompts[row["prompt"]] = {name: row[name] for name in ("key", "prompt", "instruction_id_list", "kwargs")}
    if not prompts:
        raise ConfigError(f"{one_line(path, 120)}: no prompts; {_INPUT}")
    return [*prompts.values()]


def _is_prompt(row: Mapping[str, Any]) -> bool:
    named, settings = row.get("instruction_id_list"), row.get("kwargs")
    lists = isinstance(named, list) and isinstance(settings, list) and len(named) == len(settings) > 0
    return lists and isinstance(row.get("prompt"), str) and "key" in row


def load_responses(prompts: Sequence[Mapping[str, Any]], source: Path) -> IFEvalArm:
    """The responses in `source`: rows with `prompt` and `response`, or a folder of `refed evaluate answers`. The arm is
    named after the file or the folder.

    Raises:
        ReferencesError: it cannot be read.
        ConfigError: a row is no response to one of the `prompts`, one comes twice, or some have none.
    """
    path = source / RESPONSES if source.is_dir() else source
    if source.is_dir() and not path.is_file():
        raise ConfigError(f"answers: {one_line(source, 120)} has no {RESPONSES}; write it with --format ifeval")
    rows = answers_by("prompt", path, [row["prompt"] for row in prompts], "pass a prompt file without them")
    for where, row in rows.values():
        if not isinstance(row.get("response"), str):
            raise ConfigError(f"{where}: has no response; write it with --format ifeval")
    name = source.resolve().name if source.is_dir() else source.stem
    return IFEvalArm(name, [row["response"] for _, row in rows.values()])


# --- the checker at work


async def check(
    installed: Installed, log: Path, prompts: Sequence[Mapping[str, Any]], arms: Sequence[IFEvalArm]
) -> list[Accuracy]:
    """The accuracies of `arms`, whose responses are in the order of the `prompts`. What the checker prints goes to
    `log`.

    Raises:
        ConfigError: a prompt has an instruction that the checker does not know.
        InputError: NLTK's sentence model is missing.
        RunStopped: the checker failed.
    """
    with tempfile.TemporaryDirectory(prefix="refed-ifeval-") as name:
        folder = Path(name)
        asked, results = folder / "questions.jsonl", folder / "results.jsonl"
        pairs = (
            {"doc": prompt, "response": each}
            for arm in arms
            for prompt, each in zip(prompts, arm.responses, strict=True)
        )
        write_lines(asked, pairs)
        models = os.environ.get(_MODELS) or _beside(installed)
        # A copy: the modules beside it would hide others of the same names.
        script = shutil.copy(Path(__file__).with_name("check.py"), folder)
        arguments = [str(script), str(asked), str(results)]
        await run_command(Command(NAME, installed.python, arguments, folder, log, {_MODELS: models}))
        rows = [json.loads(line) for line in read_bytes(results).splitlines()]
    _check_not_refused(rows)
    if len(rows) != len(prompts) * len(arms):
        raise RunStopped(f"{NAME}: the checker answered {len(rows)} of {len(prompts) * len(arms)}; its log: {log}")
    by_arm = [rows[start : start + len(prompts)] for start in range(0, len(rows), len(prompts))]
    return [
        accuracy(arm.name, [row["strict"] for row in of_arm], [row["loose"] for row in of_arm])
        for arm, of_arm in zip(arms, by_arm, strict=True)
    ]


def _beside(installed: Installed) -> str:
    """The folder for models beside the checker's code, made if it can be: NLTK downloads into one that is there."""
    folder = installed.folder.parent / "nltk_data"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
    return str(folder)


def _check_not_refused(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises what the checker refused, if it did."""
    refused = next((row for row in rows if "refused" in row), None)
    if refused is None:
        return
    if refused["refused"] == "sentences":
        raise InputError(
            "ifeval: NLTK's sentence model punkt_tab is not there and could not be downloaded; put it into a folder as "
            f"tokenizers/punkt_tab/english, and name that folder in {_MODELS}"
        )
    raise ConfigError(one_line(refused["refused"], 250))
