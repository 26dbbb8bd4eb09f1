"""Make a data set folder for the Hub from a run, a filtering or a recycling: card, Croissant file, Parquet, manifest;
written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from refed_dspy.config.keywords import checked
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.export import Through, unseen
from refed_dspy.data.read import OWN
from refed_dspy.data.rows import DROPPED_COLUMNS, data_rows, dropped_rows, extra_columns
from refed_dspy.data.sources import ENDPOINTS, REMARKS, as_trained
from refed_dspy.data.stored import DROPPED, ROWS, json_lines, rows_in, work_in
from refed_dspy.data.tables import Row, made_schema, run_schema, run_tables, tables
from refed_dspy.errors import ExportError, RunDirError, briefly, one_line, setting
from refed_dspy.files import path_of, read_bytes, whole_file, write_json
from refed_dspy.ledger.connection import FILE, locked
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work
from refed_dspy.plugins.share.card import LICENSES, Card, CardSettings, Config, checked_license
from refed_dspy.plugins.share.croissant import FILE as CROISSANT
from refed_dspy.plugins.share.croissant import croissant
from refed_dspy.plugins.share.facts import (
    DataStep,
    RunFacts,
    key_variables,
    made_facts,
    pairs_of,
    people_in,
    run_facts,
    simulated_in,
)
from refed_dspy.plugins.share.manifest import SharedFile, whole_folder, write_manifest
from refed_dspy.plugins.share.report.report import public_page
from refed_dspy.plugins.share.secrets import public_detail, public_endpoint, public_model, public_source
from refed_dspy.plugins.share.survey import Survey
from refed_dspy.text import counted

CARD, LICENSE, REPORT = "README.md", "LICENSE", "report.html"
_LARGEST_TEXT = 1_000_000
"""Characters of a license's or a citation's file; a longer file is taken for a wrong one."""
TEACHERS = ("teacher", "response_teacher", "instruction_teacher")
_CLEANED: Mapping[str, Callable[[str | None], str]] = {
    **dict.fromkeys(TEACHERS, public_model),
    **dict.fromkeys(ENDPOINTS, public_endpoint),
    "reference_source": public_source,
}
SHARD_ROWS, SHARD_BYTES = 100_000, 256 * 2**20
"""A shard ends at so many rows, or once it has so many bytes, whichever comes first."""


@dataclass(frozen=True)
class SharedFolder:
    """What was made: the `files` in `folder`, the number of `rows` and of `dropped` rows, `notes` on what to check
    before publishing, and the SHA-256 of what the `ledgers` say that the rows come from: the run's, then those of later
    steps."""

    folder: Path
    rows: int
    dropped: int
    files: Sequence[SharedFile]
    notes: Sequence[str]
    ledgers: Sequence[str] = ()


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
) -> SharedFolder:
    """Make `out`, a folder that `push` sends to the Hub, from the samples in `run_dir`, or from the rows that a
    filtering or a recycling kept: card, Croissant file, Parquet, manifest.

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
        survey = described.survey
        with whole_folder(target, force) as made:
            if license_text is not None:
                _write(made / LICENSE, license_text)
            if report:
                (made / REPORT).write_bytes(public_page(folder, settings.name))
            configs = [write_shards(described.tables, made / "data", "default")]
            if described.dropped is not None:
                configs.append(write_shards(described.dropped, made / "dropped", "dropped"))
            survey.texts = _reference_texts(described.ledgers, survey)
            languages, by_people = survey.languages(), people_in(folder)
            card = Card(settings, facts, survey, configs, version("refed-dspy"), languages, steps, origin, by_people)
            _write(made / CARD, card.text())
            write_json(made / CROISSANT, croissant(card, made))
            keys = {name for ledger in described.ledgers for name in key_variables(ledger)}
            files = write_manifest(made, card.version, keys)
    ledgers = list(filter(None, (facts.ledger, *(step.ledger for step in steps))))
    left = configs[1].rows if dropped else 0
    return SharedFolder(target, survey.rows, left, files, _notes(settings, card), ledgers)


