"""Reading the rows of a file or of a Hub data set, numbered from 1; rows of JSONL by their line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import IO, Any

from refed_dspy.concurrency import OutOfTime, within
from refed_dspy.errors import ConfigError, ReferencesError, one_line, setting, setting_text
from refed_dspy.files import read_bytes
from refed_dspy.records import Reference, Sample

log = logging.getLogger("refed_dspy.hub")
BUILTIN = "builtin"
OWN = {BUILTIN: "references.jsonl", "builtin-short": "short_references.jsonl"}
"""The package's own references: their name → their file. The short ones are for small models."""
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")
HUB_PATIENCE = 60.0
"""Seconds that the Hub gets for whatever it is asked, three of its library's time-outs: these hold for each byte."""
HUB_SLOWEST = 20_000
"""Bytes a second that it must come to, or take, beyond that."""
_OF_FILES = {".arrow", ".gz", ".md", ".ods", ".sqlite", ".tsv", ".txt", ".xls", ".xlsx", ".yaml", ".yml", ".zip"}
"""Endings that no data set's name has, of files that are not read."""
_BEYOND_MEASURE = "JSON that cannot be read: a number with thousands of digits, or endless nesting"
Rows = Iterator[tuple[int, Mapping[str, Any]]]


def read_rows(source: str | Path) -> Rows:
    """(number, row) of every row of `source`: a path, a Hub name (`OWNER/NAME`, or `OWNER/NAME:SPLIT`), or one of
    `OWN`.

    Raises:
        ReferencesError: one line with file, row and remedy.
    """
    if source in OWN:
        own = files("refed_dspy.data").joinpath(OWN[str(source)])
        return _objects(str(source), own.read_bytes().split(b"\n"))
    path = Path(source)
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        there = None
    except OSError as error:
        why = one_line(error.strerror or error)
        raise ReferencesError(f"{one_line(source, 200)}: cannot be read: {why}") from None
    if there is not None and stat.S_ISREG(there.st_mode):
        return _file(path)
    if there is not None:
        kind = "a folder" if stat.S_ISDIR(there.st_mode) else "no file"
        raise ReferencesError(f"{source}: is {kind}; pass a JSONL, JSON, CSV or Parquet file")
    if path.suffix.lower() in {*_READERS, ".parquet", *_OF_FILES} or not _HUB_NAME.fullmatch(str(source)):
        hint = "" if path.suffix or len(path.parts) > 1 else " (a Hub data set is named OWNER/NAME)"
        raise ReferencesError(f"{one_line(source, 200)}: no such file{hint}")
    return _hub(str(source))


def refuse_references(value: Any, name: str) -> None:
    """Raises ConfigError where references stand in the place of `name`, which is the first argument: it says what to
    write instead."""
    if isinstance(value, str | Path):
        if _names_rows(value):
            write = "is read as references; write " + setting_text("references", str(value))
            raise ConfigError(f"{name}: {one_line(value, 100)} " + write)
    elif hasattr(value, "column_names") or hasattr(value, "columns"):
        raise ConfigError(f"{name}: a {type(value).__name__} holds references; write " + setting("references"))
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping | tuple | Reference):
        raise ConfigError(f"{name}: a {type(value).__name__} of rows is read as references; write references=[…]")


def _names_rows(source: str | Path) -> bool:
    """Whether it is rows that `source` names: a file of a kind that only rows have, a JSON list, one of `OWN`, or a
    data set of the Hub. A program's file is a JSON object."""
    path, kind = Path(source), Path(source).suffix.lower()
    if source in OWN or (kind in {*_READERS, ".parquet"} and kind != ".json"):
        return True
    try:
        if not path.is_file():
            return kind != ".json" and _HUB_NAME.fullmatch(str(source)) is not None and not path.exists()
        with path.open("rb") as file:
            return file.read(1_000).lstrip().startswith(b"[")
    except (OSError, ValueError):  # whoever loads it says why it cannot be read
        return False


def rows_of(source: Any, noun: str) -> tuple[str, Rows]:
    """(name, numbered rows) of `source`: what `read_rows` takes, a `DatasetDict` of one split, a data frame, or a list
    of mappings, (instruction, response) pairs, `Reference`s or `dspy.Example`s, called `noun`. Raises ReferencesError.
    """
    if isinstance(source, str | Path):
        return str(source), read_rows(source)
    if isinstance(source, Mapping):
        source = _only_split(source, noun)
    if hasattr(source, "to_dicts"):  # polars
        source = source.to_dicts()
    elif hasattr(source, "iterrows"):  # pandas, whose missing values are NaN
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    if isinstance(source, Iterable):
        return noun, ((number, _mapping(row, f"{noun} row {number}")) for number, row in enumerate(source, start=1))
    raise ReferencesError(
        f"{noun}: cannot read a {type(source).__name__}; pass a path, a name, a list of mappings or a Dataset"
    )


def _only_split(splits: Mapping[str, Any], noun: str) -> Iterable[Any]:
    """The rows of a `DatasetDict`. Raises ReferencesError unless it has one split."""
    if not splits or not all(hasattr(rows, "column_names") for rows in splits.values()):
        raise ReferencesError(f"{noun}: got a {type(splits).__name__}; pass a list of mappings, one per row")
    if len(splits) > 1:
        first = next(iter(splits))
        names = one_line(", ".join(splits), 120)
        raise ReferencesError(f"{noun}: has the splits {names}; choose one, for instance [{first!r}]")
    rows: Iterable[Any] = next(iter(splits.values()))
    return rows


