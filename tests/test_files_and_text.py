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
from tests.support.refusals import refusal
from tests.support.said import Said

LAUGHS = "\n".join(["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])


@pytest.mark.parametrize(
    "text", ["[" * 5_000, "{a: " * 2_000, LAUGHS, MERGES, "a: &a [*a]", "a: &a {b: *a}", "a: [", "? [*b]"]
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
        said(refusal(ConfigError, load_config, RunConfig, path, {}))
        said(refusal(ConfigError, refed_dspy.load_program, path))
        said(refusal(InputError, load_references, path))
        refusal(InputError, refed_dspy.measure_agreement, path, "openai/m")


@pytest.mark.slow
def test_a_file_of_brackets(said: Said, tmp_path: Path) -> None:
    for name in ("deep.yaml", "deep.json"):
        (tmp_path / name).write_text("[" * 100_000)
        said(refusal(ConfigError, load_config, RunConfig, tmp_path / name, {}))
        said(refusal(ConfigError, refed_dspy.load_program, tmp_path / name))
    said(refusal(ConfigError, load_config, RunConfig, None, {"REFED_TEACHER": "[" * 5_000}))


def test_an_empty_name_is_an_error(said: Said, tmp_path: Path) -> None:
    for key in ("references", "run_dir", "program", "reuse"):
        (tmp_path / "c.yaml").write_text(f"{key}: ''\n")
        said(refusal(ConfigError, check_config, RunConfig, {key: ""}))
        said(refusal(ConfigError, load_config, RunConfig, tmp_path / "c.yaml", {}))
    assert path_of(".", "out") == Path(".")
    for call in (refed_dspy.read_run, refed_dspy.resume, refed_dspy.report, refed_dspy.track, load_references):
        refusal(InputError, call, "")
    said(refusal(InputError, refed_dspy.share, "", "out"))
    said(refusal(InputError, refed_dspy.push, "", "a/b"))
    said(refusal(InputError, refed_dspy.synthesize, None, "builtin", run_dir="", teacher="openai/m"))


def test_a_cap_beyond_measure(said: Said) -> None:
    for key in ("max_cost", "max_minutes"):
        for cap in (1e300, 2e9, math.nan, -math.inf, 0.0):
            said(f"{cap}: {refusal(ConfigError, check_config, RunConfig, {key: cap})}")
    assert check_config(RunConfig, {"max_cost": math.inf}).max_cost == math.inf


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
    said(refusal(ExportError, write_text, tmp_path / "no" / "t.txt", []))


def test_what_is_read_is_not_written_over(said: Said, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for data in (str(tmp_path / "a.jsonl"), tmp_path / "link" / "a.jsonl", tmp_path / "x" / ".." / "a.jsonl"):
        said(refusal(ExportError, check_outputs, tmp_path, ["a.jsonl"], "mark", data))
    check_outputs(tmp_path, ["a.jsonl"], "mark", tmp_path / "b.jsonl", [{"a": 1}], None)


def test_numbers_and_tables_for_people(said: Said) -> None:
    assert format_number(None, 2) == format_number(math.nan, 2) == NO_VALUE
    numbers = [(0.0, 2), (-0.001, 2), (1.005, 1), (12, 0), (9_999.5, 1), (10_000, 2), (-12_345_678.9, 2), (math.inf, 2)]
    said({f"{value}, {digits} digits": format_number(value, digits) for value, digits in numbers})
    said(table_lines([["", "old", "new"], ["rows", "1,000", "2"]]))
    assert table_lines([]) == []
