"""Everything that the commands print for people: none of it can steer a terminal."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from shlex import quote

import typer

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of text around, and half characters."""


_SETTING = re.compile(r"(?<![\w/=.-])([a-z_]+(?==[T…'])|max_[a-z]+)=(True\b|…|MORE\b|\d[\d.]*\b|'[^']*')")
"""A setting that a message of the package names, as Python writes it. Numbers are those of caps: libraries' messages
have others."""
_CALL = re.compile(r"refed_dspy\.(resume|promote)\(('[^']*'|\"[^\"]*\")((?:, [^(),]*)*)\)")
_COMMANDS = {"resume": "resume", "promote": "compile promote"}


def printable(text: str) -> str:
    """`text` with what could steer a terminal written out, as JSON does (`\\u001b`). JSON stays the same JSON."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def as_options(text: str) -> str:
    """A message of the package as this command line's: `force=True` as `--force`, a call as a command."""
    text = text.replace("the same call", "the same command").replace("prove=False", "--no-prove")
    text = _CALL.sub(
        lambda found: f"refed {_COMMANDS[found[1]]} {quote(found[2][1:-1])}{found[3].replace(',', '')}", text
    )
    return _SETTING.sub(lambda found: " ".join(["--" + found[1].replace("_", "-"), *_value(found[2])]), text)


def _value(text: str) -> list[str]:
    return [] if text == "True" else [quote(text[1:-1]) if text.startswith("'") else text]


def say(text: object, err: bool = False) -> None:
    """Print `text` and a line feed: on stdout, or on stderr, where nothing is lost if that cannot be written."""
    with suppress(OSError) if err else nullcontext():
        typer.echo(printable(str(text)), err=err)


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
    """A log's lines, printable, with options for keywords."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(as_options(super().format(record)))
