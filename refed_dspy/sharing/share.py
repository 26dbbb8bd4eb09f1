"""Make a data set folder for the Hub from a run: card, Parquet, manifest; written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from refed_dspy.data.export import export
from refed_dspy.data.read import OWN
from refed_dspy.data.rows import dropped_rows
from refed_dspy.errors import ExportError, RunDirError, briefly, one_line
from refed_dspy.files import path_of, read_bytes, whole_file
from refed_dspy.ledger.identity import named_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.sharing.card import Card, CardSettings, Config
from refed_dspy.sharing.facts import RunFacts, key_variables, run_facts
from refed_dspy.sharing.manifest import SharedFile, whole_folder, write_manifest
from refed_dspy.sharing.parquet import cleaned_tables, dropped_tables, write_shards
from refed_dspy.sharing.public_report import public_page
from refed_dspy.sharing.survey import Survey
from refed_dspy.sharing.terms import LICENSES, checked_license

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
def share(
    run_dir: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    license: str | Path | None = None,  # noqa: A002 — the flag's name
    reference_license: str | None = None,
    citation: str | Path | None = None,
    report: bool = False,
    dropped: bool = False,
    force: bool = False,
) -> Shared:
    """Make `out`, a folder that `push` sends to the Hub, from the samples in `run_dir`: card, Parquet, manifest.

    Addresses of private endpoints, paths and keys are removed from its columns, card and page.

    Args:
        name: the data set's name; None: the folder's.
        license: an identifier that the Hub knows, or a file with the license's text, which becomes LICENSE.
        reference_license: the license of the references, in words.
        citation: a file of BibTeX entries for this data set.
        report: also a page that shows the run (see `report`), without addresses and folders either.
        dropped: also the rows that filters dropped, as a second config.
        force: replace a folder that an earlier call made.

    Raises:
        RunDirError: no run there, or it is at work.
        ExportError: nothing to share, `out` exists already, or it cannot be written.
        ConfigError: a license that the Hub does not know.
    """
    folder, target = path_of(run_dir, "run_dir"), path_of(out, "out").resolve()
    with Ledger.read(folder) as ledger, _locked(folder):
        if (holds := ledger.holds()) not in {"", "run"}:
            raise RunDirError(f"{folder}: contains {named_work(holds)}, not a run; share the run it was made from")
        if dropped and not any(counts["dropped"] for counts in decisions_by_filter(ledger)):
            raise ExportError(f"{folder}: filters dropped nothing; leave out dropped=True")
        license_text, license_id = _license(license)
        settings = CardSettings(
            name=one_line(name or target.name, 120),
            license="other" if license_text is not None else license_id,
            license_file=license_text is not None,
            reference_license=reference_license,
            citation=None if citation is None else _text(Path(citation), "citation"),
            report=report,
        )
        facts = run_facts(ledger)
        with whole_folder(target, force) as made:
            if license_text is not None:
                _write(made / LICENSE, license_text)
            if report:
                (made / REPORT).write_bytes(public_page(folder, settings.name))
            configs, survey = _data(ledger, made, dropped)
            card = Card(settings, facts, survey, configs, version("refed-dspy"), survey.languages())
            _write(made / CARD, card.text())
            files = write_manifest(made, card.version, key_variables(ledger))
    dropped_count = configs[1].rows if dropped else 0
    return Shared(target, survey.rows, dropped_count, files, _notes(settings, facts, survey))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock, so that all published data are of one moment. Raises RunDirError: another process holds it.

    Where no lock can be made, as in a read-only folder, no run can hold one either.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunDirError(f"{folder}: the run is still running; wait for it or stop it, then share it") from None
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def _data(ledger: Ledger, made: Path, dropped: bool) -> tuple[list[Config], Survey]:
    """Write the rows. Raises RunDirError if rows were added meanwhile: the card would describe other rows."""
    folder, whole = ledger.path.parent, made.parent / "all.parquet"
    texts = {reference.id: (reference.instruction, reference.response) for reference in ledger.references()}
    survey = Survey(export(folder, "parquet", whole).count, texts)
    rows, pattern = write_shards(survey.observe(cleaned_tables(whole)), made / "data")
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


def _notes(settings: CardSettings, facts: RunFacts, survey: Survey) -> list[str]:
    notes = []
    if settings.license is None:
        notes.append("no license: without one, nobody may use the data set; set it with license=…")
    if settings.reference_license is None and not set(facts.sources) <= OWN.keys():
        notes.append("the references' license is unknown; set it with reference_license=…")
    if settings.reference_license is not None and set(facts.sources) <= OWN.keys():
        notes.append("reference_license=… was not used: all references come with refed (builtin), under its license")
    if copies := survey.copied.rows:
        notes.append(
            f"in {copies:,} of {len(survey.drawn):,} rows checked, half or more of a text is copied from the reference "
            "word for word, so the references' license covers it; see Known limits in the card"
        )
    if settings.report:
        notes.append("report.html shows the references themselves: share it only if their license allows it")
    if facts.kept < facts.size:
        notes.append(f"the run is not done: {facts.kept} of {facts.size} rows; the card says so")
    return notes
