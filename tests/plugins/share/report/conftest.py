from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.ledger.ledger import Ledger


@pytest.fixture
def folder(shown: Path) -> Path:
    """The run that the page shows. Nobody writes into it."""
    return shown


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    with Ledger.read(folder) as opened:
        yield opened
