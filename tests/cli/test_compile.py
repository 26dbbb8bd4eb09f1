"""compile, judge agreement, track and promote as a person meets them: lines, exit codes, files, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.saved import save_program
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.command_line import refed, refused, teacher_file
from tests.support.mlflow_stores import Mlflow, written
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.tracking.test_compile import candidates_in

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
SMALL = {"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "instructions_per_feature": 1}
PRICE = "{prompt: 1, completion: 2}"


@pytest.fixture
def home(home: Path) -> Path:
    """A working folder with references, pairs and a compile's settings."""
    (home / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in references(20)))
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs(10)))
    settings({})
    return home


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"Explain {i}.", "answer_a": f"{i} is {i}.", "answer_b": "No.", "preferred": "AB"[i % 2]}
        for i in range(count)
    ]


def settings(more: dict[str, Any]) -> None:
    Path("compile.yaml").write_text(json.dumps({**SMALL, "evaluations": 4, **more}))  # JSON is YAML


def compile_(home: Path, server: SimulatedTeacher, *more: object, **teacher: Any) -> Result:
    return refed(
        "compile", "--references", "references.jsonl", "--config", "compile.yaml", "--out", "out",
        "--teacher", teacher_file(home, server, price=PRICE, **teacher), *more,
    )  # fmt: skip


def agreement(home: Path, server: SimulatedTeacher, *more: object, **judge: Any) -> Result:
    flags = "--pairs", "pairs.jsonl", "--out", "verdicts", "--judge", teacher_file(home, server, price=PRICE, **judge)
    return refed("judge", "agreement", *flags, *more)


def no_traceback(result: Result) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output


def test_compile_says_what_it_came_to_and_where_it_is(said: Said, home: Path, server: SimulatedTeacher) -> None:
    done = compile_(home, server)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("validation: 0.") and "uncompiled" in lines[0] and "compiled" in lines[0]
    heads = [line.split("  ")[0] for line in lines]
    assert heads.index("program") < heads.index("uncompiled") < heads.index("compiled")
    assert [line for line in lines if line.startswith(("gain over ", "change from ", "nothing to prove: "))]
    cost = next(line for line in lines if line.startswith("cost: $"))
    assert cost.endswith(f"{server.stats()['requests']} calls")
    assert not [line for line in lines if len(line) > 200]
    said(lines[-1])
    assert {p.name for p in Path("out").iterdir()} >= {"program.json", "prompts.diff", "proof.txt", "optimizer.log"}
    assert not Path("mlflow.db").exists() and not Path("out/tracking.json").exists()


