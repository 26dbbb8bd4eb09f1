"""How well references of one topic are found, and what that does to promotions (`find_topics`).

`python -m benchmarks.topics`: needs the embedding model (`refed teacher fetch embedder`). References: 48 instructions
on 12 subjects, four each, written for this; and the 32 built-in references, which are on 32 subjects. A comparison has
three references of each subject; a subject's effect has an sd of 0.12, a reference's 0.10. It is promoted by the rule
(`gain_interval`), clustered by reference, by the topics that are found, or by the true subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refed_dspy import load_references
from refed_dspy.measures.embedder import Embedder, Vectors
from refed_dspy.measures.intervals import gain_interval, is_gain
from refed_dspy.optimizers.proof import ALIKE, topics_of

SUBJECTS = Path(__file__).with_name("topics.txt")
COMPARISONS, OTHERS = 1_000, 24
GAIN, OF_SUBJECT, OF_REFERENCE = 0.15, 0.12, 0.10


class Texts:
    """Instructions with their subjects, and how alike they are."""

    def __init__(self, instructions: Sequence[str], subjects: Sequence[str]) -> None:
        self.subjects = np.array(subjects)
        self.vectors: Vectors = Embedder.open().embed(instructions)

    def drawn(self, rng: np.random.Generator, references: int, each: int) -> np.ndarray:
        """The places of so many references, so many of each subject."""
        names = rng.permutation(np.unique(self.subjects))
        places = [rng.permutation(np.flatnonzero(self.subjects == name))[:each] for name in names]
        return np.concatenate(places)[:references]

    def topics(self, rng: np.random.Generator, places: np.ndarray) -> list[str]:
        """The topics that are found, where a compile has these references for its test and others besides."""
        others = rng.permutation(np.setdiff1d(np.arange(len(self.subjects)), places))[:OTHERS]
        centre = self.vectors[np.concatenate([places, others])].mean(axis=0)
        bound = ALIKE - 1 / (len(places) + len(others) - 1)
        return topics_of(self.vectors[places] - centre, [str(place) for place in places], bound)

    def promotions(self, references: int, each: int, gain: float) -> dict[str, float]:
        """The shares that are promoted, by what the rule takes for independent, and how many topics are found."""
        rng = np.random.default_rng(0)
        counts = dict.fromkeys(("references", "topics", "subjects", "found"), 0.0)
        for _ in range(COMPARISONS):
            places = self.drawn(rng, references, each)
            subjects, topics = self.subjects[places].tolist(), self.topics(rng, places)
            effects = {name: rng.normal(0, OF_SUBJECT if each > 1 else 0) for name in sorted(set(subjects))}
            values = [gain + effects[name] + rng.normal(0, OF_REFERENCE) for name in subjects]
            for name, groups in (("references", None), ("topics", topics), ("subjects", subjects)):
                counts[name] += is_gain(gain_interval(values, groups)) / COMPARISONS
            counts["found"] += len(set(topics)) / COMPARISONS
        return counts


def main() -> None:
    lines = [line.split("\t") for line in SUBJECTS.read_text(encoding="utf-8").splitlines()]
    shared = Texts([text for _, text in lines], [subject for subject, _ in lines])
    builtin = [reference.instruction for reference in load_references("builtin")]
    apart = Texts(builtin, [str(n) for n in range(len(builtin))])
    print(f"{'':<34}{'topics found':>13}{'by reference':>14}{'by topic':>10}{'by subject':>12}")
    for name, texts, each in (("three of each subject", shared, 3), ("one of each", shared, 1), ("built-in", apart, 1)):
        for references in (8, 16) if each > 1 or texts is apart else (8, 12):
            for gain in (0.0, GAIN):
                made = texts.promotions(references, each, gain)
                label = f"{name}, {references}, {f'gain {gain}' if gain else 'no gain'}"
                shares = f"{made['references']:>14.1%}{made['topics']:>10.1%}{made['subjects']:>12.1%}"
                print(f"{label:<34}{made['found']:>13.1f}{shares}", flush=True)


if __name__ == "__main__":
    main()
