"""Few tokens: short fixed words, prefixes that are shared, kept warm and routed, and what a kept sample took."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks import economy, warm
from benchmarks.simulated import SimulatedTeacher
from benchmarks.tokenizers import tokenizer
from refed_dspy import TeacherConfig, open_teacher
from refed_dspy.cli_parts import tokens_lines
from refed_dspy.engine.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.engine.runner import run
from refed_dspy.engine.summary import tokens_a_sample
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.programs.asking import Question, ask_teacher
from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import InstructionSynthesis, ResponseGeneration, ResponseImprovement
from tests.writing import references

MOST = {
    "instruction_feedback": 120,
    "response_feedback": 120,
    "instruction_synthesis": 150,
    "response_generation": 65,
    "response_improvement": 130,
}
"""Tokens of o200k_base that a stage's system message may have: every call pays for them."""


def prompt(signature: Any, **inputs: Any) -> tuple[str, str]:
    system, user = SchemaAdapter().format(signature, [], inputs)
    return system["content"], user["content"]


def shared(texts: list[str]) -> str:
    """What all of them begin with."""
    ends = (n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return texts[0][: next(ends)]


@pytest.mark.parametrize("stage", MOST)
def test_a_stage_s_fixed_words_are_few(stage: str) -> None:
    signature = getattr(ReferenceLevelFeedback(), stage).signature
    assert tokenizer("o200k_base").count(rendering(signature).system) <= MOST[stage]
    frame = SchemaAdapter().format_user_message_content(
        signature, dict.fromkeys(rendering(signature).inputs, ""), main_request=True
    )
    assert tokenizer("o200k_base").count(frame) <= 50


# --- the stable part first


def test_the_calls_of_one_reference_begin_alike() -> None:
    """What changes from call to call stands behind all that does not."""
    example = {"example_instruction": "Plan a trip.", "example_response": "Go by train. " * 20}
    first, second = (prompt(ResponseGeneration, **example, instruction=text)[1] for text in ("One", "Two"))
    assert shared([first, second]).endswith("</>\n\n<instruction>\n")
    better = [
        prompt(ResponseImprovement, reference_feedback="Be bold. " * 20, instruction=text, response=text)[1]
        for text in ("One", "Two")
    ]
    assert shared(better).endswith("</>\n\n<instruction>\n")


def test_a_round_s_calls_for_two_features_share_what_is_taken() -> None:
    same = {"reference_instruction": "Plan a trip.", "taken": ["Plan a party.", "Plan a meal."], "how_many": 10}
    asked = [
        prompt(InstructionSynthesis, **same, feature_name=name, feature=text)[1]
        for name, text in (("subject areas", "Travel."), ("relevant skills", "Order."))
    ]
    assert shared(asked).endswith("- Plan a meal.\n</>\n\n<feature_name>\n")


# --- bounded analyses


def test_a_longer_analysis_than_asked_for_is_accepted_and_a_decoder_is_bound() -> None:
    long = {name: ["x" * 2_000] * 30 for name in Analysis.model_fields}
    assert len(Analysis.model_validate(long).relevant_feedback) == 30
    strategy = {"planned_changes": ["y" * 2_000] * 30, "rationale": "z" * 5_000}
    assert ImplementationStrategy.model_validate_json(json.dumps(strategy)).rationale == "z" * 5_000
    schema = rendering(ResponseImprovement).response_format["json_schema"]["schema"]["$defs"]
    lists = [
        *schema["Analysis"]["properties"].values(),
        schema["ImplementationStrategy"]["properties"]["planned_changes"],
    ]
    assert all((part["maxItems"], part["items"]["maxLength"]) == (6, 400) for part in lists)
    assert "three short notes a list" in rendering(ResponseImprovement).system


# --- one goes ahead


def lead_settings(size: int, lead: bool = True) -> PlanSettings:
    return PlanSettings(size, 40, ("a", "b"), 10, None, 0, lead=lead)


class World:
    """Work that takes a moment each, and knows a prefix once a unit with it has ended, as a provider does."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.known: set[object] = set()
        self.cold: Counter[object] = Counter()
        self.numbers = iter(range(10**6))

    async def _asked(self, prefix: object) -> None:
        self.cold[prefix] += prefix not in self.known
        for _ in range(3):
            await asyncio.sleep(0)
        self.known.add(prefix)

    async def study(self, unit: Study) -> None:
        await self._asked(unit)

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        await self._asked(("propose", unit.reference, unit.round))
        return [(next(self.numbers), "text") for _ in range(10)]

    async def respond(self, unit: Respond) -> bool:
        await self._asked(("respond", unit.reference, unit.round))
        return not (self.fails and unit.instruction % 2)

    def unusable(self, unit: Respond, error: Any) -> None: ...
    def fruitless(self, unit: Propose, error: Any) -> None: ...
    def affordable(self) -> int | None:
        return None

    def stop(self) -> None: ...


def world(size: int, lead: bool, slots: int = 40, fails: bool = False) -> World:
    made = World(fails)
    plan = Plan(lead_settings(size, lead))
    asyncio.run(run(plan, made, slots))
    assert plan.kept == size
    return made


@pytest.mark.parametrize("size", [1, 20, 205, 900])
@pytest.mark.parametrize("fails", [False, True])
def test_where_one_unit_leads_no_prefix_is_computed_twice(size: int, fails: bool) -> None:
    """Also in a reference's next round, for which it was cold again, and when the leader was not kept."""
    assert set(world(size, lead=True, fails=fails).cold.values()) <= {1}
    assert size < 20 or max(world(size, lead=False, fails=fails).cold.values()) > 5


def test_one_at_a_time_leads_by_itself() -> None:
    assert world(205, lead=True, slots=1).cold == world(205, lead=False, slots=1).cold


def test_a_leader_costs_no_further_calls() -> None:
    def calls(lead: bool) -> int:
        return sum(1 for prefix in world(800, lead=lead).cold if not isinstance(prefix, tuple))

    assert calls(True) <= calls(False) + 10  # studies: references are opened while leaders run


def test_others_wait_only_for_their_own_reference_s_leader() -> None:
    plan = Plan(lead_settings(40))
    units = []
    while (unit := plan.next_unit()) is not None:
        units.append(unit)
    for study in units:
        plan.studied(study)  # type: ignore[arg-type]
    proposals = []
    while (unit := plan.next_unit()) is not None:
        proposals.append(unit)
    assert Counter(p.reference for p in proposals).most_common(1)[0][1] == 1 and len(proposals) == 2
    for number, propose in enumerate(proposals):
        assert isinstance(propose, Propose)
        plan.proposed(propose, [(100 * number + n, "text") for n in range(10)])
    handed = []
    while (unit := plan.next_unit()) is not None:
        handed.append(unit)
    responses = [unit for unit in handed if isinstance(unit, Respond)]
    assert len({unit.reference for unit in responses}) == len(responses) == 2
    plan.responded(responses[0], kept=False)
    more = [unit for unit in iter(plan.next_unit, None) if isinstance(unit, Respond)]
    assert len(more) == 9 and {unit.reference for unit in more} == {responses[0].reference}


# --- the provider's cache key


class Recorder:
    """An endpoint that keeps the bodies it is sent and answers each."""

    def __init__(self) -> None:
        seen = self
        self.bodies: list[dict[str, Any]] = []
        content = json.dumps({"response": "So."})
        answer = {
            "id": "1",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        }

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.stop()


def answered(recorder: Recorder, questions: list[dict[str, Any]], **settings: Any) -> list[Any]:
    """The cache keys that answering these sends."""
    teacher = open_teacher(
        TeacherConfig.model_validate({"retries": 0, "price": {"prompt": 1, "completion": 1}} | settings)
    )

    async def all_of_them() -> None:
        async with teacher.running() as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter(), disable_history=True, trace=None):
                for inputs in questions:
                    await ask_teacher(Question("stage", "item", dspy.Predict(ResponseGeneration), inputs))

    recorder.bodies.clear()
    asyncio.run(all_of_them())
    return [body.get("prompt_cache_key") for body in recorder.bodies]


