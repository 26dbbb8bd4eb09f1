"""Make the pages on which people compare two answers, and the key that says which was whose. The pairs are of a run, a
comparison, or any data set with two answers a row; nothing in a page says which side was whose."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from refed_dspy.config.keywords import Seed, checked
from refed_dspy.data.dataset import OnDisk, load_dataset
from refed_dspy.data.pairs import posed_pair
from refed_dspy.data.read import rows_of
from refed_dspy.data.sources import as_trained, margin_of
from refed_dspy.data.stored import json_lines, read_json, work_in
from refed_dspy.data.verdicts import KEY, NamedCriterion, PagesKey, PosedPair
from refed_dspy.errors import OUT, ConfigError, ExportError, InputError, ReferencesError, RunDirError, briefly, one_line
from refed_dspy.files import as_export_error, as_path, path_of, whole_file, write_text
from refed_dspy.ledger.connection import FILE
from refed_dspy.optimizers.by_people import PAIRS, JudgedPair
from refed_dspy.plugins.share.report.page import Document
from refed_dspy.programs.judges import criterion_named
from refed_dspy.records import DataRow, under_system
from refed_dspy.text import Shown, counted

MOST_ANNOTATORS = 1_000
_ROWS, _FIGURES = "rows.jsonl", "comparison.json"
"""The files of a comparison: a row for each instruction and program; its figures."""
IMPROVED, PLAIN = "improved", "plain"
"""What the two answers of a run's rows are called; with the model that wrote each, where it is known."""
_DOCUMENT = Document(
    "refed_dspy.plugins.judge.annotate", "annotate.html.j2", ("report.css", "annotate.css"), ("page.js", "annotate.js")
)


@dataclass(frozen=True, repr=False)
class Pages(Shown):
    """The pages that were made: `files`, one for each annotator, in `folder`, which holds their key, too."""

    folder: Path
    files: Sequence[Path]
    pairs: int
    criteria: Sequence[str]

    def _describe(self) -> str:
        return f"{counted(len(self.files), 'page')} with {counted(self.pairs, 'pair')} each in {self.folder}"


@briefly
@checked
def annotate(
    source: Any,
    out: str | PathLike[str],
    *,
    pairs: Annotated[int, Field(ge=1)],
    annotators: Annotated[int, Field(ge=1, le=MOST_ANNOTATORS)] = 2,
    criteria: Iterable[str] | Mapping[str, str] = (),
    between: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    seed: Seed = 0,
) -> Pages:
    """Make a page for each annotator, on which they say which of two answers is better: files that load nothing.

    All pages have the same pairs. Their order and which answer stands left are drawn for each page. `load_pairs(out)`
    reads the verdicts, once the files that the annotators downloaded are in the folder.

    Args:
        source: a run, a filtering or a recycling, or any data set that `load_dataset` reads, whose improved responses
            are compared with the plain ones; a comparison, whose programs are compared with the one it is against; a
            compile, whose proof has answers of the compiled and the uncompiled program; a file or a list of pairs in a
            shape that `load_pairs` reads, whatever was said of them.
        out: the folder to create. Nothing in it is ever replaced.
        pairs: how many pairs, drawn with `seed`.
        annotators: how many people.
        criteria: names of criteria, or names and what they mean: both answers are graded by each, from 1 to 5. The
            package's own criteria need no meaning.
        between: the two programs of a comparison to compare.
        columns: as `load_dataset` takes it.

    Raises:
        ConfigError: there are fewer pairs, or an argument that cannot be used.
        ReferencesError, RunDirError: the source cannot be read, or has no two answers to compare.
        ExportError: `out` has files in it, or cannot be written.
    """
    folder = path_of(out, "out")
    named = _criteria(criteria)
    _check_free(folder)
    source = as_path(source)
    posed = posed_pairs(source, columns, between)
    name = one_line(source, 200) if isinstance(source, str | Path) else "a list"
    if pairs > len(posed):
        there = counted(len(posed), "pair")
        raise ConfigError(
            f"pairs: {name} has {there} of different answers, not {pairs:,}; ask for {len(posed):,} or fewer"
        )
    places = sorted(random.Random(f"pairs {seed}").sample(range(len(posed)), pairs))
    key = _key(name, seed, [posed[place] for place in places], named, annotators)
    return Pages(folder, _written(folder, key), len(key.pairs), [each.name for each in named])


def _criteria(given: Iterable[str] | Mapping[str, str]) -> list[NamedCriterion]:
    """Raises ConfigError for a text in place of a list, an empty name, or one that comes twice."""
    if isinstance(given, str):
        raise ConfigError("criteria: must be a list of names, or a mapping of names to what they mean")
    meanings = given if isinstance(given, Mapping) else None
    found: dict[str, NamedCriterion] = {}
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError("criteria: a name is empty; remove it")
        if meanings and not isinstance(meanings[name], str):
            raise ConfigError(f"criteria: {one_line(name, 60)}: what it means must be a text")
        criterion = criterion_named(name.strip(), meanings[name].strip() if meanings else "")
        if criterion.name in found:
            raise ConfigError(f"criteria: {one_line(criterion.name, 60)} is there twice; remove one")
        found[criterion.name] = NamedCriterion(name=criterion.name, description=criterion.description)
    return list(found.values())


def _check_free(folder: Path) -> None:
    """Raises ExportError unless there is no such folder, or nothing in it: verdicts might be."""
    try:
        if folder.exists() and (not folder.is_dir() or next(folder.iterdir(), None) is not None):
            raise ExportError(f"{one_line(folder, 200)}: already exists; choose another folder with " + OUT)
    except (OSError, ValueError) as error:
        raise InputError(f"out: {one_line(folder, 200)} cannot be used: {one_line(error, 100)}") from None


