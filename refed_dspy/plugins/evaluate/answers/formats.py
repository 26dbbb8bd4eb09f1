"""Answers as the code of benchmarks reads them: AlpacaEval, Arena-Hard, IFEval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.stored import ROWS
from refed_dspy.errors import ConfigError
from refed_dspy.files import write_json, write_lines
from refed_dspy.plugins.evaluate.answers.style import style_of
from refed_dspy.plugins.evaluate.prompts import Prompt, Prompts
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.records import digest

OWN, UNANSWERED = ROWS["answers"], "unanswered.jsonl"
"""What is written in any format."""


@dataclass(frozen=True)
class Answered:
    """A prompt's answer, when it came (seconds since 1970), and whether it was cut at the model's `max_tokens`."""

    prompt: Prompt
    text: str
    created: float
    cut: bool


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's code reads: a `row` for each answer and its generator, in a `file` named so, in which `{}` is
    the generator. `needs`: a column that the prompts must have, or empty."""

    file: str
    row: Callable[[Answered, str], dict[str, Any]]
    needs: str = ""


def file_of(format_: AnswerFormat, generator: str) -> str:
    """The name of the file for a format."""
    return OWN if format_ == "jsonl" else BENCHMARKS[format_].file.format(generator)


def check_format(format_: AnswerFormat, prompts: Prompts, generator: str) -> None:
    """Raises ConfigError where answers to `prompts` cannot be written so."""
    if format_ == "jsonl":
        return
    if file_of(format_, generator) in {OWN, UNANSWERED}:
        raise ConfigError(f"generator: {generator} names a file that is written anyway; choose another name")
    needs = BENCHMARKS[format_].needs
    if needs and (row := next((row for row in prompts.rows if needs not in row.fields), None)):
        raise ConfigError(
            f"format: {format_} needs the column {needs}, which {prompts.name} row {row.number} lacks; pass the "
            "benchmark's own file or choose another format"
        )
    if format_ == "arena_hard":
        style_of("")  # its tokenizer is there, or nothing is paid for


def write_for(format_: AnswerFormat, answers: Sequence[Answered], generator: str, folder: Path) -> None:
    """Write what a benchmark's code reads into `folder`, whole or not at all. Raises ExportError."""
    if format_ == "jsonl":
        return
    path, row = folder / file_of(format_, generator), BENCHMARKS[format_].row
    rows = (row(answered, generator) for answered in answers)
    if path.suffix == ".json":
        write_json(path, [*rows])
    else:
        write_lines(path, rows)


def _alpaca_eval(answered: Answered, generator: str) -> dict[str, Any]:
    return {
        "instruction": answered.prompt.text,
        "output": answered.text,
        "generator": generator,
        "dataset": answered.prompt.fields.get("dataset", ""),
    }


def _arena_hard(answered: Answered, generator: str) -> dict[str, Any]:
    prompt, uid = answered.prompt, answered.prompt.fields["uid"]
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    asked = {"role": "user", "content": prompt.text}
    return {
        "uid": uid,
        "ans_id": digest([generator, uid, answered.text]),
        "model": generator,
        "messages": [*system, asked, {"role": "assistant", "content": {"answer": answered.text}}],
        "tstamp": answered.created,
        "metadata": style_of(answered.text),
    }


def _ifeval(answered: Answered, generator: str) -> dict[str, Any]:  # noqa: ARG001
    return {"prompt": answered.prompt.text, "response": answered.text}


BENCHMARKS = {
    "alpaca_eval": Benchmark("model_outputs.json", _alpaca_eval),
    "arena_hard": Benchmark("{}.jsonl", _arena_hard, needs="uid"),
    "ifeval": Benchmark("responses.jsonl", _ifeval),
}
