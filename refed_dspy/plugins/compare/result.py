"""The result of a comparison: a line for each program, a line for each filter's subset, and its tables as text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.data.export import InFolder, answer_of, prompt_of
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.states import DONE
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.compare.replay import Replayed
from refed_dspy.plugins.metrics.drawing import Bar, Point, filter_picture, save, win_rate_picture
from refed_dspy.plugins.metrics.win_rates import LC_NOTE, LengthControlled
from refed_dspy.programs.judges import Judgements
from refed_dspy.records import money
from refed_dspy.text import NO_VALUE, counted, format_number, table_lines

if TYPE_CHECKING:
    import pandas as pd

PROXY = "The judge's opinion of the data is a proxy for the scores of models fine-tuned on it, which the paper measures"
_HEADING = (
    "program", "rows", "win rate %", "length-controlled %", "undecided", "judge failed", "both orders agree", "grade",
    "words", "distinct word pairs", "diversity", "feedback", "calls", "dollars", "dollars per 1,000 rows",
)  # fmt: skip
_TABLES = ((0, 1, 2, 3, 7), (0, 4, 5, 6, 8, 9, 10), (0, 11, 12, 13, 14))
"""The columns of each table: what the judge preferred, how far to trust it and how varied the rows are, their cost."""
TABLE, FIGURES, ROWS, PAIRS = "comparison.txt", "comparison.json", "rows.jsonl", "pairs.jsonl"
WIN_RATES, FILTERS = "win-rates.png", "filters.png"
OUTPUTS = (TABLE, FIGURES, ROWS, PAIRS, WIN_RATES, FILTERS)


@dataclass(frozen=True)
class Line:
    """One program, over the comparison's instructions."""

    program: str
    rows: int
    failed: Mapping[str, int]
    """Kind of failure → instructions that it has no answer to."""
    win_rate: Interval | None
    """Percent, over the program compared with; None for that one, and for the seed set, which shares no instruction."""
    length_controlled: LengthControlled | None
    judgements: Judgements
    """What came of its pairs."""
    consistent: float | None
    """The fraction of decided pairs on which the judge agreed in both orders."""
    grade: Interval | None
    """1 to 5."""
    feedback: int
    """How many times feedback on responses was collected: once per reference, or once per sample."""
    calls: int
    cost: float | None
    """Dollars that the program alone would have paid for these rows: with the instructions and failed calls, without
    the judge. None: price unknown."""
    words: float
    """Mean words of a response."""
    distinct: float | None
    """Distinct-2 of the responses."""
    diversity: float | None
    """Semantic diversity of the instructions, where the embedding model is there."""


@dataclass(frozen=True)
class Subset:
    """What one filter keeps of one program's rows at one size: mean grade, and win rate over the plain responses."""

    program: str
    filter: str
    size: int
    grade: Interval | None
    win_rate: Interval | None


@dataclass(frozen=True, repr=False)
class Comparison(InFolder):
    """A comparison so far, written to `out`.

    `stopped` says what is missing and what to do about it: what ended the comparison early, or that the judge decided
    no pair. Empty if nothing is missing. `lacking` has a line for each figure that could not be measured."""

    out: Path
    against: str
    judge: str
    teacher: str
    instructions: int
    """Those that were answered so far."""
    references: int
    size: int
    """How many instructions there shall be."""
    programs: Sequence[Line]
    subsets: Sequence[Subset]
    used: Spent
    stopped: str
    lacking: Sequence[str]
    doubt: str = ""
    """That the judge decided fewer than half of what it was asked, and why; empty where it did not."""

    def _describe(self) -> str:
        programs = ", ".join(line.program for line in self.programs)
        some = "" if self.instructions == self.size else f"{self.instructions} of "
        instructions = f"{some}{counted(self.size, 'instruction')}"
        state = "" if self.state == DONE else f", {self.state}"
        return f"{programs} on {instructions}{state}, judged by {self.judge}, in {self.out}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return _HEADING, map(_cells, self.programs)

    def table(self) -> list[str]:
        """The table of programs, a line each: three, one below the other, since a terminal is not that wide."""
        rows = [_HEADING, *map(_cells, self.programs)]
        tables = [table_lines([[row[at] for at in columns] for row in rows]) for columns in _TABLES]
        return [line for table in tables for line in ("", *table)][1:]

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame: a program a row, every bound in a column of its own."""
        import pandas as pd

        frame = pd.json_normalize([asdict(line) for line in self.programs], sep="_")
        nested = [name for name in frame if any(str(other).startswith(f"{name}_") for other in frame)]
        return frame.drop(columns=nested)  # of a figure that some programs lack

    def filter_table(self) -> list[str]:
        """The table of the filters' subsets, a line each."""
        rows = [["program", "filter", "rows", "grade", f"win rate over {self.against}"]]
        for subset in self.subsets:
            grade, win_rate = _interval(subset.grade), _interval(subset.win_rate, 1)
            rows.append([subset.program, subset.filter, str(subset.size), grade, win_rate])
        return table_lines(rows)

    def gaps(self) -> list[str]:
        """What programs have no answer to, and what limits their win rates, in a line each."""
        failed = [
            f"{line.program} has no answer to {', '.join(f'{count} ({kind})' for kind, count in line.failed.items())}"
            for line in self.programs
            if line.failed
        ]
        return failed + [f"{line.program}: {note}" for line in self.programs if (note := _note(line))]

    def notes(self) -> list[str]:
        """What to know before the figures."""
        missing = [f"not measured: {line}" for line in self.lacking]
        return [*([self.doubt] if self.doubt else []), *self.gaps(), *missing]

    def lines(self) -> list[str]:
        """The whole comparison as lines for a terminal or a file."""
        text = [self.doubt] if self.doubt else []
        text += [
            f"{counted(self.instructions, 'instruction')} from {counted(self.references, 'reference')}, written by "
            f"{self.teacher}, judged by {self.judge} against {self.against}",
            "",
            *self.table(),
            "",
        ]
        text += self.gaps()
        if self.subsets:
            text += ["rows that filters keep, by grade:", "", *self.filter_table(), ""]
        text += [f"{PROXY}.", LC_NOTE, f"paid in total, shared work counted once: {self.used}"]
        text += [f"not measured: {line}" for line in self.lacking]
        return [*text, f"incomplete: {self.stopped}"] if self.stopped else text


