"""A request that waits in a batch: what is known of it at each moment; and the log where there is no ledger."""

from __future__ import annotations

from refed_dspy.teachers.batch.service import PendingRequest, Unanswered, current_request
from tests.support.said import Said


async def test_what_is_known_of_a_request_as_its_answer_comes_or_does_not() -> None:
    waiting, answered, cancelled, free, billed, broken = (PendingRequest(number) for number in range(6))
    answered.answer.set_result("{}")
    cancelled.answer.cancel()
    for pending, error in ((free, Unanswered("x")), (billed, Unanswered("x", billed=True)), (broken, ValueError())):
        pending.answer.set_exception(error)
        assert pending.answer.exception() is error
    requests = (waiting, answered, cancelled, free, billed, broken)
    assert [pending.came for pending in requests] == [False, True, False, False, False, False]
    assert [pending.billed for pending in requests] == [False, False, False, False, True, False]
    assert not any(pending.sent or pending.held or pending.line for pending in requests)
    assert len({*requests}) == 6, "two requests are never the same"
    assert current_request.get() is None


def test_why_there_is_no_answer_is_told(said: Said) -> None:
    error = Unanswered("expired")
    assert (error.why, error.billed) == ("expired", False)
    said(str(error))
