"""Who follows batches, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from refed_dspy.teachers.batch.service import BatchService
from refed_dspy.teachers.batch.tracker import BatchTracker
from refed_dspy.teachers.route import resolve
from tests.support.scripted_batches import ScriptedService, teacher_config


async def test_the_last_to_leave_closes_every_connection(service: ScriptedService) -> None:
    log: Any
    config, log, names = (
        teacher_config(service),
        SimpleNamespace(trackers={}, under_way=lambda *_: ()),
        ("endpoint", "model"),
    )
    services = [BatchService(config, resolve(config)) for _ in range(2)]
    tracker = log.trackers[names] = BatchTracker(config.batch, services[0], log, names)
    for joined in (*services, services[1]):
        tracker.join(joined)
    for last in (False, False, True):
        assert not any(there._client.is_closed() for there in services)
        assert log.trackers == {names: tracker}
        assert await tracker.leave() is last
    assert all(there._client.is_closed() for there in services) and log.trackers == {}
