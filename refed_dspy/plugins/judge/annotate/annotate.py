"""Make the pages on which people compare two answers, and the key that says which was whose."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from refed_dspy.config.keywords import Seed, checked
from refed_dspy.data.verdicts import KEY, NamedCriterion, PagesKey, PosedPair
from refed_dspy.errors import ConfigError, ExportError, InputError, briefly, one_line
from refed_dspy.files import as_export_error, as_path, path_of, whole_file, write_text
from refed_dspy.plugins.judge.annotate.page import annotator_page
from refed_dspy.plugins.judge.annotate.posed import posed_pairs
from refed_dspy.programs.judges import criterion_named
from refed_dspy.text import Shown, counted

MOST_ANNOTATORS = 1_000


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
    pairs: int,
    annotators: int = 2,
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
            file or a list of pairs in a shape that `load_pairs` reads, whatever was said of them.
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
    if pairs < 1:
        raise ConfigError(f"pairs: {pairs} is too few; set 1 or more")
    if not 1 <= annotators <= MOST_ANNOTATORS:
        raise ConfigError(f"annotators: {annotators} is out of range; set 1 to {MOST_ANNOTATORS:,}")
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
            raise ExportError(f"{one_line(folder, 200)}: already exists; choose another folder with out=…")
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
