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


_KEYWORD = re.compile(
    r"\b(?P<name>accept_changed|accept_longer|baseline|cluster|criteria|data|dropped|environment|estimate|force|go|judge|"
    r"license|out|public|reference_license|run_dir|teacher|unproved|version)=(?P<value>True\b|…)"
)
"""A keyword that a message names, of those that commands have as options."""
_CAP = re.compile(r"\b(max_(?:cost|calls|minutes))=(MORE\b|[\d.]+\b)")
_CALL = re.compile(r"refed_dspy\.(?P<call>resume|promote)\((?P<what>'[^']*'|\"[^\"]*\")(?:, (?P<setting>[^()]*))?\)")


def printable(text: str) -> str:
    """`text` with what could steer a terminal written out, as JSON does (`\\u001b`). JSON stays the same JSON."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def as_options(text: str) -> str:
    """A message of the package with its keywords as this command line's options: `force=True` as `--force`."""
    text = _CALL.sub(
        lambda found: " ".join(["refed", found["call"], quote(found["what"][1:-1]), *_settings(found["setting"])]), text
    )
    text = _CAP.sub(lambda found: f"--{found[1].replace('_', '-')} {found[2]}", text)
    text = re.sub(r"\b(reuse|cluster)='([^']*)'", lambda found: f"--{found[1]} {quote(found[2])}", text)
    text = text.replace("the same call", "the same command")
    text = text.replace("prove=False", "--no-prove")
    return _KEYWORD.sub(
        lambda found: f"--{found['name'].replace('_', '-')}{' …' if found['value'] == '…' else ''}", text
    )


def _settings(keywords: str | None) -> list[str]:
    """A call's further keywords, one by one."""
    return keywords.split(", ") if keywords else []


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
