"""A registered version as an MLflow model: loaded and served by MLflow itself, from JSON alone; and its prompts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import mlflow
import pandas
import pytest
from mlflow.exceptions import MlflowException

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import load_program
from refed_dspy.tracking.model import EXAMPLE, prompt_text
from refed_dspy.tracking.store import NotTracked, Store
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow, free_port
from tests.support.registered_programs import Compile, outcome, tuned
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
CHAMPION = "models:/refed@champion"


class Brief(ReferenceLevelFeedback):
    """A program of a user's own class."""


def files_of(version: str, store: Mlflow) -> list[Path]:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/refed/{version}"))
    return [path for path in folder.rglob("*") if path.is_file()]


def serving(uri: str, **variables: str) -> dict[str, str]:
    """The environment of a process that knows MLflow's address and the teacher, and nothing else of this one."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_DATA_HOME") if name in os.environ}
    kept["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # `mlflow models serve` looks there for uvicorn
    )
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return {**kept, **quiet, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}


# --- loaded by MLflow


def test_mlflow_loads_a_version_and_asks_the_caller_s_model(tracked: Mlflow) -> None:
    Compile("c").register(outcome("p", proved=True))
    loaded = mlflow.pyfunc.load_model(CHAMPION)
    assert loaded.metadata.signature.inputs.input_names() == list(EXAMPLE)
    assert loaded.input_example == [EXAMPLE]
    with dspy.context(lm=fake_lm(Writer())):
        first, second = loaded.predict([EXAMPLE, {**EXAMPLE, "instruction": "What is rain?"}])
        (of_table,) = loaded.predict(pandas.DataFrame([EXAMPLE]))
    assert first["samples"] and first["failures"] == [] and second["samples"] and of_table["samples"]
    assert {"instruction", "response", "improved_response"} <= set(first["samples"][0])
    with pytest.raises(MlflowException):
        loaded.predict([{"instruction": "without a response"}])


def test_without_a_model_it_is_one_line(said: Said, tracked: Mlflow) -> None:
    Compile("c").register(outcome("p", proved=True))
    with said.by(ConfigError):
        mlflow.pyfunc.load_model(CHAMPION).predict([EXAMPLE])


def test_other_programs(said: Said, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge, one predictor, and a class of the caller's own, which is named to be imported."""
    pair = {"instruction": "I", "answer_a": "A", "answer_b": "B"}
    Compile("judge").register(outcome("judge", kind="PairwiseJudge"), PairwiseJudge())
    judge = mlflow.pyfunc.load_model("models:/refed/1")
    assert judge.metadata.signature is None
    with dspy.context(lm=fake_lm(Writer())):
        assert "failed" in judge.predict([pair])[0]
    Compile("own").register(outcome("own"), Brief())
    with said.by(ConfigError):
        mlflow.pyfunc.load_model("models:/refed/2")
    monkeypatch.setenv("REFED_PROGRAM", "tests.tracking.test_model:Brief")
    own = mlflow.pyfunc.load_model("models:/refed/2")
    with dspy.context(lm=fake_lm(Writer())):
        assert own.predict([EXAMPLE])[0]["samples"]


def test_what_mlflow_s_own_loader_of_pickles_says(said: Said, tracked: Mlflow) -> None:
    Compile("c").register(outcome("p", proved=True))
    with said.by(MlflowException):
        mlflow.dspy.load_model(CHAMPION)


def test_no_file_of_a_version_is_a_pickle_or_holds_a_key(
    tracked: Mlflow, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    program = tuned()
    program.set_lm(dspy.LM("openai/x", api_key=KEY, api_base=server.base_url))
    Compile("c").register(outcome("p", proved=True), program)
    files = files_of("1", tracked)
    assert {"MLmodel", "program.json", "requirements.txt"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".cloudpickle", ".bin"}]
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content and not content.startswith(b"\x80"), path
        content.decode()  # all of them are text
    assert load_program(CHAMPION).response_generation.lm is None


FRESH = """
import json, mlflow
loaded = mlflow.pyfunc.load_model("models:/refed@champion")
print(json.dumps([loaded.predict(loaded.input_example) for _ in range(2)]))
"""