@pytest.mark.slow
def test_what_dspy_says_is_in_a_file(home: Path, server: SimulatedTeacher) -> None:
    command = [
        sys.executable, "-m", "refed_dspy.cli", "compile", "--references", "references.jsonl", "--out", "out",
        "--config", "compile.yaml", "--teacher", str(teacher_file(home, server)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chatter = Path("out/optimizer.log").read_text()
    assert "Average Metric" in chatter and "Bootstrapped" in chatter
    for text in ("Average Metric", "Bootstrapped", "it/s", "INFO", "Traceback"):
        assert text not in done.stdout + done.stderr, text
    assert all(" · " in line or line.startswith("refed: ") for line in done.stderr.splitlines()), done.stderr
    assert "judge and teacher are the same model" in done.stderr


@pytest.mark.slow
def test_an_estimate_asks_a_little_and_says_what_all_would_take(home: Path, server: SimulatedTeacher) -> None:
    result = compile_(home, server, "--estimate")
    assert result.exit_code == 0 and "whole compile: about $" in result.stdout and "without --estimate" in result.stdout
    paid = server.stats()["requests"]
    done = compile_(home, server)
    assert done.exit_code == 0 and server.stats()["repeated"] == 0 and server.stats()["requests"] > 2 * paid
    foreseen = float(result.stdout.partition("about $")[2].partition(",")[0])
    took = float(done.stdout.partition("cost: $")[2].partition(",")[0])
    assert 0.4 < foreseen / took < 2.5


@pytest.mark.slow
def test_at_a_cap_it_ends_with_one_line_and_the_same_command_goes_on(home: Path, server: SimulatedTeacher) -> None:
    assert compile_(home, server, "--estimate").exit_code == 0  # after it no cap is refused
    cut = compile_(home, server, "--max-calls", 60)
    assert cut.exit_code == 1 and server.stats()["requests"] == 60
    lines = [line for line in cut.stderr.splitlines() if line.startswith("refed: max_calls 60 is reached")]
    assert len(lines) == 1 and "60 calls used" in lines[0] and "; to continue, raise it and run the same" in lines[0]
    assert refed("status", "out").stdout.startswith("at its cap: compile by ")
    assert "stopped: max_calls 60 is reached after " in cut.stdout and Path("out/program.json").is_file()
    again = compile_(home, server)
    assert again.exit_code == 1 and server.stats()["requests"] == 60  # a cap stays
    done = compile_(home, server, "--max-calls", 5_000)
    assert done.exit_code == 0 and server.stats()["repeated"] == 0 and Path("out/proof.txt").is_file()


@pytest.mark.slow
def test_the_same_command_on_a_compile_that_is_done_pays_nothing(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.02, sigma=1.0)
    settings({"train": 4, "instructions_per_feature": 2})
    first = compile_(home, server)
    paid = server.stats()["requests"]
    assert compile_(home, server).stdout == first.stdout
    assert server.stats()["requests"] == paid


@pytest.mark.slow
def test_a_metric_from_the_config(home: Path, server: SimulatedTeacher) -> None:
    settings({"metric": {"wins": 0.2, "grades": 0.8, "diversity": 0.0, "criteria": {"clear": "It is clear."}}})
    done = compile_(home, server, "--accept-longer")
    assert done.exit_code == 0, done.output
    manifest = json.loads(Path("out/program.json").read_text())["refed"]
    assert manifest["proof"]["accept_longer"] is True and manifest["proof"]["proved"] is False
    assert manifest["metric"]["grades"] == 0.8 and list(manifest["metric"]["criteria"]) == ["clear"]


def write_bad_files(home: Path) -> None:
    (home / "down.yaml").write_text("model: sim/x\napi_base: http://127.0.0.1:9/v1\nretries: 0\n")
    (home / "akey.yaml").write_text(f"model: sim/x\napi_base: http://127.0.0.1:9/v1\napi_key: {KEY}\n")
    (home / "unknown.yaml").write_text("optimizr: gepa\n")
    (home / "broken-pairs.jsonl").write_text('{"instruction": "a", "answer_a": "b"\n')
    (home / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in references(2)))
    (home / "program.json").write_text("{}")
    (home / "file").write_text("")


TEACHER_DOWN: list[object] = ["--teacher", "down.yaml", "--references", "references.jsonl"]
TO_OUT: list[object] = [*TEACHER_DOWN, "--out", "out"]
BAD_INPUTS: dict[str, tuple[list[object], list[str]]] = {
    "no out": (TEACHER_DOWN, ["out:", "--out DIR"]),
    "no teacher": (["--out", "out"], ["no teacher", "--teacher"]),
    "unknown key": ([*TO_OUT, "--config", "unknown.yaml"], ["optimizr", "did you mean optimizer?"]),
    "unknown optimizer": ([*TO_OUT, "--optimizer", "nosuch"], ["nosuch"]),
    "no such dotted name": ([*TO_OUT, "--optimizer", "no.such.Thing"], ["no.such.Thing"]),
    "missing references": ([*TO_OUT, "--references", "none.jsonl"], ["none.jsonl", "no such file"]),
    "two references": ([*TO_OUT, "--references", "few.jsonl"], ["a compile needs at least 3"]),
    "broken pairs": (
        [*TEACHER_DOWN[:2], "--out", "out", "--pairs", "broken-pairs.jsonl"],
        ["broken-pairs.jsonl line 1"],
    ),
    "pairs and references": ([*TO_OUT, "--pairs", "pairs.jsonl"], ["pairs: references are given, too"]),
    "not a program": ([*TO_OUT, "--program", "program.json"], ["program.json", "it lacks"]),
    "no price": ([*TO_OUT, "--max-cost", 1], ["max_cost", "price"]),
    "cap of nothing": ([*TO_OUT, "--max-calls", 0], ["max_calls"]),
    "a negative cap": ([*TO_OUT, "--max-cost", -1], ["max_cost"]),
    "a name that is none": ([*TO_OUT, "--name", "a/b"], ["name"]),
    "a key in a file": ([*TO_OUT, "--teacher", "akey.yaml"], ["api_key: unknown key"]),
    "endpoint down": (TO_OUT, ["cannot be reached"]),
    "judge is none": ([*TO_OUT, "--judge", "nosuch/model"], ["provider is unknown"]),
    "out is a file": ([*TEACHER_DOWN, "--out", "file"], ["file"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line(home: Path, case: str) -> None:
    write_bad_files(home)
    words, expected = BAD_INPUTS[case]
    result = refed("compile", *words)
    no_traceback(result)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("refed: judge and", "uncompiled"))]
    assert result.exit_code in ({1, 2} if case == "endpoint down" else {2}), result.output
    assert len(lines) == 1 and lines[0].startswith("refed: "), result.stderr
    assert all(text in lines[0] for text in expected), lines
    assert KEY not in result.output


def test_the_folder_of_a_run_or_of_another_compile(home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server, price=PRICE)
    refed("synth", "--references", "references.jsonl", "--run-dir", "run", "--size", 2, "--teacher", teacher)
    refused(
        refed("compile", "--references", "references.jsonl", "--out", "run", "--teacher", teacher), "contains a run"
    )
    compile_(home, server, "--estimate")
    refused(compile_(home, server, "--seed", 3), "contains another compile", "seed was 0, is 3")


def test_a_run_in_the_folder_of_a_compile(home: Path, server: SimulatedTeacher) -> None:
    compile_(home, server, "--estimate")
    words = ["synth", "--references", "references.jsonl", "--run-dir", "out", "--teacher", home / "teacher.yaml"]
    refused(refed(*words), "out", "contains")


@pytest.mark.slow
def test_a_compile_starts_from_the_program_that_is_named(home: Path, server: SimulatedTeacher) -> None:
    save_program(ReferenceLevelFeedback(guidance={"response_generation": "Be brief."}), "own.json")
    done = compile_(home, server, "--program", "own.json")
    assert done.exit_code == 0, done.output
    assert "Be brief." in Path("out/program.json").read_text()


def test_tuning_a_judge_starts_from_the_program_that_is_named(said: Said, home: Path, server: SimulatedTeacher) -> None:
    judge = PairwiseJudge()
    for predictor in judge.predictors():
        predictor.signature = predictor.signature.with_instructions("Prefer what is shorter.")
    save_program(judge, "judge.json")
    Path("compile.yaml").write_text(json.dumps({"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5}))
    flags = "--pairs", "pairs.jsonl", "--out", "out", "--config", "compile.yaml", "--program", "judge.json"
    done = refed("compile", *flags, "--teacher", teacher_file(home, server, price=PRICE))
    no_traceback(done)  # the simulated judge abstains on all of them, so that it ends early
    said(json.dumps(candidates_in(Path("out"))[0].state))


@pytest.mark.slow
def test_a_compile_tracked_promoted_and_used(
    home: Path, server: SimulatedTeacher, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TRACK", "true")
    done = compile_(home, server, "--name", "mine")
    assert done.exit_code == 0, done.output
    assert len(tracked.runs("compile")) == 1 and tracked.aliases("mine") == {"challenger": "1"}
    promoted = refed("compile", "promote", "mine", "--unproved")
    assert promoted.output == "mine version 1 is champion: models:/mine@champion\n"
    before = tracked.everything()
    assert refed("track", "out").exit_code == 0 and tracked.everything() == before
    assert tracked.aliases("mine") == {"challenger": "1", "champion": "1"}
    words = ["synth", "--references", "references.jsonl", "--run-dir", "run", "--size", 3]
    made = refed(*words, "--program", "models:/mine@champion", "--teacher", home / "teacher.yaml")
    assert made.exit_code == 0, made.output
    (run,) = tracked.runs("synthesis")
    assert run.data.tags["refed.program.version"] == "1" and run.data.tags["refed.program.model"] == "mine"


@pytest.mark.slow
def test_without_an_address_the_store_is_in_the_user_s_data_folder(
    home: Path, server: SimulatedTeacher, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compile is tracked there, a run is not; its champion is found from any folder, and nothing else is written."""
    monkeypatch.delenv("REFED_TRACK")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = home / "data" / "refed-dspy"
    monkeypatch.setenv("XDG_DATA_HOME", str(data.parent))
    data.mkdir(parents=True)
    shutil.copy(mlflow_template, data / "mlflow.db")
    before = {path.name for path in home.iterdir()} | {"teacher.yaml"}
    done = compile_(home, server, "--name", "mine")
    shown = f"mlflow ui --workers 1 --backend-store-uri sqlite:///{data / 'mlflow.db'}"
    assert done.exit_code == 0 and done.stdout.splitlines()[-1].endswith(shown), done.output
    assert refed("compile", "promote", "mine", "--unproved").exit_code == 0
    assert {path.name for path in home.iterdir()} == before | {"out"}
    assert {path.name for path in data.iterdir()} == {"mlflow.db", "mlruns"}
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    words = ["synth", "--references", home / "references.jsonl", "--size", 3, "--teacher", home / "teacher.yaml"]
    made = refed(*words, "--run-dir", "run", "--program", "models:/mine@champion")
    assert made.exit_code == 0 and "in MLflow" not in made.stdout, made.output
    assert not Path("run/tracking.json").exists()
    asked = refed(*words, "--run-dir", "asked", "--track")
    assert asked.exit_code == 0 and asked.stdout.splitlines()[-1].endswith(shown), asked.output
    assert {path.name for path in Path().iterdir()} == {"run", "asked"}


@pytest.mark.slow
def test_a_compile_s_program_names_its_run(
    home: Path, server: SimulatedTeacher, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TRACK", "true")
    compile_(home, server)
    (parent,) = tracked.runs("compile")
    assert json.loads(Path("out/program.json").read_text())["refed"]["run_id"] == parent.info.run_id


@pytest.mark.slow
def test_no_key_in_anything_that_a_command_leaves(
    home: Path, locked: SimulatedTeacher, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TRACK", "true")
    done = compile_(home, locked, api_key_env=KEY_VARIABLE)
    judged = agreement(home, locked, "--count", 2, api_key_env=KEY_VARIABLE)
    assert done.exit_code == judged.exit_code == 0, done.output + judged.output
    assert KEY not in done.output + judged.output
    for path, content in written(home).items():
        assert KEY.encode() not in content, path
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-77777777")
    lost = agreement(home, locked, "--count", 3, api_key_env=KEY_VARIABLE)
    no_traceback(lost)
    assert lost.exit_code in {1, 2} and "sk-wrong-77777777" not in lost.output


def test_the_commands_are_in_the_help() -> None:
    shown = refed("--help").stdout
    for command in ("compile", "judge", "track"):
        assert command in shown
    for words in (["compile"], ["judge", "agreement"], ["compile", "promote"], ["track"]):
        assert refed(*words, "--help").exit_code == 0
