"""The filter figure end to end: subsets, trainings, answers and verdicts, each done once; and its arithmetic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("trl", reason="make finetune brings it")

from benchmarks.simulated import SimulatedTeacher
from tests.finetune.conftest import ROWS, run_script
from tests.runs.filter.helpers import NumberJudge
from tests.support.scripted_engine import fake_lm

pytestmark = pytest.mark.finetune
PROMPTS = [f"Question {n}: what of it?" for n in range(5)]
SFT = ["--", "--max-length", "256", "--batch-size", "2", "--learning-rate", "0.01", "--epochs", "1"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"instruction": text, "dataset": "ours"} for text in PROMPTS]))
    return path


@pytest.fixture
def figure(modules: Callable[[str], ModuleType]) -> ModuleType:
    return modules("filter_figure")


def judge_file(folder: Path, server: SimulatedTeacher) -> Path:
    settings = {"model": "openai/simulated", "api_base": server.base_url, "price": {"prompt": 1.0, "completion": 1.0}}
    path = folder / "judge.yaml"
    path.write_text(json.dumps({**settings, "max_tokens": 200}))
    return path


def files(folder: Path) -> Mapping[str, int]:
    paths = (
        path for path in folder.rglob("*") if path.parent.name in {"answers", "subsets"} or path.name == "training.json"
    )
    return {str(path): path.stat().st_mtime_ns for path in paths}


def test_from_a_run_to_the_picture_and_each_step_once(
    server: SimulatedTeacher, run: Path, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "figure"
    arguments = [run, "--model", tiny, "--prompts", prompts, "--judge", judge_file(tmp_path, server), "--out", out]
    arguments += ["--sizes", 3, "--max-new-tokens", 24, "--filters", "random", "rouge", "judge"]

    dry = run_script("filter_figure.py", *arguments, "--dry-run", *SFT)
    assert dry.returncode == 0 and not out.exists()
    for line in (
        "trainings: 3 at most, 0 of them done",
        "of 4 models",
        f"{2 * ROWS} calls at most on the data",
        "and 30 on",
    ):
        assert line in dry.stdout
    assert not server.stats()["requests"]

    poor = run_script("filter_figure.py", *arguments, "--max-cost", 0.012, *SFT)
    assert poor.returncode == 1 and "max_cost is reached" in poor.stderr, poor.stderr[-2000:]
    paid = server.stats()["answered"]
    assert 0 < paid < 2 * ROWS and not list(out.glob("models/*"))

    done = run_script("filter_figure.py", *arguments, "--max-cost", 5, *SFT)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((out / "figure.json").read_text())
    assert [(line["filter"], line["size"]) for line in facts["lines"]] == [
        (name, 3) for name in ("random", "rouge", "judge")
    ]
    for line in facts["lines"]:
        assert line["judged"] == 5 and (line["win_rate"] is None or 0 <= line["win_rate"]["mean"] <= 100)
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "figure.txt").read_text()
    assert "over its own answers before training" in text
    assert f", {server.stats()['answered']} calls" in text
    assert {training["rows"] for training in facts["trainings"].values()} == {3}

    asked, there = server.stats()["answered"], files(out)
    again = run_script("filter_figure.py", *arguments, "--max-cost", 5, *SFT)
    assert again.returncode == 0, again.stderr[-3000:]
    assert server.stats()["answered"] == asked and files(out) == there
    assert json.loads((out / "figure.json").read_text()) == facts
    other = run_script("filter_figure.py", *arguments, "--max-cost", 5, *SFT, "--epochs", 2)
    assert other.returncode == 2 and "contains a figure with another sft" in other.stderr


def opened(figure: ModuleType, folder: Path, answers: Mapping[str, Sequence[str]], **more: Any) -> Any:
    """A figure of three subsets whose answers are there, with a judge that prefers the larger number."""
    data, prompts, baseline = (folder / f"{name}.jsonl" for name in ("data", "prompts", "baseline"))
    rows = [{"instruction": f"Do {n}.", "response": "1", "improved_response": "2"} for n in range(8)]
    for path, content in (
        (data, rows),
        (prompts, [{"instruction": text} for text in PROMPTS]),
        (baseline, [{"instruction": text, "output": f"Quality {n}"} for n, text in enumerate(PROMPTS)]),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    arguments = [
        str(data),
        "--model",
        "none",
        "--prompts",
        str(prompts),
        "--judge",
        "none",
        "--out",
        str(folder / "out"),
    ]
    args = figure.arguments([*arguments, "--baseline", str(baseline), "--sizes", "4", "--filters", "random", "judge"])
    args.judge = fake_lm(NumberJudge())
    vars(args).update(more)
    made = figure.Figure(args)
    (folder / "out" / "answers").mkdir(parents=True)
    for name, outputs in answers.items():
        lines = [{"instruction": text, "output": output} for text, output in zip(PROMPTS, outputs, strict=True)]
        (folder / "out" / "answers" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return made


def test_an_answer_that_is_better_wins_the_same_ties_and_an_empty_one_loses(figure: ModuleType, tmp_path: Path) -> None:
    answers = {
        "random-4-seed0": [f"Quality {n}" for n in range(5)],  # as the baseline's
        "judge-4-seed0": ["Quality 9", "Quality 9", "", "Quality 9", "Quality 9"],
    }
    made = opened(figure, tmp_path, answers)
    lines = {line.filter: line for line in made.compare(made.subsets)}
    assert lines["random"].win_rate.mean == 50
    assert lines["judge"].win_rate.mean == 80 and lines["judge"].win_rate.clusters == 5
    assert {line.abstained for line in lines.values()} == {0}


def test_seeds_of_one_point_are_one_line_by_prompt(figure: ModuleType, tmp_path: Path) -> None:
    answers = {f"random-4-seed{seed}": [f"Quality {9 - 9 * seed}"] * 5 for seed in (0, 1)}
    made = opened(figure, tmp_path, answers, filters=["random"], seeds=[0, 1])
    (line,) = made.compare(made.subsets)
    assert line.seeds == 2 and line.judged == 10
    assert line.win_rate.mean == pytest.approx(55)  # "Quality 0" ties with the first prompt's baseline, and loses else
    assert line.win_rate.clusters == 5


def test_a_subset_holds_what_its_filter_keeps(figure: ModuleType, tmp_path: Path) -> None:
    made = opened(figure, tmp_path, {}, filters=["judge", "random"], sizes=[4, 8, 9], seeds=[0])
    (tmp_path / "out" / "subsets").mkdir()
    enough = made.choose()
    assert [str(subset) for subset in enough] == ["judge-4-seed0", "judge-8-seed0", "random-4-seed0", "random-8-seed0"]
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "subsets" / "judge-4-seed0.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 4 and {row["messages"][1]["content"] for row in rows} == {"2"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": [{"question": "a"}]}, "row 1: needs an instruction; it has question"),
        ({"baseline": [{"instruction": "another", "output": "a"}]}, "has no answer to 5 of 5 prompts"),
        ({"data": [{"instruction": "a", "response": "b"}]}, "remove judge"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(
    figure: ModuleType, tmp_path: Path, changed: Mapping[str, Sequence[Any]], message: str
) -> None:
    made = opened(figure, tmp_path, {})
    for name, rows in changed.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(figure.ReferencesError, match=message):
        figure.Figure(made.args)


def test_wrong_settings_of_the_training_end_with_2_at_once(tmp_path: Path, prompts: Path, run: Path) -> None:
    arguments = [run, "--model", "m", "--prompts", prompts, "--judge", "openai/any", "--out", tmp_path / "out"]
    done = run_script("filter_figure.py", *arguments, "--dry-run", "--", "--epoch", "-1")
    assert done.returncode == 2 and os.listdir(tmp_path) == ["prompts.json"]
