"""AlpacaEval's files: what models answered (`instruction`, `output` and the `generator`'s name), and what its code
writes: a judge's preference for each instruction, and its own figures."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refed_dspy.data.read import rows_of
from refed_dspy.errors import ConfigError, ReferencesError, one_line
from refed_dspy.files import as_path, read_bytes
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.metrics.win_rates import LengthControlled, Preferences, length_controlled, preferences, win_rate
from refed_dspy.records import digest_of
from refed_dspy.text import NO_VALUE, format_number, table_lines

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
    read = []
    for number, row in rows:
        for column in ("instruction", "output"):
            if not isinstance(row.get(column), str):
                where = f"{name} row {number}"
                raise ReferencesError(f"{where}: no text in {column}; AlpacaEval's rows have instruction and output")
        if not row["instruction"].strip():
            raise ReferencesError(f"{name} row {number}: its instruction is empty; remove the row")
        read.append(row)
    if not read:
        raise ReferencesError(f"{name}: no rows; pass a model's outputs")
    generators = {one_line(row.get("generator") or "", 100) for row in read} - {""}
    if len(generators) > 1:
        several = ", ".join(sorted(generators)[:3])
        raise ConfigError(f"{noun}: {name} has outputs of several models ({several}); pass one model's")
    (asked, times), *_ = Counter(row["instruction"] for row in read).most_common(1)
    if times > 1:  # each answer to it would meet each of the other model
        raise ConfigError(f"{noun}: {name} answers {one_line(asked, 60)!r} twice; keep one answer")
    generator = next(iter(generators), Path(name).stem)
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


def _as_read(row: Mapping[str, Any], generator: str) -> Mapping[str, Any]:
    """What AlpacaEval's code reads of a row: other columns change nothing, and may be of any type."""
    dataset = {"dataset": row["dataset"]} if isinstance(row.get("dataset"), str) else {}
    return {"instruction": row["instruction"], "output": row["output"], "generator": generator, **dataset}


# --- what its code writes


@dataclass(frozen=True)
class Annotations:
    """The comparisons of one model with its baseline: preferences as AlpacaEval has them (`metrics.win_rates`), and how
    much longer the model's answer is, in characters. Comparisons without a preference are only counted."""

    model: str
    baseline: str
    given: Sequence[float]
    longer: Sequence[int] | None
    """None where lengths are not known."""
    unjudged: int = 0

    @property
    def wins(self) -> list[float]:
        """From 0 (lost) to 1 (won)."""
        return [0.5 if each == 0 else each - 1 for each in self.given]

    @cached_property
    def figures(self) -> Preferences:
        return preferences(self.given)

    @cached_property
    def interval(self) -> Interval:
        """The win rate in percent with its 95% interval."""
        return win_rate(self.wins)

    @cached_property
    def controlled(self) -> LengthControlled | None:
        """The win rate at equal length by our own fit; None where lengths are not known."""
        return None if self.longer is None else length_controlled(self.wins, self.longer)


def read_annotations(file: Path) -> list[Annotations]:
    """The annotations in `file`: a list of comparisons, as AlpacaEval's `annotations.json` is; or a mapping from a
    model's name to `rows` of them, where lengths may stand in `len_model` and `len_baseline`.

    Raises ReferencesError: it cannot be read, or has a row without a preference or none that was judged.
    """
    try:
        read = json.loads(read_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        why = one_line(getattr(error, "strerror", "") or error, 100)
        raise ReferencesError(f"{one_line(file, 200)}: cannot be read as annotations: {why}") from None
    if isinstance(read, list):
        return [_annotations(str(file), file.stem, read)]
    models = read.items() if isinstance(read, dict) else ()
    rows = {
        name: model["rows"] for name, model in models if isinstance(model, dict) and isinstance(model.get("rows"), list)
    }
    if not rows:
        raise ReferencesError(f"{one_line(file, 200)}: no annotations; AlpacaEval's code writes a list of comparisons")
    return [_annotations(f"{file}: {one_line(name, 60)}", name, each) for name, each in rows.items()]


def official_figures(leaderboard: Path) -> dict[str, float]:
    """The figures that AlpacaEval's code computed, of the one model in its `leaderboard.csv`; the standard error of a
    single preference is NaN. Raises OSError, KeyError or ValueError for another file."""
    with leaderboard.open(encoding="utf-8", newline="") as opened:
        (row,) = csv.DictReader(opened)
    names = ("win_rate", "standard_error", "n_total", "length_controlled_winrate", "lc_standard_error")
    cells = {name: row[name] for name in names if name in row or name in names[:3]}
    # pandas writes NaN as an empty cell
    return {name: float(cell or ("nan" if name.endswith("error") else "")) for name, cell in cells.items()}


def annotation_lines(found: Iterable[Annotations]) -> list[str]:
    """A table of figures, a line for each model."""
    rows = [["model", "n", "win rate %", "standard error", "95% interval", "length-controlled % (our fit)"]]
    for each in found:
        interval, controlled = each.interval, each.controlled
        at_equal = controlled.interval if controlled is not None else None
        rows.append(
            [
                one_line(each.model, 60),
                str(each.figures.n),
                f"{each.figures.win_rate:.2f}",
                format_number(each.figures.standard_error),
                f"{interval.low:.1f} to {interval.high:.1f}",
                NO_VALUE if at_equal is None else str(at_equal),
            ]
        )
    return table_lines(rows)


def _annotations(where: str, name: str, rows: Sequence[Any]) -> Annotations:
    judged = []
    for number, row in enumerate(rows, start=1):
        preference = row.get("preference", "") if isinstance(row, Mapping) else ""
        if preference is not None and not isinstance(preference, int | float):
            raise ReferencesError(f"{where} row {number}: no preference; AlpacaEval's annotations have one each")
        if preference is not None and not math.isnan(preference) and (preference == 0 or 1 <= preference <= 2):
            judged.append((float(preference), row))
    if not judged:
        raise ReferencesError(f"{where}: no comparison has a preference from 1 to 2")
    longer = [_longer(row) for _, row in judged]
    known = [each for each in longer if each is not None]
    first = judged[0][1]
    return Annotations(
        one_line(first.get("generator_2") or name, 100),
        one_line(first.get("generator_1") or "baseline", 100),
        [preference for preference, _ in judged],
        known if len(known) == len(judged) else None,
        len(rows) - len(judged),
    )


def _longer(row: Mapping[str, Any]) -> int | None:
    """How many characters the model's answer is longer than the baseline's, where the row tells."""
    lengths = [
        len(text) if isinstance(text := row.get(answer), str) else row.get(length)
        for answer, length in (("output_2", "len_model"), ("output_1", "len_baseline"))
    ]
    model, baseline = lengths
    return model - baseline if isinstance(model, int) and isinstance(baseline, int) else None
