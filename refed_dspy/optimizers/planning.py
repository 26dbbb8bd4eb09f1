"""Whether a compile is worth its cost, and how many references it must hold out to prove a gain: from how gains varied
in a compile before it, or in a test for headroom, which is paid for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.compile import CompileConfig, MetricConfig
from refed_dspy.config.keywords import with_keywords
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, briefly
from refed_dspy.ledger.candidates import Candidate, examples_of, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.measures.intervals import MIN_CLUSTERS, USUAL_CHANCE, chance_of, clusters_for, spread_of
from refed_dspy.optimizers.compile import compile as tune
from refed_dspy.optimizers.dspy_optimizers import name_of_optimizer
from refed_dspy.optimizers.headroom import EXAMPLES, PROGRAMS, REWRITINGS, Headroom, Variants, headroom_in
from refed_dspy.optimizers.result import Compiled
from refed_dspy.records import PICO, money
from refed_dspy.teachers.progress import CompileProgress
from refed_dspy.text import Shown, counted, table_lines

if TYPE_CHECKING:
    from refed_dspy.keywords import PlanKeywords

GAINS = (0.05, 0.1, 0.15, 0.2)
_TIMES = (1, 2, 4)
"""How many times as many samples a reference might have."""
_MOST = 1_000
"""References in a plan."""
SCORED_ON = 8
"""References that a test for headroom scores its programs on."""
TEST = {
    "options": {},
    "evaluations": SCORED_ON * PROGRAMS,
    "train": EXAMPLES * REWRITINGS,
    "validation": SCORED_ON,
    "test": 1,
    "prove": False,
    "proof_judge": None,
}
"""The settings of a test for headroom, which is a compile without a proof."""
TAKEN = (
    *("columns", "turns", "judge_program", "judge_scorer", "accept_changed", "features", "instructions_per_feature"),
    *("guidance", "threads", "seed", "reuse", "track", "max_cost", "max_calls", "max_minutes"),
)
"""The settings of a compile that a test takes, too."""
SEARCH = 200
"""So many evaluations a search usually takes."""


@dataclass(frozen=True, repr=False)
class CompilePlan(Shown):
    """What the compile in `folder`, or a test for headroom, tells of the next one.

    `spread`: the standard deviation of a candidate's gain from reference to reference, over all candidates; `noise`:
    the part of it that is its samples', of which a reference had `samples` (both 0 where the metric compares no
    answers). `references`: how many it rests on; `held_out`: how many the test set of that compile has. As in a proof,
    examples of one instruction count as one reference, which is called by its `unit`. `headroom`: of a test for it.
    `cost`: what scoring a program on one reference cost, in dollars; None where a price is unknown, or nothing was
    paid.
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
    headroom: Headroom | None = None
    cost: float | None = None
    why: str = ""
    """What ended the test early, and how to continue it; else an empty text."""

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
        heads += [f"found with {self.held_out}"] if self.headroom is None else []
        heads += [] if self.cost is None else ["proof costs"]
        of_samples = f", {self.noise:.2f} of it from sample to sample" if self.noise else ""
        search = (
            [] if self.cost is None else [f"a search of {SEARCH} evaluations costs about {money(SEARCH * self.cost)}"]
        )
        return [
            *([] if self.headroom is None else self.headroom.lines()),
            f"{self.folder}: gains of {counted(self.candidates, 'candidate')} on {self.references} {self.unit} vary by "
            f"{self.spread:.2f}{of_samples}",
            f"{self.unit} to hold out (test:), so that a gain is proved four times out of five:",
            *table_lines([heads, *(self._row(gain, times) for gain in self.gains)]),
            *search,
            f"if {self.unit} are independent; with fewer than {MIN_CLUSTERS} nothing is proved",
        ]

    def _row(self, gain: float, times: Sequence[int]) -> list[str]:
        needed = [self.needed(gain, each) for each in times]
        cells = [f"{gain:.2f}", *(f"over {_MOST:,}" if number is None else str(number) for number in needed)]
        cells += [f"{chance_of(gain, self.spread, self.held_out):.0%}"] if self.headroom is None else []
        if self.cost is not None:  # of both programs, at the samples of this compile
            cells.append("–" if needed[0] is None else money(2 * needed[0] * self.cost))
        return cells

    def _describe(self) -> str:
        found = "" if self.headroom is None else f"{self.headroom.said}; "
        return f"{found}gains vary by {self.spread:.2f} over {self.references} {self.unit}"


