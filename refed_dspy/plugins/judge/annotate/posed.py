"""The pairs of answers for people to compare: of a run, a comparison, or any data set with two answers a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import OnDisk, load_dataset
from refed_dspy.data.pairs import posed_pair, texts_id
from refed_dspy.data.read import rows_of
from refed_dspy.data.sources import as_trained
from refed_dspy.data.stored import json_lines, read_json, work_in
from refed_dspy.data.verdicts import PosedPair
from refed_dspy.errors import ConfigError, ReferencesError, RunDirError, one_line
from refed_dspy.ledger.connection import FILE
from refed_dspy.records import DataRow, under_system

_ROWS, _FIGURES = "rows.jsonl", "comparison.json"
"""The files of a comparison: a row for each instruction and program; its figures."""
IMPROVED, PLAIN = "improved", "plain"
"""What the two answers of a run's rows are called; with the model that wrote each, where it is known."""


def posed_pairs(
    source: Any, columns: Mapping[str, str] | None = None, between: Sequence[str] | None = None
) -> OnDisk[PosedPair]:
    """Every pair of two different answers in `source`, each once. `columns`, `between`: as `annotate` takes them.

    Raises ConfigError, ReferencesError, RunDirError: it has none, or cannot be read; one line.
    """
    folder = Path(source) if isinstance(source, str | Path) and _is_comparison(source) else None
    if folder is None and between is not None:
        raise ConfigError(f"between: {one_line(source, 100)} is no comparison's folder; leave it out")
    every = _of_comparison(folder, between) if folder is not None else _of_data(source, dict(columns or {}))
    seen, posed = set[str](), OnDisk[PosedPair]()
    for pair in every:
        if pair.id not in seen and pair.answer_a.strip() != pair.answer_b.strip():
            seen.add(pair.id)
            posed.append(pair)
    if not posed:
        raise ReferencesError(f"{one_line(source, 200)}: no row with two different answers, so nothing to compare")
    return posed


def _is_comparison(source: str | Path) -> bool:
    try:
        return (Path(source) / FILE).is_file() and work_in(Path(source)) == "comparison"
    except (OSError, ValueError):  # a name that no file can have
        return False


def _of_comparison(folder: Path, between: Sequence[str] | None) -> Iterator[PosedPair]:
    """The answers of every other program beside those of the one that the comparison is against, or of two programs."""
    if not (folder / _ROWS).is_file():
        raise RunDirError(f"{folder}: no {_ROWS} yet; run the comparison to its end first")
    figures = read_json(folder / _FIGURES)
    against = figures.get("against", "")
    programs = [line["program"] for line in figures.get("programs", ())]
    if between is not None and (len({*between}) != 2 or not {*between} <= {*programs}):
        raise ConfigError(f"between: must be two of the comparison's programs: {one_line(', '.join(programs), 200)}")
    for _, rows in groupby(json_lines(folder / _ROWS), lambda row: (row["reference"], row["instruction"])):
        answers = {row["program"]: row for row in rows}
        for a, b in [between] if between else [(name, against) for name in answers]:
            if a != b and a in answers and b in answers:
                yield _pair(
                    under_system(answers[a]["instruction"], answers[a].get("system") or ""),
                    (a, answers[a]["improved_response"]),
                    (b, answers[b]["improved_response"]),
                )


def _of_data(source: Any, columns: Mapping[str, str]) -> Iterator[PosedPair]:
    """Rows with two answers by name (`answer_a` and `answer_b`, …); else what rows were improved to, beside what they
    were."""
    if not columns and (pairs := _already_pairs(source)) is not None:
        yield from pairs
        return
    for row in load_dataset(source, columns).rows:
        before = row.plain if row.plain is not None else as_trained(row)["response"]
        if before:
            yield _pair(
                row.posed,
                (_written(IMPROVED, row, "teacher"), row.response),
                (_written(PLAIN, row, "response_teacher"), before),
            )


def _already_pairs(source: Any) -> Iterator[PosedPair] | None:
    """The pairs of a file or a list whose first row has two answers by name; None for any other source."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return None
    name, rows = rows_of(source, "source")
    first = next(iter(rows := iter(rows)), None)
    if first is None or posed_pair(first[1], f"{name} row {first[0]}") is None:
        return None
    return _all_pairs(name, chain([first], rows))


def _all_pairs(name: str, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[PosedPair]:
    for number, row in rows:
        where = f"{name} row {number}"
        if (pair := posed_pair(row, where)) is None:
            raise ReferencesError(f"{where}: has no two answers, as the rows before it do; fix it or remove the row")
        yield pair


def _written(what: str, row: DataRow, column: str) -> str:
    model = row.fields.get(column)
    return f"{what} by {one_line(model, 100)}" if isinstance(model, str) and model else what


def _pair(instruction: str, a: tuple[str, str], b: tuple[str, str]) -> PosedPair:
    """`a`, `b`: the system that wrote each answer, and the answer."""
    (system_a, answer_a), (system_b, answer_b) = a, b
    return PosedPair(
        id=texts_id(instruction, answer_a, answer_b),
        instruction=instruction,
        answer_a=answer_a,
        answer_b=answer_b,
        system_a=system_a,
        system_b=system_b,
    )
