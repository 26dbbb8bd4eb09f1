"""Judge filters asked by workers: what is kept, what is paid for, and what is left after a kill."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import InputError, RunStopped
from refed_dspy.filters.base import Decision, JudgeFilter
from refed_dspy.filters.judge import _Judged
from refed_dspy.ledger.connection import JUDGING
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import text_digest
from refed_dspy.ledger.states import state_in
from refed_dspy.plugins.cluster import gather_verdicts, judge_shard, judging
from refed_dspy.programs.asking import about, as_role
from refed_dspy.records import DataRow, Reference
from refed_dspy.runs.filter.result import Filtering
from tests.runs.cluster.here import work_here
from tests.runs.filter.helpers import http, lines, outputs

ROWS = [
    {"instruction": f"Do number {n}.", "response": f"Plain {n}.", "improved_response": f"Better {n}."}
    for n in range(40)
]
FILTERS = [{"rubric": {"at_least": 2}}, "refusals", {"judge": {"keep": 1}}]


class AtLeastOneWord(JudgeFilter):
    """Asks for a word, and keeps every other row."""

    name = "words"

    def __init__(self, words: int) -> None:
        self.predict = dspy.Predict("question -> answer")
        self.words = words

    async def judged(self, row: DataRow, item: str) -> Decision:
        with as_role("judge"), about("words", item):
            answer = (await self.predict.acall(question=f"{row.instruction} In {self.words} words?")).answer
        return Decision(row.number % 2 == 0 and bool(answer), "odd")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two workers in this process, and many shards."""
    work_here(monkeypatch)
    monkeypatch.setattr(judging, "FEWEST", 4)  # ten shards of 40 rows


def filtered(
    server: SimulatedTeacher, out: Path, filters: Any = ("judge",), cluster: str | None = "here", **more: Any
) -> Filtering:
    rows = more.pop("rows", ROWS)
    return refed_dspy.filter_data(rows, filters, judge=http(server), out=out, cluster=cluster, progress=False, **more)


def used(path: Path) -> tuple[int, int]:
    """Calls, and picodollars, of a ledger's calls."""
    with closing(sqlite3.connect(path)) as db:
        calls, cost = db.execute("SELECT count(*), total(cost) FROM calls").fetchone()
        sums = db.execute("SELECT total(calls), total(cost) FROM usage").fetchone()
    assert (calls, cost) == sums
    return calls, int(cost)


def bill(server: SimulatedTeacher) -> int:
    """Picodollars of all that the server answered."""
    stats = server.stats()
    return int(stats["billed_prompt_tokens"] * 1_000_000 + stats["billed_completion_tokens"] * 2_000_000)