QUESTIONS = [
    {"example_instruction": reference, "example_response": "R", "instruction": text}
    for reference in ("Plan a trip.", "Plan a meal.")
    for text in ("One", "Two")
]


def test_azure_is_sent_a_key_for_each_reference(recorder: Recorder) -> None:
    one, two, three, four = answered(recorder, QUESTIONS, model="azure/m", api_base=recorder.root)
    assert one == two != three == four
    assert all(len(key) == 32 and int(key, 16) for key in (one, three)), "a digest, and nothing else"
    # The same reference under another prompt: another stage's requests go to another machine.
    other = dspy.Predict(ResponseGeneration.with_instructions("Answer in verse."))
    assert rendering(other.signature).system != rendering(ResponseGeneration).system
    assert answered(recorder, QUESTIONS[:1], model="azure/m", api_base=recorder.root) == [one]


def test_the_user_s_own_key_wins(recorder: Recorder) -> None:
    own = {"params": {"prompt_cache_key": "mine"}}
    assert answered(recorder, QUESTIONS[:2], model="azure/m", api_base=recorder.root, **own) == ["mine", "mine"]
    other = {"params": {"top_p": 0.9}}
    keys = answered(recorder, QUESTIONS[:1], model="azure/m", api_base=recorder.root, **other)
    assert keys != [None] and recorder.bodies[0]["top_p"] == 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "openai/m"},
        {"model": "azure/m", "api_version": "2024-10-21"},
        {"model": "azure/m", "mode": "batch"},
    ],
    ids=["another endpoint", "a dated azure", "a batch"],
)
def test_who_may_not_know_a_cache_key_is_sent_none(settings: dict[str, Any]) -> None:
    from dspy.lm15 import Config, Message, Request

    from refed_dspy.teachers.requests import Outgoing
    from refed_dspy.teachers.route import resolve

    config = TeacherConfig.model_validate({"api_base": "https://api.openai.com.example.org/v1", **settings})
    request = Request(
        model="m", system="S", messages=(Message.user("<a>\nx\n</>\n\nJSON:"),), config=Config(max_tokens=16)
    )
    sent, _ = Outgoing(config, resolve(config))(request)
    assert not sent.config.extensions
    own = TeacherConfig(model="openai/m", api_base="https://eu.api.openai.com/v1")
    sent, _ = Outgoing(own, resolve(own))(request)
    assert sent.config.extensions and request.config.extensions is None, "the request itself is left alone"
    freely = Request(model="m", messages=(Message.user("Hello"),), config=Config(max_tokens=16))
    assert not Outgoing(own, resolve(own))(freely)[0].config.extensions, "nobody knows what of it is stable"


