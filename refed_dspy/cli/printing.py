"""Everything that the commands print for people: none of it can steer a terminal."""

from __future__ import annotations

import copy
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import typer

from refed_dspy.errors import as_options

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of text around, and half characters."""


def printable(text: str) -> str:
    """`text` with what could steer a terminal written out, as JSON does (`\\u001b`). JSON stays the same JSON."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def say(text: object, err: bool = False) -> None:
    """Print `text` as the command line words it, and a line feed. Nothing is lost where stderr cannot be written."""
    with suppress(OSError) if err else nullcontext():
        typer.echo(printable(as_options(text)), err=err)


@contextmanager
def written(out: Path) -> Iterator[tuple[Path, Callable[..., None]]]:
    """Where to write, and how to say what was written: `out`, or for `-` a file that goes to stdout afterwards."""

    def report(what: str, note: str = "") -> None:
        if str(out) != "-":
            say(f"{what} in {out}" + (f" ({note})" if note else ""))

    if str(out) != "-":
        yield out, report
        return
    with tempfile.TemporaryDirectory() as folder:
        yield (path := Path(folder) / "rows"), report
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


class PlainFormatter(logging.Formatter):
    """A log's lines, printable, in the command line's words."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(args := record.args, tuple):
            record = copy.copy(record)  # another handler may show it, too
            record.args = tuple(as_options(each) if isinstance(each, str | Exception) else each for each in args)
        return printable(super().format(record))
