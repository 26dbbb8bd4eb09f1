"""The checker at work: `check.py` in an environment that has lm-eval."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from refed_dspy.errors import ConfigError, InputError, RunStopped, one_line
from refed_dspy.files import read_bytes, write_lines
from refed_dspy.plugins.evaluate.environment import Installed
from refed_dspy.plugins.evaluate.ifeval.accuracy import Accuracy, accuracy
from refed_dspy.plugins.evaluate.ifeval.files import Arm
from refed_dspy.plugins.evaluate.program import Program, run_program

NAME = "ifeval"
_MODELS = "NLTK_DATA"
"""The variable that names the folders with NLTK's models. Unset, they go beside the code, not into a person's home."""


async def check(
    installed: Installed, log: Path, prompts: Sequence[Mapping[str, Any]], arms: Sequence[Arm]
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
        await run_program(Program(NAME, installed.python, arguments, folder, log, {_MODELS: models}))
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
