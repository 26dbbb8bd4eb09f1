"""API keys: read from their variables, recognised in settings, and taken out of whatever is shown or stored.

An endpoint may repeat the key that it was sent: in an error or in an answer, whole or cut, as it is or escaped. So each
key that this process has read is known here, and is found by any run of its characters.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from refed_dspy.concurrency import current_environ
from refed_dspy.errors import ModelError

LEAST = 16
"""Characters of a key. Anything shorter is a placeholder (`none`, `EMPTY`, `lm-studio`), and stays in texts."""
_FEW = 5
"""Different characters of a key. Anything of fewer is a placeholder (`xxxxxxxxxxxxxxxxxxxx`)."""
_WORDS = re.compile(r"[a-z]{1,15}(?:[-_][a-z]{1,15})+")
"""Lower-case words and hyphens are a placeholder, too (`sk-no-key-required`): its words stand in answers. Services draw
their keys from more: digits, capitals, or many letters in a row."""
CUT = 12
"""So many characters of a key, wherever they stand in it, are taken out of a text."""
_PROBE = 4
_STEP = CUT - _PROBE + 1
"""Of any CUT characters in a row, _PROBE in a row begin at a multiple of _STEP."""
_VARIABLE = re.compile(r"((^|_)(API)?KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$|^AWS_BEARER_TOKEN", re.IGNORECASE)
"""Names of environment variables that providers' clients read keys from, by our code or past it."""
_SECRET = re.compile(
    r"api.?key|(?<!cache.)key$|headers?$|password|passwd|secret|bearer|credential|cookie|jwt|auth(?!or(?!iz))"
    r"|(?<!eos.)(?<!bos.)(?<!pad.)(?<!stop.)token$",
    re.IGNORECASE,
)
"""Found in the name of a setting whose value may be an API key."""
_PLAIN_HEADERS = {"accept", "content-type", "http-referer", "referer", "user-agent", "x-title"}
SHAPES: Mapping[str, str] = {
    "a key of OpenAI's or Anthropic's kind (sk-…)": r"\bsk-[A-Za-z0-9_\-]{20,}",
    "a token of the Hub (hf_…)": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub (ghp_…, github_pat_…)": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a key of AWS (AKIA…)": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google (AIza…)": r"\bAIza[0-9A-Za-z_\-]{35}",
    "a token of Slack (xox…)": r"\bxox[abprs]-[0-9A-Za-z\-]{10,}",
    "a token of Databricks (dapi…)": r"\bdapi[0-9a-f]{32}",
    "a private key (PEM)": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""What it is → its regular expression, in a syntax that Arrow's search (RE2) takes as well."""

_ESCAPED = re.compile(r"(?<!\\)\\u00(2[013-9a-fA-F]|[3467][0-9a-fA-F]|5[0-9abABd-fD-F])")
"""A printable ASCII character as JSON may write it, but for the quote and the backslash."""

_known: set[str] = set()
"""The keys, as each may be written."""
_runs: set[str] = set()
"""Every CUT characters in a row of those."""
_probes: set[tuple[str, ...]] = set()
"""Every _PROBE characters in a row of those."""
_held: dict[str, str] = {}
"""Name → a key that is in no variable."""


def read_key(variable: str, role: str = "teacher") -> str | None:
    """The key in `variable` (`checked`), or the one that is `held` under its name; None if there is none. Raises
    ModelError."""
    return checked(os.environ.get(variable) or _held.get(variable, ""), variable, role) or None


def held(key: str, provider: str) -> str:
    """The name of a variable for a `key` that a language model of the caller's holds: of one that has it, else of one
    that this process alone knows, and that a later one may set."""
    for name, value in {**_held, **current_environ()}.items():
        if name.isupper() and _VARIABLE.search(name) and value.strip() == key.strip():
            return name
    name = re.sub(r"[^A-Z0-9]", "_", provider.upper()) + "_LM_API_KEY"
    while name in _held or current_environ().get(name):
        name = name.replace("_API_KEY", "2_API_KEY")
    _held[name] = key
    return name


def is_held(variable: str | None) -> bool:
    """Whether no variable has the key of this name: another process, or node, could not read it."""
    return variable in _held and not current_environ().get(variable)


def checked(key: str, where: str, role: str = "teacher") -> str:
    """`key`, which stands in `where`, stripped: a mounted secret ends with a line break. It is known from here on.

    Raises:
        ModelError: it holds characters that no HTTP header can. The HTTP client's own error would quote the key.
    """
    key = key.strip()
    if not _is_sendable(key):
        raise ModelError(
            f"the key in {where} contains a character no key has (a line break, a space, an accent); set it again", role
        )
    know(key)
    return key


def _is_sendable(key: str) -> bool:
    """Whether an HTTP header takes the key: printable ASCII without blanks."""
    return all("!" <= letter <= "~" for letter in key)


def know(key: str) -> None:
    """Have `without_keys` take this key out of texts, unless it is a placeholder (LEAST, _FEW, _WORDS)."""
    if len(key) < LEAST or len(set(key)) < _FEW or _WORDS.fullmatch(key) or key in _known:
        return
    for form in _written(key):
        _known.add(form)
        _runs.update(form[at : at + CUT] for at in range(len(form) - CUT + 1))
        _probes.update(tuple(form[at : at + _PROBE]) for at in range(len(form) - _PROBE + 1))


def know_environment() -> None:
    """`know` what variables hold that a provider's client may read by itself."""
    for name, value in current_environ().items():
        key = value.strip()
        # Not Path.exists: it raises for a value that is longer than a file name may be.
        if _VARIABLE.search(name) and _is_sendable(key) and not os.path.exists(key):  # noqa: PTH110
            know(key)


def know_settings(settings: Any) -> None:
    """`know` the keys among the settings of a caller's own language model."""
    for value in _secrets(settings):
        for word in value.split():  # "Bearer KEY"
            know(word)


def without_keys(text: str) -> str:
    """`text` with `[key]` in place of each key that is known, and of every CUT or more characters of one, also where
    each of them is escaped as JSON may."""
    clean = _cleaned(text)
    if "\\u" in clean:
        plain = _ESCAPED.sub(lambda letter: chr(int(letter[1], 16)), clean)
        if (cleaner := _cleaned(plain)) != plain:
            return cleaner
    return clean


def _cleaned(text: str) -> str:
    """The first line settles nearly every text: 4 µs for a thousand characters, however many keys there are."""
    if _probes.isdisjoint(zip(*(text[at::_STEP] for at in range(_PROBE)), strict=False)):
        return text
    kept, end = [], -1
    for at in range(len(text) - CUT + 1):
        if text[at : at + CUT] in _runs:
            if at > end:
                kept += [text[max(end, 0) : at], "[key]"]
            end = at + CUT
    return "".join([*kept, text[max(end, 0) :]])


def without_keys_in(value: Any) -> Any:
    """A JSON value, each of its texts `without_keys`: cut out of JSON's own text, a key might take an escape along."""
    if isinstance(value, str):
        return without_keys(value)
    if isinstance(value, list):
        return [without_keys_in(item) for item in value]
    if isinstance(value, dict):
        return {without_keys(name): without_keys_in(item) for name, item in value.items()}
    return value


def holds_key(text: str) -> bool:
    """Whether a whole known key stands in `text`, or something that looks like one. Other threads may `know` more."""
    return any(key in text for key in tuple(_known)) or any(re.search(shape, text) for shape in SHAPES.values())


def is_secret_name(name: object) -> bool:
    """Whether the name of a setting suggests that its value is a secret."""
    return bool(_SECRET.search(str(name)))


def secret_name(value: Any) -> str | None:
    """The first name in `value`, at any depth, that suggests that its value is an API key; None if there is none."""
    if isinstance(value, dict):
        suspect = next((str(name) for name in value if is_secret_name(name)), None)
        return suspect or next(filter(None, map(secret_name, value.values())), None)
    return next(filter(None, map(secret_name, value)), None) if isinstance(value, list) else None


def _secrets(settings: Any, named: bool = False) -> Iterator[str]:
    """Every text, at any depth, under a name that suggests a secret."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if str(name).lower() not in _PLAIN_HEADERS:
                yield from _secrets(value, named or is_secret_name(name))
    elif named and isinstance(settings, str):
        yield settings


def _written(key: str) -> set[str]:
    """The key as it is, and as it may stand in JSON, a Python repr, an address or a web page."""
    forms = {key, repr(key)[1:-1], json.dumps(key)[1:-1], html.escape(key), quote(key), quote(key, ""), quote_plus(key)}
    forms |= {re.sub("%..", lambda code: code[0].lower(), form) for form in forms}
    forms.add(re.sub(r"[^\w./~-]", lambda letter: f"\\u{ord(letter[0]):04X}", key))  # .NET's JSON
    return forms | {form.replace("/", "\\/") for form in forms}  # PHP's JSON
