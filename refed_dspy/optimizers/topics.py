"""Topics of the held-out references: what a program gains on one recipe it tends to gain on another, so references of
one topic are no independent witnesses.

Each instruction's embedding, less the mean of all n instructions', is clustered by average linkage; two topics are one
where the mean cosine between them is above `ALIKE` - 1 / (n - 1), the last being what strangers have once their mean is
taken away. Measured with 48 instructions on 12 subjects written for it
(`benchmarks/topics.py`) and 175 of Self-Instruct's seed tasks: fifteen instructions on five subjects are found to have
7 topics, sixteen seed tasks drawn at random 12. A bound of 0.225 misses much of what belongs together (9 topics of 5),
one of 0.125 takes strangers for relatives (10 topics of 16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refed_dspy.errors import ConfigError
from refed_dspy.metrics.embedder import Embedder, Vectors
from refed_dspy.optimizers.examples import Split, instruction_of

ALIKE = 0.175


def find_topics(split: Split) -> Mapping[str, str] | None:
    """Cluster → the topic of a held-out cluster, named after one of its clusters. None where topics cannot be told: the
    embedding model is not downloaded, or the examples have no instruction."""
    texts = {name: text for name, text in map(instruction_of, (*split.train, *split.validation, *split.test)) if text}
    held_out = sorted({name for name, _ in map(instruction_of, split.test)})
    if len(held_out) < 2 or not all(name in texts for name in held_out):
        return None
    try:
        embedder = Embedder.open()
    except ConfigError:
        return None
    vectors = embedder.embed(list(texts.values()))
    vectors = vectors - vectors.mean(axis=0)
    rows = [list(texts).index(name) for name in held_out]
    return dict(zip(held_out, topics_of(vectors[rows], held_out, ALIKE - 1 / (len(texts) - 1)), strict=True))


def topics_of(vectors: Vectors, names: Sequence[str], alike: float) -> list[str]:
    """The topic of each row of `vectors`, named after the first of `names` that it has: those whose cosine is above
    `alike` on average are of one topic."""
    from scipy.cluster.hierarchy import fcluster, linkage

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1)  # the mean itself is nobody's relative
    apart = 1 - (units @ units.T)[np.triu_indices(len(units), 1)]
    topics = fcluster(linkage(np.maximum(apart, 0), method="average"), 1 - alike, criterion="distance").tolist()
    return [names[topics.index(topic)] for topic in topics]
