"""The price before it is paid: a few references run for real, then the whole run foreseen from them.

Nothing of it is wasted: it happens in the run's own folder, and the run goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import dollars
from refed_dspy.runs.forecast import CONFIDENCE, Forecast, forecast
from refed_dspy.runs.spec import RunSpec, check_same
from refed_dspy.runs.synthesize import SIZE, ProgramLike, RunSettings, prepare, produce
from refed_dspy.teachers.by_stage import ANY, TeachersByStage
from refed_dspy.teachers.prices import table_name, table_price

PILOT_REFERENCES = 5
PILOT_SAMPLES = 3
"""Samples of each: five references and 45 calls tell a run of thousands to about a tenth."""
ENOUGH_REFERENCES = 3
"""With samples of so many, or of all there are, a run's folder is read and nothing is sent."""
OTHERS = (
    *("openai/gpt-4o-mini", "openai/gpt-4.1-mini", "openai/gpt-5-mini", "openai/gpt-4o", "anthropic/claude-haiku-4-5"),
    *("anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "deepseek/deepseek-chat"),
)
"""Teachers of the price table that an estimate is also made for, as many as the table has."""


@dataclass(frozen=True)
class Estimate:
    """What a run will come to. Money in picodollars."""

    run_dir: Path
    forecast: Forecast
    minutes: float | None
    """Still to wait, with as many calls in flight as the teacher's settings allow; None: in batches, which take what
    they take."""
    price_source: str | None
    others: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Another teacher → cost, low and high for as many tokens."""
    stopped: str | None = None
    """Where a cap ended the pilot: which, and what it would take."""

    def lines(self) -> list[str]:
        """The estimate for people."""
        told = self.forecast
        lines = [
            f"{told.size} samples: about {told.calls:,} calls, {told.prompt_tokens:,} tokens read, "
            f"{told.completion_tokens:,} written, {_minutes(self.minutes)}",
            _price_line(told, self.price_source),
        ]
        if self.stopped:
            lines.append(f"the pilot stopped: {self.stopped}")
        if self.others:
            lines.append(f"as many tokens elsewhere (prices of {table_name()}; other models write more or less):")
            lines += [
                f"  {name:30} {dollars(cost):>10}  ({dollars(low)} to {dollars(high)})"
                for name, (cost, low, high) in sorted(self.others.items(), key=lambda item: item[1][0])
            ]
        return lines


def estimate(program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]) -> Estimate:
    """What `synthesize` with the same arguments would take: calls, tokens, dollars, minutes, with an interval.

    Where the run's folder holds samples of a few references already, they are read and nothing is sent. Otherwise a few
    are made there, under the same caps: `synthesize` goes on from them.

    Raises:
        InputError: as `synthesize`.
        RunStopped: too little could be made to foresee anything.
    """
    return run_blocking(aestimate(program, references, **settings))


async def aestimate(
    program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]
) -> Estimate:
    """`estimate`, for code that runs in an event loop."""
    size = settings.get("size", SIZE)
    parts, folder = prepare(program, references, **settings)
    stopped, found = None, _read(folder, parts, size)
    if found is None:
        shallow = min(PILOT_SAMPLES, parts.per_reference or PILOT_SAMPLES)
        pilot = replace(parts.plan_settings(min(size, PILOT_REFERENCES * PILOT_SAMPLES)), per_reference=shallow)
        made = await produce(parts, folder, size, settings.get("on_progress"), pilot)
        stopped, found = made.stopped, _read(folder, parts, size)
        if found is None and stopped is not None:
            raise RunStopped(stopped)
    if found is None:
        raise RunStopped(f"{folder}: too few samples could be made to foresee anything; look at: refed status {folder}")
    prices = {name: table_price(name) for name in OTHERS}
    return Estimate(
        run_dir=folder,
        forecast=found,
        minutes=None if parts.in_batches else _wait(found, parts.by_stage),
        stopped=stopped,
        price_source=parts.by_stage.price_source,
        others={
            name: found.at(price.rates)
            for name, price in prices.items()
            if price is not None and (parts.by_stage.several or name != parts.teacher.model)
        },
    )


def _read(folder: Path, parts: RunSpec, size: int) -> Forecast | None:
    """The forecast from what the folder holds, if that is enough to stand on. Raises RunDirError for another run's."""
    if not (folder / "ledger.sqlite").is_file():
        return None
    rates = parts.teacher.price.rates if parts.teacher.price else None
    with Ledger.read(folder) as ledger:
        if not ledger.has_answers():
            return None
        check_same(ledger, parts)
        judge = parts.judge.price.rates if parts.judge and parts.judge.price else None
        found = forecast(ledger, size, parts.per_reference, rates, parts.by_stage.facts(), judge)
    enough = min(ENOUGH_REFERENCES, len(parts.references), -(-size // PILOT_SAMPLES))
    return found if found is not None and found.references >= enough else None


def _wait(found: Forecast, by_stage: TeachersByStage) -> float:
    """Minutes, from the seconds that calls take and from the limits that are set for those that share the work."""
    waits = [found.seconds / by_stage.slots / 60]
    pool = by_stage.pool(ANY)
    for share in pool:
        config, part = share.teacher.config, share.weight / sum(one.weight for one in pool)
        if config is not None and config.requests_per_minute:
            waits.append(part * found.calls_to_come / config.requests_per_minute)
        if config is not None and config.tokens_per_minute:  # endpoints count the tokens that a call may write
            tokens = found.tokens_to_come[0] + found.calls_to_come * config.max_tokens
            waits.append(part * tokens / config.tokens_per_minute)
    return max(waits)


def _minutes(minutes: float | None) -> str:
    if minutes is None:
        return "within a day a wave of batches"
    if minutes < 1.5:
        return f"{max(1, round(minutes * 60))} s to wait"
    return f"{minutes:.0f} min to wait" if minutes < 90 else f"{minutes / 60:.1f} h to wait"


def _price_line(told: Forecast, source: str | None) -> str:
    if told.cost is None or told.low is None or told.high is None:
        return (
            "dollars: unknown; set the teacher's price, and a judge's ({prompt: …, completion: …} in dollars a million "
            "tokens)"
        )
    return (
        f"dollars: {dollars(told.cost)} in all, {CONFIDENCE:.0%} between {dollars(told.low)} and {dollars(told.high)}; "
        f"{dollars(told.spent)} of it spent already (prices of {source})"
    )
