"""Commits in a group: one transaction for all of an iteration, and nothing lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import RunStopped
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.statements import Statement

NOTHING = Spent(0, 0, 0, 0.0)
BROKEN: list[Statement] = [("INSERT INTO nowhere VALUES (1)", ())]


class CountingLedger(Ledger):
    """Keeps how many statements each transaction had."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[int] = []

    def commit(self, statements: Iterable[Statement]) -> None:
        listed = list(statements)
        self.batches.append(len(listed))
        super().commit(listed)


def note(name: str) -> list[Statement]:
    """One harmless row."""
    return [("INSERT INTO meta VALUES (?, '1', NULL)", (name,))]


def noted(folder: Path) -> set[str]:
    """The rows that another connection sees: what is on disk."""
    with Ledger.read(folder) as ledger:
        return {name for (name,) in ledger.db.execute("SELECT name FROM meta")}


async def test_commits_of_one_loop_iteration_are_one_transaction(tmp_path: Path) -> None:
    with CountingLedger.create(tmp_path) as ledger:
        group = GroupCommit(ledger)
        await asyncio.gather(*(group.commit(note(f"n{i}")) for i in range(50)))
        assert ledger.batches == [50]
        assert len(noted(tmp_path)) == 50, "it is on disk when commit returns"
        await group.commit(note("later"))
        assert ledger.batches == [50, 1]


async def test_a_unit_that_fails_costs_no_other_its_place_but_whatever_comes_next(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        group = GroupCommit(ledger)
        commits = [group.commit(statements) for statements in (note("before"), BROKEN, note("after"))]
        before, error, after = await asyncio.gather(*commits, return_exceptions=True)
        assert before is None and after is None, "their answers are paid for"
        assert isinstance(error, RunStopped) and "nowhere" in str(error)
        with pytest.raises(RunStopped):
            group.post(note("next"))
        with pytest.raises(RunStopped):
            await group.commit(note("next"))
        with pytest.raises(RunStopped):
            group.close()
    assert noted(tmp_path) == {"before", "after"}


async def test_closing_writes_what_is_left_and_raises_a_failure_that_nobody_has_seen(
    tmp_path: Path, ledger: Ledger
) -> None:
    recorder = RunRecorder(ledger, Caps(), NOTHING)
    with pytest.raises(KeyError), recorder.closing():
        recorder.group.post(note("left"))
        raise KeyError
    assert noted(tmp_path) == {"left"}
    group = GroupCommit(ledger)
    group.post(BROKEN)
    await asyncio.sleep(0)
    with pytest.raises(RunStopped, match="nowhere"):
        group.close()


async def test_a_cancelled_wait_loses_nothing(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        group = GroupCommit(ledger)
        tasks = [asyncio.create_task(group.commit(note(f"n{i}"))) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[1].cancelled() and tasks[2].exception() is None
    assert noted(tmp_path) == {"n0", "n1", "n2"}


async def test_a_commit_of_nothing_returns(ledger: Ledger) -> None:
    task = asyncio.create_task(GroupCommit(ledger).commit([]))
    for _ in range(10):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    assert done
