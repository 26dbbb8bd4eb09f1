"""A judge among the filters of a run on a cluster: each worker asks it, under the run's caps."""

from __future__ import annotations

import pytest

from benchmarks.cluster_runs import CONCURRENCY, PRICE
from refed_dspy import read_run
from refed_dspy.ledger.ledger import Ledger
from tests.cluster.conftest import Begin

pytestmark = pytest.mark.cluster


def test_every_row_that_is_kept_was_judged_on_some_node(run: Begin) -> None:
    made = run(20, settings={"filters": ["judge"]})
    made.settings["judge"] = {"model": "sim/judge", "api_base": made.server.base_url, "concurrency": CONCURRENCY,
                              "price": PRICE}  # fmt: skip
    made.server.control(latency=0.01)  # the simulated judge drops most
    code, told = made.complete()
    assert code == 0, told
    with Ledger.read(made.folder) as ledger:
        asked = dict(ledger.db.execute("SELECT model, count(*) FROM calls GROUP BY 1"))
        decided = dict(ledger.db.execute("SELECT kept, count(*) FROM decisions WHERE filter = 'judge' GROUP BY 1"))
    assert read_run(made.folder).status["kept"] == 20 == decided[1] and decided[0] > 0
    assert asked["sim/judge"] >= 2 * (decided[0] + decided[1])
