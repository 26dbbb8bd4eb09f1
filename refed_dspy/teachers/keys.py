"""A teacher's API key: read from its environment variable, and removed from whatever is shown or stored."""

from __future__ import annotations

import json
import os

from refed_dspy.errors import ModelError


def read_key(variable: str) -> str | None:
    """The key in `variable`, stripped (a mounted secret ends with a line break); None if empty.

    Raises:
        ConfigError: it holds characters that no HTTP header can. The HTTP client's own error would quote the key.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise ModelError(f"the key in {variable} has a letter that no key has (a line break, a blank, an accent)")
    return key or None


def without_key(text: str, key: str | None) -> str:
    """`text` with `[key]` in place of the key, also where the key is escaped as in Python or JSON strings."""
    for written in (key, repr(key)[1:-1], json.dumps(key)[1:-1]) if key else ():
        text = text.replace(written, "[key]")
    return text
