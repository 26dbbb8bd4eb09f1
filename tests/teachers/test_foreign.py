"""A caller's own `dspy.LM` as a teacher: what it is sent, and what is recorded of its calls."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.clients.base_lm import BaseLM
from dspy.lm15 import Config, Message, Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config import keys
from refed_dspy.errors import CapReached, ConfigError, CutAnswer, RefusedAnswer
from refed_dspy.jobs.work import CapSettings, budget_caps
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder, calls_kept_by
from refed_dspy.ledger.spending import spent
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.foreign import ForeignEngine, MessagesEngine
from refed_dspy.teachers.prices import table_price
from tests.conftest import KEY
from tests.support.recording_endpoint import listening, openai_answer
from tests.support.said import Said
from tests.support.scripted_batches import ask, running_at
from tests.support.scripted_engine import CallCollector, Writer, fake_lm, response

OWN_KEY, HERE = "sk-own-0123456789abcdefgh", "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("model", "settings", "read"),
    [
        ("openai/m", {"temperature": 0.3, "max_tokens": 99}, {"temperature": 0.3, "max_tokens": 99}),
        ("openai/m", {"top_p": 0.5, "seed": 3}, {"params": {"top_p": 0.5, "seed": 3}}),
        ("gpt-4o-mini", {"num_retries": 1, "timeout": 7}, {"model": "openai/gpt-4o-mini", "retries": 1, "timeout": 7}),
        ("openai/m", {"api_base": HERE}, {"api_base": HERE, "api_key_env": "OPENAI_LM_API_KEY"}),
        ("azure/d", {"api_base": "http://127.0.0.1:9", "api_version": "2024-10-21"}, {"api_version": "2024-10-21"}),
        ("anthropic/claude-sonnet-4", {}, {"api_key_env": "ANTHROPIC_LM_API_KEY"}),
        ("openai/gpt-5", {"temperature": 1.0, "max_tokens": 20000}, {"max_tokens": 20000}),
    ],
)  # fmt: skip
def test_a_dspy_lm_is_read_into_our_settings(model: str, settings: dict[str, Any], read: dict[str, Any]) -> None:
    teacher = open_teacher(dspy.LM(model, api_key=OWN_KEY, **settings))
    assert teacher.config is not None and teacher.lm is None
    assert {name: getattr(teacher.config, name) for name in read} == read
    assert OWN_KEY not in repr(teacher) + teacher.config.model_dump_json()


@pytest.mark.parametrize("given", [True, False], ids=["given", "in its variable"])
def test_a_dspy_lm_is_asked_with_its_key_and_under_caps(
    tmp_path: Path, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    locked.control(response_words=4)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-0123456789abc" if given else KEY)
    lm = dspy.LM("openai/gpt-4o-mini", api_base=locked.base_url, max_tokens=64, **({"api_key": KEY} if given else {}))
    judge = dspy.LM("openai/gpt-4o-mini", api_base=locked.base_url, max_tokens=64, api_key=KEY)
    with pytest.raises(CapReached), refed_dspy.recording(tmp_path, teacher=lm, judge=judge, max_calls=3) as lms:
        for number in range(5):
            lms["judge" if number % 2 else "teacher"](f"What is {number}?")
    assert locked.stats()["requests"] == 3
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_a_key_is_held_under_a_name_that_no_variable_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LM_API_KEY", "sk-old-0123456789abcdefgh")
    monkeypatch.setenv("own_api_key", OWN_KEY)
    config = open_teacher(dspy.LM("openai/m", api_key=OWN_KEY)).config
    assert config is not None and keys.read_key(str(config.api_key_env)) == OWN_KEY


def test_a_rollout_of_the_models_own_is_refused(said: Said) -> None:
    with said.by(ConfigError):
        open_teacher(dspy.LM("openai/m", api_key=OWN_KEY, temperature=1.0, rollout_id=3))


class Own(dspy.LM):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "lm",
    [
        Own("openai/m", api_key=OWN_KEY),
        dspy.LM("openai/m", model_type="text", api_key=OWN_KEY),
        dspy.LM("openai/m", engine="litellm", api_key=OWN_KEY),
        dspy.LM("openai/m", extra_headers={"x-tenant": "a"}, api_key=OWN_KEY),
        dspy.LM("bedrock/m"),
        dspy.LM("openai/m", api_base="http://u:p@127.0.0.1:9/v1", api_key=OWN_KEY),
    ],
    ids=["a class of one's own", "text", "an engine", "headers", "LiteLLM's", "an address with a password"],
)
def test_no_cap_is_promised_for_one_that_must_be_asked_itself(said: Said, lm: dspy.LM) -> None:
    assert open_teacher(lm).lm is not None
    with said.by(ConfigError):
        budget_caps({"judge": open_teacher(lm)}, CapSettings(max_cost=None, max_calls=5, max_minutes=None))


@pytest.mark.parametrize(
    ("settings", "sent", "alone"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "stop": ["x"]}, {"temperature": 0.0, "top_p": 0.5, "stop": ["x"]}, True),
        pytest.param({"min_p": 0.1}, {"min_p": 0.1}, True, marks=pytest.mark.slow),  # LiteLLM is imported
        ({"extra_body": {"guided_regex": "a+"}, "temperature": 0.0}, {"guided_regex": "a+", "temperature": 0.0}, False),
    ],
    ids=["known", "unknown", "body"],
)
async def test_all_of_its_settings_are_sent(settings: dict[str, Any], sent: dict[str, Any], alone: bool) -> None:
    """An explicit request has no field for each of them; asked as it is, the LM sends them all."""
    request = Request(model="any", messages=(Message.user("Hm?"),), config=Config())
    with listening(lambda _: (200, openai_answer("Fine."))) as endpoint:
        own = dspy.LM("openai/m", api_base=endpoint.base_url, api_key="k", cache=False, num_retries=0, **settings)
        teacher = open_teacher(own)
        if alone:
            await own.acall("Hm?")
        assert (await ForeignEngine(own, teacher.endpoint, None).complete(request)).text == "Fine."
    assert len(endpoint.bodies) == 1 + alone
    for body in endpoint.bodies:
        assert {name: body[name] for name in sent} == sent


@pytest.mark.parametrize("name", ["openai/gpt-4o-mini", "odd/model"])
async def test_its_calls_are_priced_where_the_table_knows_the_model(tmp_path: Path, name: str) -> None:
    price = table_price(name)
    assert (price is None) == (name == "odd/model")
    teacher = open_teacher(fake_lm(Writer(), name=name))
    with Ledger.create(tmp_path) as ledger:
        run = RunRecorder(ledger, Caps(), spent(ledger))
        async with running_at(ledger, run, teacher) as recorded:
            assert await ask(recorded, "q")
        run.group.close()
        [row] = ledger.db.execute("SELECT outcome, prompt_tokens, completion_tokens, cost FROM calls").fetchall()
    assert row == ("ok", 100, 20, None if price is None else price.cost(100, 0, 0, 20))


@pytest.mark.parametrize(
    ("reason", "kind"), [("length", CutAnswer), ("content_filter", RefusedAnswer)], ids=["cut", "refused"]
)
async def test_an_answer_that_ended_early_is_a_failure_of_that_kind_and_not_asked_again(
    tmp_path: Path, reason: str, kind: type[Any]
) -> None:
    """Also where its text fits: what there is of a cut answer may look like a whole one."""
    writer = Writer(response(json.dumps({"answer": "Half a"}), reason))
    teacher = open_teacher(fake_lm(writer))
    with Ledger.create(tmp_path) as ledger:
        run = RunRecorder(ledger, Caps(), spent(ledger))
        async with running_at(ledger, run, teacher) as recorded:
            for _ in range(2):
                with pytest.raises(kind):
                    await ask(recorded, "q")
        run.group.close()
        outcomes = ledger.db.execute("SELECT outcome FROM calls").fetchall()
        failures = ledger.db.execute("SELECT kind, final FROM failures").fetchall()
    assert outcomes == [(kind.kind,)] and failures == [(kind.kind, 1)]
    assert len(writer.requests) == 1


class Forwarding(BaseLM):  # type: ignore[misc]
    """A language model of the caller's that implements `forward`, as DSPy's users did before there were engines."""

    def __init__(self) -> None:
        super().__init__("old/model", temperature=0.5, max_tokens=300)
        self.asked: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    def forward(self, prompt: Any = None, messages: Any = None, **settings: Any) -> Any:
        self.asked.append((messages, settings))
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        choice = SimpleNamespace(message=SimpleNamespace(content="Fine."), finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=usage, model="old/model")


class Asynchronous(Forwarding):
    async def aforward(self, prompt: Any = None, messages: Any = None, **settings: Any) -> Any:
        return super().forward(prompt, messages, **settings)

    def forward(self, *_: Any, **settings: Any) -> Any:
        raise AssertionError("its asynchronous method is asked")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [Forwarding, Asynchronous])
async def test_a_model_that_takes_no_requests_is_asked_with_messages(kind: type[Forwarding]) -> None:
    lm = kind()
    engine, recorder = open_teacher(lm).start(), CallCollector()
    request = Request(model="any", system="Be brief.", messages=(Message.user("Hm?"),))
    with calls_kept_by(recorder):
        assert (await engine.complete(request)).text == "Fine."
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]
    assert lm.asked == [(expected, {})], "its settings are its own affair"
    assert [(call.outcome, call.prompt_tokens, call.completion_tokens) for call in recorder.calls] == [("ok", 5, 3)]


@pytest.mark.slow  # LiteLLM is imported
def test_a_text_completion_model_is_asked_with_messages() -> None:
    lm = dspy.LM("openai/m", model_type="text")
    assert type(open_teacher(lm).start()) is MessagesEngine
