"""A pool's members, one question at a time: who is asked, and when one of them is let rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Message, Request, Response

from refed_dspy.errors import CutAnswer, UnfitRequest
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.programs.asking import current_sample, same_teacher
from refed_dspy.programs.lm_errors import AnswerCut
from refed_dspy.programs.question import Question
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.outage import FIRST_OUTAGE
from refed_dspy.teachers.pool import FEW, Pool, PooledTeacher, PoolMember
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.recorded import Asked
from tests.support.clocks import Clock
from tests.support.scripted_engine import Writer, fake_lm, response

REFUSED = lm15.InvalidRequestError("not this one", status=400)
DOWN = lm15.ServerError("overloaded", status=503)


class Script:
    """An engine that answers, or raises, what is next in its script; then it answers."""

    def __init__(self, *script: Exception | None) -> None:
        self.script, self.asked = list(script), 0

    async def complete(self, request: Any) -> Response:
        self.asked += 1
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return response("Fine.")


@contextmanager
def pooled(folder: Path, *engines: Script) -> Iterator[tuple[Pool, list[PoolMember], Clock]]:
    clock, members = Clock(), []
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        recorder = RunRecorder(ledger, Caps(), spent(ledger))
        for number, engine in enumerate(engines):
            teacher = open_teacher(fake_lm(Writer(), f"fake/{number}"))
            recorded = PooledTeacher(ledger, recorder, teacher, Progress(0))
            recorded.engine = engine
            members.append(PoolMember(recorded, set(), clock))
        yield Pool([(member, 1.0) for member in members]), members, clock
        recorder.group.close()


async def ask(pool: Pool, text: str) -> None:
    request = Request(model="m", messages=(Message.user(text),))
    await pool.answer(Asked(request, Question("writing", text)))


async def until_asked(pool: Pool, engine: Script, times: int, texts: Iterator[str]) -> None:
    """Ask until `engine` was asked so often in all: the draw may take the other."""
    while engine.asked < times:
        await ask(pool, next(texts))


async def test_a_few_refusals_in_a_row_are_an_outage_and_fewer_may_be_the_requests(tmp_path: Path) -> None:
    odd = Script(None, *[REFUSED] * (FEW - 1), None, *[REFUSED] * FEW)
    texts = (f"What is {number}?" for number in range(1000))
    with pooled(tmp_path, odd, Script()) as (pool, (member, other), _):
        await until_asked(pool, odd, 2 * FEW, texts)
        assert not member.outage.down, "an answer came between them"
        await until_asked(pool, odd, 2 * FEW + 1, texts)
        assert member.outage.down and not other.outage.down
        with Ledger.read(tmp_path) as ledger:
            assert not ledger.failures(), "the other answered what it refused"


async def test_what_none_of_them_takes_is_its_rows_failure(tmp_path: Path) -> None:
    with pooled(tmp_path, first := Script(), second := Script()) as (pool, members, _):
        texts = (f"What is {number}?" for number in range(100))
        await until_asked(pool, first, 1, texts)
        await until_asked(pool, second, 1, texts)
        first.script, second.script = [REFUSED], [REFUSED]
        with pytest.raises(UnfitRequest):
            await ask(pool, "Why?")
        assert not any(member.outage.down for member in members)


async def test_who_gave_a_samples_first_answer_gives_the_later_ones_as_well(tmp_path: Path) -> None:
    """Also where the other was drawn, but was down then and is well again."""
    with pooled(tmp_path, first := Script(), second := Script()) as (pool, members, clock), dspy.context():
        for number in range(20):
            before = first.asked, second.asked
            with same_teacher(f"sample {number}"):
                await ask(pool, f"Write {number}.")
                drawn, other = (first, second) if first.asked > before[0] else (second, first)
            with same_teacher(f"sample {number}"):
                drawn.script = [DOWN]
                await ask(pool, f"Write {number} again.")
                sample = current_sample()
                clock.now += FIRST_OUTAGE + 1000
                asked = other.asked
                await ask(pool, f"Improve {number}.")
                assert sample is not None and isinstance(sample.writer, PoolMember)
                assert sample.writer.recorded.engine is other and other.asked == asked + 1
            await ask(pool, f"And {number}?")
            for member in members:
                member.outage.end()


async def test_equal_questions_at_once_are_one_call_that_both_have_asked(tmp_path: Path) -> None:
    with pooled(tmp_path, first := Script(), second := Script()) as (pool, _, _):
        request = Request(model="m", messages=(Message.user("Why?"),))
        both = (pool.answer(Asked(request, Question("writing", item))) for item in ("one", "two"))
        await asyncio.gather(*both)
        assert first.asked + second.asked == 1
        pool._recorder.group.flush()
        with Ledger.read(tmp_path) as ledger:
            items = {item for (item,) in ledger.db.execute("SELECT item FROM asked")}
        assert items == {"one", "two"}


async def test_a_final_failure_of_a_member_is_not_paid_for_again(tmp_path: Path) -> None:
    """Nor asked of another, because that one is down by now."""
    cut = AnswerCut("half of it")
    with pooled(tmp_path, first := Script(cut), second := Script(cut)) as (pool, members, _):
        for _ in range(2):
            with pytest.raises(CutAnswer):
                await ask(pool, "Why?")
            members[second.asked].outage.begin()
        assert first.asked + second.asked == 1