@dataclass(frozen=True)
class _Described:
    """What is shared: the rows and those that filters dropped as Arrow tables, which are read once, and figures of the
    rows as they are; the `ledgers` of the run that is known to have made them."""

    facts: RunFacts
    ledgers: Sequence[Ledger]
    survey: Survey
    tables: Iterator[Any]
    dropped: Iterator[Any] | None
    steps: Sequence[DataStep] = ()
    origin: str = ""


@contextmanager
def _described(folder: Path, dropped: bool, through: Through) -> Iterator[_Described]:
    """What is known of the rows in `folder`, whose lock is held: all that is published is of one moment. Raises
    RunDirError where it holds no rows to share, ExportError where there is none, or nothing was dropped.
    """
    if (work := work_in(folder)) == "answers":
        raise RunDirError(f"{folder}: contains answers to prompts, which are no data to train on; share other rows")
    if (folder / FILE).is_file():
        Ledger.read(folder).close()  # who has the lock is taken to have checked it
    with locked(folder):
        if work in ROWS:
            yield from _of_data(folder, work, dropped, through)
            return
        with Ledger.read(folder) as ledger:
            if work != "run":
                raise RunDirError(f"{folder}: contains {named_work(work)}, not a run; share the run it was made from")
            yield _of_run(folder, ledger, dropped, through)


def _of_run(folder: Path, ledger: Ledger, dropped: bool, through: Through) -> _Described:
    facts = run_facts(ledger)
    if dropped and not any(counts["dropped"] for counts in facts.status["filters"]):
        raise ExportError(f"{folder}: filters dropped nothing; leave out " + setting("dropped", True))
    if not (count := ledger.kept()):
        raise ExportError(f"{folder}: no samples yet; run or resume it first")
    survey, extra = Survey(count), extra_columns(ledger)
    schema = run_schema(extra)
    rows = survey.observe(through(data_rows(ledger), count))
    tables_ = run_tables(_public_rows(rows, schema), schema, extra)
    return _Described(facts, [ledger], survey, tables_, _dropped_by_run(ledger) if dropped else None)


def _of_data(folder: Path, work: str, dropped: bool, through: Through) -> Iterator[_Described]:
    """`_described`, of a filtering or a recycling."""
    if next(rows_in(folder, work), None) is None:
        raise ExportError(f"{folder}: no row was kept, so there is nothing to share")
    if dropped and next(json_lines(folder / DROPPED), None) is None:
        raise ExportError(f"{folder}: nothing was dropped; leave out " + setting("dropped", True))
    rows = load_dataset(folder).rows
    survey = Survey(len(rows))
    with made_facts(folder) as (facts, steps, origin, ledgers):
        facts = replace(facts, pairs=pairs_of(rows), simulated=facts.simulated or simulated_in(rows, steps))
        observed = survey.observe(through(rows, len(rows)), as_trained)
        tables_ = _made_tables((row.fields for row in rows), (row.fields for row in observed))
        left = _made_tables(json_lines(folder / DROPPED), json_lines(folder / DROPPED)) if dropped else None
        yield _Described(facts, ledgers, survey, tables_, left, steps, origin)


