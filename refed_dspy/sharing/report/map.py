"""The map of instructions, on which similar texts lie near each other: points by t-SNE, and their chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refed_dspy.errors import one_line
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.sharing.report.charts import PALETTE, Chart, Figure, plain
from refed_dspy.sharing.report.rows import Rows

Points: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

LANDMARKS = 1_000
"""Texts that t-SNE places; each further text is placed between the three of them that are nearest to it."""
_MIN_TEXTS = 5
_WORD = re.compile(r"\w+")
_WIDTH = 50
"""Dimensions that vectors are reduced to before t-SNE, as its authors advise."""
_PERPLEXITY = 30


@dataclass(frozen=True)
class Map:
    """`points`: (n, 2), a row per text. `by`: what similarity goes by."""

    points: Points
    by: str


def draw_map(texts: Sequence[str], seed: int = 0, embedder: Embedder | None = None) -> Map | None:
    """The texts' places. The same texts and seed give the same map on one machine. None where there are too few texts,
    or no word to compare them by.

    Similarity is that of sentence embeddings, or, without an `embedder`, of words (TF-IDF).
    """
    if len(set(texts)) < _MIN_TEXTS:
        return None
    landmarks = _landmarks(len(texts), seed)
    if embedder is not None:
        vectors, by = embedder.embed(texts), "by meaning (all-MiniLM-L6-v2)"
    elif any(map(_WORD.search, texts)):
        vectors, by = _by_words(texts), "by their words; by meaning after: refed teacher fetch embedder"
    else:
        return None
    return Map(_places(_reduced(vectors, landmarks, seed), landmarks, seed), by)


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


_MAX_NAMED = len(PALETTE)
"""References that are named in the legend. With more of them they form one entry, and colours repeat."""
_MANY = 1_000
"""Above this number points are drawn smaller."""
_NAME = 40
"""Characters of a reference's instruction that stand for it in the legend."""
_BLANK = {"showticklabels": False, "zeroline": False, "showgrid": False}


def instruction_map(rows: Rows, map_: Map | None) -> Chart | None:
    """A chart with one set of traces per colouring, over the same points; None without a map.

    `layout.meta.colourings` lists each set's label and traces. A point's `customdata` is its row.
    """
    if map_ is None:
        return None
    sets = {"reference": _by_reference(rows, map_.points)}
    sets["feature"] = _groups(map_.points, rows.columns["feature"], rows.names["features"])
    if 0 in rows.columns["kept"]:
        sets["kept or dropped"] = _groups(map_.points, rows.columns["kept"], ("dropped", "kept"))
    traces: list[Figure] = []
    colourings = []
    for label, added in sets.items():
        colourings.append({"label": label, "traces": list(range(len(traces), len(traces) + len(added)))})
        traces += added if label == "reference" else [{**trace, "visible": False} for trace in added]
    layout = {
        "xaxis": _BLANK, "yaxis": _BLANK, "hovermode": "closest", "height": 560, "meta": {"colourings": colourings},
    }  # fmt: skip
    opened = len(set(rows.columns["reference"]))
    table = [["references", f"{opened:,}"]]
    counts = [rows.columns["feature"].count(number) for number in range(len(rows.names["features"]))]
    table += [
        [f"feature {name}", f"{count:,} instructions"]
        for name, count in zip(rows.names["features"], counts, strict=True)
    ]
    text = (
        f"{len(rows):,} instructions from {opened:,} references; those that ask for like things lie near each other, "
        f"{map_.by}."
    )
    figure = {"data": traces, "layout": layout}
    return Chart("map", "Map of instructions", text, figure, ("what", "how many"), table, wide=True)


def _by_reference(rows: Rows, points: Points) -> list[Figure]:
    references = rows.columns["reference"]
    if len(set(references)) > _MAX_NAMED:
        colors = [PALETTE[reference % len(PALETTE)] for reference in references]
        return [_points(points, range(len(references)), "references", colors)]
    names = [one_line(reference["instruction"], _NAME) for reference in rows.names["references"]]
    return _groups(points, references, names)


def _groups(points: Points, groups: Sequence[int], names: Sequence[str]) -> list[Figure]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [
        _points(points, members[group], names[group], PALETTE[number % len(PALETTE)])
        for number, group in enumerate(sorted(members))
    ]


def _points(points: Points, which: Sequence[int], name: str, color: Any) -> Figure:
    places = points[list(which)].round(2)
    size = 5 if len(points) > _MANY else 8
    return {
        "type": "scatter", "mode": "markers", "name": plain(name), "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(), "customdata": list(which), "hoverinfo": "none",
        "marker": {"color": color, "size": size, "opacity": 0.75},
    }  # fmt: skip
