"""Pairs of answers with the verdict of people: judges are measured against them and tuned on them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from refed_dspy.data.read import read_rows
from refed_dspy.errors import ConfigError, ReferencesError, one_line
from refed_dspy.records import Record

SHAPES = {
    "refed": ("instruction", "answer_a", "answer_b", "preferred"),
    "LLMBar": ("input", "output_1", "output_2", "label"),
    "PandaLM": ("instruction", "response1", "response2", "annotator1", "annotator2", "annotator3"),
}
"""The shapes that `load_pairs` reads, with the columns that each must have."""

_PREFERRED = {"a": 1.0, "b": -1.0, "tie": 0.0}
_NUMBERED = {"1": 1.0, "2": -1.0, "0": 0.0}


def _is_verdict(value: float) -> float:
    if value not in (1, 0, -1):
        raise ValueError("must be 1 (A is preferred), 0 (a tie) or -1 (B)")
    return value


class Pair(Record):
    """Two answers to one instruction, and which of them people prefer.

    `verdict`: 1 for A, 0 for a tie, -1 for B. `criterion` is what they judged by and `description` what it means; both
    are empty where they judged the answers' overall quality. An answer may be empty: some models answer nothing.
    """

    instruction: str = Field(min_length=1)
    answer_a: str
    answer_b: str
    verdict: Annotated[float, AfterValidator(_is_verdict)]
    criterion: str = ""
    description: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits of what a judge sees, so of everything but the verdict."""
        seen = (self.instruction, self.answer_a, self.answer_b, self.criterion, self.description)
        return sha256("\0".join(seen).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def load_pairs(source: str | Path) -> list[Pair]:
    """The pairs of `source`: a JSON or JSONL file, or any other source that references are read from.

    There are three shapes, and a file may mix them: {instruction, answer_a, answer_b, preferred: A, B or tie}, with an
    optional criterion and its description; LLMBar's {input, output_1, output_2, label}; PandaLM's {instruction, input,
    response1, response2, annotator1 to 3}, where the majority of annotators decides; without one it is a tie.

    Raises:
        ReferencesError: it cannot be read, a row is not such a pair, or there are no rows; one line names
            file, row and remedy.
    """
    pairs = [_pair(row, f"{source} row {number}") for number, row in read_rows(source)]
    if not pairs:
        raise ReferencesError(f"{source}: no rows; write one pair per row, with {_columns('refed')}")
    return pairs


def sample_pairs(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """`count` of `pairs`, or all where there are fewer, drawn without replacement. The same seed draws the same.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"count: {count} pairs cannot be drawn; set 1 or more")
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    shape = next((name for name, columns in SHAPES.items() if all(column in row for column in columns)), None)
    if shape is None:
        columns = one_line(", ".join(map(str, row)), 120) or "none"
        needed = "; or ".join(map(_columns, SHAPES))
        raise ReferencesError(f"{where}: its columns are {columns}; a pair needs {needed}")
    instruction, answer_a, answer_b = (_text(row, name, where) for name in SHAPES[shape][:3])
    if shape == "PandaLM":
        instruction = "\n\n".join(filter(None, (instruction, _text(row, "input", where, optional=True))))
    criterion, description = (
        _text(row, name, where, optional=True) if shape == "refed" else "" for name in ("criterion", "description")
    )
    if description and not criterion:
        raise ReferencesError(f"{where}: a description without a criterion; add the criterion's name")
    if not instruction:
        raise ReferencesError(f"{where}: the instruction is empty; add one or remove the row")
    return Pair(
        instruction=instruction,
        answer_a=answer_a,
        answer_b=answer_b,
        verdict=_verdict(row, shape, where),
        criterion=criterion,
        description=description,
    )


def _columns(shape: str) -> str:
    return ", ".join(SHAPES[shape])


def _text(row: Mapping[str, Any], name: str, where: str, optional: bool = False) -> str:
    value = row.get(name)
    if value is None:
        if optional:
            return ""
        raise ReferencesError(f"{where}: {name} is missing; add it or remove the row")
    if isinstance(value, bool | int | float):
        # Four of PandaLM's answers are a bare `true`: the file's writer took the answer "True" for a value.
        value = str(value)
    if not isinstance(value, str):
        raise ReferencesError(f"{where}: {name} is a {type(value).__name__}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: no provider can receive it
        raise ReferencesError(f"{where}: {name} is not valid text; fix it or remove the row") from None
    return value.strip()


def _verdict(row: Mapping[str, Any], shape: str, where: str) -> float:
    if shape == "refed":
        return _looked_up(row, "preferred", _PREFERRED, "A, B or tie", where)
    if shape == "LLMBar":
        decided = {key: value for key, value in _NUMBERED.items() if value}
        return _looked_up(row, "label", decided, "1 or 2", where)
    names = SHAPES[shape][3:]
    verdicts = Counter(_looked_up(row, name, _NUMBERED, "0 (a tie), 1 or 2", where) for name in names)
    verdict, count = verdicts.most_common(1)[0]
    return verdict if count > len(names) / 2 else 0.0


def _looked_up(row: Mapping[str, Any], name: str, verdicts: Mapping[str, float], allowed: str, where: str) -> float:
    value = str(row[name]).strip().casefold()
    if value not in verdicts:
        raise ReferencesError(f"{where}: {name} is {one_line(row[name], 40)}; it must be {allowed}")
    return verdicts[value]
