"""The estimate before a run: a few references are run for real, and the whole run is forecast from them.

Nothing of it is wasted: the pilot works in the run's own folder, and the run goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.teacher import SIMULATED
from refed_dspy.errors import RunStopped, briefly
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import CAPPED
from refed_dspy.programs.load import ProgramLike
from refed_dspy.records import money
from refed_dspy.runs.forecast import CONFIDENCE, Forecast, forecast
from refed_dspy.runs.spec import RunSpec, of_all, prepare, run_keywords
from refed_dspy.runs.stage_weights import StageWeights
from refed_dspy.runs.synthesize import produce
from refed_dspy.teachers import TeacherLike
from refed_dspy.teachers.by_stage import ANY, TeachersByStage
from refed_dspy.teachers.prices import table_name, table_price
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import Shown, counted

if TYPE_CHECKING:
    from refed_dspy.keywords import RunKeywords

PILOT_REFERENCES = 5
PILOT_SAMPLES = 3
"""Samples of each: five references and 45 calls predict a run of thousands to within about a tenth."""
FEWER = 0.9
"""Where fewer references would take less than this share of the calls, the estimate says so."""
ENOUGH_REFERENCES = 3
"""With samples of so many references, or of all there are, a run's folder is read and nothing is sent."""
OTHERS = (
    "openai/gpt-4o-mini",
    "openai/gpt-4.1-mini",
    "openai/gpt-5-mini",
    "openai/gpt-4o",
    "anthropic/claude-haiku-4-5",
    "anthropic/claude-sonnet-4-5",
    "gemini/gemini-2.5-flash",
    "deepseek/deepseek-chat",
)
"""Other teachers that the estimate prices too; those that the price table does not have are left out."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Estimate(Shown, Forecast):
    """What a run will take: its `calls`, its tokens, and its `cost` in dollars, with `CONFIDENCE` between `low` and
    `high` (None: unknown), of which `spent` is paid already."""

    run_dir: Path
    minutes: float | None
    """Still to wait, with as many calls in flight as the teacher's settings allow; None: in batches, whose time cannot
    be predicted."""
    price_source: str | None
    used: str = ""
    """From how many of the references the samples come, in words."""
    fewest_calls: int = 0
    """About how many calls it would take with `most_of_each` samples of a reference before the next one is used."""
    most_of_each: int = 0
    others: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Another teacher → cost, low and high for as many tokens. None for the simulated teacher's: its texts are
    shorter."""
    stopped: str | None = None
    """Where a cap ended the pilot: which, and what it would take."""

    def _describe(self) -> str:
        cost = "price unknown" if self.cost is None else f"about {money(self.cost)}"
        return f"{counted(self.size, 'sample')}, {cost}, {_time_text(self.minutes)}"

    def lines(self) -> list[str]:
        """The estimate for people."""
        lines = [
            f"{counted(self.size, 'sample')} from {self.used}: about {self.calls:,} calls, "
            f"{self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written, {_time_text(self.minutes)}",
            _price_line(self, self.price_source),
        ]
        if self.fewest_calls < FEWER * self.calls:
            few = f"with per_reference: {self.most_of_each}, from fewer references"
            lines.append(f"{few}: about {self.fewest_calls:,} calls")
        if self.stopped:
            lines.append("the pilot stopped: " + self.stopped)
        if self.others:
            lines.append(
                f"the same number of tokens elsewhere (prices of {table_name()}; other models may write more or less):"
            )
            lines += [
                f"  {name:30} {money(cost):>10}  ({money(low)} to {money(high)})"
                for name, (cost, low, high) in sorted(self.others.items(), key=lambda item: item[1][0])
            ]
        return lines


@briefly
@run_keywords
def estimate(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunKeywords],
) -> Estimate:
    """What `synthesize` with the same arguments would take: calls, tokens, dollars, minutes, with an interval.

    Where the run's folder holds samples of a few references already, they are read and nothing is sent. Otherwise a few
    are made there, under the same caps: `synthesize` continues from them.

    Raises:
        InputError: as `synthesize`.
        RunStopped: too few samples could be made for a forecast.
    """
    # Outside the loop, where Ctrl-C ends what blocks.
    spec = prepare(program, references, teacher, teachers, judge, **settings)
    return run_blocking(_estimated(spec, Watch(on_progress, progress)))


