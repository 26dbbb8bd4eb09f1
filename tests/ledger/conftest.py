from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import Spent


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A new ledger, in `tmp_path`."""
    with Ledger.create(tmp_path) as made:
        yield made


@pytest.fixture
def run(ledger: Ledger) -> RunRecorder:
    """The recorder of a run in `ledger` without caps."""
    return RunRecorder(ledger, Caps(), Spent(0, 0, 0, 0.0))