def test_the_result_is_that_of_one_process_and_each_question_is_asked_once(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    rows = [*ROWS, *ROWS[:9]]
    alone = filtered(server, tmp_path / "alone", FILTERS, None, rows=rows)
    asked = server.stats()["requests"]
    assert alone.used and alone.used.calls == asked < 3 * len(rows) and len(alone.filtered.kept) == 1
    server.reset()
    made = filtered(server, tmp_path / "out", FILTERS, rows=rows)
    files = {name: text.replace(b"/alone/", b"/out/") for name, text in outputs(alone.out).items()}
    assert outputs(made.out) == files
    stats = server.stats()
    assert (stats["requests"], stats["repeated"]) == (asked, 0)
    assert used(made.out / "ledger.sqlite") == (asked, bill(server))
    assert not (made.out / JUDGING).exists() and made.state == "done"


def test_a_finished_one_needs_no_cluster_again(
    server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = outputs(filtered(server, tmp_path / "out").out)
    asked = server.stats()["requests"]
    monkeypatch.setattr(judging, "connected", None)
    assert outputs(filtered(server, tmp_path / "out").out) == files
    assert outputs(filtered(server, tmp_path / "out", cluster=None).out) == files
    assert server.stats()["requests"] == asked


@pytest.mark.parametrize("cluster", ["here", None])
def test_what_was_not_gathered_is_not_paid_for_again(
    cluster: str | None,
    server: SimulatedTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, failing, taken = gather_verdicts._take_over, [3], list[Path]()

    def stopped_after_some(ledger: Ledger, shard: Ledger, names: list[str]) -> None:
        if not failing[0]:
            raise RunStopped("killed here")
        failing[0] -= 1
        taken.append(shard.path)
        real(ledger, shard, names)

    server.control(auth_fails_after=30)
    with monkeypatch.context() as patch:
        patch.setattr(gather_verdicts, "_take_over", stopped_after_some)
        with pytest.raises(RunStopped, match="Incorrect API key"):
            filtered(server, tmp_path / "out")
    assert "not yet gathered: killed here" in caplog.text and len(taken) == 3
    shards = [used(path) for path in gather_verdicts.shards_in(tmp_path / "out") for path in path.glob("ledger.sqlite")]
    server.control(auth_fails_after=None)
    sent = server.stats()["requests"]
    assert sum(calls for calls, _ in shards) >= sent
    made = filtered(server, tmp_path / "out", cluster=cluster)
    assert server.stats()["repeated"] == 0 and server.stats()["answered"] == 2 * len(ROWS)
    calls, cost = used(made.out / "ledger.sqlite")
    assert calls - sum(calls for calls, _ in shards) == server.stats()["requests"] - sent, "counted twice, or not"
    assert cost >= bill(server)
    assert len(made.filtered.undecided) == 0


def test_a_dollar_cap_holds_and_a_higher_one_goes_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    kept = outputs(filtered(server, tmp_path / "alone", cluster=None).out)["kept.jsonl"]
    server.reset()
    max_cost = 0.012
    made = filtered(server, tmp_path / "out", max_cost=max_cost)
    assert made.stopped == "max_cost" and made.state == "at its cap"
    assert 0.004 < bill(server) / 1e12 <= max_cost and made.used and made.used.picodollars == bill(server)
    undecided = len(lines(made.out / "undecided.jsonl"))
    assert 0 < undecided == len(made.filtered.undecided) < 40
    asked = server.stats()["requests"]
    again = filtered(server, tmp_path / "out")
    assert again.stopped == "max_cost" and server.stats()["requests"] <= asked + 4, "the cap stays"
    whole = filtered(server, tmp_path / "out", max_cost=1.0)
    assert not whole.stopped and outputs(whole.out)["kept.jsonl"] == kept
    assert server.stats()["requests"] == 80 and server.stats()["repeated"] == 0


def test_a_cap_on_calls_is_exact(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = filtered(server, tmp_path / "out", max_calls=21, max_cost=5.0)
    assert made.stopped == "max_calls" and server.stats()["requests"] == 21
    assert used(made.out / "ledger.sqlite")[0] == 21


def test_time_that_is_used_up_leaves_the_rest_undecided(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.2)
    made = filtered(server, tmp_path / "out", max_minutes=1 / 60)
    assert made.stopped == "max_minutes" and 0 < len(made.filtered.undecided) < 40
    asked = server.stats()["requests"]
    assert used(made.out / "ledger.sqlite")[0] == asked
    server.control(latency=0)
    assert not filtered(server, tmp_path / "out", max_minutes=5).stopped
    assert server.stats()["repeated"] <= 6, "what was in flight"


def test_rows_without_an_answer_are_undecided_and_asked_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"500": 0.1})
    made = filtered(server, tmp_path / "out")
    assert "the judge gave no answer on" in made.problem and state_in(made.out) == "ended short"
    assert 0 < len(made.filtered.undecided) < 20
    server.control(faults={})
    assert not filtered(server, tmp_path / "out").problem
    assert server.stats()["repeated"] == 0


def test_a_judge_that_is_refused_ends_it_in_one_line(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(auth_fails_after=0)
    with pytest.raises(InputError, match=r"Incorrect API key") as e:
        filtered(server, tmp_path / "out")
    assert "\n" not in str(e.value) and e.value.exit_code == 2, "nothing was paid"
    assert state_in(tmp_path / "out") == "stopped"


def test_a_filter_of_ones_own_is_built_by_its_name(server: SimulatedTeacher, tmp_path: Path) -> None:
    own = {"tests.runs.cluster.test_judging:AtLeastOneWord": {"words": 2}}
    made = filtered(server, tmp_path / "out", [own, "judge"])
    assert len(made.passes[0].decisions) == 40 and made.passes[0].label == "words"
    assert server.stats()["requests"] == 40 + 2 * len([*made.passes[1].decisions])
    assert server.stats()["repeated"] == 0


class Undecided(_Judged):
    """Cannot tell about some rows, or about all."""

    name = "undecided"

    def __init__(self, every: bool) -> None:
        self.predict, self.every = dspy.Predict("question -> answer"), every

    async def judged(self, row: DataRow, item: str) -> Decision:
        self._check_useful()
        with as_role("judge"), about("undecided", item):
            await self.predict.acall(question=row.instruction)
        if self.every or sum(text_digest(row.instruction)[:8]) % 3 == 0:
            return self._undecided("undecided", item, "cannot tell", "")
        self.decided += 1
        return Decision(True)


@pytest.mark.parametrize("every", [True, False])
def test_a_judge_that_decides_nothing_ends_it_but_not_if_it_is_a_shards_rows(
    every: bool, server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "FEWEST", 60)  # three shards
    rows = [{**ROWS[0], "instruction": f"Number {n}."} for n in range(180)]
    own = {"tests.runs.cluster.test_judging:Undecided": {"every": every}}
    if every:
        with pytest.raises(RunStopped, match="undecided: the judge decided none of the") as raised:
            filtered(server, tmp_path / "out", [own], rows=rows)
        assert "\n" not in str(raised.value) and 40 <= server.stats()["requests"] <= 4 * (20 + 3)
        return
    alone = filtered(server, tmp_path / "alone", [own], None, rows=rows)
    made = filtered(server, tmp_path / "out", [own], rows=rows)
    assert outputs(made.out)["kept.jsonl"] == outputs(alone.out)["kept.jsonl"]
    assert not made.filtered.undecided and server.stats()["requests"] == 360


def test_a_row_comes_to_the_worker_as_it_is(tmp_path: Path) -> None:
    reference = Reference(instruction="a", response="b", system="Be brief.")
    row = DataRow(7, "Do it.", "Done.", None, {"reference": reference.id, "n": [1, None]}, reference, "")
    assert judge_shard._row(json.loads(json.dumps(judge_shard._as_json(row)))) == row
