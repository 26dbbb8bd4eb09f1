"""What came of recycling: rows, counts, the table of old against new, and the files they stand in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.data.table import DataRow
from refed_dspy.engine.accounts import Spent
from refed_dspy.measures.figures import Figures, Pairs, Tools, figures, table
from refed_dspy.programs.reflection import Recycled
from refed_dspy.recycling.selecting import Selected
from refed_dspy.writing import write_json, write_lines, write_text

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
    figures: Mapping[str, Figures]
    """"old" and "new" → name → figure."""
    lacking: Sequence[str]
    """Figures that were left out, and what would bring them."""

    def kept(self) -> Iterator[dict[str, Any]]:
        """The recycled rows, as they are written down."""
        return (row for row, kept in self._rows() if kept)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rows that selective mode dropped, with the reason."""
        return (row for row, kept in self._rows() if not kept)

    def _rows(self) -> Iterator[tuple[dict[str, Any], bool]]:
        for row in self.rows:
            made = self.made[row.number]
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
            chosen = None if self.selected is None else self.selected[row.number]
            if chosen is not None:
                facts |= {"instruction": chosen.instruction, "response": chosen.response, **_choice(chosen)}
            yield facts, chosen is None or chosen.kept

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        counts = Counter(made.instruction_from for made in self.made.values())
        of_responses = Counter(made.response_from for made in self.made.values())
        lines = [
            f"{len(self.rows)} of {self.asked} rows recycled, {self.used}",
            "instructions: " + ", ".join(f"{count} by {name}" for name, count in sorted(counts.items())),
            "responses: " + ", ".join(f"{count} by {name}" for name, count in sorted(of_responses.items())),
        ]
        why = Counter(
            reason.partition(":")[0]
            for made in self.made.values()
            for reason in (made.instruction_reason, made.response_reason)
            if reason
        )
        lines += [f"fell back: {count} {reason}" for reason, count in why.most_common()]
        if self.selected is not None:
            lines += _selection_lines(list(self.selected.values()))
        lines += ["", *table(self.figures), ""]
        lines += [f"not measured: {line}" for line in self.lacking]
        if self.stopped:
            lines.append(f"stopped: {self.stopped} is reached; raise it, and the same command goes on")
        return lines


def old_and_new(kept: Sequence[Mapping[str, Any]], tools: Tools, sample: int, seed: int) -> dict[str, Figures]:
    """The figures of the same rows before and after."""
    old: Pairs = [(row["original_instruction"], row["original_response"]) for row in kept]
    new: Pairs = [(row["instruction"], row["response"]) for row in kept]
    return {"old": figures(old, tools, sample, seed), "new": figures(new, tools, sample, seed)}


def write_recycling(recycling: Recycling) -> None:
    """Rows and table into the folder, each file whole or not at all."""
    write_lines(recycling.out / ROWS, recycling.kept())
    if recycling.selected is not None:
        write_lines(recycling.out / DROPPED, recycling.dropped())
    write_text(recycling.out / f"{TABLE}.txt", recycling.lines())
    write_json(recycling.out / f"{TABLE}.json", {name: dict(told) for name, told in recycling.figures.items()})


def _choice(chosen: Selected) -> dict[str, Any]:
    return {
        "new_instruction": chosen.new_instruction,
        "new_response": chosen.new_response,
        "ifd": chosen.ifd,
        "r_ifd": chosen.r_ifd,
        "selection_reason": chosen.reason,
    }


def _selection_lines(chosen: Sequence[Selected]) -> list[str]:
    why = Counter(one.reason for one in chosen if one.reason)
    lines = [
        f"selected: {sum(one.kept for one in chosen)} of {len(chosen)} pairs, "
        f"{sum(one.new_instruction for one in chosen)} with the new instruction, "
        f"{sum(one.new_response for one in chosen)} with the new response"
    ]
    return [*lines, *(f"dropped: {count} {reason}" for reason, count in why.most_common())]
