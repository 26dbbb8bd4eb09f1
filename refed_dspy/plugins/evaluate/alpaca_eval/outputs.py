"""Reading what models answered, as AlpacaEval's code takes it: `instruction`, `output` and the `generator`'s name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.read import rows_of
from refed_dspy.errors import ConfigError, ReferencesError, one_line
from refed_dspy.files import as_path
from refed_dspy.records import digest_of

FILE = "model_outputs.json"
"""What `refed evaluate answers --format alpaca_eval` writes."""


@dataclass(frozen=True)
class ModelOutputs:
    """One model's answers. `name` is the source as it was named; each of the `rows` has the `generator`'s name."""

    name: str
    generator: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def instructions(self) -> list[str]:
        """Each once: instructions are what rows are matched by."""
        return [row["instruction"] for row in self.rows]

    @property
    def identity(self) -> str:
        """A digest of what is judged."""
        return digest_of([row["instruction"], row["output"]] for row in self.rows)


def read_outputs(source: Any, noun: str) -> ModelOutputs:
    """The answers in `source`: a JSON, JSONL, CSV or Parquet file, a folder or result of `answer_prompts`, or a list of
    mappings. `noun` names it in messages.

    Raises:
        ReferencesError: it cannot be read, has no rows, or one without an instruction or an output.
        ConfigError: it has the answers of several models, or two to one instruction.
    """
    source = as_path(source)
    if isinstance(source, str | Path) and Path(source).is_dir():
        source = Path(source) / FILE
        if not source.is_file():
            raise ReferencesError(f"{noun}: {source.parent} has no {FILE}; make it with --format alpaca_eval")
    name, rows = rows_of(source, noun)
    read = [_row(f"{name} row {number}", row) for number, row in rows]
    if not read:
        raise ReferencesError(f"{name}: no rows; pass a model's outputs")
    generators = {one_line(row.get("generator") or "", 100) for row in read} - {""}
    if len(generators) > 1:
        several = ", ".join(sorted(generators)[:3])
        raise ConfigError(f"{noun}: {name} has outputs of several models ({several}); pass one model's")
    generator = next(iter(generators), Path(name).stem)
    _check_once(noun, name, read)
    return ModelOutputs(name, generator, [_as_read(row, generator) for row in read])


def check_matching(outputs: ModelOutputs, baseline: ModelOutputs) -> int:
    """How many instructions both have: so many comparisons there are. Raises ConfigError where there are none."""
    common = len({*outputs.instructions} & {*baseline.instructions})
    if not common:
        raise ConfigError(
            f"baseline: {baseline.name} answers none of the instructions of {outputs.name}; pass the answers of "
            "another model to the same prompts, word for word"
        )
    return common


def _row(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    for column in ("instruction", "output"):
        if not isinstance(row.get(column), str):
            raise ReferencesError(f"{where}: no text in {column}; AlpacaEval's rows have instruction and output")
    if not row["instruction"].strip():
        raise ReferencesError(f"{where}: its instruction is empty; remove the row")
    return row


def _as_read(row: Mapping[str, Any], generator: str) -> Mapping[str, Any]:
    """What AlpacaEval's code reads of a row: other columns change nothing, and may be of any type."""
    dataset = {"dataset": row["dataset"]} if isinstance(row.get("dataset"), str) else {}
    return {"instruction": row["instruction"], "output": row["output"], "generator": generator, **dataset}


def _check_once(noun: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for an instruction that comes twice: each answer to it would meet each of the other model."""
    seen: set[str] = set()
    for row in rows:
        if row["instruction"] in seen:
            raise ConfigError(f"{noun}: {name} answers {one_line(row['instruction'], 60)!r} twice; keep one answer")
        seen.add(row["instruction"])
