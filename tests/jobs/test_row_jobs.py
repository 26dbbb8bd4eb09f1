"""Jobs over rows: how many at once, what ends them, which messages come, and what no start pays for again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as lm_errors

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.data.dataset import data_identity, load_dataset
from refed_dspy.errors import NoConnection, RunStopped, TeacherRefused
from refed_dspy.jobs.job import job as opened_job
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.asking import as_role
from refed_dspy.programs.lm_errors import NotReached
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.progress import Progress, Watch
from tests.support.asking import ask, row_job
from tests.support.compiling import config
from tests.support.said import Said
from tests.support.scripted_engine import Answer, Writer, fake_lm, references

NO_CAPS = CapSettings(max_cost=None, max_calls=None, max_minutes=None)
ANSWER = dspy.Predict("question -> answer")


def job(models: dict[str, Teacher], **changes: Any) -> Work:
    """A job whose identity, caps and so on may be changed."""
    caps = CapSettings(**{**NO_CAPS, **changes.pop("caps", {})})
    return Work(kind="testing", models=models, caps=caps, **{"identity": {"data": "d"}, "size": 6, **changes})


async def worked(
    folder: Path,
    spec: Work,
    items: Sequence[Any],
    work: Callable[[Any], Awaitable[None]],
    slots: int = 2,
    seen: list[Progress] | None = None,
) -> Session:
    async with row_job(folder, spec, Watch(None if seen is None else seen.append)) as session:
        await session.for_each(items, work, slots)
    return session


def teacher(*queue: Answer) -> tuple[Teacher, Writer]:
    writer = Writer(*queue)
    return open_teacher(fake_lm(writer)), writer


async def question(n: Any) -> str:
    return str((await ask("answering", str(n), ANSWER, question=f"What is {n}?")).answer)


# --- many at once


async def test_no_more_than_the_slots_work_at_once_and_every_item_is_done(tmp_path: Path) -> None:
    now, most, done = 0, 0, []

    async def work(n: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001 * (n % 3))
        now -= 1
        done.append(n)

    await worked(tmp_path, job({"teacher": teacher()[0]}), range(20), work, slots=3)
    assert most == 3 and sorted(done) == list(range(20))
    await worked(tmp_path, job({"teacher": teacher()[0]}), [], work)
    assert len(done) == 20


async def test_the_first_error_is_raised_and_what_is_in_flight_may_land(tmp_path: Path) -> None:
    landed: list[int] = []

    async def work(n: int) -> None:
        if n == 1:
            await asyncio.sleep(0.01)
            raise ValueError("first")
        await asyncio.sleep(0.05)
        landed.append(n)
        if n == 0:
            raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        await worked(tmp_path, job({"teacher": teacher()[0]}), range(9), work, slots=3)
    assert landed == [0, 2], "two were in flight, and no further one began"


async def test_once_it_must_stop_no_call_begins(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.1)

    async def work(n: int) -> None:
        if n == 1:
            await asyncio.sleep(0.02)
            raise ValueError("first")
        await question(n)
        await question(f"{n} more")

    with pytest.raises(ValueError, match="first"):
        await worked(tmp_path, job({"teacher": open_teacher(config(server))}), range(2), work)
    assert server.stats()["requests"] == 1
    with Ledger.read(tmp_path) as ledger:
        assert ledger.has_answers(), "what was in flight has landed, and is kept"


async def test_what_does_not_land_within_the_grace_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refed_dspy.jobs.work.GRACE", 0.01)
    ends: list[str] = []

    async def work(n: int) -> None:
        if n == 1:
            raise ValueError("first")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    with pytest.raises(ValueError, match="first"):
        async with row_job(tmp_path, job({"teacher": teacher()[0]})) as session:
            await session.for_each(range(2), work, 2)
    assert ends == ["cancelled"]


# --- nothing paid twice


async def test_what_is_paid_for_comes_first_whatever_ends_the_rest(server: SimulatedTeacher, tmp_path: Path) -> None:
    """Item 0 is asked anew and takes the last call there is: the items behind it are there all the same."""
    done: list[int] = []

    async def work(n: int) -> None:
        await question(n)
        done.append(n)

    models = {"teacher": open_teacher(config(server))}
    await worked(tmp_path, job(models), [1, 2, 3, 4], work)
    assert server.stats()["requests"] == 4
    done.clear()
    seen: list[Progress] = []
    session = await worked(tmp_path, job(models, caps={"max_calls": 4}), [0, 1, 2, 3, 4], work, slots=1, seen=seen)
    assert done == [1, 2, 3, 4] and server.stats()["requests"] == 4
    assert session.cap_reached is not None and session.cap_reached.cap == "max_calls"
    assert seen[-1].kept == 4 and not seen[-1].moments, "what was there already says nothing of the pace"


@pytest.mark.parametrize("within", [False, True])
async def test_ctrl_c_gets_through_while_paid_answers_are_read(tmp_path: Path, within: bool) -> None:
    opened, _ = teacher()
    await worked(tmp_path, job({"teacher": opened}), range(3), question_only)
    begun: list[int] = []

    async def work(n: int) -> None:
        begun.append(n)
        await question(n)
        if n == 0:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            if within:
                await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await worked(tmp_path, job({"teacher": opened}), range(3), work)
    assert begun == [0]


async def question_only(n: Any) -> None:
    await question(n)


async def test_half_paid_work_is_done_again_from_its_beginning(tmp_path: Path) -> None:
    opened, writer = teacher()
    done: list[int] = []

    async def twice(n: int) -> None:
        await question(n)
        await question(f"{n} more")
        done.append(n)

    await worked(tmp_path, job({"teacher": opened}), range(3), question_only)
    await worked(tmp_path, job({"teacher": opened}), range(3), twice)
    assert sorted(done) == [0, 1, 2] and len(writer.requests) == 6


# --- whose folder it is


async def test_settings_that_json_writes_otherwise_are_the_same_settings(tmp_path: Path) -> None:
    identity = {"teacher": {"params": {"logit_bias": {50256: -100}, "stop": ("a", "b")}}}
    for _ in range(2):
        await worked(tmp_path, job({"teacher": teacher()[0]}, identity=identity), [1], question_only)
    rows = references(3)
    assert data_identity(rows, load_dataset(rows)) == data_identity(None, load_dataset(rows))
    assert data_identity(rows, load_dataset(rows)) != data_identity(references(4), load_dataset(references(4)))


# --- caps


async def test_minutes_are_over_all_starts(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.05)
    models = {"teacher": open_teacher(config(server))}
    session = await worked(tmp_path, job(models, caps={"max_minutes": 0.01}), range(200), question_only, slots=4)
    assert session.cap_reached is not None and session.cap_reached.cap == "max_minutes"
    asked = server.stats()["requests"]
    assert 0 < asked < 100
    await worked(tmp_path, job(models, caps={"max_minutes": 0.01}), range(200), question_only, slots=4)
    assert server.stats()["requests"] < 1.7 * asked, "the second had what the first left: its grace"


async def test_what_is_written_after_the_last_answer_is_no_time_of_work(tmp_path: Path) -> None:
    """Scores are computed and files written in the same job, perhaps for an hour: no minutes of the cap."""
    with opened_job(tmp_path, job({"teacher": teacher()[0]})) as at:
        async with at.asking() as session:
            await session.for_each([1], question_only)
        seconds = worked_for(at.ledger)
        at.ledger.set_meta(figures={})
        assert worked_for(at.ledger) == seconds > 0


def worked_for(ledger: Ledger) -> float:
    """The seconds of its first start."""
    return float(ledger.db.execute("SELECT last - begun FROM starts").fetchone()[0])


# --- the models


async def test_one_model_in_two_roles_starts_once(tmp_path: Path) -> None:
    counts = {"started": 0, "stopped": 0}
    lm = fake_lm(Writer())

    def started() -> Any:
        counts["started"] += 1
        return open_teacher(lm).start()

    def stopped() -> None:
        counts["stopped"] += 1

    both = Teacher({"model": "m"}, 4, None, 64, "e", "m", None, None, start=started, stop=stopped)
    roles: list[str] = []

    async def work(n: int) -> None:
        await question(n)
        with as_role("judge"):
            roles.append(await question(f"{n} of the judge"))

    await worked(tmp_path, job({"teacher": both, "judge": both}), range(2), work)
    assert counts == {"started": 1, "stopped": 1} and len(roles) == 2


@pytest.mark.parametrize("role", ["teacher", "judge"])
async def test_a_model_that_never_answers_is_refused_and_later_it_stops_the_work(
    said: Said, tmp_path: Path, role: str
) -> None:
    opened, _ = teacher()
    bad, _ = teacher(lm_errors.LMAuthError("wrong key"))
    models = {"teacher": opened, "judge": bad} if role == "judge" else {"teacher": bad}

    async def work(n: int) -> None:
        if role == "judge" and n:
            with as_role("judge"):
                await question(n)
        else:
            await question(n)

    with said.by(TeacherRefused if role == "teacher" else RunStopped):  # only the second has something that is kept
        await worked(tmp_path, job(models), range(3), work, slots=1)


async def test_a_row_that_cannot_do_without_its_answer_ends_the_work_and_says_how_to_go_on(
    said: Said, tmp_path: Path
) -> None:
    opened, writer = teacher()
    writer.on_request = lambda request: NotReached("connection refused") if len(writer.requests) > 1 else None
    with said.by(RunStopped):
        await worked(tmp_path, job({"teacher": opened}), range(3), question_only, slots=1)
    assert not issubclass(RunStopped, NoConnection)


async def test_too_many_failures_stop_the_work_in_one_line(said: Said, tmp_path: Path) -> None:
    opened, writer = teacher()
    writer.on_request = lambda request: "no JSON"

    async def work(n: int) -> None:
        try:
            await question(n)
        except RunStopped:
            raise
        except Exception:  # noqa: BLE001 — a row may fail
            return

    with said.by(RunStopped):
        await worked(tmp_path, job({"teacher": opened}, policy=CallPolicy(0, 0.5)), range(99), work, slots=1)
    assert len(writer.requests) <= 21


async def test_where_the_minutes_are_used_up_recorded_answers_are_returned(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    rows = [{"instruction": f"Task {i}.", "response": f"Answer {i}."} for i in range(4)]
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    settings: dict[str, Any] = {"teacher": teacher, "out": tmp_path / "out", "embeddings": False}
    await asyncio.to_thread(partial(refed_dspy.recycle, rows, size=2, **settings))
    asked = server.stats()["requests"]
    made = await asyncio.to_thread(partial(refed_dspy.recycle, rows, max_minutes=1e-6, **settings))
    assert made.stopped and len(made.rows) == 2 and server.stats()["requests"] == asked == 4
    lines = (tmp_path / "out" / "recycled.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
