"""A shard of a filtering: rows that one judge filter is asked about, and a ledger of what its judge said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.dataset import OnDisk, RowsOnDisk
from refed_dspy.data.stored import json_lines
from refed_dspy.files import write_lines
from refed_dspy.filters.base import JudgeFilter, Step, labels
from refed_dspy.filters.build import build
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import asked_items
from refed_dspy.plugins.cluster.leases import Lease
from refed_dspy.plugins.cluster.shard_work import ShardWork, caps_of, shared
from refed_dspy.plugins.cluster.shards import prepare_shard
from refed_dspy.records import DataRow, Reference
from refed_dspy.runs.filter.filter import judged
from refed_dspy.runs.remembered import remembered_filters, remembered_judge
from refed_dspy.runs.spec import absolute
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import open_judge_model, open_judge_program
from refed_dspy.teachers.row_jobs import for_each_row
from refed_dspy.teachers.session import Session
from refed_dspy.teachers.work import Work

ROWS = "rows.jsonl"
_SETTINGS = ("seed", "judge_program", "judge_scorer", "accept_changed")
"""Those of a filtering that its judges are made from, besides the filters."""

_ASKED = "SELECT key FROM asked WHERE item IN (SELECT value FROM json_each(?))"
_KNOWN = {
    "answers": f"SELECT * FROM answers WHERE key IN ({_ASKED})",
    "reasoning": f"SELECT * FROM reasoning WHERE key IN ({_ASKED})",
    "failures": "SELECT * FROM failures WHERE item IN (SELECT value FROM json_each(?))",
}
"""Table → its rows about some items."""


def facts_of(config: FilterRunConfig, steps: Sequence[Step], judge: Teacher) -> dict[str, Any]:
    """What a shard's folder remembers, so that a worker can build the judge filters of `steps`."""
    stored = config.model_dump(mode="json", include={*_SETTINGS})
    named = [[label, dict(step.settings)] for label, step in zip(labels(steps), steps, strict=True)]
    return {
        **stored,
        "judge_program": absolute(config.judge_program),
        "filters": [each for each, step in zip(named, steps, strict=True) if isinstance(step.filter, JudgeFilter)],
        "judge": {"model": judge.model, "config": judge.config and judge.config.model_dump(mode="json")},
    }


def remembered_judges(ledger: Ledger) -> tuple[FilterRunConfig, TeacherConfig]:
    """The settings of the judge filters of `facts_of`, and who judges. Raises RunDirError where only a script can build
    them."""
    judge = remembered_judge(ledger)
    assert judge is not None  # it is nobody's teacher
    settings = {name: ledger.meta(name) for name in _SETTINGS}
    return check_config(FilterRunConfig, {**settings, "filters": remembered_filters(ledger)}), judge


def make_shard(folder: Path, work: Work, rows: RowsOnDisk, whole: Ledger) -> None:
    """Make a shard of `rows`, with what `whole`, the filtering's ledger, has of them already: of a row that has no
    decision yet, one of two answers may be paid for. Raises RunDirError, ExportError, RunStopped."""
    prepare_shard(folder, work)
    write_lines(folder / ROWS, map(_as_json, rows))
    items = json.dumps([str(number) for number in rows.numbers])
    known = [
        (f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(row))})", row)
        for table, query in _KNOWN.items()
        for row in whole.db.execute(query, (items,))
    ]
    if known:
        with Ledger.create(folder) as shard:
            shard.commit(known)


class JudgeShard(ShardWork):
    """The work on one lease, with its share of what a judge away from the nodes allows a minute. `last`: this worker's
    last lease, whose filter knows whether its judge decides anything."""

    def __init__(self, ledger: Ledger, lease: Lease, last: ShardWork | None) -> None:
        config, judge = remembered_judges(ledger)
        self.filter: JudgeFilter = last.filter if isinstance(last, JudgeShard) else _built(config, ledger.meta("place"))
        self.rows = OnDisk(map(_row, json_lines(ledger.path.parent / ROWS)))
        self.judge = open_judge_model(shared(judge, lease.workers))
        work = Work(
            kind="filtering",
            identity=ledger.meta("identity"),
            models={"judge": self.judge},
            size=len(self.rows),
            caps=caps_of(lease),
            policy=CallPolicy(config.seed),
        )
        super().__init__(ledger, lease, work, asked_items(ledger))

    async def carry_out(self, session: Session) -> None:
        async def ask(row: DataRow) -> None:
            await judged(self.filter, row)  # what the judge says is in the ledger

        async with session.running():
            await for_each_row(session, self.rows, ask, self.judge.concurrency)

    def kept(self, session: Session) -> int:
        return session.progress.kept

    def is_dry(self, session: Session) -> bool:
        return self.kept(session) >= len(self.rows)


def _built(config: FilterRunConfig, place: int) -> JudgeFilter:
    """The judge filter at this place."""
    return cast(JudgeFilter, build(config.filters, config.seed, open_judge_program(config))[place].filter)


def _as_json(row: DataRow) -> dict[str, Any]:
    reference = row.reference and row.reference.model_dump()
    return {
        "number": row.number, "instruction": row.instruction, "response": row.response, "plain": row.plain,
        "fields": row.fields, "reference": reference, "system": row.system,
    }  # fmt: skip


def _row(stored: Mapping[str, Any]) -> DataRow:
    reference = stored["reference"] and Reference(**stored["reference"])
    return DataRow(**{**stored, "reference": reference})
