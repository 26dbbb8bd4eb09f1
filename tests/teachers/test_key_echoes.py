"""Endpoints that repeat the key they were sent, in errors and in answers: no part reaches the disk or a screen."""

from __future__ import annotations

import itertools
import json
import logging
import random
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.clients.base_lm import BaseLM
from dspy.lm15 import Config, DataPart, Message, Request, ThinkingPart
from typer.testing import CliRunner

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app
from refed_dspy.config.keys import CUT, know
from refed_dspy.errors import RefedError
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.outcomes import as_text
from tests.support.recording_endpoint import Answering, listening
from tests.support.scripted_engine import references
from tests.support.scripted_engine import response as scripted
from tests.teachers.test_keys import everything_in, texts_of
from tests.teachers.test_routes import WIRES, config

STATUSES = (
    400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 415, 418, 422, 423, 424, 425, 429, 431, 451,
    500, 501, 502, 503, 529,
)  # fmt: skip
LETTERS = string.ascii_letters + string.digits + "_-.+/="


def key_of(length: int) -> str:
    return "sk-" + "".join(random.Random(length).choices(LETTERS, k=length - 3))


KEYS = {
    "40": key_of(40),
    "280": key_of(280),
    "500": key_of(500),
    "2000": key_of(2000),
    "line break": f"{key_of(40)}\n",
    "carriage return": f"{key_of(40)}\r\n",
    "blanks": f"\n  {key_of(40)}\t",
    "quotes": f"{key_of(20)}\"'\\{key_of(21)}",
}
CUTS = (slice(None), slice(CUT), slice(-CUT, None), slice(3, -2), slice(7, 7 + CUT))


def repeating(status: int, *, plain: bool, cut: slice) -> Answering:
    """Refuses everything with `status`, and repeats a part of the key it was sent. After two 429s it is another one:
    those are waited out for minutes."""
    times = itertools.count()

    def answer(headers: dict[str, str]) -> tuple[int, dict[str, Any] | str]:
        sent = {name.lower(): value for name, value in headers.items()}
        sent_key = sent.get("authorization", "").removeprefix("Bearer ") or sent.get("api-key") or sent["x-api-key"]
        text = f"no way in with {sent_key[cut]} today"
        now = 400 if status == 429 and next(times) > 1 else status
        return now, text if plain else {"type": "error", "error": {"message": text, "type": "odd", "code": text}}

    return answer


def leaked(key: str, data: bytes) -> list[str]:
    """The parts of the key, of CUT characters each, that stand in `data`."""
    key = key.strip()
    if not any(key[at : at + 6].encode() in data for at in range(0, len(key) - 5, 6)):
        return []  # whoever holds CUT characters holds one of these
    return [key[at : at + CUT] for at in range(len(key) - CUT + 1) if key[at : at + CUT].encode() in data]


class Screen:
    """All that a program shows: its output, its log, its errors."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog, self._capfd, self.errors = caplog, capfd, ""

    def shown(self) -> bytes:
        """All of it since the last time."""
        shown = self.errors + self._caplog.text + "".join(self._capfd.readouterr())
        self.errors = ""
        self._caplog.clear()
        return shown.encode()


@pytest.fixture
def screen(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Screen:
    return Screen(caplog, capfd)


def check_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path, screen: Screen, key: str, answer: Answering, **settings: Any
) -> None:
    """A run at an endpoint that answers so shows and keeps no part of the key."""
    monkeypatch.setenv("MY_OWN_KEY", key)
    endpoint: Any
    with listening(answer) as endpoint:
        teacher = config(endpoint, api_key_env="MY_OWN_KEY", max_tokens=64, **settings)
        try:
            refed_dspy.synthesize(None, references(1), size=1, teacher=teacher, run_dir=folder)
        except RefedError as error:
            screen.errors += texts_of(error)
        sent = {name.lower(): value.removeprefix("Bearer ") for name, value in endpoint.headers[0].items()}
        kept = {sent.get(name) for name in ("authorization", "api-key", "x-api-key")} - {None}
        assert kept == {key.strip()}, "it was sent without what is around it, so it is repeated"
    assert not leaked(key, screen.shown() + everything_in(folder))


SOME = ((400, True), (401, False), (429, True), (500, False), (401, True))


@pytest.mark.parametrize("at", range(2 * len(KEYS)))
def test_a_key_in_an_error_is_kept_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, screen: Screen, at: int
) -> None:
    """Each kind of key twice, with other statuses, cuts and wires. All of them together are slow."""
    kind, (status, plain) = list(KEYS)[at % len(KEYS)], SOME[at % len(SOME)]
    answer = repeating(status, plain=plain, cut=CUTS[at // 2 % len(CUTS)])
    check_refused(monkeypatch, tmp_path, screen, KEYS[kind], answer, wire=WIRES[at // 3 % len(WIRES)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEYS)
def test_no_status_form_or_cut_brings_a_key_to_disk_or_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, screen: Screen, kind: str
) -> None:
    every = itertools.product(STATUSES, (True, False), (True, False))
    for at, (status, plain, whole) in enumerate(every):
        answer = repeating(status, plain=plain, cut=CUTS[0 if whole else 1 + at // 2 % 4])
        check_refused(monkeypatch, tmp_path / str(at), screen, KEYS[kind], answer, wire=WIRES[at // 4 % len(WIRES)])


# --- in answers


ECHOED, TAKEN_OUT = KEYS["40"], "Bearer [key]"


@pytest.fixture
def echoing(server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedTeacher]:
    """A teacher each of whose texts begins with the key that it is sent, and with a part of it."""
    monkeypatch.setenv("MY_OWN_KEY", f"{ECHOED}\n")
    server.control(signature=f"Bearer {ECHOED}, or {ECHOED[5:25]}: ", response_words=5)
    yield server


def echoed(wire: str, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A teacher with that key: on a wire, in batches on it, or the caller's own language model."""
    wire, _, how = wire.partition(" ")
    if wire != "own":
        batches: dict[str, Any] = {"mode": "batch", "batch": {"quiet": 0.05, "poll": 0.05}} if how else {}
        return config(server, wire, api_key_env="MY_OWN_KEY", **batches)
    settings = {"api_key": ECHOED} if how == "setting" else {}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-0123456789" if settings else ECHOED)
    monkeypatch.delenv("MY_OWN_KEY")
    return dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, num_retries=0, **settings)


