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
from tests.conftest import KEY
from tests.support import mlflow_stores
from tests.support.command_line import refed, refusal, teacher_file, without_numbers
from tests.support.mlflow_stores import Mlflow
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.tracking.test_compile import candidates_in

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
SMALL = {"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "instructions_per_feature": 1}
PRICE = "{prompt: 1, completion: 2}"
OUTCOMES = ("gain over ", "change from ", "nothing to prove: ")


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
    heads = [line.split("  ")[0] for line in lines]
    assert heads.index("program") < heads.index("uncompiled") < heads.index("compiled")
    assert lines[0].startswith("validation: ") and [line for line in lines if line.startswith(OUTCOMES)]
    said(lines[-1])
    cost = next(line for line in lines if line.startswith("cost: $"))
    assert max(map(len, lines)) <= 200 and cost.endswith(f"{server.stats()['requests']} calls")
    assert {p.name for p in Path("out").iterdir()} >= {"program.json", "prompts.diff", "proof.txt", "optimizer.log"}
    assert not Path("mlflow.db").exists() and not Path("out/tracking.json").exists()


def test_show_tells_whether_a_compile_helped_and_what_it_changed(home: Path, server: SimulatedTeacher) -> None:
    settings({"metric": {"accept": 0.1}})
    assert compile_(home, server, "--estimate").exit_code == 0
    begun = refed("compile", "show", "out")
    assert (
        begun.exit_code == 0 and "0, uncompiled, best so far" in begun.stdout and "no prompts changed" in begun.stdout
    )
    assert compile_(home, server).exit_code == 0
    lines = refed("compile", "show", "out").stdout.splitlines()
    assert lines[0].startswith("done: compile by bootstrap, 2 candidates, ")
    proof = Path("out/proof.txt").read_text().splitlines()
    assert [line for line in lines if line in proof] == proof
    shown = lines[lines.index("what changed, stage by stage:") + 2 :]
    changed = Path("out/prompts.diff").read_text().splitlines()
    assert shown[: len(changed)] == changed
    if changed != ["no prompts changed"]:  # its judge answers by chance
        assert shown[len(changed) + 1].startswith("answers before and after") and "after:" in shown
    assert refed("compile", "show", ".").exit_code == 2 and refed("compile", "show").exit_code == 2


@pytest.mark.slow
def test_what_dspy_says_is_in_a_file(said: Said, home: Path, server: SimulatedTeacher) -> None:
    command = [
        sys.executable, "-m", "refed_dspy.cli", "compile", "--references", "references.jsonl", "--out", "out",
        "--config", "compile.yaml", "--teacher", str(teacher_file(home, server)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chatter = Path("out/optimizer.log").read_text()
    assert "Metric" in chatter and "Bootstrapped" in chatter
    for text in ("Metric", "Bootstrapped", "it/s", "INFO", "Traceback"):
        assert text not in done.stdout + done.stderr, text
    told = [line for line in done.stderr.splitlines() if " · " not in line]
    said(told)


@pytest.mark.slow
def test_an_estimate_asks_a_little_and_says_what_all_would_take(home: Path, server: SimulatedTeacher) -> None:
    result = compile_(home, server, "--estimate")
    assert result.exit_code == 0, result.output
    paid = server.stats()["requests"]
    done = compile_(home, server)
    assert done.exit_code == 0 and server.stats()["repeated"] == 0 and server.stats()["requests"] > 2 * paid
    foreseen = float(result.stdout.partition("about $")[2].partition(",")[0])
    took = float(done.stdout.partition("cost: $")[2].partition(",")[0])
    assert 0.4 < foreseen / took < 2.5


@pytest.mark.slow
def test_at_a_cap_there_is_a_program_and_after_an_estimate_no_cap_is_refused(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    assert compile_(home, server, "--estimate").exit_code == 0
    cut = compile_(home, server, "--max-calls", 60)
    assert cut.exit_code == 1 and server.stats()["requests"] == 60
    said(without_numbers(cut.stderr.splitlines()[-1]))
    assert Path("out/program.json").is_file()


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
BAD_INPUTS: dict[str, list[object]] = {
    "no out": TEACHER_DOWN,
    "no teacher": ["--out", "out"],
    "unknown key": [*TO_OUT, "--config", "unknown.yaml"],
    "unknown optimizer": [*TO_OUT, "--optimizer", "nosuch"],
    "no such dotted name": [*TO_OUT, "--optimizer", "no.such.Thing"],
    "missing references": [*TO_OUT, "--references", "none.jsonl"],
    "two references": [*TO_OUT, "--references", "few.jsonl"],
    "broken pairs": [*TEACHER_DOWN[:2], "--out", "out", "--pairs", "broken-pairs.jsonl"],
    "pairs and references": [*TO_OUT, "--pairs", "pairs.jsonl"],
    "not a program": [*TO_OUT, "--program", "program.json"],
    "no price": [*TO_OUT, "--max-cost", 1],
    "cap of nothing": [*TO_OUT, "--max-calls", 0],
    "a negative cap": [*TO_OUT, "--max-cost", -1],
    "a name that is none": [*TO_OUT, "--name", "a/b"],
    "a key in a file": [*TO_OUT, "--teacher", "akey.yaml"],
    "judge is none": [*TO_OUT, "--judge", "nosuch/model"],
    "out is a file": [*TEACHER_DOWN, "--out", "file"],
}


def test_bad_input_is_one_line(said: Said, home: Path) -> None:
    write_bad_files(home)
    lines = {case: refusal(refed("compile", *words)) for case, words in BAD_INPUTS.items()}
    said(lines)
    assert KEY not in str(lines)


def test_the_folder_of_a_run(said: Said, run: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(run.parent, server, price=PRICE)
    said(refusal(refed("compile", "--references", "references.jsonl", "--out", "run", "--teacher", teacher)))
    assert server.stats()["requests"] == 0


@pytest.mark.slow
def test_a_compile_starts_from_the_program_that_is_named(home: Path, server: SimulatedTeacher) -> None:
    guidance = {"response_generation": "Be brief."}
    save_program(ReferenceLevelFeedback(guidance=guidance), "own.json")
    done = compile_(home, server, "--program", "own.json")
    assert done.exit_code == 0, done.output
    assert guidance["response_generation"] in Path("out/program.json").read_text()


def test_tuning_a_judge_starts_from_the_program_that_is_named(home: Path, server: SimulatedTeacher) -> None:
    judge = PairwiseJudge()
    for predictor in judge.predictors():
        predictor.signature = predictor.signature.with_instructions("Prefer what is shorter.")
    save_program(judge, "judge.json")
    Path("compile.yaml").write_text(json.dumps({"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5}))
    flags = "--pairs", "pairs.jsonl", "--out", "out", "--config", "compile.yaml", "--program", "judge.json"
    done = refed("compile", *flags, "--teacher", teacher_file(home, server, price=PRICE))
    no_traceback(done)  # the simulated judge abstains on all of them, so that it ends early
    compared = candidates_in(Path("out"))[0].state["compare"]
    assert compared["signature"]["instructions"] == judge.compare.signature.instructions


@pytest.mark.slow
def test_a_compile_tracked_promoted_and_used(
    said: Said, home: Path, server: SimulatedTeacher, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TRACK", "true")
    done = compile_(home, server, "--name", "mine")
    assert done.exit_code == 0, done.output
    (parent,) = tracked.runs("compile")
    assert json.loads(Path("out/program.json").read_text())["refed"]["run_id"] == parent.info.run_id
    assert tracked.aliases("mine") == {"challenger": "1"}
    promoted = refed("compile", "promote", "mine", "--unproved")
    said(promoted.output)
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
    assert made.exit_code == 0 and "MLflow" not in made.stdout, made.output
    assert not Path("run/tracking.json").exists()
    asked = refed(*words, "--run-dir", "asked", "--track")
    assert asked.exit_code == 0 and asked.stdout.splitlines()[-1].endswith(shown), asked.output
    assert {path.name for path in Path().iterdir()} == {"run", "asked"}