def _cells(line: Line) -> list[str]:
    controlled, judged = line.length_controlled, line.judgements
    per_thousand = None if line.cost is None or not line.rows else line.cost / line.rows * 1000
    return [
        line.program,
        str(line.rows),
        _interval(line.win_rate, 1),
        _interval(controlled.interval if controlled else None, 1),
        *(map(str, (judged.abstained, judged.failed)) if judged.asked else (NO_VALUE, NO_VALUE)),
        format_number(line.consistent),
        _interval(line.grade),
        format_number(line.words, 0),
        format_number(line.distinct),
        format_number(line.diversity),
        str(line.feedback),
        str(line.calls),
        money(line.cost, unknown=NO_VALUE),
        money(per_thousand, unknown=NO_VALUE),
    ]


def _interval(interval: Interval | None, digits: int = 2) -> str:
    return NO_VALUE if interval is None else interval.shown(digits)


def _note(line: Line) -> str:
    if line.judgements.asked and line.win_rate is None:
        return f"the judge decided none of its {line.judgements.asked} pairs"
    return line.length_controlled.note if line.length_controlled is not None else ""


def write_comparison(comparison: Comparison, compared: Replayed) -> None:
    """Write all files into the comparison's folder, each whole or not at all. Raises ExportError."""
    write_text(comparison.out / TABLE, comparison.lines())
    write_json(comparison.out / FIGURES, facts(comparison))
    write_lines(comparison.out / ROWS, rows(compared))
    write_lines(comparison.out / PAIRS, pairs(compared, comparison.against))
    bars = [
        Bar(line.program, line.win_rate, line.length_controlled.interval if line.length_controlled else None)
        for line in comparison.programs
        if line.win_rate is not None
    ]
    if bars:
        save(win_rate_picture(bars, caption=f"Against {comparison.against}. {PROXY}."), comparison.out / WIN_RATES)
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    several = len({subset.program for subset in comparison.subsets}) > 1
    for subset in comparison.subsets:
        if subset.grade is not None:
            name = f"{subset.filter} ({subset.program})" if several else subset.filter
            curves[name].append(Point(subset.size, subset.grade))
    if curves:
        caption = f"Mean grade of the rows that a filter keeps. {PROXY}."
        save(filter_picture(curves, caption=caption, quality="grade, 1 to 5"), comparison.out / FILTERS)


def facts(comparison: Comparison) -> dict[str, Any]:
    """The figures in JSON types. Money is in dollars, None if a price is unknown; an infinite bound is None."""
    figures = asdict(comparison)
    figures["out"] = str(comparison.out)
    figures |= {"proxy": PROXY, "notes": comparison.notes()}
    used, picodollars = figures["used"], figures["used"].pop("picodollars")
    used["cost"] = None if used["unpriced"] and not picodollars else comparison.used.cost
    return dict(json.loads(json.dumps(figures, default=str), parse_constant=lambda _: None))


def _systems(compared: Replayed) -> dict[str, str]:
    """A reference's id → the system prompt that its rows inherit; "" for none."""
    return {reference.id: reference.system for reference in compared.references}


def rows(compared: Replayed) -> Iterator[dict[str, Any]]:
    """One row for each instruction and program."""
    systems = _systems(compared)
    for row in compared.rows:
        for name, sample in row.answered.samples.items():
            verdict, grade = row.answered.verdicts.get(name), row.answered.grades.get(name)
            yield {
                "instruction": row.instruction,
                "program": name,
                "response": sample.response,
                "improved_response": sample.improved_response,
                "reference": row.reference,
                "feature": row.feature,
                "preference": verdict.preference if verdict else None,
                "consistent": verdict.consistent if verdict else None,
                "judge": list(verdict.reasons) if verdict else [],
                "abstained": verdict.abstained if verdict else "",
                "judge_failed": verdict.failed if verdict else "",
                "grade": grade.grade if grade else None,
                "grade_reason": grade.reason if grade else "",
                "system": systems[row.reference],
            }


def pairs(compared: Replayed, against: str) -> Iterator[dict[str, Any]]:
    """Pairs to train on, as `refed export --format preference` writes them: of each program's response and that of the
    program compared with, where the judge preferred one in both orders."""
    systems = _systems(compared)
    for row in compared.rows:
        for name, verdict in row.answered.verdicts.items():
            if not verdict.preference:  # a tie, or the orders disagree
                continue
            better, worse = (name, against) if verdict.preference > 0 else (against, name)
            samples, system = row.answered.samples, systems[row.reference]
            yield {
                "prompt": prompt_of(row.instruction, system),
                "chosen": answer_of(samples[better].improved_response),
                "rejected": answer_of(samples[worse].improved_response),
                "margin": abs(verdict.preference),
                "chosen_program": better,
                "rejected_program": worse,
            }
