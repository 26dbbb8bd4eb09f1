"""What came of recycling: rows, counts, the table of old against new, and the files they stand in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.metrics.figures import Figures, Pairs, Tools, figures, table
from refed_dspy.programs.reflection import IMPROVED, REFLECTED, Recycled
from refed_dspy.records import DataRow
from refed_dspy.runs.recycle.passes import Passed
from refed_dspy.runs.recycle.select import Selected

ROWS, DROPPED, TABLE = "recycled.jsonl", "dropped.jsonl", "table"
OUTPUTS = (ROWS, DROPPED, f"{TABLE}.txt", f"{TABLE}.json")


@dataclass(frozen=True)
class Recycling:
    """What came of it. `made` and `selected` are by row number; `asked` is how many rows there were to recycle."""

    out: Path
    data: DataSet
    rows: Sequence[DataRow]
    """Those that are done."""
    made: Mapping[int, Recycled]
    selected: Mapping[int, Selected] | None
    asked: int
    used: Spent
    stopped: str
    """The cap that ended it early, or nothing."""
    halfway: int = 0
    """Rows with the first pass that are not done: selective mode begins the second once all rows have had the first."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """"old" and "new" → name → figure."""
    lacking: Sequence[str] = ()
    """Figures that were left out, and what would bring them."""
    scored: str = ""
    """What the scorer was asked in this start, where it counts that."""

    def kept(self) -> Iterator[dict[str, Any]]:
        """The recycled rows, as they are written down."""
        return (row for row, kept in self._rows() if kept)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rows that selective mode dropped, with the reason."""
        return (row for row, kept in self._rows() if not kept)

    def _rows(self) -> Iterator[tuple[dict[str, Any], bool]]:
        for row in self.rows:
            made = self.made[row.number]
            chosen = None if self.selected is None else self.selected[row.number]
            facts: dict[str, Any] = {
                "row": row.number,
                "instruction": made.instruction,
                "response": made.response,
                "original_instruction": row.instruction,
                "original_response": row.response,
                "instruction_from": made.instruction_from,
                "response_from": made.response_from,
                "instruction_reason": made.instruction_reason,
                "response_reason": made.response_reason,
            }
            yield (facts, True) if chosen is None else ({**facts, **_choice(chosen)}, chosen.kept)

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        facts = [row for row, _ in self._rows()]
        lines = [f"{len(self.rows)} of {self.asked} rows recycled, {self.used}"]
        for part in ("instruction", "response"):
            counts = Counter(row[f"{part}_from"] for row in facts)
            told = ", ".join(f"{count} by {name}" for name, count in sorted(counts.items()))
            lines += [f"{part}s: {told}"] if facts else []
        why = Counter(row[f"{part}_reason"].partition(":")[0] for row in facts for part in ("instruction", "response"))
        lines += [f"fell back: {count} {reason}" for reason, count in why.most_common() if reason]
        if again := sum(self.made[row.number].unanswered for row in self.rows):
            lines.append(f"{again} rows lack an answer that the teacher may still give: the same command asks again")
        if self.data.left_out:
            left = ", ".join(f"{count} {reason}" for reason, count in self.data.left_out.items())
            lines.append(f"not read as a pair: {left}")
        if self.selected is not None:
            lines += _selection_lines([(self.made[row.number], self.selected[row.number]) for row in self.rows])
        lines += ["", *table(self.figures), ""] if self.figures else [""]
        lines += [f"scorer: {self.scored}"] if self.scored else []
        lines += [f"not measured: {line}" for line in self.lacking]
        if self.halfway:
            lines.append(f"first pass alone: {self.halfway} rows; the second begins once all rows have had the first")
        if self.stopped:
            lines.append(f"stopped: {self.stopped} is reached; raise it, and the same command goes on")
        return lines


def recycling_of(
    folder: Path, data: DataSet, rows: Sequence[DataRow], lacking: Sequence[str], passed: Passed
) -> Recycling:
    """What the passes made of `rows` so far, with what all starts cost by the ledger; without figures."""
    done = [row for row in rows if row.number in passed.made]
    with Ledger.read(folder) as ledger:
        used = spent(ledger)
    parts = folder, data, done, passed.made, passed.selected, len(rows), used, passed.stopped, passed.halfway
    return Recycling(*parts, lacking=lacking)


def old_and_new(kept: Sequence[Mapping[str, Any]], tools: Tools, sample: int, seed: int) -> dict[str, Figures]:
    """The figures of the same rows before and after."""
    old: Pairs = [(row["original_instruction"], row["original_response"]) for row in kept]
    new: Pairs = [(row["instruction"], row["response"]) for row in kept]
    return {"old": figures(old, tools, sample, seed), "new": figures(new, tools, sample, seed)}


def write_rows(recycling: Recycling) -> None:
    """The rows into the folder, each file whole or not at all. What an earlier start said of other rows goes."""
    write_lines(recycling.out / ROWS, recycling.kept())
    for name in OUTPUTS[2:] if recycling.selected is not None else OUTPUTS[1:]:
        (recycling.out / name).unlink(missing_ok=True)
    if recycling.selected is not None:
        write_lines(recycling.out / DROPPED, recycling.dropped())


def write_table(recycling: Recycling) -> None:
    """The table into the folder, as text and as JSON, each file whole or not at all."""
    write_text(recycling.out / f"{TABLE}.txt", recycling.lines())
    write_json(recycling.out / f"{TABLE}.json", {name: dict(told) for name, told in recycling.figures.items()})


def _choice(chosen: Selected) -> dict[str, Any]:
    return {
        "ifd": chosen.ifd,
        "r_ifd": chosen.r_ifd,
        "original_ifd": chosen.original_ifd,
        "original_r_ifd": chosen.original_r_ifd,
        "selection_reason": chosen.reason,
    }


def _selection_lines(rows: Sequence[tuple[Recycled, Selected]]) -> list[str]:
    why = Counter(chosen.reason for _, chosen in rows if not chosen.kept)
    kept = [(made, chosen) for made, chosen in rows if chosen.kept]
    lines = [
        f"selected: {len(kept)} of {len(rows)} pairs, {sum(made.instruction_from == REFLECTED for made, _ in kept)} "
        f"with the new instruction, {sum(made.response_from == IMPROVED for made, _ in kept)} with the new response"
    ]
    if unscored := sum(chosen.ifd is None or chosen.r_ifd is None for _, chosen in kept):
        lines.append(f"kept without a figure: {unscored} that could not be scored")
    return [*lines, *(f"dropped: {count} {reason}" for reason, count in why.most_common())]
