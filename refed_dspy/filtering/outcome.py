"""What came of filtering: kept and dropped rows, each with what was said of it, and the funnel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.engine.accounts import Spent
from refed_dspy.filtering.sifting import Sifted
from refed_dspy.tables import aligned
from refed_dspy.writing import write_json, write_lines, write_text

KEPT, DROPPED, UNDECIDED, FUNNEL = "kept.jsonl", "dropped.jsonl", "undecided.jsonl", "funnel"
OUTPUTS = (KEPT, DROPPED, UNDECIDED, f"{FUNNEL}.json", f"{FUNNEL}.txt")
SAID = "refed_filters"
"""The column that filters' words stand in, beside the row's own."""


@dataclass(frozen=True)
class Filtering:
    """What came of it, written to `out`. `used` is None where nobody was asked; `stopped` the cap that ended it."""

    out: Path
    data: DataSet
    sifted: Sifted
    used: Spent | None
    stopped: str

    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows as they stood, and in `refed_filters` the scores that they passed with."""
        scores: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        for stage in self.sifted.stages:
            for number, said in stage.decisions.items():
                if said.kept and said.score is not None:
                    scores[number][stage.label] = said.score
        for row in self.sifted.kept:
            yield {**row.fields, SAID: {"row": row.number, "scores": scores[row.number]}}

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The dropped rows as they stood, and in `refed_filters` which filter dropped them, why, and by what score."""
        fields = {row.number: row.fields for row in self.data.rows}
        for number, label, said in self.sifted.dropped():
            told = {"row": number, "filter": label, "reason": said.reason, "score": said.score, "detail": said.detail}
            yield {**fields[number], SAID: told}

    def funnel(self) -> list[dict[str, Any]]:
        """A filter each: how many rows came, were kept and dropped, and dropped by reason."""
        told = []
        for stage in self.sifted.stages:
            reasons = Counter(said.reason for said in stage.decisions.values() if not said.kept)
            kept = len(stage.decisions) - reasons.total()
            told.append(
                {
                    "filter": stage.label,
                    "in": stage.came,
                    "kept": kept,
                    "dropped": reasons.total(),
                    "undecided": stage.came - len(stage.decisions),
                    "reasons": dict(reasons.most_common()),
                }
            )
        return told

    @property
    def fruitless(self) -> str:
        """Which filter kept nothing, and why, in one line; empty where something was kept."""
        if self.sifted.kept or self.stopped:
            return ""
        last = self.funnel()[-1]
        why = ", ".join(f"{count} {reason}" for reason, count in last["reasons"].items())
        return f"{last['filter']} kept none of {last['in']} rows ({why}); loosen it, or take it out"

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        rows = [["filter", "in", "kept", "dropped", "why"]]
        for told in self.funnel():
            why = ", ".join(f"{count} {reason}" for reason, count in told["reasons"].items())
            rows.append([told["filter"], str(told["in"]), str(told["kept"]), str(told["dropped"]), why])
        lines = aligned(rows)
        if self.data.left_out:
            left = ", ".join(f"{count} {reason}" for reason, count in self.data.left_out.items())
            lines.append(f"not read as a pair, so neither kept nor dropped: {left}")
        if self.used is not None:
            lines.append(str(self.used))
        if self.stopped:
            lines.append(
                f"stopped: {self.stopped} is reached with {len(self.sifted.undecided)} rows undecided; raise it, and "
                "the same command goes on"
            )
        return [*lines, f"{len(self.sifted.kept)} of {len(self.data.rows)} rows kept, in {self.out / KEPT}"]


def write_filtering(filtering: Filtering) -> None:
    """Rows and funnel into the folder, each file whole or not at all."""
    write_lines(filtering.out / KEPT, filtering.kept())
    write_lines(filtering.out / DROPPED, filtering.dropped())
    undecided = (row.fields for row in filtering.sifted.undecided)
    if filtering.sifted.undecided:
        write_lines(filtering.out / UNDECIDED, undecided)
    else:
        (filtering.out / UNDECIDED).unlink(missing_ok=True)
    write_json(filtering.out / f"{FUNNEL}.json", filtering.funnel())
    write_text(filtering.out / f"{FUNNEL}.txt", filtering.lines())
