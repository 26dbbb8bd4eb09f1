"""What a caller names of their own: filters, programs and formats by dotted name or entry point."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.cli.runs import FORMATS as OFFERED
from refed_dspy.config.named import FILTERS, FORMATS, PROGRAMS, is_named, resolve
from refed_dspy.data.export import FORMATS as EVERY_FORMAT
from refed_dspy.errors import ConfigError, InputError
from refed_dspy.optimizers.dspy_optimizers import choose
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.optimizers.spec import prepare as prepare_compile
from refed_dspy.plugins.compare.compare import prepare as prepare_comparison
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.programs.load import names_own_program
from refed_dspy.programs.saved import save_program
from refed_dspy.runs.result import Synthesis
from tests.filters.filtered_runs import dropped
from tests.support.refusals import refusal
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

SUNG = "Sing it."
MODULE = """
import refed_dspy
from refed_dspy.filters.base import Decision


class NoDigit:
    name, of_instruction = "no_digit", True

    def __init__(self, digit="7"):
        self.digit = str(digit)

    def check(self, row):
        return Decision(self.digit not in row.instruction, "has the digit")

    def remember(self, row):
        pass


always = NoDigit("never there")


class Mine(refed_dspy.ReferenceLevelFeedback):
    def __init__(self, guidance={"response_generation": "Sing it."}):
        super().__init__(guidance=guidance)


def line(row):
    return {"q": row["instruction"], "a": row["improved_response"]}


def no_line(row):
    return row["instruction"]


def odd(row):
    return {"share": float("nan")} if row["sample"] else {}


class NeedsMore(Mine):
    def __init__(self, more):
        super().__init__()


class Angry(NoDigit):
    def __init__(self):
        raise KeyError("no such list")


def length(example, prediction):
    return 1 / (1 + len(prediction.samples))


class Length:
    def __call__(self, example, prediction):
        return 0.5


def careless(row):
    return {"a": row["nope"]}


broken = 5
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the caller's in the working directory."""
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "unreadable.py").write_text("def (:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_parts", None)


def run(folder: str = "run", **settings: Any) -> tuple[Synthesis, Writer]:
    teacher = Writer()
    made = refed_dspy.synthesize(
        settings.pop("program", None), references(2), size=4, teacher=fake_lm(teacher), run_dir=folder, track=False,
        **settings,
    )  # fmt: skip
    return made, teacher


@pytest.mark.parametrize("name", ["own_parts:NoDigit", "own_parts.NoDigit"])
def test_a_filter_by_name_gets_its_settings_and_is_resumed(tmp_path: Path, name: str) -> None:
    filters = [{name: {"digit": 3}}, "own_parts:always"]
    assert run(filters=filters)[0].complete
    refusal(InputError, run, filters=[{name: {"digit": 4}}])  # another setting is another run
    assert refed_dspy.resume("run", size=6, teacher=fake_lm(Writer())).complete
    assert {row["filter"] for row in dropped(tmp_path / "run")} == {"no_digit"}


