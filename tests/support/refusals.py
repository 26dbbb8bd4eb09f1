"""What is refused: the one line that the package says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from refed_dspy.errors import RefedError

LONGEST = 600
"""Characters that a person reads in one line of an error at most."""


def refusal(kind: type[RefedError], call: Callable[..., object], *words: Any, **keywords: Any) -> str:
    """The line with which this call is refused by an error of this class: one line, printable, and not long."""
    with pytest.raises(kind) as caught:
        call(*words, **keywords)
    line = str(caught.value)
    assert line.isprintable() and len(line) < LONGEST, line
    return line