def _key(
    source: str, seed: int, pairs: Sequence[PosedPair], criteria: Sequence[NamedCriterion], annotators: int
) -> PagesKey:
    """The key, with the sides drawn for each page."""
    exchanged = {}
    for number in range(1, annotators + 1):
        draw = random.Random(f"sides {seed} {number}")
        exchanged[f"annotator-{number}"] = tuple(pair.id for pair in pairs if draw.random() < 0.5)
    return PagesKey(source=source, seed=seed, pairs=tuple(pairs), criteria=tuple(criteria), exchanged=exchanged)


def _written(folder: Path, key: PagesKey) -> list[Path]:
    """Write the key, then the pages; returns the pages. Raises ExportError."""
    files = [folder / f"{annotator}.html" for annotator in key.exchanged]
    with as_export_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / KEY, [key.model_dump_json(indent=1)])
        for annotator, path in zip(key.exchanged, files, strict=True):
            with whole_file(path) as file:
                file.write(annotator_page(key, annotator, version("refed-dspy")))
    return files


# --- the pairs


def posed_pairs(
    source: Any, columns: Mapping[str, str] | None = None, between: Sequence[str] | None = None
) -> OnDisk[PosedPair]:
    """Every pair of two different answers in `source`, each once. `columns`, `between`: as `annotate` takes them.

    Raises ConfigError, ReferencesError, RunDirError: it has none, or cannot be read; one line.
    """
    work = _work_of(source)
    if work != "comparison" and between is not None:
        raise ConfigError(f"between: {one_line(source, 100)} is no comparison's folder; leave it out")
    pairs = None if columns or work else _already_pairs(source)
    seen, posed = set[str](), OnDisk[PosedPair]()
    for pair in judged_pairs(source, columns, between) if pairs is None else pairs:
        if pair.id not in seen and pair.answer_a.strip() != pair.answer_b.strip():
            seen.add(pair.id)
            posed.append(pair)
    if not posed:
        raise ReferencesError(f"{one_line(source, 200)}: no row with two different answers, so nothing to compare")
    return posed


def judged_pairs(
    source: Any, columns: Mapping[str, str] | None = None, between: Sequence[str] | None = None
) -> Iterator[JudgedPair]:
    """The pairs of a comparison, a compile's proof, or a data set with both responses, with what the judge said of
    each. Raises as `posed_pairs`."""
    match _work_of(source):
        case "comparison":
            return _of_comparison(Path(source), between)
        case "compile":
            return _of_compile(Path(source))
        case _:
            return _of_data(source, dict(columns or {}))


def _work_of(source: Any) -> str:
    """The kind of work in the folder `source`; empty for any other source."""
    try:
        there = isinstance(source, str | Path) and (Path(source) / FILE).is_file()
        return work_in(Path(source)) if there else ""
    except (OSError, ValueError):  # a name that no file can have
        return ""


def _of_compile(folder: Path) -> Iterator[JudgedPair]:
    if not (folder / PAIRS).is_file():
        raise RunDirError(f"{folder}: no {PAIRS}: no judge compared answers in a proof; run the compile to its end")
    try:
        yield from map(JudgedPair.model_validate, json_lines(folder / PAIRS))
    except ValidationError:
        raise RunDirError(f"{folder / PAIRS}: is damaged; run the compile again to write it") from None


def _of_comparison(folder: Path, between: Sequence[str] | None) -> Iterator[JudgedPair]:
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
                yield JudgedPair.of(
                    under_system(answers[a]["instruction"], answers[a].get("system") or ""),
                    (a, answers[a]["improved_response"]),
                    (b, answers[b]["improved_response"]),
                    answers[a]["preference"] if b == against else None,
                    answers[a]["reference"],
                )


def _of_data(source: Any, columns: Mapping[str, str]) -> Iterator[JudgedPair]:
    """What rows were improved to, beside what they were."""
    for row in load_dataset(source, columns).rows:
        before = row.plain if row.plain is not None else as_trained(row)["response"]
        if before:
            yield JudgedPair.of(
                row.posed,
                (_system(IMPROVED, row, "teacher"), row.response),
                (_system(PLAIN, row, "response_teacher"), before),
                margin_of(row),
                str(row.fields.get("reference") or ""),
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


def _system(what: str, row: DataRow, column: str) -> str:
    model = row.fields.get(column)
    return f"{what} by {one_line(model, 100)}" if isinstance(model, str) and model else what


# --- the page of one annotator


def annotator_page(key: PagesKey, annotator: str, version: str) -> bytes:
    """The page as a file's content: the pairs of `key` in an order of the annotator's own."""
    exchanged = frozenset(key.exchanged[annotator])
    shown = [
        {
            "id": pair.id,
            "instruction": pair.instruction,
            "A": pair.answer_b if pair.id in exchanged else pair.answer_a,
            "B": pair.answer_a if pair.id in exchanged else pair.answer_b,
        }
        for pair in key.pairs
    ]
    random.Random(f"order {key.seed} {annotator}").shuffle(shown)
    criteria = [each.model_dump() for each in key.criteria]
    data = {"set": key.set, "annotator": annotator, "criteria": criteria, "pairs": shown}
    return _DOCUMENT.render(version, data=data, annotator=annotator, pairs=len(shown), graded=bool(criteria))
