"""The simulated teacher in real work: runs, filters, a compile; what it says of itself; what its answers are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import BaseModel

import refed_dspy
from refed_dspy.data.export import export
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.glance import notes
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import AtMost
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers import open_teacher
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.two_ways import running_lm

NOTE = "made by the simulated teacher: no model wrote these rows, for trying refed out only"


def made(folder: Path, size: int = 40, **settings: Any) -> Synthesis:
    return refed_dspy.synthesize(size=size, teacher="simulated", run_dir=folder, track=False, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synthesis]:
    yield made(tmp_path_factory.mktemp("simulated") / "run", per_reference=10)


def test_a_run_is_whole_free_and_says_who_made_it(run: Synthesis, tmp_path: Path) -> None:
    assert run.complete and not run.failures and run.status["cost"] == 0
    assert run.status["simulated"] == NOTE
    assert notes(run.status) == [f"{NOTE.capitalize()}."]
    refed_dspy.share(run.run_dir, tmp_path / "shared", license="cc-by-4.0")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert NOTE.partition(": ")[2] in card
    export(run.run_dir, "jsonl", tmp_path / "rows.jsonl")
    assert '"simulated' in (tmp_path / "rows.jsonl").read_text().splitlines()[0]


def test_guards_and_filters_of_likeness_keep_nearly_all(run: Synthesis, tmp_path: Path) -> None:
    filters = ["refusals", "near_duplicates", "rouge", "language"]
    rows = refed_dspy.filter_data(run.run_dir, filters, out=tmp_path / "kept")
    assert len(list(rows.kept())) >= 36
    assert all(sample.response != sample.improved_response for sample in run.samples)


def test_its_judge_mostly_prefers_what_was_improved(run: Synthesis, tmp_path: Path) -> None:
    kept = refed_dspy.filter_data(run.run_dir, ["judge"], judge="simulated", out=tmp_path / "judged")
    assert 20 <= len(list(kept.kept())) < 40
    with Ledger.read(tmp_path / "judged") as ledger:  # the rows are somebody else's
        assert simulated_note(ledger) == NOTE.replace("rows", "answers")


def test_rows_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def texts(folder: str, seed: int) -> set[str]:
        one = made(tmp_path / folder, 20, references=references(1), seed=seed)
        return {sample.improved_response for sample in one.samples}

    first = texts("first", 0)
    assert len(first) == 20 and texts("again", 0) == first and not texts("other", 1) & first


def test_an_estimate_by_it_tells_no_other_teachers_costs(tmp_path: Path) -> None:
    foreseen = refed_dspy.estimate(size=60, teacher="simulated", run_dir=tmp_path, track=False)
    assert foreseen.cost == 0 and not foreseen.others


def test_a_run_that_another_model_began_says_that_it_is_made_in_part(said: Said, tmp_path: Path) -> None:
    writer = fake_lm(Writer())
    stages = {"feedback": "simulated"}
    mixed = refed_dspy.synthesize(
        None, references(1), size=2, teacher=writer, teachers=stages, run_dir=tmp_path, track=False
    )
    said(mixed.status["simulated"])
    plain = refed_dspy.synthesize(None, references(1), size=2, teacher=writer, run_dir=tmp_path / "plain", track=False)
    assert plain.status["simulated"] == "", "a model is no simulation"
    with Ledger.read(tmp_path) as ledger:
        assert ledger.kept() == 2


@pytest.mark.parametrize(
    "settings", [{"mode": "batch"}, {"api_base": "http://localhost:1/v1"}], ids=["batch", "address"]
)
def test_settings_that_it_cannot_have(said: Said, settings: dict[str, Any]) -> None:
    with said.by(refed_dspy.errors.ConfigError):
        open_teacher(refed_dspy.TeacherConfig(model="simulated", **settings))


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter])
def test_adapters_of_dspy_are_answered_in_their_own_format(tmp_path: Path, adapter: Any) -> None:
    filters: Any = ["judge"]
    with dspy.context(adapter=adapter()):
        run = made(tmp_path, 4, references=references(1), filters=filters, judge="simulated")
    assert run.complete and not run.failures
    assert all("simulated" in sample.improved_response for sample in run.samples)


class Part(BaseModel):
    name: Annotated[str, AtMost(9)]
    share: float
    sure: bool | None


class Nested(BaseModel):
    inner: list[Nested]
    name: str


class Anything(dspy.Signature):  # type: ignore[misc]
    """Answer."""

    question: str = dspy.InputField()
    kind: Literal["a", "b"] = dspy.OutputField()
    counts: list[int] = dspy.OutputField()
    part: Part = dspy.OutputField()
    note: str = dspy.OutputField()


async def test_any_signature_is_answered() -> None:
    async with running_lm(open_teacher("simulated")) as lm:
        with dspy.context(lm=lm, adapter=SchemaAdapter()):
            answer = await dspy.Predict(Anything).acall(question="What fits?")
            assert answer.kind in {"a", "b"} and answer.counts and len(answer.part.name) <= 9
            assert answer.note
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            assert (await dspy.Predict("question -> answer").acall(question="Now?")).answer
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            nested = dspy.Signature({"question": (str, dspy.InputField()), "whole": (Nested, dspy.OutputField())})
            assert (await dspy.Predict(nested).acall(question="How deep?")).whole.inner[1].inner
        (freely,) = await lm.acall("Write in ``` blocks.")
        assert "simulated" in freely


@pytest.mark.slow
def test_a_compile_by_it_ends_with_a_proof(tmp_path: Path) -> None:
    done = refed_dspy.compile(
        refed_dspy.programs.ReferenceLevelFeedback(instructions_per_feature=2),
        references(9),
        teacher="simulated",
        judge="simulated",
        reflection="simulated",
        optimizer="gepa",
        evaluations=6,
        train=2,
        validation=2,
        test=5,
        out=tmp_path,
        track=False,
    )
    assert done.manifest["cost"] == 0
