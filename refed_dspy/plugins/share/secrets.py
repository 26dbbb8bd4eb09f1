"""Search files that are about to be published for secrets: which to look for, and how to read all text of a file."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from refed_dspy.concurrency import current_environ
from refed_dspy.config.keys import SHAPES
from refed_dspy.data.read import OWN
from refed_dspy.errors import FORCE, InputError, one_line
from refed_dspy.filters.judge import ABSTAINED, FAILED
from refed_dspy.ledger.history import EMBEDDED
from refed_dspy.plugins.share.manifest import name_digest

PRIVATE = "a private endpoint"
LOCAL = "beside the run, on its machine"
OTHER_SOURCE = "not stated"
PUBLIC_HOSTS = frozenset({
    "api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com", "openrouter.ai", "api.mistral.ai",
    "api.groq.com", "api.deepseek.com", "api.together.xyz", "api.fireworks.ai", "api.x.ai", "api.cohere.com",
    "api.cerebras.ai", "api.perplexity.ai",
})  # fmt: skip
"""Hosts that all customers share. Azure's are not among them: their first label is the customer's resource."""

_PROVIDER = re.compile(r"[a-z][a-z0-9_\-]{0,30}")
_FILES = re.compile(r"\.(jsonl|ndjson|json|csv|parquet|txt|gguf|safetensors|bin)$", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(:[\w.\-]+)?", re.ASCII)
_ARN = re.compile(r"\barn:(?:[^:/]*:){0,4}(?P<resource>.*)", re.DOTALL)
"""arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE"""
_TUNED = re.compile(r"(?<![^/])ft:(?P<base>[^:/]+).*", re.DOTALL)
"""ft:MODEL:OWNER:NAME:ID"""
_ROW = re.compile(r"^(?P<source>.*) row (?P<row>\d+)$", re.DOTALL)
_PASSED_IN = "references"
"""What `load_references` calls references that were passed in from Python."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""Anywhere in a variable's name. `config.keys` asks for more, since what it knows is cut out of answers; what is found
here is reported, and nothing is published."""
_MIN_LENGTH = 12
"""A shorter value of a variable may be a word that any text holds."""
_DATA = re.compile(r'<script type="(?P<kind>text/plain|application/json)"[^>]*>(?P<content>.*?)</script>', re.DOTALL)
"""Where a page holds its rows (`report.page.packed`) and its charts' figures."""
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
"""A backslash before punctuation: Markdown shows only the punctuation."""


@lru_cache(maxsize=4096)
def public_endpoint(endpoint: str | None) -> str:
    """The host of `endpoint` if it is a public one, or the provider's name; PRIVATE for any other, LOCAL for a model
    that ran beside its run."""
    if not endpoint:
        return PRIVATE
    if endpoint.startswith(EMBEDDED):
        return LOCAL
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        return PRIVATE
    if host:
        return host if host in PUBLIC_HOSTS else PRIVATE
    return endpoint if _PROVIDER.fullmatch(endpoint) else PRIVATE


@lru_cache(maxsize=4096)
def public_model(model: str | None) -> str:
    """`model` as it is; of a path only the last component, as servers name models by where they are stored.

    Of an AWS resource name the provider and the last component, without the account; of a fine-tuned model the base
    model, without its owner.
    """
    if not model:
        return "not known"
    if resource := _ARN.search(model):
        before = model.partition("/")[0] + "/" if resource.start() else ""
        model = before + resource["resource"].rstrip("/").split("/")[-1]
    provider, _, name = model.partition("/")
    is_path = name.startswith(("/", "~", ".")) or not provider or "\\" in model or provider[0] in "~." or ":/" in model
    if is_path or model.count("/") > (1 if _FILES.search(model) else 2):
        model = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return one_line(_TUNED.sub(r"\g<base>, fine-tuned", model), 120) or "not known"


def public_detail(reason: str | None, detail: str | None) -> str | None:
    """A filter's `detail` as it is; where its judge failed only the kind, as the rest quotes its server. Up to
    version 0.2.0 that was an abstention."""
    return detail.partition(":")[0] if detail and reason in {ABSTAINED, FAILED} else detail


