"""What the code of benchmarks reads: AlpacaEval's, Arena-Hard's and IFEval's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.evaluate.answers.formats import style_of
from tests.runs.answers.helpers import Answering, answered, prompts, read
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm

TEXT = "# Fish\n- **cod**\n\n```\n# no\n```\n"


def test_alpaca_eval(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": "Name a fish. ", "dataset": "koala", "output": "old"}, {"instruction": "Name a cat."}]
    made = answered(tmp_path, fake_lm(Answering(), "openai/org/My-Model"), rows, format="alpaca_eval")
    assert made.file == tmp_path / "model_outputs.json"
    said(json.loads(made.file.read_bytes()))


def test_arena_hard(said: Said, tmp_path: Path) -> None:
    writer = Answering(lambda _: TEXT)
    made = answered(tmp_path, fake_lm(writer), prompts(2), format="arena_hard", generator="mine", system="Be kind.")
    assert made.file == tmp_path / "mine.jsonl"
    first, second = read(made.file)
    assert list(first) == ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]
    assert (first["uid"], first["model"], first["metadata"]) == ("u1", "mine", style_of(TEXT))
    assert first["metadata"]["header_count"]["h1"] == first["metadata"]["bold_count"]["**"] == 1
    said(first["messages"])
    assert first["ans_id"] != second["ans_id"]
    before = made.file.read_bytes()
    again = answered(tmp_path, fake_lm(writer), prompts(2), format="arena_hard", generator="mine", system="Be kind.")
    assert again.file.read_bytes() == before, "ids and times are those of the answers"


def test_ifeval(said: Said, tmp_path: Path) -> None:
    rows = [{"key": 1000, "prompt": "Name a fish. ", "instruction_id_list": ["a:b"], "kwargs": [{}]}]
    made = answered(tmp_path, fake_lm(Answering()), rows, format="ifeval")
    assert made.file == tmp_path / "responses.jsonl"
    said(read(made.file))


def test_what_cannot_be_written_is_refused_before_anything_is_asked(said: Said, tmp_path: Path) -> None:
    writer = Answering()
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), [*prompts(1), {"prompt": "Hi"}], format="arena_hard")
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), format="arena_hard", generator="answers")
    for name in ("a/b", "..", "", "a\nb", "x" * 101):
        with said.by(ConfigError):
            answered(tmp_path / "a", fake_lm(writer), generator=name)
    with said.by(ConfigError):
        answered(tmp_path / "a", fake_lm(writer), format="mt_bench")
    assert not writer.requests and not (tmp_path / "a").exists()
    answered(tmp_path / "b", fake_lm(writer), generator="answers", format="alpaca_eval")  # here no file is named so


@pytest.mark.parametrize(
    ("model", "name"),
    [("openai/gpt-4.1", "gpt-4.1"), ("ollama/qwen2.5:7b", "qwen2.5-7b"), ("x/.hidden", "-hidden"), ("x/a b/", "a-b")],
)
def test_a_generator_is_the_last_part_of_a_model_s_name(tmp_path: Path, model: str, name: str) -> None:
    made = answered(tmp_path, fake_lm(Answering(), model), prompts(1), format="arena_hard")
    assert made.file.name == f"{name}.jsonl"
