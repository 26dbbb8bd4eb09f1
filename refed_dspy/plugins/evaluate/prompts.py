"""Reading a file of prompts that a model is to answer, one instruction a row, word for word as the file has it; and a
file of answers to them, an arm of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.config.base import ASKED
from refed_dspy.data.read import read_rows, rows_of
from refed_dspy.data.references import check_roles
from refed_dspy.errors import ConfigError, ReferencesError, one_line
from refed_dspy.files import as_path
from refed_dspy.text import counted

COLUMNS = ("instruction", "prompt", "question")
"""The columns in which an instruction is looked for, as AlpacaEval, Arena-Hard, IFEval and others name them."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `number` counts the rows from 1 (of JSONL, the lines); `text` is all that the model is asked, not
    even stripped, since benchmarks find an answer by its prompt; `system` is the system prompt, or empty; `fields` is
    the row as it was read."""

    number: int
    text: str
    system: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file in their order. `name` is the source as it was named."""

    name: str
    rows: Sequence[Prompt]


def load_prompts(source: Any, columns: Mapping[str, str] | None = None, system: str = "") -> PromptFile:
    """The prompts of `source`: a JSONL, JSON, CSV or Parquet file, a Hub data set's name, or a list of mappings.

    Args:
        columns: column names that differ from the usual ones: {"instruction": …, "input": …, "system": …}. An `input`
            that a row has is appended to its instruction.
        system: the system prompt of rows that have none.

    Raises:
        ConfigError: `columns` has an unknown key.
        ReferencesError: the source cannot be read, has no instructions, or lacks the one of a row.
    """
    columns = dict(columns or {})
    check_roles(columns, ASKED)
    name, rows = rows_of(as_path(source), "prompts")
    read = [*rows]
    if not read:
        raise ReferencesError(f"{name}: no rows; write one instruction per row")
    asked = (columns["instruction"],) if "instruction" in columns else COLUMNS
    if not any(column in row for _, row in read for column in asked):
        raise ReferencesError(_no_instructions(name, asked, read))
    return PromptFile(name, [*_prompts(name, read, asked, columns, system)])


def _prompts(
    name: str,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    asked: Sequence[str],
    columns: Mapping[str, str],
    system: str,
) -> Iterator[Prompt]:
    for number, row in rows:
        column = next((column for column in asked if column in row), asked[0])
        where = f"{name} row {number}"
        text = _text(row, column, where)
        if not text.strip():
            raise ReferencesError(
                f"{where}: no instruction (column {one_line(column, 40)}); write one or remove the row"
            )
        if extra := _text(row, columns.get("input", "input"), where).strip():
            text = f"{text.strip()}\n\n{extra}"
        yield Prompt(number, text, _text(row, columns.get("system", "system"), where).strip() or system, row)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column; empty where it has none. Raises ReferencesError for what no model can receive."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ReferencesError(f"{where}: {one_line(column, 40)} is a {type(value).__name__}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ReferencesError(f"{where}: {one_line(column, 40)} is broken text: half a character in it") from None
    return value


def _no_instructions(name: str, asked: Sequence[str], rows: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    there = dict.fromkeys(str(column) for _, row in rows for column in row)
    listed = one_line(", ".join([*there][:12]), 200) or "none"
    return (
        f"{name}: no instructions: none of its rows has {' or '.join(one_line(column, 40) for column in asked)}; its "
        f"columns are {listed}; name the right one in a --config file, or in Python: `columns: {{instruction: …}}`"
    )


# --- answers


def answers_by(key: str, path: Path, wanted: Sequence[str], fewer: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """What is in the column `key` → the place of a row, for messages, and the row: in the order of `wanted`, which must
    all be there. Answers to anything else are left out; `fewer` says how to do with fewer.

    Raises:
        ReferencesError: the file cannot be read.
        ConfigError: it has two answers to one of them, or none to some.
    """
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    known = {*wanted}
    for number, row in read_rows(path):
        where, value = f"{one_line(path, 120)} row {number}", row.get(key)
        if not isinstance(value, str) or value not in known:
            continue
        if value in found:
            raise ConfigError(f"{where}: a second answer to {one_line(value, 60)}; remove one")
        found[value] = where, row
    if missing := [one_line(each, 60) for each in wanted if each not in found]:
        raise ConfigError(
            f"{one_line(path, 120)}: {len(missing)} of {counted(len(wanted), 'question')} have no answer, {missing[0]} "
            f"first; answer them, or {fewer}"
        )
    return {each: found[each] for each in wanted}


def check_told_apart(arms: Sequence[str]) -> None:
    """Raises ConfigError unless there are arms, and no two of one name."""
    if not arms:
        raise ConfigError("answers: none are named; name a file or folder with --answers")
    if twice := next((name for name in arms if arms.count(name) > 1), None):
        raise ConfigError(f"answers: two are named {one_line(twice, 60)}; arms are told apart by name: rename one")