def public_source(source: str | None) -> str:
    """Where a reference was read, as `data.references` writes it ("PATH row 3"): a file by its name alone, a Hub
    data set by its id, and OTHER_SOURCE for anything else."""
    match = _ROW.match(source or "")
    if match is None:
        return OTHER_SOURCE
    return f"{origin_of(source)} row {match['row']}"


def origin_of(source: str | None) -> str:
    """`public_source` without the row."""
    match = _ROW.match(source or "")
    name = match["source"] if match else ""
    if name in {*OWN, _PASSED_IN}:
        return name
    if _FILES.search(name):
        return one_line(re.split(r"[/\\]", name)[-1], 120)
    return name if _HUB_NAME.fullmatch(name) else OTHER_SOURCE


def secret_values(key_variables: Collection[str] = ()) -> dict[str, str]:
    """What it is → its value: environment variables of this process whose name sounds like a secret, or whose name's
    digest (`manifest.name_digest`) is in `key_variables`, and the token of a login. Uses no network."""
    values = {
        f"the value of the variable {name}": value.strip()
        for name, value in current_environ().items()
        if _SECRET_NAME.search(name) or name_digest(name) in key_variables
    }
    values["the token of hf auth login"] = _login_token()
    # Not Path.exists: it raises for a value that is longer than a file name may be.
    return {what: text for what, text in values.items() if len(text) >= _MIN_LENGTH and not os.path.exists(text)}  # noqa: PTH110


def _login_token() -> str:
    """The token of a login from its file, or "". The library's `get_token` might renew it, over the network."""
    from huggingface_hub import constants

    try:
        return Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def find_key_shapes(path: Path) -> list[str]:
    """Which of SHAPES the file at `path` contains; never the key itself. Raises InputError."""
    return _search(path, SHAPES, regex=True)


def find_secrets(path: Path, secrets: Mapping[str, str]) -> list[str]:
    """Which of `secrets` (`secret_values`) the file at `path` contains verbatim. Raises InputError."""
    return _search(path, secrets, regex=False)


def _search(path: Path, patterns: Mapping[str, str], *, regex: bool) -> list[str]:
    """The names of the `patterns` that match. Arrow's search takes a tenth of the time of `re`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    match = pc.match_substring_regex if regex else pc.match_substring
    matched: dict[str, None] = {}
    for texts in texts_of(path):
        array = pa.array([_encodable(texts)], pa.large_string()) if isinstance(texts, str) else texts
        matched |= dict.fromkeys(
            what for what, pattern in patterns.items() if pc.any(match(array, _encodable(pattern))).as_py()
        )
    return list(matched)


def _encodable(text: str) -> str:
    """Variables may hold bytes that are not UTF-8, and JSON lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def texts_of(path: Path) -> Iterator[Any]:
    """Each text in the file, as `str` or as an Arrow array: of a Parquet file all columns, lists and structs too; of an
    HTML page also its packed data; of Markdown and JSON also the text without escapes.

    Raises InputError: the file cannot be read in this way.
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
    if path.suffix == ".json":
        with suppress(ValueError, RecursionError):  # a person has made it no JSON
            yield "\n".join(_strings(text))


def _page(path: Path, text: str) -> Iterator[str]:
    try:
        for block in _DATA.finditer(text):
            content = _unpacked(block["content"]) if block["kind"] == "text/plain" else block["content"]
            yield "\n".join(_strings(content))
    except (ValueError, OSError, EOFError, zlib.error, RecursionError):
        raise InputError(
            f"{one_line(path, 200)}: its data cannot be read, so it cannot be searched for keys; make the folder "
            "again with " + FORCE
        ) from None
    rest = _DATA.sub("", text)  # packed data may look like a key by chance
    yield rest
    yield html.unescape(_SCRIPT.sub("", rest))


def _unpacked(content: str) -> str:
    return gzip.decompress(base64.b64decode(content)).decode("utf-8")


def _strings(content: str) -> Iterator[str]:
    """Every string in JSON, the names of objects' fields too."""
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
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:  # Arrow takes no path that is not UTF-8
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
        for child in column.flatten():
            yield from _arrays(pa, child)
