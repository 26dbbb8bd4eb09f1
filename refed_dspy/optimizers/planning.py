"""How many references a compile must hold out to prove a gain, from how gains varied in a compile before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from refed_dspy.errors import ConfigError, RunDirError, briefly
from refed_dspy.ledger.candidates import Candidate, examples_of, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import MIN_CLUSTERS, USUAL_CHANCE, chance_of, clusters_for, spread_of
from refed_dspy.text import Shown, counted, table_lines

GAINS = (0.05, 0.1, 0.15, 0.2)
_TIMES = (1, 2, 4)
"""How many times as many samples a reference might have."""
_MOST = 1_000
"""References in a plan."""


@dataclass(frozen=True, repr=False)
class CompilePlan(Shown):
    """What the compile in `folder` tells of the next one.

    `spread`: the standard deviation of a candidate's gain from reference to reference, over all candidates; `noise`:
    the part of it that is its samples', of which a reference had `samples` (both 0 where the metric compares no
    answers). `references`: how many it rests on; `held_out`: how many the test set of that compile has. As in a proof,
    examples of one instruction count as one reference, which is called by its `unit`.
    """

    folder: Path
    gains: Sequence[float]
    candidates: int
    references: int
    held_out: int
    spread: float
    noise: float
    samples: float
    unit: str = "references"

    def spread_with(self, times: float) -> float:
        """The spread with so many times as many samples of each reference."""
        return math.sqrt(max(0.0, self.spread**2 - self.noise**2 + self.noise**2 / times))

    def needed(self, gain: float, times: float = 1) -> int | None:
        """How many references must be held out, so that `gain` is proved four times out of five. None: over 1,000."""
        return clusters_for(gain, self.spread_with(times), USUAL_CHANCE, _MOST)

    def lines(self) -> list[str]:
        """For a terminal."""
        times = _TIMES if self.noise else (1,)
        heads = ["gain", *(f"{self.samples * each:.0f} samples" if self.noise else self.unit for each in times)]
        heads.append(f"found with {self.held_out}")
        rows = [
            [
                f"{gain:.2f}",
                *(f"over {_MOST:,}" if (n := self.needed(gain, each)) is None else str(n) for each in times),
                f"{chance_of(gain, self.spread, self.held_out):.0%}",
            ]
            for gain in self.gains
        ]
        of_samples = f", {self.noise:.2f} of it from sample to sample" if self.noise else ""
        return [
            f"{self.folder}: gains of {counted(self.candidates, 'candidate')} on {self.references} {self.unit} vary by "
            f"{self.spread:.2f}{of_samples}",
            f"{self.unit} to hold out (test:), so that a gain is proved four times out of five:",
            *table_lines([heads, *rows]),
            f"if {self.unit} are independent; with fewer than {MIN_CLUSTERS} nothing is proved",
        ]

    def _describe(self) -> str:
        return f"gains vary by {self.spread:.2f} over {self.references} {self.unit}"


@briefly
def plan_compile(folder: str | Path, gains: Sequence[float] = GAINS) -> CompilePlan:
    """How many references the next compile must hold out for each of `gains` (of 1), by the compile in `folder`, which
    need not have ended. Of a judge's compile, how many instructions.

    Raises:
        ConfigError: a gain that is not above zero.
        RunDirError: no compile is there, or one that scored no second program on MIN_CLUSTERS references, or one of an
            earlier version.
    """
    if not gains or any(not 0 < gain < math.inf for gain in gains):
        raise ConfigError("gain: must be above 0; a score goes from 0 to 1")
    folder = Path(folder)
    with Ledger.read(folder) as ledger:
        if ledger.holds() != "compile":
            raise RunDirError(f"{folder}: no compile; name the folder of one")
        candidates, examples = load_candidates(ledger), examples_of(ledger)
    unit, sets = examples.get("unit", "references"), examples.get("clusters")
    if sets is None:
        raise RunDirError(
            f"{folder}: an earlier version did not note which examples share an instruction; run the same compile "
            "again, and it will"
        )
    clusters = {example: cluster for examples in sets.values() for example, cluster in examples.items()}
    baseline, others = (candidates[0], candidates[1:]) if candidates else (None, [])
    measured = [each for other in others if (each := _measured(other, baseline, clusters))] if baseline else []
    if not measured:
        raise RunDirError(
            f"{folder}: no program but the first was scored on {MIN_CLUSTERS} {unit} or more; let it tune further"
        )
    return CompilePlan(
        folder=folder,
        gains=tuple(gains),
        candidates=len(measured),
        references=max(each.references for each in measured),
        held_out=len({*sets.get("test", {}).values()}),
        spread=_root_mean_square([each.spread for each in measured]),
        noise=_root_mean_square([each.noise for each in measured]),
        samples=fmean(each.samples for each in measured),
        unit=unit,
    )


@dataclass(frozen=True)
class _Measured:
    """One candidate's gains over the uncompiled program. `noise`: the standard deviation that a reference's gain has
    from its samples' wins, at most the `spread`; `samples`: how many it has."""

    references: int
    spread: float
    noise: float = 0.0
    samples: float = 0.0


def _measured(candidate: Candidate, baseline: Candidate, clusters: Mapping[str, str]) -> _Measured | None:
    """None where too few clusters have scores by both."""
    subsets = [name for name in ("validation", "test") if name in candidate.scores]
    differences = {
        example: score - before
        for name in subsets
        for example, score in candidate.undiscounted(name).items()
        if (before := baseline.undiscounted(name).get(example)) is not None
    }
    groups = [clusters.get(example, example) for example in differences]
    if len({*groups}) < MIN_CLUSTERS or not any(differences.values()):
        return None
    spread = spread_of(list(differences.values()), groups)
    compared = {example: each for name in subsets for example, each in candidate.compared.get(name, {}).items()}
    several = [each for each in compared.values() if len(each.verdicts) > 1]
    if not several:
        return _Measured(len({*groups}), spread)
    deviations = [each.weight * stdev(win for win, _ in each.verdicts) / len(each.verdicts) ** 0.5 for each in several]
    samples = fmean(len(each.verdicts) for each in several)
    return _Measured(len({*groups}), spread, min(spread, _root_mean_square(deviations)), samples)


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))
