"""Batch mode: what becomes of each request, and of each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import CutAnswer, MalformedAnswer, NoAnswer, RefusedAnswer, RowError, TeacherError, UnfitRequest
from refed_dspy.ledger.ledger import Ledger
from tests.support.said import Said
from tests.support.scripted_batches import (
    COST,
    FULL,
    USED,
    BatchFiles,
    Line,
    ScriptedService,
    ask,
    ask_all,
    asked,
    batched,
    body,
    calls,
    line,
    one_start,
    recorded_teacher,
    spared,
    states,
    teacher_config,
    well,
    written,
)

# --- the fate of a request


def once(*first: Any) -> list[Callable[[Sequence[Line]], BatchFiles]]:
    """What the first batches come to: each of `first` makes a line from a request; then all is well."""

    def by(make: Callable[[Line], Any]) -> Callable[[Sequence[Line]], BatchFiles]:
        return lambda lines: (written(*(reply for request in lines if (reply := make(request)) is not None)), None)

    return [*map(by, first), well]


def with_status(status: int, message: str = "no") -> Callable[[Line], Any]:
    return lambda request: line(request["custom_id"], {"error": {"message": message}}, status)


def odd(content: Any) -> Callable[[Line], Any]:
    return lambda request: line(request["custom_id"], content)


WORST = 1
"""Stands for the worst case of a call."""


AGAIN = [("no answer", WORST), ("ok", COST)]
CACHED = {**USED, "prompt_tokens_details": {"cached_tokens": 90}}
FATES: dict[str, tuple[Any, Any, list[tuple[str, int]]]] = {
    "refused": (with_status(400), UnfitRequest, [("http 400", 0)]),
    "limited": (with_status(429), None, [("http 429", 0), ("ok", COST)]),
    "broken": (with_status(500), None, [("http 500", 0), ("ok", COST)]),
    "missing": (lambda request: None, None, AGAIN),
    "garbled": (lambda request: b"{not json", None, AGAIN),
    "expired": (lambda request: spared(request["custom_id"]), None, [("ok", COST)]),
    "an error": (lambda request: spared(request["custom_id"], "server_error"), None, AGAIN),
    "no choice": (odd({**body("q"), "choices": []}), MalformedAnswer, [("malformed", COST)]),
    "cut": (odd(body("cut", reason="length")), CutAnswer, [("cut", COST)]),
    "declined": (odd(body("no", reason="content_filter")), RefusedAnswer, [("refused", COST)]),
    "no usage": (odd(body("no usage", usage=None)), None, [("ok", WORST)]),
    "odd usage": (odd(body("odd usage", usage={**USED, "completion_tokens": -3})), None, [("ok", WORST)]),
    "much": (odd(body("much", usage={**USED, "completion_tokens": 10**30})), None, [("ok", WORST)]),
    "cached": (odd(body("cached", usage=CACHED)), None, [("ok", COST)]),
    "null": (odd(None), RowError, [("no answer", WORST)]),
    "text": (odd("a text"), RowError, [("no answer", WORST)]),
    "list": (odd([1, 2]), RowError, [("no answer", WORST)]),
    "error with 200": (odd({"error": {"message": "went wrong"}}), None, AGAIN),
    "status a text": (lambda request: line(request["custom_id"], body("q"), "200"), None, AGAIN),
}
"""Question → what its first line is, how asking ends (None: with its answer), and the calls that it takes."""


async def test_what_becomes_of_a_request(tmp_path: Path, service: ScriptedService) -> None:
    def by_fate(lines: Sequence[Line]) -> BatchFiles:
        return written(*(reply for request in lines if (reply := FATES[asked(request)][0](request)) is not None)), None

    service.answers = [by_fate, well]
    async with recorded_teacher(tmp_path, teacher_config(service, malformed_retries=0)) as recorded:
        answers = dict(zip(FATES, await ask_all(recorded, list(FATES)), strict=True))
        assert recorded.recorder.budget.in_flight == recorded.recorder.budget.reserved == 0
    with Ledger.read(tmp_path) as ledger:
        rows = ledger.db.execute("SELECT item, outcome, cost, reserved FROM calls ORDER BY id").fetchall()
    for name, (_, ends, taken) in FATES.items():
        assert answers[name] == name if ends is None else isinstance(answers[name], ends), (name, answers[name])
        outcomes = [(how, WORST if cost == worst else cost) for item, how, cost, worst in rows if item == name]
        assert outcomes == taken, name
    assert len(service.sent) == 2 and batched(tmp_path) == 0


@pytest.mark.slow
async def test_lines_of_others_and_twice_the_same_change_nothing(tmp_path: Path, service: ScriptedService) -> None:
    def odd_lines(lines: Sequence[Line]) -> BatchFiles:
        names = ["call-99", "call--5", "call-", "call-١", "5", None, 7, "x" * 5000, "call-" + "9" * 5000]
        strange = [line(name, body("not yours")) for name in names]
        answers = [line(request["custom_id"], body(f"{asked(request)}\u2028\u2029\x85 end")) for request in lines]
        repeats = [line(request["custom_id"], body("twice")) for request in lines]
        return written(*strange, *answers, *repeats, b"", b"null", b"[" * 200_000), written(*repeats)

    service.answers = [odd_lines]
    assert await one_start(tmp_path, service, ["a", "b"]) == ["a\u2028\u2029\x85 end", "b\u2028\u2029\x85 end"]
    assert calls(tmp_path) == {("ok", COST): 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "charged"),
    [
        (with_status(500), {("http 500", 0): 3}),
        (lambda request: spared(request["custom_id"]), {}),
    ],
)
async def test_tries_have_an_end(tmp_path: Path, service: ScriptedService, fate: Any, charged: Any) -> None:
    service.answers = once(fate)[:1]
    async with recorded_teacher(tmp_path, teacher_config(service, retries=2)) as recorded:
        with pytest.raises(NoAnswer):
            await ask(recorded, "q")
    assert len(service.sent) == 3 and calls(tmp_path) == charged


# --- the fate of a batch


async def test_what_an_expired_batch_did_not_come_to_goes_again_and_costs_nothing(
    tmp_path: Path, service: ScriptedService
) -> None:
    def half(lines: Sequence[Line]) -> BatchFiles:
        names = [str(request["custom_id"]) for request in lines]
        done = len(lines) // 2
        return well(lines[:done])[0], written(*map(spared, names[done:]))

    service.status, service.answers = ["expired", "cancelled", "completed"], [half, half, well]
    texts = [f"q{n}" for n in range(8)]
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert await ask_all(recorded, texts) == texts
        assert recorded.recorder.budget.calls == 8
    assert [len(lines) for lines in service.sent] == [8, 4, 2] and calls(tmp_path) == {("ok", COST): 8}
    assert states(tmp_path) == ["expired", "cancelled", "completed"]


@pytest.mark.slow
async def test_what_is_garbled_in_an_expired_batch_may_have_been_billed(
    tmp_path: Path, service: ScriptedService
) -> None:
    def half(lines: Sequence[Line]) -> BatchFiles:
        return b'{"custom_id": "call-\n', written(*(spared(str(request["custom_id"])) for request in lines[1:]))

    service.status, service.answers = ["expired", "completed"], [half, well]
    assert await one_start(tmp_path, service, ["a", "b", "c"]) == ["a", "b", "c"]
    paid = calls(tmp_path)
    assert paid["ok", COST] == 3 and sum(paid.values()) == 4, "one of them was answered, and its line cannot be read"


@pytest.mark.slow
async def test_a_batch_that_fails_whole_is_one_line_and_costs_nothing(
    said: Said, tmp_path: Path, service: ScriptedService
) -> None:
    service.status = ["failed"]
    service.errors = [[{"code": "invalid", "message": "the model\nis not there", "line": 2}]]
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        errors = await ask_all(recorded, ["a", "b"])
        assert {type(error) for error in errors} == {TeacherError}
        said(str(errors[0]))
        assert recorded.recorder.budget.calls == recorded.recorder.budget.in_flight == 0
    assert not calls(tmp_path) and batched(tmp_path) == 0 and states(tmp_path) == ["failed"]


@pytest.mark.slow
async def test_a_full_queue_takes_smaller_batches_one_after_another(tmp_path: Path, service: ScriptedService) -> None:
    service.status, service.errors = ["failed", "failed", "completed"], [FULL, FULL, None]
    open_at_once: list[int] = []

    def count() -> None:
        going = [batch for batch in service.made.values() if batch["status"] == "in_progress"]
        open_at_once.append(len(going))

    service.hooks["create"] = [None, *[count] * 9]
    texts = [f"q{n}" for n in range(44)]
    assert await one_start(tmp_path, service, texts, batch={"quiet": 0.02, "poll": 0.01}) == texts
    assert max(map(len, service.sent)) <= 22 and set(open_at_once) == {0} and service.repeated == 0
    assert calls(tmp_path) == {("ok", COST): 44}


@pytest.mark.slow
async def test_a_limit_of_requests_is_not_raised_by_a_full_queue(tmp_path: Path, service: ScriptedService) -> None:
    service.status, service.errors = ["failed", "completed"], [FULL, None]
    config = teacher_config(service, batch={"quiet": 0.02, "poll": 0.005, "requests": 3})
    async with recorded_teacher(tmp_path, config) as recorded:
        for texts in ([f"q{n}" for n in range(6)], [f"later {n}" for n in range(8)]):
            assert await ask_all(recorded, texts) == texts
    assert max(map(len, service.sent)) <= 3


async def test_a_file_that_is_named_late_is_waited_for(tmp_path: Path, service: ScriptedService) -> None:
    hidden: dict[str, Any] = {}

    def hide() -> None:
        (batch,) = service.made.values()
        batch["status"] = "in_progress"
        service._run(batch)
        hidden["name"], batch["output_file_id"] = batch["output_file_id"], None

    def show() -> None:
        (batch,) = service.made.values()
        batch["output_file_id"] = hidden["name"]

    service.hooks["look"] = [hide, None, show]
    assert await one_start(tmp_path, service, ["q"]) == ["q"]
    assert calls(tmp_path) == {("ok", COST): 1}


@pytest.mark.slow
async def test_a_completed_batch_without_any_file_is_not_waited_for_for_ever(
    tmp_path: Path, service: ScriptedService
) -> None:
    service.answers = [lambda lines: (None, None), well]
    assert await one_start(tmp_path, service, ["q"]) == ["q"]
    taken = calls(tmp_path)
    assert taken["ok", COST] == 1 and taken.total() == 2
