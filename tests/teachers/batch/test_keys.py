"""A Batch API that repeats the key it was sent: in refusals, in files of answers, in the words on a batch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from dspy.utils.exceptions import LMError

from refed_dspy.teachers.batch.service import Lines
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.said import Said
from tests.support.scripted_batches import (
    ScriptedService,
    body,
    client,
    line,
    one_start,
    pending,
    refused,
    stored,
    teacher_config,
    written,
)
from tests.teachers.test_key_echoes import CUTS, KEYS, STATUSES, Screen, leaked, screen
from tests.teachers.test_keys import texts_of

__all__ = ["screen"]  # a fixture
VARIABLE = "MY_OWN_KEY"


def repeating(status: int, text: str, *, plain: bool) -> Callable[[], web.StreamResponse]:
    return lambda: web.Response(status=status, text=text) if plain else refused(status, text, text)


SOME = ((400, True, CUTS[0]), (401, False, CUTS[1]), (413, True, CUTS[2]), (500, False, CUTS[3]))
EVERY = tuple(itertools.product(STATUSES, (True, False), CUTS[:2]))


@pytest.mark.parametrize(
    "statuses", [pytest.param(SOME, id="some"), pytest.param(EVERY, id="every", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if number % 3 else []) for number, kind in enumerate(KEYS)]
)
async def test_a_refusal_tells_no_part_of_it(
    service: ScriptedService,
    monkeypatch: pytest.MonkeyPatch,
    screen: Screen,
    kind: str,
    statuses: tuple[tuple[int, bool, slice], ...],
) -> None:
    key = KEYS[kind]
    monkeypatch.setenv(VARIABLE, key)
    async with client(teacher_config(service, api_key_env=VARIABLE), patience=0.01) as there:
        for status, plain, cut in statuses:
            hook = repeating(status, f"no way in with {key.strip()[cut]} today", plain=plain)
            service.hooks = {"upload": [hook] * 9, "look": [hook] * 9}
            for asking in (there.prepare(pending(b"{}")), there.look("batch-0")):
                with pytest.raises(LMError) as error:
                    await asking
                screen.errors += texts_of(error.value)
    assert "[key]" in screen.errors
    assert not leaked(key, screen.shown())


async def test_what_is_downloaded_is_clean_before_it_is_written_down(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are in the ledger before anyone reads them."""
    monkeypatch.setenv(VARIABLE, key := KEYS["quotes"])
    service.files["file-0"] = written(line("call-1", body(f"Bearer {key}")), line("call-2", {"error": key[7:30]}, 400))
    read: list[dict[str, Any]] = []

    async def deliver(lines: Lines) -> None:
        read.extend([each async for each in lines])

    async with client(teacher_config(service, api_key_env=VARIABLE)) as there:
        await there.read("file-0", 2, deliver)
    answered, failed = read
    (choice,) = answered["response"]["body"]["choices"]
    assert json.loads(choice["message"]["content"]) == {"answer": "Bearer [key]"}
    assert failed["response"]["body"] == {"error": "[key]"}


async def test_it_is_taken_out_before_a_message_is_cut(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    service.hooks["upload"] = [lambda: refused(401, "x" * (299 - len(KEY) // 2) + KEY)]
    async with client(teacher_config(service, api_key_env=KEY_VARIABLE), 0.3) as there:
        with pytest.raises(LMError) as error:
            await there.prepare(pending(b"{}\n"))
    assert KEY[: len(KEY) // 3] not in str(error.value)


@pytest.mark.parametrize("kind", ["2000", pytest.param("blanks", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault", ["line", "answer", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("batch", "file", "create"))]
)
async def test_no_way_of_failing_keeps_a_part_of_it(
    said: Said,
    tmp_path: Path,
    service: ScriptedService,
    monkeypatch: pytest.MonkeyPatch,
    screen: Screen,
    fault: str,
    kind: str,
) -> None:
    monkeypatch.setenv(VARIABLE, key := KEYS[kind])
    text = f"no way in with {key.strip()[5:]} today"
    if fault == "batch":
        service.status, service.errors = ["failed"], [[{"code": text, "message": text}]]
    elif fault == "file":
        failed = {"id": "file-0", "object": "file", "status": "error", "status_details": text, "created_at": 1}
        service.hooks["upload"] = [lambda: web.json_response(failed)]
    elif fault == "create":
        service.hooks["create"] = [lambda: refused(400, text)]
    else:
        content: Any = {"error": {"message": text}} if fault == "line" else body(text)
        status = 400 if fault == "line" else 200
        service.answers = [lambda lines: (written(*(line(ask["custom_id"], content, status) for ask in lines)), None)]
    [made] = await one_start(tmp_path, service, ["q"], api_key_env=VARIABLE)
    screen.errors += texts_of(made) if isinstance(made, BaseException) else made
    said(screen.errors)
    assert not leaked(key, screen.shown() + stored(tmp_path))
