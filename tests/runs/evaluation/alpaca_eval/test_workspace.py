"""What AlpacaEval's code is given: the official prompt where it lies, and the models' rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.evaluate.alpaca_eval.outputs import check_matching, read_outputs
from refed_dspy.plugins.evaluate.alpaca_eval.workspace import PROMPT, Workspace, check_gamed
from refed_dspy.plugins.evaluate.environment import Installed
from tests.runs.evaluation.alpaca_eval.conftest import outputs

INSTALLED = Installed(Path("python"), Path("/env/alpaca_eval"), "0.6.6")


def test_the_judge_is_asked_as_the_official_one_is() -> None:
    model = read_outputs(outputs("mine"), "outputs")
    settings = Workspace(Path("out"), INSTALLED, model, model, 4).judge_settings()
    assert settings["prompt_template"] == f"/env/alpaca_eval/{PROMPT}", "an absolute path, or it is not found"
    assert settings["completions_kwargs"] == {
        "model_name": "judge", "max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5,
        "price_per_token": 0,
    }  # fmt: skip
    assert settings["fn_completion_parser"] == "logprob_parser" and settings["completion_key"] == "completions_all"


def test_rows_are_read_with_one_generator_and_what_the_code_reads() -> None:
    rows = [{"instruction": "Hm?", "output": "", "generator": " a\nmodel ", "other": object(), "dataset": 3}]
    read = read_outputs(rows, "outputs")
    assert read.generator == "a model" and read.rows == [{"instruction": "Hm?", "output": "", "generator": "a model"}]
    nameless = read_outputs([{"instruction": "Hm?", "output": "x"}], "outputs")
    assert nameless.generator == "outputs" and nameless.identity != read.identity


def test_only_common_instructions_are_compared() -> None:
    model, baseline = read_outputs(outputs("a", 9), "outputs"), read_outputs(outputs("b", 12)[4:], "baseline")
    assert check_matching(model, baseline) == 5


def test_the_official_figure_is_for_its_own_instructions(tmp_path: Path) -> None:
    """It knows an instruction by its number alone."""
    file = tmp_path / "df_gamed.csv"
    file.write_text("index,instruction_difficulty\n" + "".join(f"{n % 6},0.5\n" for n in range(12)), "utf-8")
    six, other = read_outputs(outputs("a", 6), "outputs"), read_outputs(outputs("b", 6), "baseline")
    check_gamed(file, six, other)
    for fewer, against in [
        (read_outputs(outputs("a", 5), "o"), other),
        (six, read_outputs(outputs("b", 6)[::-1], "b")),
    ]:
        with pytest.raises(ConfigError, match=r"gamed: df_gamed\.csv is about 6 instructions in their order"):
            check_gamed(file, fewer, against)
