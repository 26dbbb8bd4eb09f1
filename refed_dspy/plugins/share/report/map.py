"""The map of instructions, on which similar texts lie near each other: points by t-SNE, and their chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refed_dspy.errors import one_line
from refed_dspy.measures.embedder import Embedder
from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import GREEN, PALETTE, RED, Axis, Dots
from refed_dspy.plugins.share.report.rows import Rows
from refed_dspy.text import counted

Points: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

LANDMARKS = 1_000
"""Texts that t-SNE places; each further text is placed between the three of them that are nearest to it."""
_MIN_TEXTS = 5
_WORD = re.compile(r"\w+")
_WIDTH = 50
"""Dimensions that vectors are reduced to before t-SNE, as its authors advise."""
_PERPLEXITY = 30
_MAX_NAMED = len(PALETTE)
"""References that are named in the legend. With more of them colours repeat, and the legend says so."""
_MANY = 1_000
"""Above this number points are drawn smaller."""
_NAME = 40
"""Characters of a reference's instruction that stand for it in the legend."""
_BY = {"words": "by the words they share", "meaning": "by meaning (all-MiniLM-L6-v2)"}
Colouring: TypeAlias = tuple[list[tuple[str, str]], list[int]]
"""(name and colour of each group, each row's place in PALETTE)."""


@dataclass(frozen=True)
class Map:
    """`points`: (n, 2), a row per text. `by`: what likeness goes by."""

    points: Points
    by: Literal["words", "meaning"]


def draw_map(texts: Sequence[str], seed: int = 0, embedder: Embedder | None = None) -> Map | None:
    """The texts' places. The same texts and seed give the same map on one machine. None where there are too few texts,
    or no word to compare them by.

    Similarity is that of sentence embeddings, or, without an `embedder`, of words (TF-IDF).
    """
    if len(set(texts)) < _MIN_TEXTS:
        return None
    landmarks = _landmarks(len(texts), seed)
    if embedder is not None:
        return Map(_places(_reduced(embedder.embed(texts), landmarks, seed), landmarks, seed), "meaning")
    if any(map(_WORD.search, texts)):
        return Map(_places(_reduced(_by_words(texts), landmarks, seed), landmarks, seed), "words")
    return None


def _landmarks(count: int, seed: int) -> Numbers:
    if count <= LANDMARKS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, LANDMARKS, replace=False))


def _by_words(texts: Sequence[str]) -> Any:
    """TF-IDF vectors of unit length: a sparse matrix, texts by words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, max_features=20_000, token_pattern=_WORD.pattern).fit_transform(texts)


def _reduced(vectors: Any, landmarks: Numbers, seed: int) -> Points:
    """Vectors of _WIDTH dimensions at most: those along which the landmarks vary most."""
    from sklearn.decomposition import TruncatedSVD

    width = min(_WIDTH, vectors.shape[1] - 1, len(landmarks) - 1)
    reduced: Points = (
        TruncatedSVD(max(1, width), n_iter=2, random_state=seed).fit(vectors[landmarks]).transform(vectors)
    )
    # Equal texts would have the very same place, and t-SNE divides by distances: a little noise keeps them apart.
    return reduced + np.random.default_rng(seed).normal(scale=1e-6, size=reduced.shape)


def _places(vectors: Points, landmarks: Numbers, seed: int) -> Points:
    """t-SNE of the landmarks (van der Maaten and Hinton, 2008); the other texts by their nearest landmarks."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import KNeighborsRegressor
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(landmarks) - 1) / 3)
    start = "pca" if vectors.shape[1] > 1 else "random"
    method = TSNE(2, init=start, perplexity=perplexity, max_iter=500, random_state=seed)
    # Its threads synchronise after each of thousands of small steps: on a busy machine they mostly wait for each other.
    with threadpool_limits(1):
        placed = method.fit_transform(vectors[landmarks])
    points: Points = np.empty((len(vectors), 2))
    points[landmarks] = placed
    rest = np.setdiff1d(np.arange(len(vectors)), landmarks)
    if rest.size:
        nearest = KNeighborsRegressor(3, weights="distance").fit(vectors[landmarks], placed)
        points[rest] = nearest.predict(vectors[rest])
    return points


def instruction_map(rows: Rows, map_: Map | None) -> Chart | None:
    """A chart of a point a row, in several colourings; None without a map."""
    if map_ is None:
        return None
    opened = len(set(rows.columns["reference"]))
    colourings = {
        "reference": _by_reference(rows, opened),
        "feature": _groups(rows.columns["feature"], rows.names["features"]),
    }
    if 0 in rows.columns["kept"]:
        colors = [GREEN if kept else RED for kept in rows.columns["kept"]]
        colourings["kept or dropped"] = ([("kept", PALETTE[GREEN]), ("dropped", PALETTE[RED])], colors)
    axes = [Axis("", float(values.min()), float(values.max())) for values in map_.points.T]
    places = [(axes[0].at(x), axes[1].at(y)) for x, y in map_.points]
    counts = [rows.columns["feature"].count(number) for number in range(len(rows.names["features"]))]
    table = [["references", f"{opened:,}"]]
    table += [
        [f"feature {name}", counted(count, "instruction")]
        for name, count in zip(rows.names["features"], counts, strict=True)
    ]
    near = f"Instructions that are similar {_BY[map_.by]} lie close together."
    of = f" of {len(rows) + rows.left_out:,} instructions" if rows.left_out else ""
    shown = f"{len(rows):,}{of}" if of else counted(len(rows), "instruction")
    text = f"{shown} from {counted(opened, 'reference')}. {near}"
    figure = Dots(places, colourings, small=len(rows) > _MANY)
    return Chart("map", f"Map of instructions, by {map_.by}", text, figure, ("what", "how many"), table, wide=True)


def _by_reference(rows: Rows, opened: int) -> Colouring:
    names = [one_line(reference["instruction"], _NAME) for reference in rows.names["references"]]
    legend, colors = _groups(rows.columns["reference"], names)
    return ([("each reference a colour; colours repeat", PALETTE[0])] if opened > _MAX_NAMED else legend), colors


def _groups(groups: Sequence[int], names: Sequence[str]) -> Colouring:
    colors = {group: place % len(PALETTE) for place, group in enumerate(sorted(set(groups)))}
    return [(names[group], PALETTE[color]) for group, color in colors.items()], [colors[group] for group in groups]
