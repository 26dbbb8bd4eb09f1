"""The index of near-duplicates: signatures, bands, and what it finds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from benchmarks.texts import WORDS
from refed_dspy.filters.near_duplicates import (
    BandIndex,
    NearDuplicates,
    band_shape,
    hashed,
    runs,
)
from refed_dspy.records import DataRow


def test_the_index_finds_what_shares_a_band_in_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    index, earlier = BandIndex(8, 2), list[list[Any]]()
    for number in range(3000):
        signature = rng.integers(0, 12, 16, dtype=np.uint32)
        keys = index.keys(signature)
        pairs = [tuple(pair) for pair in signature.reshape(8, 2).tolist()]
        if number % 300 == 299:
            expected = [
                at for at, other in enumerate(earlier) if any(a == b for a, b in zip(pairs, other, strict=True))
            ]
            assert index.find(keys).tolist() == expected
        index.add(keys)
        earlier.append(pairs)


def test_keys_that_are_half_equal_are_not_equal() -> None:
    index = BandIndex(2, 2)
    for row_ in range(600):
        index.add(np.array([7 << 32 | row_, row_ << 32 | 7], dtype=np.uint64))
    for row_ in (0, 5, 300, 599):
        assert index.find(np.array([7 << 32 | row_, 7], dtype=np.uint64)).tolist() == sorted({0, row_})
    assert index.find(np.array([7 << 32 | 600, 600 << 32 | 7], dtype=np.uint64)).tolist() == []


def test_every_decision_is_that_of_a_comparison_with_each_row_that_shares_a_band() -> None:
    """Over so many rows that the index has sorted runs."""
    rng, filter_ = random.Random(6), NearDuplicates()
    kept_rows, dropped = list[tuple[str, Any]](), 0
    for number in range(700):
        words = rng.choices(WORDS[:40], k=rng.randint(6, 20))
        if number % 3 == 0 and kept_rows:
            words = rng.choice(kept_rows)[0].split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        text = " ".join(words)
        mine = filter_._read(DataRow(1, text, ""))
        best, score, like = False, 0.0, ""
        for other, theirs in kept_rows:
            if not (mine.keys == theirs.keys).any():
                continue
            common = len(np.intersect1d(mine.shingles, theirs.shingles))
            jaccard = common / (len(mine.shingles) + len(theirs.shingles) - common)
            near = jaccard >= max(mine.needed, theirs.needed)
            if (near, jaccard) > (best, score):
                best, score, like = near, jaccard, other
        decision = filter_.check(DataRow(1, text, ""))
        assert (decision.kept, decision.score, decision.detail) == (not best, score, like if best else "")
        dropped += best
        if not best:
            kept_rows.append((text, mine))
    assert 150 < dropped < 500


def test_runs_of_equal_words_have_equal_hashes_and_no_others() -> None:
    hashes = np.array([1, 2, 3, 1, 2, 3, 2, 1], dtype=np.uint64)
    for length in (1, 2, 3):
        plain = [tuple(hashes[at : at + length].tolist()) for at in range(len(hashes) - length + 1)]
        ours = runs(hashes, length).tolist()
        assert len(ours) == len(plain)
        assert all(
            (a == b) == (x == y) for a, x in zip(ours, plain, strict=True) for b, y in zip(ours, plain, strict=True)
        )
    assert len(runs(hashes, 9)) == len(runs(hashes[:0], 1)) == 0
    assert not set(runs(hashes, 1).tolist()) & set(runs(hashes, 2).tolist())


def test_hashes_are_the_same_in_every_process() -> None:
    assert hashed(["autumn", "秋"]).tolist() == [10077573059336071161, 4784125667925095212]


@pytest.mark.parametrize("similarity", [0.3, 0.57, 0.8, 0.95, 1.0])
def test_bands_propose_what_is_as_near_as_that(similarity: float) -> None:
    bands, width = band_shape(similarity)
    assert bands * width <= 128
    assert 1 - (1 - similarity**width) ** bands >= 0.97