def _mapping(row: Any, where: str) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, Reference | Sample):
        return row.model_dump()
    if isinstance(row, tuple) and len(row) == 2:
        return {"instruction": row[0], "response": row[1]}
    if hasattr(row, "toDict"):  # dspy.Example
        return dict(row.toDict())
    raise ReferencesError(f"{where}: is a {type(row).__name__}; it must be a mapping or (instruction, response)")


def _file(path: Path) -> Rows:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    reader = _READERS.get(kind)
    if reader is None:
        raise ReferencesError(f"{path}: unknown file type; use {', '.join(_READERS)} or .parquet")
    return reader(path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ReferencesError where it has none."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _not_utf8(path, line) from None
    except OSError as error:
        raise ReferencesError(f"{path}: cannot be read: {one_line(error.strerror or error)}") from None


def _object(name: str, number: int, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ReferencesError(f"{name} row {number}: is a {type(value).__name__}; each row must be an object")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file whose parts are read as they are needed. Raises ReferencesError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ReferencesError(f"{path}: cannot be read: {one_line(error.strerror or error)}") from None


def _jsonl(path: Path) -> Rows:
    with _opened(path) as file:
        yield from _objects(str(path), file)


def _objects(name: str, lines: Iterable[bytes]) -> Rows:
    """The objects of JSON lines."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            try:
                yield number, _object(name, number, json.loads(line.removesuffix(b"\n").decode()))
            except UnicodeDecodeError:
                raise _not_utf8(name, number) from None
            except json.JSONDecodeError as error:
                reason = f"broken JSON: {error.msg} at column {error.colno}"
                raise ReferencesError(f"{name} line {number}: {reason}") from None
            except (ValueError, RecursionError):
                raise ReferencesError(f"{name} line {number}: {_BEYOND_MEASURE}") from None


def _not_utf8(name: object, line: int) -> ReferencesError:
    return ReferencesError(f"{name} line {line}: not UTF-8; save the file as UTF-8 and run again")


def _json(path: Path) -> Rows:
    name = str(path)
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ReferencesError(f"{name} line {error.lineno}: broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise ReferencesError(f"{name}: {_BEYOND_MEASURE}") from None
    if not isinstance(rows, list):
        raise ReferencesError(f"{name}: must contain a list of objects; if it has one object per line, name it .jsonl")
    for number, row in enumerate(rows, start=1):
        yield number, _object(name, number, row)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is too small
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            between = _delimiter(text.readline())
            text.seek(0)
            table = csv.DictReader(text, strict=True, delimiter=between)
            yield from enumerate(table, start=1)
        except csv.Error as error:
            raise ReferencesError(f"{path} line {table.reader.line_num}: broken CSV: {one_line(error)}") from None
        except UnicodeDecodeError:
            read_text(path)  # says in which line
            raise


def _delimiter(heading: str) -> str:
    """What stands between a table's columns: a comma, or where it would have one column only, what makes more of it.
    Spreadsheets in much of Europe write semicolons."""
    return next((mark for mark in ",;\t|" if len(next(csv.reader([heading], delimiter=mark), ())) > 1), ",")


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            parts = (batch.to_pylist() for batch in file.iter_batches(batch_size=1_000))
            yield from enumerate(chain.from_iterable(parts), start=1)
    except (pa.ArrowException, OSError, UnicodeError) as error:  # Arrow takes no path that is not UTF-8
        raise ReferencesError(f"{one_line(path, 200)}: not a readable Parquet file: {one_line(error, 120)}") from None


_READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv}


def _hub_bytes(name: str) -> int:
    """How many bytes the data set has on the Hub; 0 where it does not say: `datasets` finds out why, or has a copy."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().dataset_info(name, files_metadata=True).siblings
    except Exception:  # noqa: BLE001 — whatever it is, `datasets` meets it next
        return 0
    return sum(file.size or 0 for file in files or ())


def _hub(source: str) -> Rows:
    """A data set's rows through `datasets`, imported here because that takes a second and nothing else needs it."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    name, _, split = source.partition(":")
    log.info("%s is no file here: asking the Hub for it", name)
    try:
        seconds = HUB_PATIENCE + within(HUB_PATIENCE, _hub_bytes, name) / HUB_SLOWEST
        rows = within(seconds, datasets.load_dataset, name, split=split or "train")
    except OutOfTime as error:
        raise ReferencesError(f"{name}: the Hub gives {error}; try again later, or pass a local file") from None
    except DatasetNotFoundError as error:
        if "gated" in str(error).lower():
            raise ReferencesError(
                f"{name}: gated on the Hub: accept the terms on its page, log in with `hf auth login` and run again"
            ) from None
        raise ReferencesError(
            f"{name}: not on the Hub, or you have no access; check the name or pass a local file"
        ) from None
    except (ConnectionError, OSError) as error:
        raise ReferencesError(
            f"{name}: the Hub cannot be reached ({one_line(error, 120)}); pass a local file"
        ) from None
    except ValueError as error:
        raise ReferencesError(f"{name}: {one_line(error, 160)}; choose another split as {name}:SPLIT") from None
    except Exception as error:  # noqa: BLE001 — datasets' builders raise many kinds, all of them about this data set
        raise ReferencesError(f"{name}: cannot be loaded: {one_line(error, 160)}") from None
    return enumerate(rows, start=1)
