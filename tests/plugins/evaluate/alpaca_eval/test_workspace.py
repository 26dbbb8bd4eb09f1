"""What AlpacaEval's code is given: the official prompt where it lies, and the models' rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import PROMPT, hub_with, judge_settings
from refed_dspy.plugins.evaluate.alpaca_eval.files import check_matching, read_outputs
from refed_dspy.plugins.evaluate.program import Installed
from tests.plugins.evaluate.alpaca_eval.conftest import in_hubs_cache, outputs
from tests.support.said import Said

INSTALLED = Installed(Path("python"), Path("/env/alpaca_eval"), "0.6.6")


def test_the_judge_is_asked_as_the_official_one_is() -> None:
    settings = judge_settings(INSTALLED)
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


def test_the_official_figure_is_for_its_own_instructions(said: Said, tmp_path: Path) -> None:
    """It knows an instruction by its number alone."""
    file = in_hubs_cache(tmp_path, "index,instruction_difficulty\n" + "".join(f"{n % 6},0.5\n" for n in range(12)))
    six, other = read_outputs(outputs("a", 6), "outputs"), read_outputs(outputs("b", 6), "baseline")
    assert hub_with(file, six, other) == tmp_path
    for fewer, against in [
        (read_outputs(outputs("a", 5), "o"), other),
        (six, read_outputs(outputs("b", 6)[::-1], "b")),
    ]:
        with said.by(ConfigError):
            hub_with(file, fewer, against)
    elsewhere = tmp_path / "df_gamed.csv"
    elsewhere.write_bytes(file.read_bytes())
    (file.parents[2] / "refs" / "main").write_text("another revision")
    for not_found in (elsewhere, file):  # by AlpacaEval's code, after all was paid for
        with pytest.raises(ConfigError):
            hub_with(not_found, six, other)
