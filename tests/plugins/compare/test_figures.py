"""A comparison's figures: win rates, grades, intervals, and the subsets that filters keep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from dspy.lm15 import Request

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import compare
from refed_dspy.ledger.spending import Spent
from refed_dspy.measures.intervals import Interval, mean_interval
from refed_dspy.plugins.compare.result import Comparison, Subset
from refed_dspy.plugins.compare.result import facts as in_json
from tests.plugins.compare.helpers import SMALL, CapitalsProgram, Judge, answers, facts, line, prompt, rows, run
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.mark.slow
def test_figures_are_by_reference_and_agree_with_the_rows(server: SimulatedTeacher, tmp_path: Path) -> None:
    """A judge that prefers whatever is `improved`: shown by its marks in the rows, counted again here."""
    server.control(response_words=30)
    made = run(server, tmp_path / "c", data=references(12), size=36, grades=True)
    for name in ("sample-level", "reference-level"):
        written = [row for row in rows(tmp_path / "c") if row["program"] == name]
        decided = [row for row in written if row["preference"] is not None]
        wins = [100 * (0.5 if row["preference"] == 0 else float(row["preference"] > 0)) for row in decided]
        figures = line(made, name)
        judged = figures.judgements
        assert judged.abstained + judged.failed == len(written) - len(decided) and figures.win_rate is not None
        expected = mean_interval(wins, [row["reference"] for row in decided])
        assert figures.win_rate.mean == pytest.approx(expected.mean)
        assert (figures.win_rate.low, figures.win_rate.high) == (max(0, expected.low), min(100, expected.high))
        assert figures.win_rate.clusters == len({row["reference"] for row in decided})
        graded = [row for row in written if row["grade"] is not None]
        by_reference: dict[str, list[int]] = {}
        for row in graded:
            by_reference.setdefault(row["reference"], []).append(row["grade"])
        assert figures.grade is not None
        assert figures.grade.mean == pytest.approx(fmean(fmean(grades) for grades in by_reference.values()))
        assert figures.consistent == pytest.approx(fmean(row["consistent"] for row in decided))
        assert figures.length_controlled is not None and figures.length_controlled.interval is not None
    assert max(map(len, [*made.table(), *made.filter_table()])) <= 100, made.table()
    assert (tmp_path / "c" / "win-rates.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "c" / "filters.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_who_wins_is_the_first_named_and_not_the_one_compared_with(server: SimulatedTeacher, tmp_path: Path) -> None:
    """A judge to whom the longer answer is the better one, and a program that makes every answer longer."""

    class Longer(Judge):
        def decide(self, request: Request) -> Any:
            if "grade" in self.fields(request):
                return super().decide(request)
            shown = prompt(request)
            first, second = (shown.partition(f"<{n}>\n")[2].partition("\n</>")[0] for n in ("answer_a", "answer_b"))
            return json.dumps({"reason": "longer", "verdict": "A>>B" if len(first) > len(second) else "B>>A"})

    class Padding(CapitalsProgram):
        async def respond(self, *args: Any, **named: Any) -> Any:
            sample = await super().respond(*args, **named)
            return sample.model_copy(update={"improved_response": sample.response + " and so on" * 3})

    made = run(
        server, tmp_path / "c", {"plain": "instruction-only", "long": Padding()}, judge=fake_lm(Longer()),
        against="plain", size=3,
    )  # fmt: skip
    assert line(made, "long").win_rate is not None
    assert line(made, "long").win_rate.mean == 100 and line(made, "long").consistent == 1  # type: ignore[union-attr]
    reversed_ = run(
        server, tmp_path / "d", {"plain": "instruction-only", "long": Padding()}, judge=fake_lm(Longer()),
        against="long", size=3,
    )  # fmt: skip
    assert line(reversed_, "plain").win_rate.mean == 0  # type: ignore[union-attr]


@pytest.mark.slow
def test_one_reference_gives_figures_without_intervals_and_strict_json(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "c", data=references(1), per_reference=None, size=4, grades=True)
    assert made.references == 1
    by_program = {entry["program"]: entry for entry in facts(tmp_path / "c")["programs"]}
    assert by_program["sample-level"]["rows"] == 4 and by_program["sample-level"]["grade"]["low"] in {None, 1.0}
    assert by_program["seed-only"]["rows"] == 1
    assert "nan" not in "\n".join(made.lines()).lower() and "inf" not in "\n".join(made.table()).lower()


def test_an_interval_without_bounds_is_strict_json(tmp_path: Path) -> None:
    unbounded = Interval(3.0, -math.inf, math.inf, 1, 1)
    empty = Comparison(
        tmp_path, "plain", "judge", "teacher", 1, 1, 1, [], [Subset("ours", "random", 1, unbounded, None)],
        Spent(0, 0, 0, 0.0), "", [],
    )  # fmt: skip
    (subset,) = in_json(empty)["subsets"]
    assert (subset["grade"]["mean"], subset["grade"]["low"], subset["grade"]["high"]) == (3.0, None, None)
    assert "inf" not in "\n".join(empty.filter_table())


@pytest.mark.slow
def test_filters_keep_what_they_should_at_the_named_sizes(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", data=references(12), size=30, subsets=[3, 10, 20, 500], grades=True)
    written = [row for row in rows(tmp_path / "c") if row["program"] == "sample-level"]
    won = sum((row["preference"] or 0) > 0 for row in written)
    sizes = {
        which: [subset.size for subset in made.subsets if (subset.program, subset.filter) == ("sample-level", which)]
        for which in ("random", "rouge", "judge")
    }
    assert sizes["random"] == [3, 10, 20, 30], "500 stands for all of them"
    assert sizes["judge"] == [size for size in (3, 10, 20, 30) if size <= won], "too few pass: no line"
    for subset in made.subsets:
        assert subset.win_rate is None or subset.win_rate.n <= subset.size
        if subset.filter == "judge":
            assert subset.win_rate is not None and subset.win_rate.mean == 100
    by_name = {(subset.program, subset.filter, subset.size): subset for subset in made.subsets}
    assert not {"instruction-only", "seed-only"} & {program for program, _, _ in by_name}
    everything = by_name["sample-level", "random", 30]
    assert everything.win_rate == line(made, "sample-level").win_rate
    assert everything.grade == line(made, "sample-level").grade


@pytest.mark.slow
def test_likeness_is_what_rouge_drops(server: SimulatedTeacher, tmp_path: Path) -> None:
    writer = Writer(per_call=3)  # "Task 1: do it.", "Task 2: do it.", …: three words of four are the same
    made = compare(
        None, references(6), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "subsets": [1, 2, 9]},
    )  # fmt: skip
    names = {(subset.program, subset.filter, subset.size) for subset in made.subsets}
    assert ("sample-level", "random", 9) in names and ("sample-level", "rouge", 1) in names
    assert ("sample-level", "rouge", 2) not in names


@pytest.mark.slow
def test_without_grades_no_response_is_graded(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "c", size=3)
    assert answers(tmp_path / "c")["rubric_judge"] == 0
    assert all(row.grade is None for row in made.programs) and not (tmp_path / "c" / "filters.png").exists()
    assert made.subsets and all(subset.grade is None for subset in made.subsets)