BATCHES = [pytest.param(f"{wire} batch", marks=pytest.mark.slow) for wire in ("openai", "azure")]


@pytest.mark.parametrize("wire", [*WIRES, "own setting", "own variable", *BATCHES])
def test_a_key_in_an_answer_is_kept_and_shown_nowhere(
    echoing: SimulatedTeacher, tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    teacher = echoed(wire, echoing, monkeypatch)
    made = refed_dspy.synthesize(None, references(2), size=2, teacher=teacher, run_dir=tmp_path / "run")
    assert [sample.response.partition(", or ")[0] for sample in made.samples] == [TAKEN_OUT] * 2
    assert not leaked(ECHOED, screen.shown() + everything_in(tmp_path))


def test_whatever_is_made_of_a_run_or_a_sample_only_looked_at_holds_no_key(
    echoing: SimulatedTeacher, tmp_path: Path, screen: Screen
) -> None:
    run = tmp_path / "run"
    teacher = config(echoing, api_key_env="MY_OWN_KEY")
    refed_dspy.synthesize(None, references(2), size=2, teacher=teacher, run_dir=run)
    shown = screen.shown()
    made = {"export": "rows.jsonl", "report": "report.html", "share": "shared"}
    settings = {"model": "sim/m", "api_base": echoing.base_url, "api_key_env": "MY_OWN_KEY"}
    (tmp_path / "teacher.yaml").write_text(json.dumps(settings))
    commands = [[name, str(run), "--out", str(tmp_path / out)] for name, out in made.items()]
    for command in (*commands, ["synth", "--preview", "--sample", "--teacher", str(tmp_path / "teacher.yaml")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        shown += done.output.encode()
    assert TAKEN_OUT in done.output and (tmp_path / "rows.jsonl").read_text().count("[key]") >= 2
    assert not leaked(ECHOED, shown + everything_in(tmp_path))


class Echo(BaseLM):  # type: ignore[misc]
    """A caller's own class: it answers with the key that it was made with."""

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        message = SimpleNamespace(content=f"Bearer {self.kwargs['api_key']}")
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage={}, model=self.model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_key_in_the_answer_of_a_callers_own_class_is_taken_out() -> None:
    own = Echo("own/model", api_key=ECHOED)
    engine = open_teacher(own).start()
    answer = await engine.complete(Request(model="any", messages=(Message.user("Hm?"),), config=Config()))
    assert answer.text == TAKEN_OUT


def test_reasoning_and_parsed_answers_are_cleaned_too() -> None:
    know(ECHOED)
    parts = (ThinkingPart(text=ECHOED), DataPart(value=[ECHOED]))
    made = as_text(replace(scripted("-"), message=Message(role="assistant", parts=parts)))
    assert [part.text for part in made.message.parts] == ["[key]", '["[key]"]']


@pytest.mark.parametrize("status", [401, 418, 500])
async def test_an_engines_own_error_is_clean_too(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Outside a run, it goes to the caller as it is."""
    monkeypatch.setenv("MY_OWN_KEY", ECHOED)
    endpoint: Any
    with listening(repeating(status, plain=True, cut=slice(5, None))) as endpoint:
        teacher = open_teacher(config(endpoint, api_key_env="MY_OWN_KEY"))
        async with teacher.running() as engine:
            with pytest.raises(Exception, match=r"\[key\]") as error:
                await engine.complete(Request(model="any", messages=(Message.user("Hm?"),)))
    assert not leaked(ECHOED, texts_of(error.value).encode())
