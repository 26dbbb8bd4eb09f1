"""The programs of a comparison: names, custom programs, what is refused, and the order of stages."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.programs import SeedOnly
from refed_dspy.programs.reference_level import METHODS
from tests.plugins.compare.helpers import ALL, CapitalsProgram, Judge, facts, line, rows, run
from tests.support.compiling import requests
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.mark.slow
def test_a_custom_program_and_a_seed_object(server: SimulatedTeacher, tmp_path: Path) -> None:
    programs = {"plain": "instruction-only", "seed-only": CapitalsProgram(), "seed": SeedOnly()}
    made = run(server, tmp_path / "c", programs, against="plain", grades=True)
    custom = line(made, "seed-only")
    assert custom.rows == 9 and custom.win_rate is not None, "a name does not decide what a program is"
    assert custom.calls == line(made, "plain").calls == 2 * 3 + 9
    assert line(made, "seed").rows == 3 and line(made, "seed").grade is not None
    shouted = [row for row in rows(tmp_path / "c") if row["program"] == "seed-only"]
    assert all(row["improved_response"] == row["response"].upper() for row in shouted)


def test_a_list_gives_names_and_compares_with_its_first(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", ["sample-level", CapitalsProgram()], size=1, judge=fake_lm(Judge()))
    assert [entry.program for entry in made.programs] == ["sample-level", "B"]
    assert (line(made, "sample-level").win_rate, line(made, "B").rows) == (None, 1)


@pytest.mark.parametrize("name", ["a\nb", "x\x1b[31m", "\u202eback", "nul\0"])
def test_names_that_cannot_be_shown_are_refused(
    said: Said, server: SimulatedTeacher, tmp_path: Path, name: str
) -> None:
    with said.by(ConfigError) as raised:
        run(server, tmp_path / "c", {"plain": "instruction-only", name: "sample-level"}, against="plain")
    assert str(raised.value).isprintable() and requests(server) == 0 and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_odd_names_are_shown_as_they_are(server: SimulatedTeacher, tmp_path: Path) -> None:
    odd = ["$\\frac{a}{", "it's ['x'].y", "{0.__class__}%s", "../../etc", "[bold]名前", "_hidden"]
    made = run(
        server, tmp_path / "c", {odd[0]: "instruction-only", **dict.fromkeys(odd[1:], "sample-level")},
        against=odd[0], size=3,
    )  # fmt: skip
    assert [entry["program"] for entry in facts(tmp_path / "c")["programs"]] == odd
    assert all(any(text.startswith(name) for text in made.table()) for name in odd)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c"]


def test_programs_that_cannot_be_compared_are_refused_by_name(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    bound = ReferenceLevelFeedback()
    bound.set_lm(fake_lm(Writer()))
    plain = {"plain": "instruction-only"}
    for programs, against in (
        ({**plain, "odd": {}}, "plain"),
        ({**plain, "odd": "sample_level"}, "plain"),
        ({**plain, "ours": bound}, "plain"),
        ({**plain, "s": SeedOnly()}, "s"),
        ("sample-level", None),
        (["sample-level", "sample-level"], None),
        (plain, "plain"),
    ):
        with said.by(ConfigError):
            run(server, tmp_path / "c", programs, **({"against": against} if against else {}))
    assert requests(server) == 0 and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_arguments_stay_as_they_were(server: SimulatedTeacher, tmp_path: Path) -> None:
    data, ours = references(6), ReferenceLevelFeedback()
    programs = {"plain": "instruction-only", "ours": ours}
    before, prompts = json.dumps(data), ours.dump_state()
    run(server, tmp_path / "c", programs, data, against="plain", size=2)
    assert json.dumps(data) == before and ours.dump_state() == prompts
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path.cwd().glob("refed-comparisons"))


def test_stages_are_ordered_by_how_deep_they_are_anywhere() -> None:
    side = SideBySide(
        {name: METHODS[name]() for name in ("instruction-only", "sample-level", "reference-level")}, ALL[1]
    )
    order = side.stage_names
    assert order[0] == "instruction_feedback" and order.index("response_feedback") < order.index("response_generation")
    assert set(order[-3:]) == {"sample_feedback", "sample_improvement", "response_improvement"}