@briefly
@with_keywords(CompileConfig, *TAKEN)
def plan_compile(
    program: Any = None,
    references: Any = None,
    *,
    pairs: str | Path | Sequence[Any] | None = None,
    metric: Callable[..., Any] | MetricConfig | Mapping[str, Any] | str | None = None,
    teacher: Any = None,
    judge: Any = None,
    reflection: Any = None,
    out: str | Path | None = None,
    gains: Sequence[float] = GAINS,
    progress: bool = True,
    on_progress: Callable[[CompileProgress], None] | None = None,
    **settings: Unpack[PlanKeywords],
) -> CompilePlan:
    """Whether a compile may gain anything, and how many references it must hold out to prove each of `gains` (of 1).

        refed_dspy.plan_compile(program, references, teacher=…, judge=…, out="plans/first", max_cost=0.50)
        refed_dspy.plan_compile("plans/first")  # the same again, for nothing

    With a `teacher` it pays for a test: it scores about ten programs that differ as much as prompts can, and runs of
    the same prompts, on eight references. The same call continues a test that was stopped. Without a teacher it reads
    the folder of such a test, or of any compile, ended or not; of a judge's it counts instructions.

    Args:
        program: the uncompiled program, as `compile` takes it; without a teacher the folder.
        references, pairs, metric, teacher, judge, reflection, out, progress, on_progress: as `compile` takes them.
        gains: a line each in the table of how many references prove them.

    Raises:
        ConfigError: a gain that is not above zero; and whatever `compile` raises.
        RunDirError: no compile is there, or one that scored no second program on MIN_CLUSTERS references, or one of an
            earlier version.
    """
    if not gains or any(not 0 < gain < math.inf for gain in gains):
        raise ConfigError("gain: must be above 0; a score goes from 0 to 1")
    if teacher is None:
        named = (references, pairs, metric, judge, reflection, out)
        if not isinstance(program, str | Path) or settings or any(each is not None for each in named):
            raise ConfigError("teacher: none is given; name one for a test, or the folder of a compile alone")
        return _planned(Path(program), gains)
    made = measure_headroom(
        program, references, pairs=pairs, metric=metric, teacher=teacher, judge=judge, reflection=reflection, out=out,
        progress=progress, on_progress=on_progress, **settings,
    )  # fmt: skip
    return plan_of(made, gains)


def measure_headroom(program: Any, references: Any = None, *, estimate: bool = False, **settings: Any) -> Compiled:
    """The test that `plan_compile` pays for, as a compile; or its first evaluations, and what the whole costs. Unless
    told to `track` it registers no program: none is proved."""
    test: dict[str, Any] = {"track": False, **settings, **TEST, "optimizer": Variants()}
    return tune(program, references, estimate=estimate, **test)


def plan_of(made: Compiled, gains: Sequence[float]) -> CompilePlan:
    """What the test `made` tells. Raises RunStopped where it ended before it could."""
    try:
        return replace(_planned(made.folder, gains), why=made.why)
    except RunDirError:
        if made.why:
            raise RunStopped(made.why) from None
        raise


def _planned(folder: Path, gains: Sequence[float]) -> CompilePlan:
    with Ledger.read(folder) as ledger:
        if ledger.holds() != "compile":
            raise RunDirError(f"{folder}: no compile; name the folder of one")
        candidates, examples, spending = load_candidates(ledger), examples_of(ledger), spent(ledger)
        tested = (ledger.meta("identity") or {}).get("optimizer") == name_of_optimizer(Variants)
    unit, sets = examples.get("unit", "references"), examples.get("clusters")
    if sets is None:
        raise RunDirError(
            f"{folder}: an earlier version did not note which examples share an instruction; run the same compile "
            "again, and it will"
        )
    clusters = {example: cluster for examples in sets.values() for example, cluster in examples.items()}
    baseline, others = (candidates[0], candidates[1:]) if candidates else (None, [])
    measured = [each for other in others if (each := _measured(other, baseline, clusters))] if baseline else []
    headroom = headroom_in(candidates, clusters) if tested else None
    if not measured and headroom is not None:  # all scores are equal
        measured = [_Measured(len({*sets["validation"].values()}), 0.0)]
    if not measured:
        raise RunDirError(
            f"{folder}: no program but the first was scored on {MIN_CLUSTERS} {unit} or more; let it tune further"
        )
    found = headroom.at_least if headroom is not None else 0.0
    return CompilePlan(
        folder=folder,
        gains=tuple(dict.fromkeys([*gains, *([round(found, 2)] if found else [])])),
        candidates=len(measured),
        references=max(each.references for each in measured),
        held_out=len({*sets.get("test", {}).values()}),
        spread=_root_mean_square([each.spread for each in measured]),
        noise=_root_mean_square([each.noise for each in measured]),
        samples=fmean(each.samples for each in measured),
        unit=unit,
        headroom=headroom,
        cost=None if spending.unpriced else _evaluation_cost(others),
    )


def _evaluation_cost(candidates: Sequence[Candidate]) -> float | None:
    """Dollars; None where nothing was paid."""
    scored = sum(len(scores) for candidate in candidates for scores in candidate.scores.values())
    return sum(candidate.cost for candidate in candidates) / PICO / max(1, scored) or None


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
