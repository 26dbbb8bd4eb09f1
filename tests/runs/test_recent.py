"""What a large run is expected to take, from its last samples: against what it then takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.runs.forecast import CONFIDENCE, UNMODELLED
from refed_dspy.runs.recent import RecentUse
from refed_dspy.runs.stage_weights import StageWeights
from tests.runs.test_forecast import run


@pytest.mark.slow
def test_the_next_samples_take_what_the_last_ones_took(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"malformed": 0.1}, duplicates=0.2)
    folder = tmp_path / "run"
    run(server, folder, 300, per_reference=20)
    with Ledger.read(folder) as ledger:
        recent, before = RecentUse.read(ledger, StageWeights.read(ledger), 200), spent(ledger)
    run(server, folder, 500, per_reference=20)
    with Ledger.read(folder) as ledger:
        after = spent(ledger)
    assert recent.whole.calls == before.calls and recent.samples == 200
    assert recent.used.calls == pytest.approx(after.calls - before.calls, rel=0.1)
    assert 200 * recent.ahead == pytest.approx(after.picodollars - before.picodollars, rel=0.15)
    assert sum(recent.stages.values()) == pytest.approx(recent.used.calls / 200)
    assert UNMODELLED < recent.spread(UNMODELLED, CONFIDENCE) < 0.3
