"""A synthesis run in MLflow: its parameters, its metrics minute by minute, its cost, its data set and program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refed_dspy.ledger.account import RunAccount, per_minute
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import KILLED, End, last_end
from refed_dspy.ledger.summary import live_numbers
from refed_dspy.records import digest
from refed_dspy.tracking.store import Store

_LIVE = ("kept", "calls", "calls_a_second", "in_flight", "nodes", "workers", "deaths")


def copy_run(store: Store, last: bool) -> None:
    """Copy to MLflow what the run in the store's folder has done so far. Raises NotTracked."""
    if not (store.folder / FILE).is_file():
        return  # a cluster is being connected to
    live = None if last else live_numbers(store.folder)
    with Ledger.read(store.folder) as ledger:
        if not ledger.meta("identity") or not (ledger.has_answers() or (live and live["calls"])):
            return  # perhaps refused before its first answer: there is nothing to copy
        account, points, end = RunAccount.of(ledger), per_minute(ledger), last_end(ledger)
    status = account.status
    run_id = store.run("synthesis", store.folder.absolute().name, run_parameters(account))
    if last:  # what must be true comes first: after Ctrl-C there may be no time for the rest
        store.ended(run_id, "FINISHED" if status["kept"] >= status["size"] else "KILLED")
    copied_up_to = store.noted("minute")
    complete = [minute for minute in points if last or minute < max(points)]
    new_minutes = [m for m in complete if copied_up_to is None or m > copied_up_to or (last and m >= copied_up_to)]
    store.metrics(
        run_id,
        [
            (name, value, points[m]["time"], m)
            for m in new_minutes
            for name, value in points[m].items()
            if name != "time"
        ],
    )
    if new_minutes:
        store.remember(minute=max(new_minutes))
    if live is not None:
        _copy_live(store, run_id, live)
    if account.source and not store.noted("linked"):
        store.tags(run_id, {f"refed.program.{name}": value for name, value in account.source.items()})
        store.remember(linked=True)
    if last:
        _finish(store, run_id, status, end)


def _copy_live(store: Store, run_id: str, live: Mapping[str, Any]) -> None:
    """Copy the numbers of a run on a cluster at this moment, whose ledger gets them when its shards are gathered.

    Their names begin with `cluster/`; a step is a minute of the clock, since a run may go on much later.
    """
    if live["at"] == store.noted("live"):
        return
    numbers = {name: live[name] for name in _LIVE} | {"shards_done": live["shards"]["done"]}
    if live["cost"] is not None:
        numbers["dollars"] = live["cost"]
    points = [(f"cluster/{name}", value, live["at"], int(live["at"] // 60)) for name, value in numbers.items()]
    store.metrics(run_id, points)
    store.remember(live=live["at"])


def run_parameters(account: RunAccount) -> dict[str, Any]:
    """What the run was called with. Where there are several teachers: stage by stage, those of all others first."""
    status, teachers = account.status, account.pools
    config = account.settings.teacher.get("config") or {}
    return {
        "size": status["size"],
        "references": status["references"],
        "references_digest": account.references,
        "program": account.program,
        "program_digest": account.prompts_digest,
        "features": ", ".join(account.features),
        "instructions_per_feature": account.instructions_per_feature,
        "seed": status["seed"],
        "teacher": ", ".join(f"{stage}: {models}" if stage else models for stage, models in teachers.items()),
        "judge": account.settings.judge.get("model"),
        "filters": ", ".join(label for label, _ in account.filters) or None,
        **{name: config.get(name) for name in ("temperature", "max_tokens", "concurrency", "api_base")},
        **{name: value for name, value in status["caps"].items() if value is not None},
    }


def _finish(store: Store, run_id: str, status: Mapping[str, Any], end: End) -> None:
    kept = int(status["kept"])
    complete = kept >= status["size"]
    store.tags(run_id, {"refed.kept": kept, "refed.complete": complete})
    store.stopped(run_id, None if end.state == KILLED else end.reason)  # killed: it is at work
    if kept and store.noted("rows") != kept:
        key = digest([str(store.folder.absolute()), kept, status["seed"]])
        store.data_set(run_id, store.folder.absolute().name, key, str(store.folder.absolute()), kept, "synthesis")
        store.remember(rows=kept)