# --- what a kept sample took


def test_tokens_a_sample_are_everything_that_was_read_and_written(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(cache_warm="answer")
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=8)
    long = [{"instruction": r["instruction"], "response": r["response"] * 60} for r in references(4)]
    made = refed_dspy.synthesize(None, long, size=30, teacher=teacher, run_dir=tmp_path / "run")
    told, stats = made.status["tokens_a_sample"], server.stats()
    assert list(told["stages"]) == list(made.usage)
    assert told["all"]["prompt"] == pytest.approx(stats["prompt_tokens"] / 30, abs=0.1)
    assert told["all"]["cached"] == pytest.approx(stats["cached_tokens"] / 30, abs=0.1) and stats["cached_tokens"]
    assert told["all"]["uncached"] == pytest.approx(told["all"]["prompt"] - told["all"]["cached"], abs=0.1)
    assert told["all"]["completion"] == pytest.approx(stats["completion_tokens"] / 30, abs=0.1)
    generation = told["stages"]["response_generation"]
    assert generation["cached"] > generation["uncached"] > 0
    first, *lines = tokens_lines(told)
    assert first.startswith("a kept sample: ") and len(lines) == len(told["stages"])
    assert f"{generation['cached']:,.0f} of them cached" in "\n".join(lines)


def test_where_nothing_is_kept_no_sample_took_anything() -> None:
    assert tokens_a_sample({"stage": {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 1}}, 0) is None
    assert tokens_lines(None) == []


# --- the benchmarks' own questions


def test_the_benchmark_s_references_are_as_long_as_it_says() -> None:
    for plain in (True, False):
        made = economy.references(60, plain)
        assert {len(pair["instruction"]) + len(pair["response"]) for pair in made} == {economy.LENGTH}
        assert len({tuple(pair.values()) for pair in made}) == 60


def test_the_warm_benchmark_asks_what_a_run_asks() -> None:
    asked = [each.stage for each in warm.questions()]
    count = warm.REFERENCES * warm.SAMPLES
    assert Counter(asked)["response_generation"] == Counter(asked)["response_improvement"] == count
    assert asked[:4] == [*MOST][:4], "a reference's calls follow one another"