@pytest.mark.slow
def test_a_fresh_process_asks_the_teacher_that_the_environment_names(
    tracked: Mlflow, server: SimulatedTeacher, tmp_path: Path
) -> None:
    Compile("c").register(outcome("p", proved=True))
    variables = {"REFED_TEACHER": "sim/sim-model", "REFED_TEACHER__API_BASE": server.base_url}
    environment = serving(tracked.uri, **variables, REFED_TEACHER__API_KEY_ENV=KEY_VARIABLE, **{KEY_VARIABLE: KEY})
    ran = subprocess.run(
        [sys.executable, "-c", FRESH], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout.splitlines()[-1])
    assert first[0]["samples"] and second[0]["samples"]
    assert KEY not in ran.stdout + ran.stderr


@pytest.mark.slow
def test_mlflow_serves_the_champion_over_http(tracked: Mlflow, tmp_path: Path) -> None:
    Compile("c").register(outcome("p", proved=True))
    port, log = free_port(), tmp_path / "serving.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local"]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=serving(tracked.uri, REFED_TEACHER="simulated"), cwd=tmp_path,
            stdout=written, stderr=written, start_new_session=True,
        )  # fmt: skip
    try:
        answer = posted(f"http://127.0.0.1:{port}/invocations", {"dataframe_records": [EXAMPLE, EXAMPLE]}, process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(answer["predictions"]) == 2 and answer["predictions"][0]["samples"][0]["improved_response"]


def posted(address: str, body: Any, process: subprocess.Popen[bytes], log: Path) -> Any:
    """The server's answer, once it listens."""
    ends, sent = time.monotonic() + 90, json.dumps(body).encode()
    while True:
        try:
            request = urllib.request.Request(address, sent, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            assert time.monotonic() < ends and process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)


# --- the prompts


def prompts(tracked: Mlflow, stage: str) -> list[str]:
    """The texts of a stage's prompt, the newest first. MLflow 3.10 lists versions in Unity Catalog alone."""
    name = f"refed.{stage}"
    load = partial(tracked.client.load_prompt, name, allow_missing=True, cache_ttl_seconds=0)
    versions = map(load, itertools.count(1))
    return [each.template for each in itertools.takewhile(lambda each: each is not None, versions)][::-1]


def test_each_stage_s_prompt_is_in_the_registry_once(tracked: Mlflow) -> None:
    a_compile, demo = Compile("c"), {"instruction": "I", "response": "R"}
    for _ in range(2):
        a_compile.register(outcome("p"), tuned("Be brief."))
    program = tuned("Be long.")
    program.response_improvement.demos = [demo]
    Compile("d").register(outcome("q"), program)
    assert len(prompts(tracked, "response_feedback")) == 1, "the same prompt is not registered twice"
    newer, older = prompts(tracked, "response_generation")
    assert newer.endswith("Be long.") and older.endswith("Be brief.")
    with_demo = prompts(tracked, "response_improvement")[0]
    assert with_demo.startswith(program.response_improvement.signature.instructions) and '"response": "R"' in with_demo
    tags = [tracked.version(number).tags for number in "12"]
    names = [
        [version[f"refed.prompt.{stage}"] for version in tags] for stage in ("response_feedback", "response_generation")
    ]
    feedback, generation = "prompts:/refed.response_feedback/", "prompts:/refed.response_generation/"
    assert names == [[feedback + "1", feedback + "1"], [generation + "1", generation + "2"]]


def test_where_mlflow_takes_no_prompt_the_champion_is_there_and_the_prompts_come_later(tracked: Mlflow) -> None:
    class Without(Store):
        def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(function, "__name__", "") == "register_prompt":
                raise NotTracked("refused")
            return super().call(function, *args, **kwargs)

    a_compile = Compile("c")
    without = Without(a_compile.folder)
    without.connect()
    with pytest.raises(NotTracked):
        a_compile.register(outcome("p", proved=True), store=without)
    assert tracked.aliases() == {"challenger": "1", "champion": "1"}
    later = Store(a_compile.folder)
    later.connect()
    a_compile.register(outcome("p", proved=True), store=later)
    assert prompts(tracked, "response_feedback")


def test_a_prompt_that_is_longer_than_mlflow_takes_is_cut(tracked: Mlflow) -> None:
    program = tuned()
    program.response_improvement.demos = [{"response": "long " * 30_000}]
    Compile("c").register(outcome("p"), program)
    (prompt,) = prompts(tracked, "response_improvement")
    assert len(prompt) == 100_000 and prompt.endswith("…")
    assert prompt_text({"signature": {"instructions": "I"}}) == "I"
