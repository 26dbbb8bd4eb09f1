"""Cheap figures of answers that a trained judge weighs beside what its model said: length, Markdown, likeness."""

from __future__ import annotations

import math
import re

_MARKDOWN = {
    "list_items": re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "headings": re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_COMPARED = 20_000
LENGTH = ("length", "longer")
"""The figures of a comparison that say which answer is longer."""
VERDICT = ("preference", "winner", "preference_where_orders_disagree", "preference_by_likeness")
"""Those that say what the judge answered."""
PERPLEXITY = "log_perplexity"
"""The figure that takes a model to compute; NaN where it is not known."""


def of_pair(
    in_orders: tuple[int, int],
    answer_a: str,
    answer_b: str,
    nats_a: float | None = None,
    nats_b: float | None = None,
) -> dict[str, float]:
    """The figures of a comparison; exchanging the answers turns every sign, and changes nothing else.

    `in_orders`: as in a `Verdict`. `nats_a`, `nats_b`: the mean negative log-likelihood of each answer's tokens, None
    where it is not known.

    `preference` and `winner` are the means over both orders of what the judge preferred, with and without its strength.
    They come a second time where the orders disagree, and weighted by how alike the answers are, since the judge may
    deserve less trust there. All others are differences, A less B: those of length and counts between logarithms.
    """
    first, second = in_orders
    preference, winner = (first + second) / 2, (_sign(first) + _sign(second)) / 2
    a, b = of_text(answer_a), of_text(answer_b)
    longer = a["length"] - b["length"]
    marked = {name: a[name] - b[name] for name in _MARKDOWN}
    return {
        "preference": preference,
        "winner": winner,
        "preference_where_orders_disagree": preference if _sign(first) != _sign(second) else 0.0,
        "preference_by_likeness": preference * likeness(answer_a, answer_b),
        "length": longer,
        "longer": math.tanh(longer),
        **marked,
        "markdown": float(_sign(math.fsum(marked.values()))),
        PERPLEXITY: math.nan if nats_a is None or nats_b is None else nats_a - nats_b,
    }


def of_grading(grade: int, text: str, context: str, nats: float | None = None) -> dict[str, float]:
    """The figures of one text that a judge gave `grade`. `nats`: as for a pair."""
    return {
        "grade": float(grade),
        **of_text(text),
        "likeness": likeness(text, context),
        PERPLEXITY: math.nan if nats is None else nats,
    }


def of_text(text: str) -> dict[str, float]:
    """Logarithms of one more than the characters, list items, headings and bold passages of `text`."""
    counts = {name: math.log1p(len(pattern.findall(text))) for name, pattern in _MARKDOWN.items()}
    return {"length": math.log1p(len(text)), **counts}


def likeness(one: str, other: str) -> float:
    """The share of words, in order, that two texts have in common: ROUGE-L's F-measure, 0 to 1. Of longer texts the
    first 20,000 words are compared: the time grows with the product of both lengths."""
    from rapidfuzz.distance import Indel

    words = (text.lower().split()[:_COMPARED] for text in (one, other))
    return float(Indel.normalized_similarity(*words))


def _sign(preference: float) -> int:
    return (preference > 0) - (preference < 0)
