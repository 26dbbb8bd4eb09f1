"""A clone of the repository: what makes one, and what is read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from refed_dspy.errors import ConfigError, RefedError
from refed_dspy.plugins.evaluate.arena_hard.clone import open_clone
from tests.plugins.evaluate.arena_hard.conftest import QUESTIONS
from tests.support.said import Said
from tests.support.toy_arena_hard import BASELINE, BENCHMARK, SETTINGS, write


def test_what_is_read_of_it(clone: Path) -> None:
    opened = open_clone(clone, BENCHMARK, count=5)
    assert opened.baseline == BASELINE and opened.baseline_answers.is_file() and opened.category == "hard_prompt"
    assert [question["uid"] for question in opened.questions] == ["q00", "q01", "q02", "q03", "q04"]
    assert len(open_clone(clone, BENCHMARK).questions) == QUESTIONS
    shaping = ("temperature", "max_tokens", "regex_patterns", "prompt_template")
    assert opened.settings == {name: SETTINGS[name] for name in shaping}
    assert {*map(str, opened.code)} >= {"gen_judgment.py", "show_result.py", "utils/judge_utils.py"}


def test_its_digest_is_another_for_other_code_settings_or_baseline_and_not_for_fewer_questions(clone: Path) -> None:
    first = open_clone(clone, BENCHMARK).digest()
    assert open_clone(clone, BENCHMARK, count=2).digest() == first
    settings = clone / "config" / f"{BENCHMARK}.yaml"
    baseline = clone / "data" / BENCHMARK / "model_answer" / f"{BASELINE}.jsonl"
    for path in (clone / "utils" / "math_utils.py", settings, baseline):
        before = path.read_text()
        path.write_text(before.replace("max_tokens: 64", "max_tokens: 65") if path == settings else before + "\n\n")
        assert open_clone(clone, BENCHMARK).digest() != first, path
        path.write_text(before)


@pytest.mark.parametrize(
    "lacking", ["gen_judgment.py", "utils/judge_utils.py", "data/arena-hard-v2.0/question.jsonl",
                "data/arena-hard-v2.0/model_answer/o3-toy.jsonl", "config/arena-hard-v2.0.yaml"]
)  # fmt: skip
def test_what_it_lacks_is_named(said: Said, clone: Path, lacking: str) -> None:
    (clone / lacking).unlink()
    with said.by(ConfigError):
        open_clone(clone, BENCHMARK)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("utils/judge_utils.py", "def ("),
        ("utils/judge_utils.py", "JUDGE_SETTINGS = {}"),
        (f"config/{BENCHMARK}.yaml", "a: ["),
        (f"config/{BENCHMARK}.yaml", yaml.safe_dump({**SETTINGS, "max_tokens": "many"})),
        (f"data/{BENCHMARK}/question.jsonl", '{"uid": 3, "category": "hard_prompt"}\n'),
        (f"data/{BENCHMARK}/question.jsonl", "x\n"),
        (f"data/{BENCHMARK}/model_answer/{BASELINE}.jsonl", "version https://git-lfs.github.com/spec/v1\n"),
    ],
)
def test_files_that_are_not_the_repositorys_are_one_line(said: Said, clone: Path, name: str, text: str) -> None:
    write(clone / name, text)
    with said.by(RefedError) as refused:
        open_clone(clone, BENCHMARK)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2


def test_nothing_of_it_is_run(clone: Path, capsys: Any) -> None:
    for name in ("gen_judgment.py", "utils/judge_utils.py"):
        write(clone / name, (clone / name).read_text() + "\nraise SystemExit('it was run')\n")
    assert open_clone(clone, BENCHMARK).baseline == BASELINE
