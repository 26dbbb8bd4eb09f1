"""What the package says to people, asserted without writing its words into a test.

A test says which text is meant and, where there is one, which class of error; the words stand in `__snapshots__` beside
the test. `make words` writes them anew after they were made better.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from syrupy.assertion import SnapshotAssertion

Raised = TypeVar("Raised", bound=BaseException)
VARYING = {
    re.escape(sys.prefix): "ENVIRONMENT",
    re.escape(str(Path(__file__).parents[2])): "REPOSITORY",
    r"(127\.0\.0\.1|localhost):\d+": r"\1:PORT",
    r"(\w+\.py):\d+": r"\1:LINE",
    r"\b[0-9a-f]{64}\b": "SHA-256",
    r"\b[0-9a-f]{16}\b": "DIGEST",
    r"(are not JSON compliant): nan": r"\1",
}
"""What is another on another machine, with another Python or after the next commit, and what it is written as."""


class Said:
    """`said(text)` asserts that a text (or a list, a dict of them) is that of the snapshot, `said.by(ConfigError)` the
    same of the error that its block raises.

    Folders of tests are written as TMP, and what else varies as VARYING says.
    """

    def __init__(self, snapshot: SnapshotAssertion, folders: Sequence[str]) -> None:
        self._snapshot, self._folders = snapshot, folders

    def __call__(self, value: Any) -> None:
        assert self._steady(value) == self._snapshot

    @contextmanager
    def by(self, kind: type[Raised] | tuple[type[Raised], ...]) -> Iterator[pytest.ExceptionInfo[Raised]]:
        with pytest.raises(kind) as raised:
            yield raised
        self(str(raised.value))

    def _steady(self, value: Any) -> Any:
        if isinstance(value, str):
            for pattern in self._folders:
                value = re.sub(pattern, "TMP", value)
            for pattern, steady in VARYING.items():
                value = re.sub(pattern, steady, value)
            return value
        if isinstance(value, dict):
            return {self._steady(key): self._steady(of) for key, of in value.items()}
        if isinstance(value, list | tuple):
            return [self._steady(of) for of in value]
        return value
