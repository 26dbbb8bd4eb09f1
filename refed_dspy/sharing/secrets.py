"""Does anything that is about to go to everyone look like a key?"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from refed_dspy.sharing.manifest import name_digest
from refed_dspy.sharing.texts import texts_of

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


def secrets_at_hand(named: Collection[str] = ()) -> dict[str, str]:
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
