"""Runs, filterings and comparisons whose judge is a trained one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, compare, filter_data, resume, synthesize
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge.trained_judge import GRADES, PAIRS, Correction, Corrections, Term, TrainedJudge
from refed_dspy.programs.saved import save_program
from tests.plugins.compare.helpers import SMALL, config
from tests.runs.filter.helpers import http, lines
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.support.toy_server import ToyServer, toy_served

pytestmark = pytest.mark.slow
LONGER = Correction(terms={"length": Term(mean=0, scale=1, coefficient=5.0)}, thresholds=(-0.1, 0.1))
PERPLEX = Correction(terms={"log_perplexity": Term(mean=0, scale=1, coefficient=-5.0)}, thresholds=(-0.0, 0.0))
FIVE = Correction(terms={"grade": Term(mean=0, scale=1, coefficient=0.0)}, thresholds=(-9.0, -9.0, -9.0, -9.0))
"""Corrections that hear nothing of what the judge says: the longer text is better, the likelier one, and all is a 5."""


def saved(path: Path, of_pairs: Correction, **more: Correction) -> Path:
    save_program(TrainedJudge(Corrections({PAIRS: of_pairs, **more})), path)
    return path


@pytest.fixture
def toy() -> Iterator[ToyServer]:
    with toy_served() as served:
        yield served


def test_a_data_set_is_filtered_by_what_people_would_say(server: SimulatedTeacher, tmp_path: Path) -> None:
    program = saved(tmp_path / "judge.json", LONGER, **{GRADES: FIVE})
    rows = [
        {"instruction": f"Do {n}.", "response": "A plain text.", "improved_response": "Long." if n % 2 else "Long " * 9}
        for n in range(10)
    ]
    filters = ["judge", {"rubric": {"at_least": 5}}]
    made = filter_data(rows, filters, judge=http(server), judge_program=program, out=tmp_path / "out", progress=False)
    kept = lines(made.out / "kept.jsonl")
    judged = {row["instruction"] for row in lines(made.out / "dropped.jsonl") if row["refed_filters"]["score"] is None}
    assert {row["instruction"] for row in kept} | judged == {f"Do {n}." for n in range(0, 10, 2)} | judged
    assert kept and all(len(row["improved_response"]) > 20 for row in kept)


def test_another_model_than_the_trained_one_is_told(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "judge.json", LONGER)
    state = json.loads(path.read_text())
    state["refed"] |= {"models": {"teacher": {"model": "openai/other"}}, "proof": {"proved": True}}
    path.write_text(json.dumps(state))
    rows = [{"instruction": "Do it.", "response": "A.", "improved_response": "Long."}]
    filter_data(rows, ["judge"], judge=http(server), judge_program=path, out=tmp_path / "out", progress=False)
    said(caplog.text)


def test_a_run_goes_on_with_its_trained_judge_and_the_model_of_perplexities(
    said: Said, server: SimulatedTeacher, toy: ToyServer, tmp_path: Path
) -> None:
    path, folder = saved(tmp_path / "judge.json", PERPLEX), tmp_path / "run"
    pairs = references(6)
    settings: dict[str, Any] = {"filters": ["judge"], "judge_program": path, "track": False, "progress": False}
    with said.by(ConfigError):
        synthesize(ReferenceLevelFeedback(), pairs, size=4, teacher=config(server), run_dir=folder, **settings)
    scorer = {"model": "toy", "api_base": toy.url, "template": "none"}
    made = synthesize(
        ReferenceLevelFeedback(), pairs, size=4, teacher=config(server), run_dir=folder, judge_scorer=scorer, **settings
    )
    asked = len(toy.prompts)
    assert len(made.samples) == 4 and asked > 4
    more = resume(folder, size=6, progress=False)
    assert len(more.samples) == 6 and len(toy.prompts) > asked


def test_a_comparison_grades_by_what_people_would_give(server: SimulatedTeacher, tmp_path: Path) -> None:
    path = saved(tmp_path / "judge.json", LONGER, **{GRADES: FIVE})
    teacher, judge = config(server), config(server, temperature=0.1)
    settings: dict[str, Any] = {**SMALL, "grades": True, "judge_program": path, "out": tmp_path / "out"}
    programs = ["instruction-only", "reference-level"]
    made = compare(programs, references(4), teacher=teacher, judge=judge, progress=False, **settings)
    grades = [row["grade"] for row in lines(made.out / "rows.jsonl") if row["grade"] is not None]
    assert grades and set(grades) == {5}