@run_keywords
async def aestimate(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunKeywords],
) -> Estimate:
    """`estimate`, for code that runs in an event loop."""
    spec = prepare(program, references, teacher, teachers, judge, **settings)
    return await _estimated(spec, Watch(on_progress, progress))


async def _estimated(spec: RunSpec, watch: Watch[Progress]) -> Estimate:
    spec, folder = spec.as_begun(), spec.folder
    stopped, prediction = None, _forecast_from(spec)
    if prediction is None:
        each = spec.config.per_reference or max(1, spec.size // len(spec.references))  # no more than any one's share
        pilot = replace(
            spec.plan_settings(min(spec.size, PILOT_REFERENCES * PILOT_SAMPLES)), per_reference=min(PILOT_SAMPLES, each)
        )
        made = await produce(spec, watch, pilot)
        prediction = _forecast_from(spec)
        stopped = made.reason if made.state == CAPPED else None
        if prediction is None and stopped is not None:
            raise RunStopped(stopped)
    if prediction is None:
        raise RunStopped(f"{folder}: too few samples to make a forecast; see: refed status {folder}")
    plan = spec.plan_settings(spec.size)
    prices = {} if spec.by_stage.asks(SIMULATED) else {name: table_price(name) for name in OTHERS}
    return Estimate(
        **vars(prediction),
        run_dir=folder,
        used=of_all(plan.to_come().used, len(spec.references)),
        most_of_each=plan.most,
        fewest_calls=spec.calls_of(replace(plan, per_reference=plan.most).to_come()),
        minutes=None if spec.in_batches else _minutes_to_wait(prediction, spec.by_stage),
        stopped=stopped,
        price_source=spec.by_stage.price_source,
        others={
            name: prediction.at(price.rates)
            for name, price in prices.items()
            if price is not None and (spec.by_stage.several or name != spec.by_stage.first.model)
        },
    )


def _forecast_from(spec: RunSpec) -> Forecast | None:
    """The forecast from what the run's folder holds, if that is enough to base one on. Raises RunDirError for another
    run's folder."""
    folder, size = spec.folder, spec.size
    if not (folder / "ledger.sqlite").is_file():
        return None
    with Ledger.read(folder) as ledger:
        if not ledger.has_answers():
            return None
        spec.work().refuse_another(ledger)
        prediction = forecast(ledger, size, spec.config.per_reference, StageWeights.read(ledger, spec.settings()))
    enough = min(ENOUGH_REFERENCES, len(spec.references), -(-size // PILOT_SAMPLES))
    return prediction if prediction is not None and prediction.references >= enough else None


def _minutes_to_wait(prediction: Forecast, by_stage: TeachersByStage) -> float:
    """Minutes, from the seconds that calls take and from the rate limits of the teachers that share the work."""
    waits = [prediction.seconds / by_stage.slots / 60]
    pool = by_stage.pool(ANY)
    total_weight = sum(share.weight for share in pool)
    for share in pool:
        config, fraction = share.teacher.config, share.weight / total_weight
        if config is not None and config.requests_per_minute:
            waits.append(fraction * prediction.calls_to_come / config.requests_per_minute)
        if config is not None and config.tokens_per_minute:  # endpoints count the tokens that a call may write
            prompt_tokens, _, _ = prediction.tokens_to_come
            tokens = prompt_tokens + prediction.calls_to_come * config.max_tokens
            waits.append(fraction * tokens / config.tokens_per_minute)
    return max(waits)


def _time_text(minutes: float | None) -> str:
    if minutes is None:
        return "up to a day per round of batches"
    if minutes < 1.5:
        return f"about {max(1, round(minutes * 60))} s"
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


def _price_line(prediction: Forecast, source: str | None) -> str:
    if prediction.cost is None or prediction.low is None or prediction.high is None:
        return (
            "dollars: unknown; set the teacher's price, and the judge's ({prompt: …, completion: …} in dollars per "
            "million tokens)"
        )
    low, high = money(prediction.low), money(prediction.high)
    return (
        f"dollars: {money(prediction.cost)} in all, {CONFIDENCE:.0%} between {low} and {high}; "
        f"{money(prediction.spent)} already spent (prices of {source})"
    )
