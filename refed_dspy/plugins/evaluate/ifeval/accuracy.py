"""Accuracies of IFEval: the share of prompts all of whose instructions were followed, and of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refed_dspy.metrics.intervals import Interval, mean_interval

Followed = Sequence[Sequence[bool]]
"""For each prompt, whether each of its instructions was followed."""


FIGURES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
"""The benchmark's four figures, in its order: the names of an `Accuracy`'s."""


@dataclass(frozen=True)
class Accuracy:
    """An arm's accuracies in percent, with 95% intervals over prompts: instructions of one prompt are alike."""

    arm: str
    prompt_strict: Interval
    instruction_strict: Interval
    prompt_loose: Interval
    instruction_loose: Interval


def accuracy(arm: str, strict: Followed, loose: Followed) -> Accuracy:
    """The four figures of the benchmark. Raises ValueError without a prompt."""
    return Accuracy(arm, by_prompt(strict), by_instruction(strict), by_prompt(loose), by_instruction(loose))


def by_prompt(followed: Followed) -> Interval:
    """The share of prompts with all instructions followed."""
    return _bounded(mean_interval([100.0 * all(each) for each in followed]))


def by_instruction(followed: Followed) -> Interval:
    """The share of instructions that were followed. The interval is that of the ratio of two means over prompts, to
    first order: of share + (followed - share * asked) / mean asked, whose mean is the share."""
    asked = sum(map(len, followed))
    share, mean = 100 * sum(map(sum, followed)) / asked, asked / len(followed)
    interval = mean_interval([share + (100 * sum(each) - share * len(each)) / mean for each in followed])
    return _bounded(Interval(share, interval.low, interval.high, asked, interval.clusters))


def _bounded(interval: Interval) -> Interval:
    low, high = max(0.0, interval.low), min(100.0, interval.high)
    return Interval(interval.mean, low, high, interval.n, interval.clusters)
