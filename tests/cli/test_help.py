"""What `refed --help` says: every command in its group, nothing cut, the defaults that hold."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from refed_dspy.cli.main import GROUPS, app
from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.run import RunConfig
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from tests.support.said import Said


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    return result.stdout


def test_every_command_is_in_one_group() -> None:
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_an_option_that_is_a_setting_is_told_so(said: Said) -> None:
    told = {}
    for words in ("synth --filter refusals", "synth --guidance Short.", "compile --max-tokens 9",
                  "export run --temperature 1", "synth --temprature 1"):  # fmt: skip
        result = CliRunner().invoke(app, words.split())
        assert result.exit_code == 2
        told[words] = result.stderr.partition("Error: ")[2].partition("(Possible options")[0]
    said(told)


def test_groups_stand_in_order_and_no_description_is_cut(said: Said) -> None:
    text = help_of()
    assert [line[:-1] for line in text.splitlines() if line.endswith(":") and line[:-1] in GROUPS] == list(GROUPS)
    assert "..." not in text.partition("Make:")[2]
    plain = " ".join(text.split())
    said(plain)


@pytest.mark.parametrize(
    ("command", "flag", "default"),
    [
        ("synth", "--size", RunConfig().size),
        ("synth", "--seed", RunConfig().seed),
        ("synth", "--method", RunConfig().method),
        ("compare", "--size", CompareConfig().size),
        ("compile", "--seed", CompileConfig().seed),
        ("compile", "--name", CompileConfig().name),
    ],
)
def test_the_default_shown_is_the_one_that_holds(command: str, flag: str, default: object) -> None:
    option = re.search(rf"{flag} .*?(?= --|\Z)", " ".join(help_of(command).split()))
    assert option is not None and f"[default: ({default})]" in option[0]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("synth", RunConfig),
        ("resume", RunConfig),
        ("compile", CompileConfig),
        ("compare", CompareConfig),
        ("filter", FilterRunConfig),
        ("recycle", RecycleConfig),
        ("stats", StatsConfig),
    ],
)
def test_every_option_is_a_setting_of_its_command(command: str, kind: type[Settings]) -> None:
    """`settings_of` passes over any other."""
    options = {option.name for option in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]
    assert options - set(kind.model_fields) <= {"config", "estimate", "as_json", "force"} | (
        {"preview", "sample"} if command == "synth" else set()
    )


def test_the_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"refed-dspy {version('refed-dspy')}\n")


def completed(typed: str, shell: str) -> set[str]:
    """What a shell is offered after `typed`."""
    env = {"_REFED_COMPLETE": f"complete_{shell}", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    env |= {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return set(re.findall(r"[\w-]+", CliRunner().invoke(app, [], prog_name="refed", env=env).output))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str, typed: str = "refed re") -> None:
    assert {"resume", "report", "recycle"} <= completed(typed, shell)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("refed export runs/1 --format p", {"parquet", "preference", "prompt-completion"}),
        ("refed synth --method s", {"sample-level"}),
        ("refed compile --optimizer g", {"gepa"}),
    ],
)
def test_shells_complete_words_of_a_fixed_list(typed: str, offered: set[str]) -> None:
    assert completed(typed, "bash") == offered


def test_usage_names_the_options_that_a_command_needs(said: Said) -> None:
    said(" ".join(help_of("synth").split()))


def test_help_waits_for_no_heavy_library() -> None:
    script = (
        "import sys; from refed_dspy.cli.main import app\n"
        "try: app(['synth', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(str(sorted({'dspy', 'litellm', 'mlflow', 'datasets', 'openai', 'torch'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
