"""Any program that offers the stages, and any `dspy.LM`: a module in a stage's place, more predictors, own models."""

from __future__ import annotations

import asyncio
import importlib
import json
import linecache
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.utils.callback import BaseCallback

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.cli.preview import rendered_prompts
from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.records import Reference, Sample
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.stage_weights import JUDGE, ONLY_TEACHER, StageWeights
from refed_dspy.teachers.vendored import request_to_dict
from tests.plugins.compare.helpers import Judge
from tests.support.said import Said
from tests.support.scripted_engine import Killed, Writer, fake_lm, killed_at, references, spoil_first

SIZE = 6
GUIDANCE = "Be brief."


class Thinking(ReferenceLevelFeedback):
    """The method with a `ChainOfThought` in the place of some stages."""

    def __init__(self, *stages: str, **settings: Any) -> None:
        super().__init__(**settings)
        for stage in stages:
            setattr(self, stage, dspy.ChainOfThought(getattr(self, stage).signature))


class Polished(ReferenceLevelFeedback):
    """The method with one more predictor, which is called as any DSPy program calls one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.polish = dspy.ChainOfThought("draft -> polished")

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:
        sample = await super().respond(reference, response_feedback, instruction, item)
        polished = await self.polish.acall(draft=sample.improved_response)
        return sample.model_copy(update={"improved_response": polished.polished})


class BestPolished(Polished):
    """Its last stage is a module within a module."""

    def __init__(self) -> None:
        super().__init__()
        stage: Any = getattr(self, "response_improvement")  # noqa: B009 — its type is set nowhere
        best = dspy.BestOfN(module=stage, N=1, reward_fn=lambda inputs, made: 1.0, threshold=0.5)
        self.response_improvement = best


def run(program: Any, folder: Path, teacher: Any, size: int = SIZE, **settings: Any) -> Synthesis:
    return refed_dspy.synthesize(
        program, references=references(3), size=size, teacher=teacher, run_dir=folder, track=False, **settings
    )


def query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        return db.execute(sql).fetchall()


def paid(folder: Path) -> Counter[str]:
    """Stage → answered calls. Fails where a key was paid for twice."""
    rows = query(folder, "SELECT stage, key FROM calls WHERE outcome='ok'")
    assert len(rows) == len({key for _, key in rows}), "an answer was paid for twice"
    return Counter(stage for stage, _ in rows)


def test_a_chain_of_thought_in_each_stages_place_is_recorded_once_with_its_reasoning(tmp_path: Path) -> None:
    writer = Writer()
    made = run(Thinking(*STAGES), tmp_path / "run", fake_lm(writer))
    asked = len(writer.requests)
    assert len(made.samples) == SIZE == len(list(made.samples.rows()))
    assert paid(tmp_path / "run").total() == asked
    assert paid(tmp_path / "run")["response_improvement"] == SIZE
    outputs = query(tmp_path / "run", "SELECT output FROM answers")
    assert len(outputs) == asked and all(json.loads(output)["reasoning"] for (output,) in outputs)
    again = run(Thinking(*STAGES), tmp_path / "run", fake_lm(writer))
    assert list(again.samples.rows()) == list(made.samples.rows()) and len(writer.requests) == asked


@pytest.mark.parametrize("program", [Thinking(*STAGES), Polished(), BestPolished()], ids=["thought", "more", "wrapped"])
def test_a_forecast_knows_its_stages_from_the_judge_s(program: Any, tmp_path: Path) -> None:
    run(program, tmp_path, fake_lm(Writer()))
    with Ledger.read(tmp_path) as ledger:
        weights, stages = StageWeights.read(ledger), paid(tmp_path)
    assert {weights.answerer_of(stage, "fake/model", "") for stage in stages} == {ONLY_TEACHER}
    assert weights.answerer_of("judge", "fake/model", "") == JUDGE


@pytest.mark.parametrize("stage", STAGES)
def test_it_takes_guidance_and_is_previewed(stage: str) -> None:
    program = Thinking(stage)
    for _ in range(2):
        program.add_guidance({stage: GUIDANCE})
    prompts = rendered_prompts(program, Reference(**references(1)[0]))
    system, user = (message["content"] for message in prompts[stage])
    assert system.count(GUIDANCE) == 1 and "reasoning" in user


class Aside(Polished):
    """Its further predictor is called in a thread of its own."""

    async def respond(self, reference: Reference, *inputs: Any, **named: Any) -> Sample:
        sample = await ReferenceLevelFeedback.respond(self, reference, *inputs, **named)
        polished = await dspy.asyncify(self.polish)(draft=sample.improved_response)
        return sample.model_copy(update={"improved_response": polished.polished})


@pytest.mark.parametrize("program", [Polished, Aside])
def test_a_predictor_more_is_a_stage_of_its_own_name(tmp_path: Path, program: type[Polished]) -> None:
    writer = Writer()
    made = run(program(), tmp_path, fake_lm(writer))
    assert paid(tmp_path)["polish"] == SIZE and paid(tmp_path).total() == len(writer.requests)
    assert all(sample.improved_response.startswith("polished") for sample in made.samples)
    rows = list(made.samples.rows())
    assert len(rows) == SIZE and {row["prompt_tokens"] for row in rows} == {300}


def test_where_it_fails_the_row_fails_by_its_name(tmp_path: Path) -> None:
    writer = Writer()
    drafts = spoil_first(writer, "polished")
    made = run(Polished(), tmp_path, fake_lm(writer))
    assert len(made.samples) == SIZE
    assert [(failure.stage, failure.kind) for failure in made.failures] == [("polish", "malformed")]
    assert drafts.count(drafts[0]) == 3, "each try is a call"


def test_where_it_fails_always_the_run_stops_by_its_name(said: Said, tmp_path: Path) -> None:
    writer = Writer()
    writer.on_request = lambda request: "no JSON" if "polished" in writer.fields(request) else None
    with said.by(RunStopped):
        run(Polished(), tmp_path, fake_lm(writer), size=40)


def test_a_predictors_own_language_model_answers_its_stage_through_the_ledger(tmp_path: Path) -> None:
    teacher, other = Writer(), Writer()
    program = Polished()
    program.polish.set_lm(fake_lm(other, "other/model"))
    program.response_improvement.lm = fake_lm(other, "other/model")
    made = run(program, tmp_path / "run", fake_lm(teacher))
    assert len(other.requests) == 2 * SIZE == sum(paid(tmp_path / "run")[s] for s in ("polish", "response_improvement"))
    assert {row["teacher"] for row in made.samples.rows()} == {"other/model"}
    assert program.response_improvement.lm is not None, "the caller's program is left as it is"
    run(program, tmp_path / "run", fake_lm(teacher))
    assert len(other.requests) == 2 * SIZE


def test_a_program_with_one_language_model_for_all_needs_no_teacher(tmp_path: Path) -> None:
    program, writer = Polished(), Writer()
    program.set_lm(fake_lm(writer))
    made = run(program, tmp_path, None)
    assert len(made.samples) == SIZE and paid(tmp_path).total() == len(writer.requests)


def test_a_predictor_that_is_not_awaited_ends_the_run_in_one_line(said: Said, tmp_path: Path) -> None:
    class Waiting(Polished):
        async def respond(self, reference: Reference, *inputs: Any, **named: Any) -> Sample:
            sample = await ReferenceLevelFeedback.respond(self, reference, *inputs, **named)
            self.polish(draft=sample.improved_response)
            return sample

    with said.by(refed_dspy.errors.RefedError):
        run(Waiting(), tmp_path, fake_lm(Writer()))


def test_it_can_be_compared(tmp_path: Path) -> None:
    teacher, judge = Writer(), Judge()
    programs = {"thinking": Thinking(*STAGES), "polished": Polished()}
    made = refed_dspy.compare(
        programs, references(4), teacher=fake_lm(teacher), judge=fake_lm(judge, "judge/model"), against="polished",
        out=tmp_path, size=4, embeddings=False, track=False, subsets=[4], grades=False,
    )  # fmt: skip
    assert {line.program: line.rows for line in made.programs if line.rows} == {"polished": 4, "thinking": 4}
    assert paid(tmp_path).total() == len(teacher.requests) + len(judge.requests)


@pytest.mark.slow
@pytest.mark.parametrize("program", [Thinking(*STAGES), Polished()], ids=["thinking", "polished"])
def test_it_can_be_compiled(tmp_path: Path, program: Any) -> None:
    teacher, judge = Writer(per_call=1), Judge()
    settings: dict[str, Any] = {
        "optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "evaluations": 4, "out": tmp_path,
        "teacher": fake_lm(teacher), "judge": fake_lm(judge, "judge/model"), "track": False,
    }  # fmt: skip
    for _ in range(2):
        refed_dspy.compile(program, references(10), **settings)
        assert paid(tmp_path).total() == len(teacher.requests) + len(judge.requests), "the second asks nothing"


@pytest.mark.parametrize("after", [7, 16, 19])
def test_broken_off_anywhere_it_pays_for_nothing_twice(tmp_path: Path, after: int) -> None:
    killed, rest = killed_at(after), Writer()
    with pytest.raises(Killed):
        run(Polished(), tmp_path, fake_lm(killed))
    rest.numbers = killed.numbers
    assert len(run(Polished(), tmp_path, fake_lm(rest)).samples) == SIZE
    assert paid(tmp_path).total() == after - 1 + len(rest.requests)


OWN = """
import refed_dspy


