"""IFEval's official checker, as lm-eval has it, on prompts of our own: what each kind of instruction comes to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.plugins.evaluate.ifeval.evaluate import ifeval
from refed_dspy.plugins.evaluate.program import LM_EVAL, Installed, environment
from tests.plugins.recycle.helpers import REFED

pytestmark = pytest.mark.evaluate
CASES: list[tuple[list[tuple[str, dict[str, Any]]], str, list[bool], list[bool]]] = [
    ([("punctuation:no_comma", {})], "No mark at all.", [True], [True]),
    ([("punctuation:no_comma", {})], "One, two.", [False], [False]),
    ([("change_case:english_lowercase", {})], "all of this is written in small letters.", [True], [True]),
    ([("change_case:english_capital", {})], "Not All Of It.", [False], [False]),
    ([("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3})],
     "It is. It was. It will be.", [True], [True]),
    ([("length_constraints:number_words", {"relation": "less than", "num_words": 4})], "Four or more words.", [False],
     [False]),
    ([("detectable_format:json_format", {}), ("punctuation:no_comma", {})], '{"a": 1}', [True, True], [True, True]),
    ([("startend:end_checker", {"end_phrase": "The end."})], "**So it goes. The end.**", [False], [True]),
    ([("detectable_format:number_bullet_lists", {"num_bullets": 2})], "Sure!\n* one\n* two", [True], [True]),
    ([("keywords:existence", {"keywords": ["moon"], "unused": None})], "The moon.", [True], [True]),
    ([("keywords:existence", {"keywords": ["moon"]})], "", [False], [False]),
]  # fmt: skip
"""Instructions, a response, and what the checker says by its strict and by its loose reading."""


@pytest.fixture(scope="session")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """lm-eval in the user's own environment for it, or in the one that LM_EVAL_PYTHON names; with a sentence model that
    knows no abbreviations where NLTK_DATA names none: the real one is a download."""
    chosen = os.environ.get("LM_EVAL_PYTHON")
    return environment(LM_EVAL, Path(chosen) if chosen else None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    if "NLTK_DATA" not in os.environ:
        monkeypatch.setenv("NLTK_DATA", str(tmp_path / "models"))
        model = tmp_path / "models" / "tokenizers" / "punkt_tab" / "english"
        model.mkdir(parents=True)
        for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
            (model / name).touch()
    prompts, responses = [], []
    for key, (instructions, response, _, _) in enumerate(CASES):
        text = f"Prompt number {key} of this test asks for something."
        names, settings = ([each[part] for each in instructions] for part in (0, 1))
        prompts.append({"key": key, "prompt": text, "instruction_id_list": names, "kwargs": settings})
        responses.append({"prompt": text, "response": response})
    for name, rows in (("input_data", prompts), ("model", responses)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def test_every_case_is_judged_as_the_checker_judges_it(home: Path, checker: Installed) -> None:
    (arm,) = ifeval("input_data.jsonl", "model.jsonl", "out", environment=checker.python).arms
    strict, loose = [case[2] for case in CASES], [case[3] for case in CASES]
    for followed, by_prompt, by_instruction in (
        (strict, arm.prompt_strict, arm.instruction_strict),
        (loose, arm.prompt_loose, arm.instruction_loose),
    ):
        assert by_prompt.mean == pytest.approx(100 * sum(map(all, followed)) / len(CASES))
        assert by_instruction.mean == pytest.approx(100 * sum(map(sum, followed)) / sum(map(len, followed)))


def test_the_command_prints_a_table_and_refuses_unknown_instructions(home: Path, checker: Installed) -> None:
    files = ["--prompts", "input_data.jsonl", "--answers", "model.jsonl", "--environment", str(checker.python)]
    command = [*REFED, "evaluate", "ifeval", *files, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("arm    prompt, strict %"), done.stderr
    assert "11 prompts with 12 instructions, by lm-eval 0.4.13" in done.stdout
    text = Path("input_data.jsonl").read_text().replace("punctuation:no_comma", "punctuation:no_full_stop")
    Path("input_data.jsonl").write_text(text)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = "refed: prompts: 'punctuation:no_full_stop', of key 6, is no instruction that lm-eval's checker knows"
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == line
