"""A map of instructions: texts that ask for like things lie near each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refed_dspy.measures.embedder import Embedder

Points: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]

LANDMARKS = 1_000
"""Texts whose places are found by t-SNE; each further one lies among the three that it is most like."""
_FEWEST = 5
_WORD = re.compile(r"\w+")
_WIDTH = 50
"""Numbers that a vector is cut to first, as the method's authors advise."""
_PERPLEXITY = 30


@dataclass(frozen=True)
class Map:
    """`points`: (n, 2), one a text, or None where there is nothing to draw. `by` says what likeness was measured by."""

    points: Points | None
    by: str


def draw_map(texts: Sequence[str], seed: int = 0, embedder: Embedder | None = None) -> Map:
    """Where each text lies. The same texts and seed give the same map on one machine.

    Likeness is that of sentence embeddings, or without an `embedder` of words (TF-IDF).
    """
    if len(set(texts)) < _FEWEST:
        return Map(None, "too few instructions for a map")
    drawn = _landmarks(len(texts), seed)
    if embedder is not None:
        vectors, by = embedder.embed(texts), "by meaning (all-MiniLM-L6-v2)"
    elif any(map(_WORD.search, texts)):
        vectors, by = _by_words(texts), "by their words; by meaning after: refed teacher fetch embedder"
    else:
        return Map(None, "no instruction has a word in it")
    return Map(_places(_narrowed(vectors, drawn, seed), drawn, seed), by)


def _landmarks(count: int, seed: int) -> Rows:
    if count <= LANDMARKS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, LANDMARKS, replace=False))


def _by_words(texts: Sequence[str]) -> Any:
    """A sparse table of unit length: texts by words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, max_features=20_000, token_pattern=_WORD.pattern).fit_transform(texts)


def _narrowed(vectors: Any, drawn: Rows, seed: int) -> Points:
    """Along the directions in which the landmarks differ most."""
    from sklearn.decomposition import TruncatedSVD

    width = min(_WIDTH, vectors.shape[1] - 1, len(drawn) - 1)
    narrow: Points = TruncatedSVD(max(1, width), n_iter=2, random_state=seed).fit(vectors[drawn]).transform(vectors)
    # Equal texts would share a place to the last digit, and t-SNE divides by distances: a whisper keeps them apart.
    return narrow + np.random.default_rng(seed).normal(scale=1e-6, size=narrow.shape)


def _places(vectors: Points, drawn: Rows, seed: int) -> Points:
    """t-SNE of the landmarks (van der Maaten and Hinton, 2008), the others among those they are most like."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import KNeighborsRegressor
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(drawn) - 1) / 3)
    start = "pca" if vectors.shape[1] > 1 else "random"
    method = TSNE(2, init=start, perplexity=perplexity, max_iter=500, random_state=seed)
    # Its threads meet after each of thousands of small steps: beside other work they wait for one another all the time.
    with threadpool_limits(1):
        found = method.fit_transform(vectors[drawn])
    points: Points = np.empty((len(vectors), 2))
    points[drawn] = found
    rest = np.setdiff1d(np.arange(len(vectors)), drawn)
    if rest.size:
        points[rest] = KNeighborsRegressor(3, weights="distance").fit(vectors[drawn], found).predict(vectors[rest])
    return points
