"""The result of recycling: rows, counts, the table of old against new, and the files with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.data.export import KeptRows
from refed_dspy.data.stored import DROPPED, SOURCE
from refed_dspy.data.stored import ROWS as FILES
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.plugins.metrics.figures import Figures, Pairs, Tools, figures, table
from refed_dspy.plugins.recycle.passes import PassResults, Selected
from refed_dspy.plugins.recycle.program import IMPROVED, REFLECTED, Recycled
from refed_dspy.records import DataRow
from refed_dspy.text import counted

ROWS, TABLE = FILES["recycling"], "table"
OUTPUTS = (ROWS, DROPPED, f"{TABLE}.txt", f"{TABLE}.json", SOURCE)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recycling(PassResults, KeptRows):
    """What the passes made so far, what it cost, and its figures; and a sequence of the recycled rows."""

    out: Path
    data: DataSet
    rows: Sequence[DataRow]
    """Those that are done, of `size` rows to recycle."""
    size: int
    used: Spent
    source: Mapping[str, Any]
    """What is noted of the data and the teacher (`source.json`)."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """"old" and "new" → name → figure."""
    lacking: Sequence[str] = ()
    """Figures that were left out, and what to do to get them."""
    scored: str = ""
    """What the scorer was asked in this start, if it counts that."""

    __repr__ = KeptRows.__repr__  # not that of PassResults, which holds every row

    def _describe(self) -> str:
        return f"{len(self.rows)} of {self.size} rows recycled, {self.used}, in {self.out / ROWS}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        texts = ("original_instruction", "instruction", "original_response", "response")
        return texts, ([row[name] for name in texts] for row in self.kept())

    def kept(self) -> Iterator[dict[str, Any]]:
        """The recycled rows, as they are written."""
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
                "system": row.stands_under,
            }
            yield (facts, True) if chosen is None else ({**facts, **asdict(chosen)}, chosen.kept)

    def lines(self) -> list[str]:
        """Counts, reasons, figures and what is missing, for a terminal."""
        facts = [row for row, _ in self._rows()]
        lines = [f"{len(self.rows)} of {self.size} rows recycled, {self.used}"]
        reasons: Counter[str] = Counter()
        for text in ("instruction", "response"):
            sources = Counter(row[f"{text}_from"] for row in facts)
            counts = ", ".join(f"{count} by {name}" for name, count in sorted(sources.items()))
            lines += [f"{text}s: {counts}"] if facts else []
        for row in facts:
            reasons.update(row[f"{text}_reason"].kind for text in ("instruction", "response"))
        fell_back = [(reason, count) for reason, count in reasons.most_common() if reason]
        if 2 * reasons[""] < reasons.total():
            rests = f"based on only {reasons['']} of {reasons.total()} answers"
            lines.insert(0, f"{rests}; most of the others were: {fell_back[0][0]}")
        lines += [f"fell back: {count} {reason}" for reason, count in fell_back]
        if unanswered := sum(self.made[row.number].unanswered for row in self.rows):
            lines.append(
                f"{counted(unanswered, 'row lacks', 'rows lack')} an answer; run the same command to ask again"
            )
        if self.data.left_out:
            left_out = ", ".join(f"{count} {reason}" for reason, count in self.data.left_out.items())
            lines.append(f"not read as a pair: {left_out}")
        if self.selected is not None:
            lines += _selection_lines([(self.made[row.number], self.selected[row.number]) for row in self.rows])
        lines += ["", *table(self.figures), ""] if self.figures else [""]
        lines += [f"scorer: {self.scored}"] if self.scored else []
        lines += [f"not measured: {line}" for line in self.lacking]
        if self.halfway:
            lines.append(
                f"first pass only: {counted(self.halfway, 'row')}; the second pass starts when all rows have had the "
                "first"
            )
        if self.stopped:
            lines.append(f"stopped: {self.stopped} is reached; raise it and run the same command to continue")
        return lines


def recycling_of(
    folder: Path,
    data: DataSet,
    source: Mapping[str, Any],
    rows: Sequence[DataRow],
    lacking: Sequence[str],
    results: PassResults,
) -> Recycling:
    """What the passes made of `rows` so far, and what all starts cost according to the ledger; without figures."""
    with Ledger.read(folder) as ledger:
        used = spent(ledger)
    done = [row for row in rows if row.number in results.made]
    return Recycling(
        **vars(results), out=folder, data=data, source=source, rows=done, size=len(rows), used=used, lacking=lacking
    )


def old_and_new(kept: Sequence[Mapping[str, Any]], tools: Tools, sample: int, seed: int) -> dict[str, Figures]:
    """The figures of the same rows before ("old") and after ("new")."""
    old: Pairs = [(row["original_instruction"], row["original_response"]) for row in kept]
    new: Pairs = [(row["instruction"], row["response"]) for row in kept]
    return {"old": figures(old, tools, sample, seed), "new": figures(new, tools, sample, seed)}


def write_rows(recycling: Recycling) -> None:
    """Write the rows into the folder, each file whole or not at all; remove files of an earlier start."""
    write_lines(recycling.out / ROWS, recycling.kept())
    write_json(recycling.out / SOURCE, {**recycling.source, "funnel": _funnel(recycling)})
    for name in OUTPUTS[2:4] if recycling.selected is not None else OUTPUTS[1:4]:
        (recycling.out / name).unlink(missing_ok=True)
    if recycling.selected is not None:
        write_lines(recycling.out / DROPPED, recycling.dropped())


def _funnel(recycling: Recycling) -> list[dict[str, Any]]:
    """What the selection kept and dropped, as a filtering's funnel has it; empty where nothing was selected."""
    if recycling.selected is None:
        return []
    reasons = Counter(chosen.selection_reason for chosen in recycling.selected.values() if not chosen.kept)
    rows, dropped = len(recycling.rows), reasons.total()
    counts = {"in": rows, "kept": rows - dropped, "dropped": dropped, "undecided": 0}
    return [{"filter": "selection", **counts, "reasons": dict(reasons.most_common())}]


def write_table(recycling: Recycling) -> None:
    """Write the table into the folder, as text and as JSON, each file whole or not at all."""
    write_text(recycling.out / f"{TABLE}.txt", recycling.lines())
    write_json(recycling.out / f"{TABLE}.json", {name: dict(values) for name, values in recycling.figures.items()})


def _selection_lines(rows: Sequence[tuple[Recycled, Selected]]) -> list[str]:
    reasons = Counter(chosen.selection_reason for _, chosen in rows if not chosen.kept)
    kept = [(made, chosen) for made, chosen in rows if chosen.kept]
    lines = [
        f"selected: {len(kept)} of {len(rows)} pairs, {sum(made.instruction_from == REFLECTED for made, _ in kept)} "
        f"with the new instruction, {sum(made.response_from == IMPROVED for made, _ in kept)} with the new response"
    ]
    if unscored := sum(chosen.ifd is None or chosen.r_ifd is None for _, chosen in kept):
        lines.append(f"kept without a figure: {unscored} that could not be scored")
    return [*lines, *(f"dropped: {count} {reason}" for reason, count in reasons.most_common())]