def _reference_texts(ledgers: Sequence[Ledger], survey: Survey) -> dict[str, tuple[str, str]]:
    """The texts of the references of the rows drawn, by id."""
    of_drawn = {row.reference for row in survey.drawn}
    found = (reference for ledger in ledgers for reference in ledger.references(of_drawn))
    return {reference.id: (reference.instruction, reference.response) for reference in found}


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
    notes, facts, survey = list[str](), card.facts, card.survey
    if settings.license is None:
        notes.append("no license: without one, nobody may use the data set; set it with " + setting("license"))
    if not facts.account:
        notes.append("no run is known to have made these rows; say in the card where they are from and whose they are")
    theirs = setting("reference_license")
    if settings.reference_license is None and not set(facts.sources) <= OWN.keys():
        notes.append("the references' license is unknown; set it with " + theirs)
    if settings.reference_license is not None and facts.account and set(facts.sources) <= OWN.keys():
        notes.append(theirs + " was not used: all references come with refed (builtin), under its license")
    if copies := survey.copied.rows:
        notes.append(
            f"in {copies:,} of {len(survey.drawn):,} rows checked, half or more of a text is copied from the reference "
            "word for word, so the references' license covers it; see Known limits in the card"
        )
    if settings.report:
        notes.append("report.html shows the references themselves: share it only if their license allows it")
    if undecided := sum(each["undecided"] for step in card.steps for each in step.filters):
        notes.append(f"{counted(undecided, 'row is', 'rows are')} undecided, so not shared; the card says so")
    if facts.missing:
        kept, size = facts.status["kept"], facts.status["size"]
        notes.append(f"the run is not done: {kept} of {size} rows; the card says so")
    return notes


def _public_rows(rows: Iterable[Row], schema: Any) -> Iterator[Row]:
    """A run's rows, or what was made of them, as they may be published."""
    # only a run's: in other data, such columns hold other things
    names = [name for name in _CLEANED if name in schema.names and "response_teacher" in schema.names]
    for row in rows:
        public: dict[str, Any] = {name: _CLEANED[name](row.get(name)) for name in names}
        if isinstance(remarks := row.get(REMARKS), Mapping) and "detail" in remarks:
            public[REMARKS] = {**remarks, "detail": public_detail(remarks.get("reason"), remarks["detail"])}
        yield {**row, **public}


def _made_tables(rows: Iterable[Row], again: Iterable[Row]) -> Iterator[Any]:
    """Rows of a filtering or a recycling as tables: they are read for their types, and again to be written."""
    schema, as_text = made_schema(rows)
    yield from tables(_public_rows(again, schema), schema, as_text)


def _dropped_by_run(ledger: Ledger) -> Iterator[Any]:
    import pyarrow as pa

    kinds = {"round": pa.int64(), "score": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in DROPPED_COLUMNS])
    rows = dropped_rows(ledger)
    return tables(({**row, "detail": public_detail(row["reason"], row["detail"])} for row in rows), schema)


def write_shards(made: Iterable[Any], folder: Path, name: str) -> Config:
    """Write tables into `folder`, which it makes, as `train-00000-of-0000N.parquet`.

    Returns the config called `name`, whose pattern matches shards of this N only, so that shards which an earlier push
    left in the repository are not read too. Raises OSError.
    """
    folder.mkdir()
    shards: list[_Shard] = []
    try:
        for table in made:
            while table.num_rows:
                if not shards or shards[-1].closed:
                    shards.append(_Shard(folder / f"{len(shards)}.part", table.schema))
                table = shards[-1].take(table)
    finally:
        for shard in shards:
            shard.close()
    for number, shard in enumerate(shards):
        shard.path.rename(folder / f"train-{number:05d}-of-{len(shards):05d}.parquet")
    pattern = f"{folder.name}/train-*-of-{len(shards):05d}.parquet"
    return Config(name, pattern, sum(shard.rows for shard in shards), shards[0].columns if shards else ())


class _Shard:
    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.path, self.rows, self.columns = path, 0, tuple(schema.names)
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def take(self, table: Any) -> Any:
        """Write the first rows of `table`, as many as there is room for, and close the shard when it is full. Returns
        the other rows."""
        room = SHARD_ROWS - self.rows
        self._writer.write_table(table[:room])
        self.rows += min(room, table.num_rows)
        if self.rows == SHARD_ROWS or self._file.tell() >= SHARD_BYTES:
            self.close()
        return table[room:]

    def close(self) -> None:
        if not self.closed:
            self._writer.close()
            self._file.close()
