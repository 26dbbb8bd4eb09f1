"""Measures by sentence embeddings: whether answers fit their instructions, and how diverse a data set is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refed_dspy.errors import ConfigError
from refed_dspy.metrics.embedder import Embeds, Vectors

NEIGHBOURS = 2_000
"""Rows that `nearest_distance` compares with each other: 16 MB of cosines."""


def coherence(embedder: Embeds, instructions: Sequence[str], responses: Sequence[str]) -> list[float | None]:
    """The cosine in [-1, 1] of each instruction with its response, by sentence embeddings (Reflection-Tuning, Li et
    al., arXiv 2310.11716). None where either of the two is blank.

    Raises ConfigError where there are not as many instructions as responses.
    """
    if len(instructions) != len(responses):
        raise ConfigError(f"{len(instructions)} instructions and {len(responses)} responses must be equal in number")
    pairs = zip(instructions, responses, strict=True)
    whole = [bool(instruction.strip() and response.strip()) for instruction, response in pairs]
    asked = embedder.embed([text for text, both in zip(instructions, whole, strict=True) if both])
    answered = embedder.embed([text for text, both in zip(responses, whole, strict=True) if both])
    cosines = iter(np.clip(np.einsum("nh,nh->n", asked, answered), -1, 1).tolist())
    return [next(cosines) if both else None for both in whole]


def semantic_diversity(vectors: Vectors) -> float | None:
    """The mean cosine distance over all pairs of different rows, from 0 (all the same) to a little above 1; None for
    fewer than two rows.

    `vectors`: unit length, (n, width). Exact, in one pass: with s the sum of the n vectors, |s|² is the sum of all
    n² cosines, so the mean distance is 1 - (|s|² - Σ|v|²) / (n (n - 1)).
    """
    count = len(vectors)
    if count < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = float(np.einsum("nh,nh->n", vectors, vectors).sum(dtype=np.float64))
    return 1 - (float(total @ total) - squares) / (count * (count - 1))


def nearest_distance(vectors: Vectors, *, seed: int = 0) -> float | None:
    """The mean cosine distance of a row to the row nearest to it; None for fewer than two rows.

    It shows what the mean over all pairs hides: a data set of many tight clusters, far from each other, is diverse by
    that mean and close to 0 here. Among more rows the nearest is nearer, so at most `NEIGHBOURS` rows, drawn by `seed`,
    are compared with each other: data sets of at least that many rows are comparable, smaller ones only with those of
    their size.
    """
    if len(vectors) < 2:
        return None
    drawn = vectors
    if len(vectors) > NEIGHBOURS:
        drawn = vectors[np.random.default_rng(seed).choice(len(vectors), NEIGHBOURS, replace=False)]
    cosines: NDArray[np.float32] = drawn @ drawn.T
    np.fill_diagonal(cosines, -2)
    return max(0.0, float(1 - cosines.max(axis=1).mean(dtype=np.float64)))
