"""Files: what people name is anything (an empty text, a pipe, a device, YAML without an end), what is written is there
whole or not at all. And numbers and tables for people."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import refed_dspy
from refed_dspy.config.loading import check_config, load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError, ExportError, InputError
from refed_dspy.files import check_outputs, parse_yaml, path_of, read_bytes, write_json, write_lines, write_text
from refed_dspy.text import NO_VALUE, format_number, table_lines
from tests.support.said import Said

LAUGHS = "\n".join(["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 5_000, LAUGHS, MERGES, "a: &a [*a]", "a: &a {b: *a}", "a: [", "? [*b]"]
)
def test_yaml_without_end_is_an_error_of_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_yaml_as_ever() -> None:
    assert parse_yaml("") is None and parse_yaml("5") == 5 and parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: [*x, *x]}") == {
        "a": {"b": 1}, "c": {"b": 1, "d": [{"b": 1}, {"b": 1}]},
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.system [echo]")


def test_a_pipe_and_a_device_are_refused_at_once(said: Said, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with said.by(OSError):
            read_bytes(path)
        with said.by(ConfigError):
            load_config(RunConfig, path, {})
        with said.by(ConfigError):
            refed_dspy.load_program(path)
        with said.by(InputError):
            load_references(path)
        with pytest.raises(InputError):
            refed_dspy.measure_agreement(path, "openai/m")


@pytest.mark.slow
def test_a_file_of_brackets(said: Said, tmp_path: Path) -> None:
    for name in ("deep.yaml", "deep.json"):
        (tmp_path / name).write_text("[" * 100_000)
        with said.by(ConfigError):
            load_config(RunConfig, tmp_path / name, {})
        with said.by(ConfigError):
            refed_dspy.load_program(tmp_path / name)
    with pytest.raises(ConfigError, match="REFED_TEACHER"):
        load_config(RunConfig, None, {"REFED_TEACHER": "[" * 5_000})


@pytest.mark.parametrize("key", ["references", "run_dir", "program", "reuse"])
def test_an_empty_name_is_an_error(said: Said, key: str, tmp_path: Path) -> None:
    with said.by(ConfigError):
        check_config(RunConfig, {key: ""})
    (tmp_path / "c.yaml").write_text(f"{key}: ''\n")
    with said.by(ConfigError):
        load_config(RunConfig, tmp_path / "c.yaml", {})


def test_an_empty_path_in_python(said: Said) -> None:
    assert path_of(".", "out") == Path(".")
    for call in (refed_dspy.read_run, refed_dspy.resume, refed_dspy.report, refed_dspy.track, load_references):
        with pytest.raises(InputError):
            call("")
    with said.by(InputError):
        refed_dspy.share("", "out")
    with said.by(InputError):
        refed_dspy.push("", "a/b")
    with said.by(InputError):
        refed_dspy.synthesize(None, "builtin", run_dir="", teacher="openai/m")


@pytest.mark.parametrize("key", ["max_cost", "max_minutes"])
@pytest.mark.parametrize("cap", [1e300, 2e9, float("nan"), float("-inf"), 0.0])
def test_a_cap_beyond_measure(said: Said, key: str, cap: float) -> None:
    with said.by(ConfigError):
        check_config(RunConfig, {key: cap})


def test_a_cap_that_is_lifted() -> None:
    assert check_config(RunConfig, {"max_cost": float("inf")}).max_cost == float("inf")


def test_files_are_whole_or_not_there(said: Said, tmp_path: Path) -> None:
    class Killed(BaseException): ...

    def rows() -> Any:
        yield {"a": 1}
        raise Killed

    write_lines(tmp_path / "rows.jsonl", [{"text": "漢\ud800\n"}, {}])
    first, second = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert json.loads(first) == {"text": "漢?\n"} and second == "{}"
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(Killed):
        write_lines(tmp_path / "rows.jsonl", rows())
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    write_text(tmp_path / "t.txt", [])
    write_json(tmp_path / "t.json", {"a": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "t.json", "t.txt"]
    with said.by(ExportError):
        write_text(tmp_path / "no" / "t.txt", [])


def test_what_is_read_is_not_written_over(said: Said, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for data in (str(tmp_path / "a.jsonl"), tmp_path / "link" / "a.jsonl", tmp_path / "x" / ".." / "a.jsonl"):
        with said.by(ExportError):
            check_outputs(tmp_path, ["a.jsonl"], "mark", data)
    check_outputs(tmp_path, ["a.jsonl"], "mark", tmp_path / "b.jsonl", [{"a": 1}], None)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, NO_VALUE),
        (math.nan, 2, NO_VALUE),
        (0.0, 2, "0.00"),
        (-0.001, 2, "0.00"),
        (1.005, 1, "1.0"),
        (12, 0, "12"),
        (9_999.5, 1, "9,999.5"),
        (10_000, 2, "10,000"),
        (-12_345_678.9, 2, "-12,345,679"),
        (math.inf, 2, "inf"),
    ],
)
def test_numbers_for_people(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


def test_tables_are_aligned(said: Said) -> None:
    said(table_lines([["", "old", "new"], ["rows", "1,000", "2"]]))
    assert table_lines([]) == []
