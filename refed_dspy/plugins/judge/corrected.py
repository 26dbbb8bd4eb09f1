"""A judge's verdicts on many pairs, corrected by people's on some of them: in the folder of a comparison, of a compile,
or of rows that a judge filtered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.data.stored import work_in
from refed_dspy.errors import ReferencesError, RunDirError, briefly, one_line
from refed_dspy.files import path_of, write_json
from refed_dspy.measures.powered import FEWEST_LABELLED
from refed_dspy.optimizers.by_people import COMPILED, PEOPLE, RateByPeople, powered_rates
from refed_dspy.plugins.judge.annotate.annotate import IMPROVED, PLAIN, judged_pairs
from refed_dspy.text import NO_VALUE, Shown, counted, table_lines

_HEADS = ("system", "over", "pairs", "by people", "the judge", "people", "both", "the judge's weight")


@dataclass(frozen=True, repr=False)
class PeopleGain(Shown):
    """How often people prefer one system's answers to another's: `rates`, by the pairs in `folder`."""

    folder: Path
    rates: Sequence[RateByPeople]

    def _describe(self) -> str:
        return f"{counted(len(self.rates), 'win rate')} by people and the judge of {self.folder}"

    def lines(self) -> list[str]:
        """A table for a terminal, and what to know of it."""
        lines = table_lines([_HEADS, *map(_cells, self.rates)])
        lines += [
            f"gain of {one_line(rate.system, 60)} in wins: {gain}"
            for rate in self.rates
            if rate.system == COMPILED and (gain := rate.gain) is not None
        ]
        if any(rate.judge is not None and rate.powered is None for rate in self.rates):
            lines.append(f"no figure of both: it takes verdicts of people on {FEWEST_LABELLED} references or more")
        drawn = "it holds if the pairs that people judged were drawn at random, as refed judge annotate draws them"
        return [*lines, f"{drawn}; written to {self.folder / PEOPLE}"]


@briefly
def people_gain(folder: str | Path, people: str | Path | Sequence[Pair], *, seed: int = 0) -> PeopleGain:
    """People's win rates where they judged some of the pairs in `folder`: the judge's, theirs, and both together, with
    95% intervals by reference. Writes them into the folder, as people.json, which the data set's card reads.

    `folder`: of a comparison, of a compile whose proof compared answers, or of a run or a filtering, whose improved
    responses are compared with the plain ones. `people`: pairs, or what `load_pairs` reads; they must have been drawn
    at random from those of the folder, as `annotate` draws them. `seed`: of the intervals' resampling.
    Raises ReferencesError: they cannot be read, or none is a pair of the folder; RunDirError: `folder` has no pairs;
    ExportError: people.json cannot be written.
    """
    where = path_of(folder, "folder")
    if not where.is_dir():
        raise RunDirError(f"{one_line(where, 200)}: no such folder; name that of a comparison, a compile or a run")
    said = load_pairs(people) if isinstance(people, str | Path) else list(people)
    pairs, work = judged_pairs(where), work_in(where)
    if work not in {"comparison", "compile"}:  # of rows: whichever model wrote the answers
        pairs = (pair.model_copy(update={"system_a": IMPROVED, "system_b": PLAIN}) for pair in pairs)
    rates = powered_rates(pairs, said, seed)
    if not rates:
        raise ReferencesError(
            f"{one_line(where, 200)}: people judged none of its pairs by their overall quality; name the folder that "
            "the pages were made from"
        )
    made = PeopleGain(where, rates)
    write_json(where / PEOPLE, {"rates": [asdict(rate) for rate in rates]})
    return made


def _cells(rate: RateByPeople) -> tuple[str, ...]:
    figures = (NO_VALUE if figure is None else str(figure) for figure in (rate.judge, rate.people, rate.powered))
    weight = NO_VALUE if rate.weight is None else f"{rate.weight:.2f}"
    systems = (one_line(name, 60) for name in (rate.system, rate.over))
    return (*systems, f"{rate.pairs:,}", f"{rate.by_people:,}", *figures, weight)
