"""Make a data set folder for the Hub from a run, a filtering or a recycling: card, Parquet, manifest; written whole or
not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from refed_dspy.config.keywords import checked
from refed_dspy.data.dataset import RowsOnDisk, load_dataset
from refed_dspy.data.export import Through, unseen
from refed_dspy.data.read import OWN
from refed_dspy.data.rows import data_rows, dropped_rows, extra_columns
from refed_dspy.data.stored import DROPPED, ROWS, json_lines, rows_in, work_in
from refed_dspy.data.tables import run_schema, run_tables
from refed_dspy.errors import ExportError, RunDirError, briefly, one_line
from refed_dspy.files import path_of, read_bytes, whole_file
from refed_dspy.ledger.connection import FILE, locked
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.plugins.share.card import Card, CardSettings, Config
from refed_dspy.plugins.share.facts import RunFacts, key_variables, run_facts
from refed_dspy.plugins.share.manifest import SharedFile, whole_folder, write_manifest
from refed_dspy.plugins.share.parquet import cleaned, dropped_tables, tables_of, write_shards
from refed_dspy.plugins.share.public_report import public_page
from refed_dspy.plugins.share.steps import Step, made_facts, pairs_of, simulated_in
from refed_dspy.plugins.share.survey import Survey
from refed_dspy.plugins.share.terms import LICENSES, checked_license
from refed_dspy.text import counted

CARD, LICENSE, REPORT = "README.md", "LICENSE", "report.html"
_LARGEST_TEXT = 1_000_000
"""Characters of a license's or a citation's file; a longer file is taken for a wrong one."""


@dataclass(frozen=True)
class Shared:
    """What was made: the `files` in `folder`, the number of `rows` and of `dropped` rows, and `notes` on what to check
    before publishing."""

    folder: Path
    rows: int
    dropped: int
    files: Sequence[SharedFile]
    notes: Sequence[str]


@briefly
@checked
def share(
    run_dir: str | PathLike[str],
    out: str | Path,
    *,
    name: str | None = None,
    license: str | Path | None = None,  # noqa: A002 — the flag's name
    reference_license: str | None = None,
    citation: str | Path | None = None,
    report: bool = False,
    dropped: bool = False,
    force: bool = False,
    through: Through = unseen,
) -> Shared:
    """Make `out`, a folder that `push` sends to the Hub, from the samples in `run_dir`, or from the rows that a
    filtering or a recycling kept: card, Parquet, manifest.

    Addresses of private endpoints, paths and keys are removed from its columns, card and page.

    Args:
        name: the data set's name; None: the folder's.
        license: an identifier that the Hub knows, or a file with the license's text, which becomes LICENSE.
        reference_license: the license of the references, in words.
        citation: a file of BibTeX entries for this data set.
        report: also a page that shows the run (see `report`), without addresses and folders either.
        dropped: also the rows that filters dropped, as a second config.
        force: replace a folder that an earlier call made.
        through: as `export` takes it.

    Raises:
        RunDirError: no such work there, or it is running.
        ExportError: nothing to share, `out` exists already, or it cannot be written.
        ConfigError: a license that the Hub does not know.
    """
    folder, target = path_of(run_dir, "run_dir"), path_of(out, "out").resolve()
    with _described(folder, dropped, through) as described:
        license_text, license_id = _license(license)
        settings = CardSettings(
            name=one_line(name or target.name, 120),
            license="other" if license_text is not None else license_id,
            license_file=license_text is not None,
            reference_license=reference_license,
            citation=None if citation is None else _text(Path(citation), "citation"),
            report=report,
        )
        facts, steps, origin = described.facts, described.steps, described.origin
        with whole_folder(target, force) as made:
            if license_text is not None:
                _write(made / LICENSE, license_text)
            if report:
                (made / REPORT).write_bytes(public_page(folder, settings.name))
            configs, survey = described.write(made)
            card = Card(settings, facts, survey, configs, version("refed-dspy"), survey.languages(), steps, origin)
            _write(made / CARD, card.text())
            files = write_manifest(made, card.version, described.keys)
    dropped_count = configs[1].rows if dropped else 0
    return Shared(target, survey.rows, dropped_count, files, _notes(settings, card))


@dataclass(frozen=True)
class _Described:
    """What is shared: `write` writes the rows into a folder; `keys` are the variables that held API keys."""

    facts: RunFacts
    keys: Collection[str]
    write: Callable[[Path], tuple[list[Config], Survey]]
    steps: Sequence[Step] = ()
    origin: str = ""


@contextmanager
def _described(folder: Path, dropped: bool, through: Through) -> Iterator[_Described]:
    """What is known of the rows in `folder`, whose lock is held. Raises RunDirError where it holds no rows to share,
    ExportError where nothing was dropped.
    """
    if (work := work_in(folder)) == "answers":
        raise RunDirError(f"{folder}: contains answers to prompts, which are no data to train on; share other rows")
    if (folder / FILE).is_file():
        Ledger.read(folder).close()  # who has the lock is taken to have checked it
    with locked(folder):  # all that is published is of one moment
        if work in ROWS:
            yield from _of_data(folder, work, dropped, through)
            return
        with Ledger.read(folder) as ledger:
            if work != "run":
                raise RunDirError(f"{folder}: contains {named_work(work)}, not a run; share the run it was made from")
            if dropped and not any(counts["dropped"] for counts in decisions_by_filter(ledger)):
                raise ExportError(f"{folder}: filters dropped nothing; leave out dropped=True")
            write = partial(_data, ledger, dropped=dropped, through=through)
            yield _Described(run_facts(ledger), key_variables(ledger), write)


def _of_data(folder: Path, work: str, dropped: bool, through: Through) -> Iterator[_Described]:
    """`_described`, of a filtering or a recycling."""
    if next(rows_in(folder, work), None) is None:
        raise ExportError(f"{folder}: no row was kept, so there is nothing to share")
    rows = load_dataset(folder).rows
    if dropped and next(json_lines(folder / DROPPED), None) is None:
        raise ExportError(f"{folder}: nothing was dropped; leave out dropped=True")
    with made_facts(folder) as (facts, steps, origin, ledgers):
        facts = replace(facts, pairs=pairs_of(rows), simulated=facts.simulated or simulated_in(rows, steps))
        keys = {name for ledger in ledgers for name in key_variables(ledger)}
        write = partial(_data_made, folder, rows, ledgers, dropped=dropped, through=through)
        yield _Described(facts, keys, write, steps, origin)


def _reference_texts(ledgers: Sequence[Ledger], survey: Survey) -> dict[str, tuple[str, str]]:
    """The texts of the references of the rows drawn, by id."""
    of_drawn = {row.reference for row in survey.drawn}
    found = (reference for ledger in ledgers for reference in ledger.references(of_drawn))
    return {reference.id: (reference.instruction, reference.response) for reference in found}


def _data_made(
    folder: Path, rows: RowsOnDisk, ledgers: Sequence[Ledger], made: Path, *, dropped: bool, through: Through
) -> tuple[list[Config], Survey]:
    """Write the rows of a filtering or a recycling."""
    survey = Survey(len(rows))
    survey.note(rows)
    survey.texts = _reference_texts(ledgers, survey)
    count, pattern = write_shards(tables_of(lambda: (row.fields for row in through(rows, len(rows)))), made / "data")
    configs = [Config("default", pattern, count)]
    if dropped:
        count, pattern = write_shards(tables_of(partial(json_lines, folder / DROPPED)), made / "dropped")
        configs.append(Config("dropped", pattern, count))
    return configs, survey


def _data(ledger: Ledger, made: Path, *, dropped: bool, through: Through) -> tuple[list[Config], Survey]:
    """Write the rows. Raises ExportError where there is none, and RunDirError if rows were added meanwhile: the card
    would describe other rows."""
    folder, extra = ledger.path.parent, extra_columns(ledger)
    if not (count := ledger.kept()):
        raise ExportError(f"{folder}: no samples yet; run or resume it first")
    survey = Survey(count)
    tables = run_tables(through(data_rows(ledger), count), run_schema(extra), extra)
    rows, pattern = write_shards(survey.observe(map(cleaned, tables)), made / "data")
    survey.texts = _reference_texts([ledger], survey)
    configs = [Config("default", pattern, rows)]
    if dropped:
        dropped_count, pattern = write_shards(dropped_tables(dropped_rows(ledger)), made / "dropped")
        configs.append(Config("dropped", pattern, dropped_count))
    if ledger.kept() != rows:
        raise RunDirError(f"{folder}: rows arrived while it was being read; wait for the run or stop it, then share it")
    return configs, survey


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _license(license_: str | Path | None) -> tuple[str | None, str | None]:
    """(text of a file, identifier), at most one of them set."""
    if license_ is None:
        return None, None
    known = isinstance(license_, str) and license_.strip().lower() in LICENSES
    if not known and Path(license_).is_file():
        return _text(Path(license_), "license"), None
    return None, checked_license(str(license_))


def _text(path: Path, what: str) -> str:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ExportError(f"{what} {one_line(path, 200)}: not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        why = one_line(getattr(error, "strerror", None) or error)
        raise ExportError(f"{what} {one_line(path, 200)}: cannot be read: {why}") from None
    if not text.strip() or len(text) > _LARGEST_TEXT:
        raise ExportError(f"{what} {one_line(path, 200)}: is {'empty' if not text.strip() else 'too long'}")
    return text


def _notes(settings: CardSettings, card: Card) -> list[str]:
    notes, facts, survey = [], card.facts, card.survey
    if settings.license is None:
        notes.append("no license: without one, nobody may use the data set; set it with license=…")
    if not facts.size:
        notes.append("no run is known to have made these rows; say in the card where they are from and whose they are")
    if settings.reference_license is None and not set(facts.sources) <= OWN.keys():
        notes.append("the references' license is unknown; set it with reference_license=…")
    if settings.reference_license is not None and facts.size and set(facts.sources) <= OWN.keys():
        notes.append("reference_license=… was not used: all references come with refed (builtin), under its license")
    if copies := survey.copied.rows:
        notes.append(
            f"in {copies:,} of {len(survey.drawn):,} rows checked, half or more of a text is copied from the reference "
            "word for word, so the references' license covers it; see Known limits in the card"
        )
    if settings.report:
        notes.append("report.html shows the references themselves: share it only if their license allows it")
    if undecided := sum(each["undecided"] for step in card.steps for each in step.filters):
        notes.append(f"{counted(undecided, 'row is', 'rows are')} undecided, so not shared; the card says so")
    if facts.kept < facts.size:
        notes.append(f"the run is not done: {facts.kept} of {facts.size} rows; the card says so")
    return notes