@pytest.mark.parametrize(
    "filter_",
    [
        "nowhere.at:All", "own_parts:Nothing", "own_parts:Angry", "unreadable:Any", "leaving:Any", "own_parts:broken",
        {"own_parts:NoDigit": {"colour": "red"}}, {"own_parts:always": {"digit": 1}}, "lenght",
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_is_no_filter_is_one_line(said: Said, filter_: Any) -> None:
    said(refusal(ConfigError, run, filters=[filter_]))
    assert not Path("run").exists()


def asked(teacher: Writer, guidance: str) -> int:
    """How many requests had this guidance."""
    return sum(guidance in str(request.system) for request in teacher.requests)


def test_a_program_by_name_is_resumed() -> None:
    made, teacher = run(program="own_parts:Mine")
    assert made.complete and asked(teacher, SUNG) == 4
    more = Writer()
    assert refed_dspy.resume("run", size=6, teacher=fake_lm(more)).complete and asked(more, SUNG) == 2


def test_a_saved_program_of_a_named_class_runs_where_both_are_named(said: Said) -> None:
    tuned = resolve("own_parts:Mine", PROGRAMS, "program:")()
    tuned.add_guidance({"response_generation": "Louder."})
    save_program(tuned, "saved.json")
    sys.modules.pop("own_parts")
    said(refusal(ConfigError, run, program="saved.json"))
    assert "own_parts" not in sys.modules, "the file alone has nothing imported"
    made, teacher = run(program="own_parts:Mine@saved.json")
    assert made.complete and asked(teacher, "Louder.") == 4
    Path("saved.json").unlink()  # the run's folder has its prompts
    again = Writer()
    assert refed_dspy.resume("run", size=6, teacher=fake_lm(again)).complete and asked(again, "Louder.") == 2


def test_a_compile_and_a_comparison_start_from_a_program_of_a_named_class() -> None:
    mine = resolve("own_parts:Mine", PROGRAMS, "program:")
    save_program(mine(guidance={"response_generation": "Hum."}), "saved.json")
    both = "own_parts:Mine@saved.json"
    program, _ = prepare_compile(both, references(4), teacher=fake_lm(Writer()), optimizer="bootstrap")
    assert type(program).__name__ == "Mine" and "Hum." in program.response_generation.signature.instructions
    for name in (both, "own_parts:Mine"):
        settings = CompareConfig(programs={"mine": name, "plain": "reference-level"}, against="plain")
        compared = prepare_comparison(settings, settings.programs, references(1), fake_lm(Writer()), None)
        assert type(compared.program.programs["mine"]).__name__ == "Mine"
    assert names_own_program("own_parts:Mine") and not names_own_program("own_parts.json")


def test_a_name_that_is_no_program_is_one_line(said: Said) -> None:
    names = ["own_parts:Other", "own_parts:broken", "own_parts:NeedsMore", "program.json", "own_parts:Mine@nosuch.json"]
    said({name: refusal(ConfigError, run, program=name) for name in names})
    said(refusal(ConfigError, choose, "own_parts:Nobody", {}, None))


def test_a_format_by_name(said: Said, tmp_path: Path) -> None:
    made, _ = run()
    assert made.export("own_parts:line", tmp_path / "own.jsonl") == 4
    first = json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])
    assert first == {"q": made.samples[0].instruction, "a": made.samples[0].improved_response}
    names = [
        "own_parts:no_line",
        "own_parts:odd",
        "own_parts:careless",
        "own_parts:broken",
        "own_parts:nothing",
        "yaml",
    ]
    said({name: refusal(InputError, made.export, name, tmp_path / "no.jsonl") for name in names})
    assert not (tmp_path / "no.jsonl").exists()


def test_another_package_s_entry_point_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("no_digit", "own_parts:NoDigit", FILTERS),
        importlib.metadata.EntryPoint("sung", "own_parts:Mine", PROGRAMS),
    ]
    monkeypatch.setattr(
        "refed_dspy.config.named.entry_points",
        lambda group, name: [point for point in points if (point.group, point.name) == (group, name)],
    )
    monkeypatch.syspath_prepend(".")
    assert is_named("no_digit", FILTERS) and not is_named("no_digit", FORMATS)
    assert resolve("sung", PROGRAMS, "program:").__name__ == "Mine"
    assert run(filters=[{"no_digit": {"digit": 3}}], program="sung")[0].complete


def compile_by(metric: Any, judge: Any = None) -> CompileSpec:
    teacher = fake_lm(Writer())
    models = {"teacher": teacher, "judge": judge, "optimizer": "bootstrap"}
    return prepare_compile("own_parts:Mine", references(4), metric, **models)[1]


def test_a_metric_by_name_with_its_rule_and_without_a_word_of_judges(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    by_name = compile_by("own_parts:length")
    with_rule = compile_by({"function": "own_parts:length", "accept": 0.2})
    accepted = [spec.metric_with(None, None, None).accept for spec in (by_name, with_rule)]
    assert accepted == [0.5, 0.2] and by_name.identity()["metric"] != with_rule.identity()["metric"]
    assert compile_by(by_name.metric).identity()["metric"] == by_name.identity()["metric"]
    assert compile_by("own_parts:Length").metric(None, None) == 0.5  # type: ignore[misc]
    assert not caplog.messages
    compile_by(None)
    said(caplog.messages)


def test_a_name_that_is_no_metric_is_one_line(said: Said) -> None:
    metrics = ["own_parts:nothing", "own_parts:broken", "length", {"function": "own_parts:length", "wins": 1}]
    said({str(metric): refusal(ConfigError, compile_by, metric) for metric in metrics})


def test_help_and_completion_name_every_format() -> None:
    assert sorted(OFFERED) == sorted(EVERY_FORMAT)
