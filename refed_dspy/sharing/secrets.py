"""Does anything that is about to go to everyone look like a key?"""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from refed_dspy.errors import InputError, one_line
from refed_dspy.sharing.manifest import name_digest

SHAPES: Mapping[str, str] = {
    "a key of OpenAI's or Anthropic's kind (sk-…)": r"\bsk-[A-Za-z0-9_\-]{20,}",
    "a token of the Hub (hf_…)": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub (ghp_…, github_pat_…)": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a key of AWS (AKIA…)": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google (AIza…)": r"\bAIza[0-9A-Za-z_\-]{35}",
    "a token of Slack (xox…)": r"\bxox[abprs]-[0-9A-Za-z\-]{10,}",
    "a private key (PEM)": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""What it is → how it looks, as Arrow's expressions (RE2) have it."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LEAST = 12
"""A shorter value of a variable is a word that any text may hold."""


def known_secrets(named: Collection[str] = ()) -> dict[str, str]:
    """What it is → its value: the variables of this process's environment whose name is one of a secret, or has its
    digest (`manifest.name_digest`) in `named`, and the token of a login. Asks no one."""
    values = {
        f"the value of the variable {name}": value.strip()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) or name_digest(name) in named
    }
    values["the token of hf auth login"] = _login()
    # Not Path.exists: it raises for a value that is longer than a file's name may be.
    return {what: it for what, it in values.items() if len(it) >= _LEAST and not os.path.exists(it)}  # noqa: PTH110


def _login() -> str:
    """The token that lies in a file, or nothing. The library's `get_token` may renew it, over the network."""
    from huggingface_hub import constants

    try:
        return Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def looks_like_keys(path: Path) -> list[str]:
    """What in the file at `path` looks like a key, by SHAPES; never the key. Raises InputError."""
    return _found(path, SHAPES, regex=True)


def holds_secrets(path: Path, secrets: Mapping[str, str]) -> list[str]:
    """Which of `secrets` (`secrets_at_hand`) stand in the file at `path`, word for word. Raises InputError."""
    return _found(path, secrets, regex=False)


def _found(path: Path, patterns: Mapping[str, str], *, regex: bool) -> list[str]:
    """The names of the `patterns` that match. Arrow's search takes a tenth of the time that `re` takes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    match = pc.match_substring_regex if regex else pc.match_substring
    found: dict[str, None] = {}
    for texts in texts_of(path):
        array = pa.array([_encodable(texts)], pa.large_string()) if isinstance(texts, str) else texts
        found |= dict.fromkeys(
            what for what, pattern in patterns.items() if pc.any(match(array, _encodable(pattern))).as_py()
        )
    return list(found)


def _encodable(text: str) -> str:
    """Variables may hold bytes that are no UTF-8, and JSON halves of a character."""
    return text.encode("utf-8", "replace").decode()


_DATA = re.compile(r'<script type="(?P<kind>text/plain|application/json)"[^>]*>(?P<content>.*?)</script>', re.DOTALL)
"""Where a page has its rows (`reporting.page.packed`) and its charts' figures."""
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
"""A backslash before punctuation: Markdown shows what comes behind it."""


def texts_of(path: Path) -> Iterator[Any]:
    """Each text as `str`, or as an Arrow array of them: a Parquet file's columns, lists and structures too.

    Of a page also what is packed in it, of Markdown also what it shows. Raises InputError: it cannot be read so.
    """
    if path.suffix == ".parquet":
        yield from _columns(path)
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".html":
        yield from _page(path, text)
        return
    yield text
    if path.suffix == ".md":
        yield _ESCAPE.sub(r"\1", text)


def _page(path: Path, text: str) -> Iterator[str]:
    try:
        for found in _DATA.finditer(text):
            yield "\n".join(
                _strings(_unpacked(found["content"]) if found["kind"] == "text/plain" else found["content"])
            )
    except (ValueError, OSError, EOFError, zlib.error, RecursionError):
        raise InputError(
            f"{one_line(path, 200)}: the data in it cannot be read, so a key in it could not be seen; make the folder "
            "again with --force"
        ) from None
    rest = _DATA.sub("", text)  # packed, it may look like a key by chance
    yield rest
    yield html.unescape(_SCRIPT.sub("", rest))


def _unpacked(content: str) -> str:
    return gzip.decompress(base64.b64decode(content)).decode("utf-8")


def _strings(content: str) -> Iterator[str]:
    """Every text in JSON, names too."""
    left = [json.loads(content)]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [*value, *value.values()]


def _columns(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1_000):
                for column in batch.columns:
                    yield from _arrays(pa, column)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{one_line(path, 200)}: not a readable Parquet file: {one_line(error, 120)}") from None


def _arrays(pa: Any, column: Any) -> Iterator[Any]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield column
    elif pa.types.is_list(column.type):
        yield from _arrays(pa, column.flatten())
    elif pa.types.is_struct(column.type):
        for part in column.flatten():
            yield from _arrays(pa, part)
