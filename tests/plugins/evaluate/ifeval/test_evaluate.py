"""IFEval around a stand-in for its checker: what is read, checked, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, ExportError, InputError, RunDirError, RunStopped
from refed_dspy.plugins.evaluate.ifeval.evaluate import ifeval
from refed_dspy.plugins.evaluate.ifeval.result import Accuracies
from tests.support.said import Said
from tests.support.toy_lm_eval import make_environment, make_models

Instruction = tuple[str, dict[str, Any]]
WORDS: Instruction = ("length_constraints:number_words", {"num_words": 3})
COMMA: Instruction = ("punctuation:no_comma", {})


def prompt(key: int, *instructions: Instruction) -> dict[str, Any]:
    names, settings = ([each[part] for each in instructions] for part in (0, 1))
    text = f"Write a short poem on the number {key}."
    return {"key": key, "prompt": text, "instruction_id_list": names, "kwargs": settings}


PROMPTS = [prompt(1, COMMA), prompt(2, COMMA, WORDS), prompt(3, WORDS), prompt(4, COMMA)]
GOOD = ["One is all", "Two and two", "Three, and three", "Four."]
POOR = ["One, and all", "Two, two", "Three", "Four."]


@pytest.fixture(scope="session")
def toy_checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("toy") / "environment")


def responses(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [{"prompt": row["prompt"], "response": text} for row, text in zip(PROMPTS, texts, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)), "utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NLTK_DATA", str(make_models(tmp_path / "models")))
    Path("input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), "utf-8")
    responses(tmp_path / "good.jsonl", GOOD)
    responses(tmp_path / "poor" / "responses.jsonl", POOR)
    return tmp_path


def checked(toy_checker: Path, **changed: Any) -> Accuracies:
    values = {"prompts": "input_data.jsonl", "answers": ["good.jsonl", "poor"], "out": "out"}
    return ifeval(**{**values, "environment": toy_checker, **changed})


def test_arms_are_checked_by_prompt_and_stand_in_every_file_with_what_overlaps(
    said: Said, home: Path, toy_checker: Path
) -> None:
    made = checked(toy_checker, data=[{"instruction": PROMPTS[0]["prompt"], "response": "x"}])
    good, poor = made.arms
    assert (good.arm, poor.arm) == ("good", "poor") and made.instructions == 5
    assert [good.prompt_strict.mean, good.instruction_strict.mean] == [100, 100]
    assert [poor.prompt_strict.mean, poor.instruction_strict.mean] == [25, 20]
    assert [poor.prompt_loose.mean, poor.instruction_loose.mean] == [50, 60], "commas are gone"
    facts = json.loads(Path("out/evaluation.json").read_text())
    assert facts["figures"]["poor/prompt_strict"] == 25 and facts["figures"]["good/instruction_loose_low"] == 100
    assert made.overlap is not None and made.overlap.share == facts["figures"]["overlap_share"] == 1
    assert Path("out/evaluation.txt").read_text().splitlines() == made.lines()
    said(made.lines())
    assert checked(toy_checker, answers="poor").arms == [poor], "a second start replaces the first one's files"


def test_what_the_checker_draws_is_the_same_each_time(home: Path, toy_checker: Path) -> None:
    rows = [prompt(key, ("random:letter", {})) for key in range(40)]
    Path("drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = [json.dumps({"prompt": row["prompt"], "response": "x"}) + "\n" for row in rows]
    for name, order in (("a", said), ("b", said[::-1])):
        Path(f"{name}.jsonl").write_text("".join(order), "utf-8")
    a, b = checked(toy_checker, prompts="drawn.jsonl", answers=["a.jsonl", "b.jsonl"]).arms
    assert a.prompt_strict == b.prompt_strict and 0 < a.prompt_strict.mean < 100


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": "none.jsonl"},
        {"prompts": "good.jsonl"},
        {"answers": []},
        {"answers": "models"},
        {"answers": "input_data.jsonl"},
        {"answers": ["poor", "poor"]},
        {"environment": "nowhere"},
    ],
)
def test_bad_input_is_one_line(said: Said, home: Path, toy_checker: Path, changed: dict[str, Any]) -> None:
    with said.by(InputError) as refused:
        checked(toy_checker, **changed)
    assert "\n" not in str(refused.value) and not (home / "out").exists()


@pytest.mark.parametrize(
    "row",
    [
        {**PROMPTS[0], "instruction_id_list": []},
        {**PROMPTS[0], "instruction_id_list": "no_comma"},
        {**PROMPTS[0], "kwargs": [{}, {}]},
        {**PROMPTS[0], "prompt": 7},
        PROMPTS[1],
    ],
)
def test_a_prompt_that_cannot_be_checked_is_named(said: Said, home: Path, toy_checker: Path, row: Any) -> None:
    Path("input_data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [PROMPTS[1], row]), "utf-8")
    with said.by(ConfigError):
        checked(toy_checker)


def test_responses_to_other_prompts_and_missing_ones_are_refused(said: Said, home: Path, toy_checker: Path) -> None:
    responses(home / "good.jsonl", GOOD[:2])
    with said.by(ConfigError):
        checked(toy_checker)
    text = Path("poor/responses.jsonl").read_text()
    Path("good.jsonl").write_text(text + text.splitlines()[0] + "\n")
    with said.by(ConfigError):
        checked(toy_checker)
    Path("good.jsonl").write_text('{"prompt": "Another?", "response": "x"}\n')
    with said.by(ConfigError):
        checked(toy_checker)


def test_what_the_checker_refuses_is_one_line(
    said: Said, home: Path, toy_checker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("input_data.jsonl").write_text(json.dumps(prompt(1, ("en:no_comma", {}))) + "\n", "utf-8")
    responses(home / "good.jsonl", GOOD[:1])
    with said.by(ConfigError):
        checked(toy_checker, answers="good.jsonl")
    monkeypatch.setenv("NLTK_DATA", str(home / "nowhere"))
    Path("input_data.jsonl").write_text(json.dumps(PROMPTS[0]) + "\n", "utf-8")
    with said.by(InputError):
        checked(toy_checker, answers="good.jsonl")
    assert not (home / "out" / "evaluation.json").exists()


def test_a_checker_that_fails_says_why(said: Said, home: Path, toy_checker: Path) -> None:
    rows = [prompt(1, ("length_constraints:number_words", {}))]
    Path("input_data.jsonl").write_text(json.dumps(rows[0]) + "\n", "utf-8")
    responses(home / "good.jsonl", GOOD[:1])
    with said.by(RunStopped):
        checked(toy_checker, answers="good.jsonl")


def test_files_of_somebody_elses_are_not_overwritten(said: Said, home: Path, toy_checker: Path) -> None:
    (home / "paid").mkdir()
    (home / "paid" / "ledger.sqlite").touch()
    with said.by(RunDirError):
        checked(toy_checker, out="paid")
    (home / "taken").mkdir()
    (home / "taken" / "evaluation.txt").touch()
    with said.by(ExportError):
        checked(toy_checker, out="taken")
