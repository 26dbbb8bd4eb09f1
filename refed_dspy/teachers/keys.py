"""A teacher's key: read from its variable, and taken out of whatever is shown or kept."""

from __future__ import annotations

import json
import os

from refed_dspy.errors import ConfigError


def read_key(variable: str) -> str | None:
    """The key in `variable` without the blanks around it (a mounted secret ends with a line break); None if empty.

    Raises:
        ConfigError: it holds what no HTTP header can: a client would refuse it in words of its own, and quote the key.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise ConfigError(
            f"teacher: the key in {variable} has a letter that no key has (a line break, a blank, an accent)"
        )
    return key or None


def without_key(text: str, key: str | None) -> str:
    """`text` with `[key]` in the key's place, also where it is quoted as Python or JSON would."""
    for written in (key, repr(key)[1:-1], json.dumps(key)[1:-1]) if key else ():
        text = text.replace(written, "[key]")
    return text
