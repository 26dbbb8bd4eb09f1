"""A saved program is opened as it was made, and remembers where its prompts came from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import synthesize
from refed_dspy.errors import ConfigError
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import load_into, load_program
from refed_dspy.programs.saved import MANIFEST, program_digests, program_state, save_program
from refed_dspy.signatures import DEFAULT_FEATURES
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

FEATURES = {"audience": "Who asks", "tone": "How {formal} it is"}
MANIFEST_OF_A_COMPILE: dict[str, Any] = {
    "features": FEATURES,
    "instructions_per_feature": 3,
    "models": {"teacher": {"model": "openai/gpt-4o-mini", "endpoint": "https://api.openai.com/v1"}},
    "run_id": "abc123",
    "candidate": "0123456789abcdef",
}


def tuned(features: dict[str, str] | None = None) -> ReferenceLevelFeedback:
    program = ReferenceLevelFeedback(features or FEATURES, 3)
    predictor = program.response_generation
    predictor.signature = predictor.signature.with_instructions("Answer {well}.\nAlways.")
    predictor.demos = [{"instruction": "i", "response": "r"}]
    return program


def saved(folder: Path, program: Any = None, **manifest: Any) -> Path:
    """A file as a compile leaves it, with these entries of its manifest instead."""
    state = program_state(program or tuned())
    entries = {**state[MANIFEST], **MANIFEST_OF_A_COMPILE, **manifest}
    state[MANIFEST] = {key: value for key, value in entries.items() if value is not ...}
    path = folder / "program.json"
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


def refusal(path: Path | str, **more: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        load_program(path, **more)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_into_loads_a_module_of_any_kind_and_returns_it(tmp_path: Path) -> None:
    judge, fresh, instructions = PairwiseJudge(), PairwiseJudge(), "Prefer what is shorter."
    judge.compare.signature = judge.compare.signature.with_instructions(instructions)
    save_program(judge, tmp_path / "judge.json")
    assert load_program(tmp_path / "judge.json", into=fresh) is fresh
    assert fresh.compare.signature.instructions == instructions


def test_a_module_in_the_place_of_the_source_is_one_line(said: Said) -> None:
    said(refusal(PairwiseJudge()))


def test_a_program_is_what_it_was(tmp_path: Path) -> None:
    opened = load_program(saved(tmp_path))
    assert opened.features == FEATURES and opened.instructions_per_feature == 3
    assert program_digests(opened) == program_digests(tuned())
    assert all(predictor.lm is None for predictor in opened.predictors())


def test_it_remembers_where_it_came_from(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert load_program(path).source == {
        "address": str(path),
        "run_id": "abc123",
        "candidate": "0123456789abcdef",
        "teacher": "openai/gpt-4o-mini",
    }
    assert load_program(str(path)).source["address"] == str(path)
    assert ReferenceLevelFeedback().source == {}


def test_a_program_that_was_not_compiled_opens_with_the_usual_features(tmp_path: Path) -> None:
    save_program(ReferenceLevelFeedback(), tmp_path / "plain.json")
    opened = load_program(tmp_path / "plain.json")
    assert opened.features == dict(DEFAULT_FEATURES) and opened.instructions_per_feature == 10
    assert opened.source == {"address": str(tmp_path / "plain.json")}


def test_what_is_asked_for_wins_over_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert load_program(path, instructions_per_feature=7).instructions_per_feature == 7
    same = {name: FEATURES[name] for name in FEATURES}
    assert load_program(path, features=same).features == FEATURES


@pytest.mark.parametrize(
    "features",
    [{"audience": "Who asks", "length": "How long"}, {"audience": "Who reads", "tone": "How {formal} it is"}],
    ids=["names", "descriptions"],
)
def test_other_features_are_refused_with_the_difference(said: Said, tmp_path: Path, features: dict[str, str]) -> None:
    said(refusal(saved(tmp_path), features=features))


def test_another_kind_of_program_is_refused(said: Said, tmp_path: Path) -> None:
    save_program(PairwiseJudge(), tmp_path / "judge.json")
    said(refusal(tmp_path / "judge.json"))


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_what_is_no_program_is_refused(said: Said, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "program.json").write_text(text)
    said(refusal(tmp_path / "program.json"))


@pytest.mark.parametrize("entry", ["features", "instructions_per_feature", "models", "run_id", "candidate"])
@pytest.mark.parametrize("value", [..., None, 7, [], {}], ids=repr)
def test_a_manifest_that_says_nothing_usable_is_passed_over(tmp_path: Path, entry: str, value: Any) -> None:
    features = dict(DEFAULT_FEATURES) if entry == "features" else FEATURES
    opened = load_program(saved(tmp_path, tuned(features), **{entry: value}))
    assert opened.features == features
    usable = {"instructions_per_feature": 7} if value == 7 else {}
    expected = usable.get(entry, 10 if entry == "instructions_per_feature" else 3)
    assert opened.instructions_per_feature == expected
    gone = {"models": "teacher"}.get(entry, entry)
    assert gone not in opened.source and "address" in opened.source


@pytest.mark.parametrize("asked", [0, 101, -1, "3", 2.5])
def test_a_count_that_is_out_of_range_is_passed_over(tmp_path: Path, asked: Any) -> None:
    assert load_program(saved(tmp_path, instructions_per_feature=asked)).instructions_per_feature == 10


@pytest.mark.parametrize("teacher", [None, "openai/gpt-4o-mini", ["x"]], ids=repr)
def test_a_damaged_teacher_is_passed_over(tmp_path: Path, teacher: Any) -> None:
    assert "teacher" not in load_program(saved(tmp_path, models={"teacher": teacher})).source


def test_what_a_manifest_tells_is_one_short_line(tmp_path: Path) -> None:
    source = load_program(saved(tmp_path, run_id="a\nb" * 500, candidate="\x1b[31m")).source
    assert all(value.isprintable() and len(value) <= 200 for key, value in source.items() if key != "address")


def test_a_manifest_s_features_that_cannot_be_fields_are_refused(said: Said, tmp_path: Path) -> None:
    said(refusal(saved(tmp_path, features={"not a name": "x"})))


# --- another teacher


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run(program: Any, folder: Path, **more: Any) -> Any:
    return synthesize(program, references(1), size=2, teacher=fake_lm(Writer(per_call=3)), run_dir=folder, **more)


def test_another_teacher_than_it_was_tuned_with_is_warned_of_once_opened_in_any_way(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path)
    for number, program in enumerate((path, str(path), load_program(path))):
        run(program, tmp_path / f"run{number}")
    first, *others = warnings_of(caplog)
    assert others == [first] * 2
    said(first)


@pytest.mark.parametrize(
    ("tuned_with", "proved", "warnings"),
    [("fake/model", False, 1), ("openai/gpt-4o-mini", False, 1), ("fake/model", True, 0), ("fake/model", None, 0)],
)
def test_a_gain_that_was_never_proved_is_told_with_any_teacher(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture, tuned_with: str, proved: bool | None, warnings: int
) -> None:
    manifest: dict[str, Any] = {"models": {"teacher": {"model": tuned_with}}}
    run(saved(tmp_path, **manifest, **({} if proved is None else {"proof": {"proved": proved}})), tmp_path / "run")
    told = warnings_of(caplog)
    assert len(told) == warnings
    said(told)


def test_a_run_asks_as_often_as_the_program_was_made_for(tmp_path: Path) -> None:
    writer = Writer(per_call=3)
    synthesize(saved(tmp_path), references(1), size=2, teacher=fake_lm(writer), run_dir=tmp_path / "run")
    asked = [str(r.messages) for r in writer.requests if "new_instructions" in writer.fields(r)]
    assert asked and all("<how_many>\\n3\\n</>" in text for text in asked)
    assert "audience" in writer.fields(writer.requests[0]) or "audience" in writer.fields(writer.requests[1])


@pytest.mark.slow
def test_a_program_kept_in_mlflow_is_loaded_by_its_address(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    import mlflow

    kept = ReferenceLevelFeedback(guidance={"response_generation": "Be brief."})
    save_program(kept, tmp_path / "program.json")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "program.json"), "program")
    for address in (f"runs:/{run.info.run_id}/program/program.json", f"runs:/{run.info.run_id}/program"):
        loaded = ReferenceLevelFeedback()
        load_into(loaded, address)
        assert program_digests(loaded) == program_digests(kept)
    with said.by(ConfigError):
        load_into(ReferenceLevelFeedback(), "runs:/nosuchrun/program.json")
