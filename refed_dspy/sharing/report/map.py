"""A map of instructions: texts that ask for like things lie near each other."""

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


def _landmarks(count: int, seed: int) -> Numbers:
    if count <= LANDMARKS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, LANDMARKS, replace=False))


def _by_words(texts: Sequence[str]) -> Any:
    """A sparse table of unit length: texts by words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, max_features=20_000, token_pattern=_WORD.pattern).fit_transform(texts)


def _narrowed(vectors: Any, drawn: Numbers, seed: int) -> Points:
    """Along the directions in which the landmarks differ most."""
    from sklearn.decomposition import TruncatedSVD

    width = min(_WIDTH, vectors.shape[1] - 1, len(drawn) - 1)
    narrow: Points = TruncatedSVD(max(1, width), n_iter=2, random_state=seed).fit(vectors[drawn]).transform(vectors)
    # Equal texts would share a place to the last digit, and t-SNE divides by distances: a whisper keeps them apart.
    return narrow + np.random.default_rng(seed).normal(scale=1e-6, size=narrow.shape)


def _places(vectors: Points, drawn: Numbers, seed: int) -> Points:
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


_MOST_NAMED = len(PALETTE)
"""References that get a name in the legend. With more of them colours repeat, and only their neighbourhood tells."""
_MANY = 1_000
"""Points from which on they are small."""
_NAME = 40
"""Characters of a reference's instruction that stand for it in the legend."""
_BLANK = {"showticklabels": False, "zeroline": False, "showgrid": False}


def instruction_map(rows: Rows, found: Map) -> Chart | None:
    """Sets of traces over the same points, `layout.meta.colourings` says which is which; None without points.

    A point's `customdata` is its row.
    """
    if found.points is None:
        return None
    sets = {"reference": _by_reference(rows, found.points)}
    sets["feature"] = _groups(found.points, rows.columns["feature"], rows.names["features"])
    if 0 in rows.columns["kept"]:
        sets["kept or dropped"] = _groups(found.points, rows.columns["kept"], ("dropped", "kept"))
    traces: list[Figure] = []
    colourings = []
    for label, own in sets.items():
        colourings.append({"label": label, "traces": list(range(len(traces), len(traces) + len(own)))})
        traces += own if label == "reference" else [{**trace, "visible": False} for trace in own]
    layout = {
        "xaxis": _BLANK, "yaxis": _BLANK, "hovermode": "closest", "height": 560, "meta": {"colourings": colourings},
    }  # fmt: skip
    opened = len(set(rows.columns["reference"]))
    told = [["references", f"{opened:,}"]]
    counts = [rows.columns["feature"].count(number) for number in range(len(rows.names["features"]))]
    told += [[f"feature {name}", f"{n:,} instructions"] for name, n in zip(rows.names["features"], counts, strict=True)]
    text = (
        f"{len(rows):,} instructions from {opened:,} references; those that ask for like things lie near each other, "
        f"{found.by}."
    )
    figure = {"data": traces, "layout": layout}
    return Chart("map", "Map of instructions", text, figure, ("what", "how many"), told, wide=True)


def _by_reference(rows: Rows, points: Points) -> list[Figure]:
    references = rows.columns["reference"]
    if len(set(references)) > _MOST_NAMED:
        colors = [PALETTE[one % len(PALETTE)] for one in references]
        return [_points(points, range(len(references)), "references", colors)]
    return _groups(points, references, [one_line(one["instruction"], _NAME) for one in rows.names["references"]])


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