class Own(refed_dspy.ReferenceLevelFeedback):
    async def respond(self, *arguments, **keywords):
        sample = await super().respond(*arguments, **keywords)
        return sample.model_copy(update={{"improved_response": sample.improved_response.{change}()}})
"""


def test_rows_of_two_versions_of_one_s_own_code_are_not_mixed(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def own(source: str) -> Any:
        (tmp_path / "own_code.py").write_text(source)
        linecache.clearcache()
        sys.modules.pop("own_code", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_code").Own()

    def run(program: Any, size: int) -> Synthesis:
        teacher = fake_lm(Writer())
        return refed_dspy.synthesize(program, references(2), size=size, teacher=teacher, run_dir=tmp_path / "run")

    run(own(OWN.format(change="upper")), 2)
    with pytest.raises(RunDirError) as refused:
        run(own(OWN.format(change="title")), 3)
    said(str(refused.value))
    assert len(run(own("# a comment\n" + OWN.format(change="upper")), 3)) == 3


# --- a caller's own `dspy.LM`: asked as it would ask by itself, recorded and priced


OWN_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("fake/model", {}),
    "sampling": ("fake/model", {"temperature": 0.2, "max_tokens": 77, "top_p": 0.3, "stop": ["END"]}),
    "penalties": ("fake/model", {"presence_penalty": 0.5, "seed": 4, "logit_bias": {"50256": -100}}),
    "reasoning": ("openai/gpt-5-mini", {"temperature": 1.0, "max_tokens": 16_000, "reasoning_effort": "low"}),
}


def as_json(request: Request) -> dict[str, Any]:
    return json.loads(json.dumps(request_to_dict(request)))  # type: ignore[no-any-return]


def by_itself(writer: Writer, lm: dspy.LM) -> dict[str, Any]:
    """The request of `lm` for the first stage of the first reference, outside of any run."""
    reference, predictor = references(1)[0], refed_dspy.ReferenceLevelFeedback().instruction_feedback
    inputs = {f"reference_{name}": value for name, value in reference.items()}
    with dspy.context(lm=lm, adapter=SchemaAdapter()):
        asyncio.run(predictor.acall(**inputs))
    return as_json(writer.requests[-1])


@pytest.mark.parametrize("own", OWN_SETTINGS)
def test_it_is_asked_what_it_would_ask_by_itself(tmp_path: Path, own: str) -> None:
    name, settings = OWN_SETTINGS[own]
    writer = Writer()
    lm = fake_lm(writer, name, **settings)
    run(None, tmp_path, lm, 3)
    asked = [as_json(request) for request in writer.requests]
    assert by_itself(writer, lm) in asked


def test_callbacks_see_each_call_once(tmp_path: Path) -> None:
    class Seeing(BaseCallback):  # type: ignore[misc]
        def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            seen.append(call_id)

    seen, writer = list[str](), Writer()
    with dspy.context(callbacks=[Seeing()]):
        run(None, tmp_path, fake_lm(writer), 3)
    assert len(seen) == len(writer.requests)


@pytest.mark.parametrize("own", [False, True])
def test_track_usage_has_what_is_paid_for_and_nothing_of_what_is_recorded(
    server: SimulatedTeacher, tmp_path: Path, own: bool
) -> None:
    config = refed_dspy.TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    for start in range(2):
        with dspy.track_usage() as tracked:
            made = run(None, tmp_path, fake_lm(Writer()) if own else config, 3)
        kinds = ("prompt_tokens", "completion_tokens")
        paid = {kind: sum(stage[kind] for stage in made.usage.values()) * (start == 0) for kind in kinds}
        total: dict[str, Any] = next(iter(tracked.get_total_tokens().values()), {})
        assert {kind: total.get(kind) or 0 for kind in kinds} == paid and any(paid.values()) == (start == 0)


@pytest.mark.parametrize(("params", "sent"), [({"response_format"}, {"type": "json_object"}), (set(), None)])
def test_one_that_takes_no_schema_is_sent_none(tmp_path: Path, params: set[str], sent: Any) -> None:
    class Plain(Writer):
        supports_response_schema = False
        supported_params = frozenset(params)

        def fields(self, request: Request) -> list[str]:
            shape = str(request.system).partition("\nJSON:\n")[2].partition("\n")[0]
            return [name for name in NAMES if f'"{name}":' in shape]

    writer = Plain()
    assert len(run(None, tmp_path, fake_lm(writer), 2).samples) == 2
    assert all(request.config.response_format == sent for request in writer.requests)


NAMES = [
    "subject_areas", "relevant_skills", "response_feedback", "new_instructions", "analysis",
    "implementation_strategy", "improved_response", "response",
]  # fmt: skip


def costs(folder: Path) -> list[int | None]:
    with Ledger.read(folder) as ledger:
        return [cost for (cost,) in ledger.db.execute("SELECT cost FROM calls")]


def test_at_an_endpoint_of_its_own_it_has_no_listed_price(server: SimulatedTeacher, tmp_path: Path) -> None:
    lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="sk-own-1234567", cache=False)
    assert len(run(None, tmp_path, lm, 2).samples) == 2
    assert set(costs(tmp_path)) == {None} and server.stats()["repeated"] == 0
    assert b"sk-own-1234567" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
