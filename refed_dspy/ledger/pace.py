"""The time left: how long work will still take, from the moments at which its samples came, and how that is said."""

from __future__ import annotations

from collections.abc import Sequence

LEAST, FEW = 10, 5
"""Samples in the window from which the pace is read; and calls, where there are fewer samples."""


def seconds_left(moments: Sequence[float], now: float, missing: int, in_flight: int) -> float | None:
    """Seconds until `missing` more samples are there, or None while too few came to tell.

    The pace is that of the last half of the samples that came at `moments`, until `now`. The first half holds what
    comes once: the models' start, the climb to full concurrency, feedback on the first references. The first samples
    come in bursts, so the window must hold as many as there are calls in flight.
    """
    window = len(moments) // 2
    if window < max(LEAST, in_flight):
        return None
    return max(0.0, now - moments[-window - 1]) / window * missing


def seconds_left_by_calls(seconds: float, calls: int, expected: int, in_flight: int) -> float | None:
    """The same from how many calls were answered in so many `seconds`, of how many that are `expected`: rougher, since
    the calls of one stage take longer than another's, but known from the first samples on."""
    if calls < max(FEW, in_flight) or expected <= calls:
        return None
    return seconds / calls * (expected - calls)


def time_left(seconds: float) -> str:
    """`seconds_left` for people."""
    return "a few seconds left" if seconds < 7.5 else f"about {span(seconds)} left"


def span(seconds: float) -> str:
    """A length of time, rounded to what is known of one."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{5 * round(minutes / 5) if minutes > 20 else round(minutes)} min"
    return f"{minutes / 60:.0f} h" if minutes > 600 else f"{minutes / 60:.1f} h"
