"""ROUGE-L: every float and every decision against the package `rouge-score`."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from benchmarks import rouge as benchmark
from refed_dspy.filters.base import TextFilter, preview
from refed_dspy.filters.rouge import (
    Alphabet,
    Index,
    Match,
    RougeFilter,
    f_measure,
    lcs,
    select,
    self_rouge,
    tokens,
)
from refed_dspy.records import DataRow
from tests.support.said import Said

HOSTILE = [
    "",
    " \n\t",
    "?!… — ,,,",
    "写一首关于秋天的诗",
    "Напиши стихотворение",
    "\0a\0b\0",
    "İstanbul K ſ ß ﬁ É ２ ² Ⅷ",
    "snake_case 3.14 don't E-Mail",
    "a",
    "a a a a a a",
    "the cat\nthe cat\r\nthe cat",
    "🙂 {x!r} %s {0}",
]


def plain(target: str, prediction: str) -> float:
    """ROUGE-L's F by the textbook; the slow tests hold it to the package, which takes seconds to import."""
    words, others = tokens(target), tokens(prediction)
    common = [0] * (len(others) + 1)
    for word in words:
        diagonal = 0
        for at, other in enumerate(others, 1):
            diagonal, common[at] = common[at], diagonal + 1 if word == other else max(common[at], common[at - 1])
    if not common[-1]:
        return 0.0
    precision, recall = common[-1] / len(others), common[-1] / len(words)
    return 2 * precision * recall / (precision + recall)


def naive(texts: list[str], threshold: float) -> list[Match]:
    kept: list[int] = []
    matches = []
    for place, text in enumerate(texts):
        scores = [plain(text, texts[earlier]) for earlier in kept]
        if scores and max(scores) >= threshold:
            matches.append(Match(False, score=max(scores), like=kept[scores.index(max(scores))]))
        else:
            kept.append(place)
            matches.append(Match(True))
    return matches


def drawn(rng: random.Random, count: int, vocabulary: int, longest: int) -> list[str]:
    """Random texts; half of them are earlier ones with a few words changed, left out, put in or moved."""
    made: list[list[str]] = []
    for _ in range(count):
        words = [f"w{int(vocabulary * rng.random() ** 2)}" for _ in range(rng.randint(0, longest))]
        if made and rng.random() < 0.5:
            words = list(rng.choice(made))
            for _ in range(rng.randint(0, 1 + len(words) // 4)):
                place = rng.randrange(len(words) + 1)
                words[place : place + rng.randint(0, 2)] = [f"w{rng.randrange(vocabulary)}"] * rng.randint(0, 2)
        made.append(words)
    return [" ".join(words) for words in made]


def row(instruction: str, number: int = 1) -> DataRow:
    return DataRow(number, instruction, "")


# --- tokens and F


def rouge_l(text: str, other: str) -> float:
    """The F of two texts as the index computes it."""
    alphabet = Alphabet()
    first, second = alphabet.encode(text).codes, alphabet.encode(other).codes
    return float(f_measure(lcs(first, [second]), len(first), np.array([len(second)]))[0])


@pytest.mark.slow
def test_f_is_the_float_of_the_package_in_either_order() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    package, rng = benchmark.scorer_of_the_package(), random.Random(1)
    for text in [*HOSTILE, "".join(f"a{chr(code)}9" for code in range(0xD800))]:
        assert tokens(text) == DefaultTokenizer().tokenize(text)
    texts = HOSTILE + drawn(rng, 40, 6, 25) + drawn(rng, 40, 60, 25)
    for _ in range(1_000):
        text, other = rng.choice(texts), rng.choice(texts)
        f = package.score(text, other)["rougeL"].fmeasure
        assert f == package.score(other, text)["rougeL"].fmeasure == plain(text, other)
        assert f == rouge_l(text, other) == rouge_l(other, text)


@pytest.mark.slow
def test_near_ties_are_decided_as_the_package_does() -> None:
    pairs, dropped, wrong = benchmark.near_ties()
    assert wrong == 0 and 0 < dropped < pairs


def test_f_of_no_token_and_of_the_same() -> None:
    assert rouge_l("", "") == rouge_l("?", "a") == rouge_l("诗", "诗") == 0
    assert rouge_l("A cat!", "a CAT") == 1
    assert rouge_l("a b c d", "a x c") == pytest.approx(4 / 7)


# --- selection


DRAWN, THRESHOLDS = [(3, 8), (12, 30), (400, 20), (5_000, 30)], [1e-9, 0.2, 0.5, 0.7, 0.95, 1]
FEW = list(zip([*DRAWN, *DRAWN[:2]], THRESHOLDS, strict=True))
"""Each size and each threshold once; all pairs of them are for the slow suite."""
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in product(DRAWN, THRESHOLDS) if case not in FEW]


@pytest.mark.parametrize(("sizes", "threshold"), [*FEW, *SLOW])
def test_decides_as_a_comparison_of_all_pairs(sizes: tuple[int, int], threshold: float) -> None:
    rng = random.Random(f"{sizes[0]} {threshold}")
    texts = drawn(rng, 35, *sizes) + HOSTILE
    rng.shuffle(texts)
    expected = naive(texts, threshold)
    assert select(texts, threshold) == expected
    assert {match.kept for match in expected} == {True, False}


@pytest.mark.parametrize(("vocabulary", "longest"), [(8, 12), (2_000, 25)])
def test_row_by_row_decides_as_in_bulk(vocabulary: int, longest: int) -> None:
    texts = drawn(random.Random(5), 150, vocabulary, longest) + HOSTILE
    rouge: TextFilter = RougeFilter()
    matches = select(texts)
    assert {match.kept for match in matches} == {True, False}
    for text, match in zip(texts, matches, strict=True):
        decision = rouge.check(row(text))
        assert (decision.kept, decision.score) == (match.kept, match.score)
        assert decision.detail == ("" if match.like is None else preview(texts[match.like]))


def test_hundreds_of_texts_against_all_pairs() -> None:
    """Where the index leaves most texts out: no pair of kept ones is near, each dropped one is as near as it says."""
    texts = benchmark.instructions(400, seed=3)
    matches = select(texts)
    kept = [place for place, match in enumerate(matches) if match.kept]
    alphabet = Alphabet()
    index = Index(1e-9)  # lets nothing out that has one token in common
    for place, match in enumerate(matches):
        near = index.nearest(alphabet.encode(texts[place]))
        if match.kept:
            assert near is None or near[1] < 0.7
            index.add(alphabet.encode(texts[place]))
        else:
            assert near is not None
            assert (match.like, match.score) == (kept[near[0]], near[1])
    assert 320 < len(kept) < 390


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_texts_of_any_two_lengths_are_found(threshold: float) -> None:
    """Where few texts share a word: the index reads its lists then, by classes of lengths."""
    alphabet, index = Alphabet(), Index(threshold)
    texts = [[f"w{length}x{place}" for place in range(length)] for length in range(1, 51)]
    for words in texts:
        index.add(alphabet.encode(" ".join(words)))
    for number, words in enumerate(texts):
        for length in range(1, 51):
            near = index.nearest(alphabet.encode(" ".join([*words[:length], *(["other"] * (length - len(words)))])))
            f = 2 * min(length, len(words)) / (length + len(words))
            if f < threshold - 1e-12:
                assert near is None
            else:
                assert near is not None
                assert near[0] == number
                assert near[1] == pytest.approx(f)


def test_a_near_tie_is_the_same_in_either_order() -> None:
    both = [f"a{i}" for i in range(21)]
    short, long = " ".join([*both, "x", "y"]), " ".join([*both, *(f"z{i}" for i in range(16))])
    assert rouge_l(short, long) < 0.7
    for texts in ([short, long], [long, short]):
        assert [match.kept for match in select(texts)] == [True, True]


def test_of_equally_near_ones_the_first_is_named() -> None:
    texts = ["q", "a b c d e f g h i j k l", "k l a b c d e f g h i j", "a b c d e f g h i j"]
    matches = select(texts, 0.85)
    assert matches == [Match(True)] * 3 + [Match(False, score=rouge_l(texts[1], texts[3]), like=1)]
    assert rouge_l(texts[1], texts[3]) == rouge_l(texts[2], texts[3]) == pytest.approx(20 / 22)


def test_stops_once_enough_are_kept() -> None:
    texts = ["one two", "one two", "three four", "five six", "seven"]
    assert [match.visited for match in select(texts, target=2)] == [True, True, True, False, False]
    assert [match.kept for match in select(texts, target=2)] == [True, False, True, False, False]
    assert not any(match.visited or match.kept for match in select(texts, target=0))
    assert select(texts, target=9) == select(texts)
    assert select([]) == []


def test_what_was_kept_earlier_counts(said: Said) -> None:
    rouge = RougeFilter()
    for kept in ("Write a poem\nabout the autumn rain.", "Write a poem about the autumn rain?", ""):
        rouge.remember(row(kept))
    again = rouge.check(row("write a poem about the autumn RAIN"))
    assert (again.kept, again.score) == (False, 1.0)
    said((again.reason, again.detail))
    assert [rouge.check(row(f"Name three rivers{end}")).kept for end in ".!"] == [True, False]
    assert rouge.name == "rouge" and rouge.of_instruction


def test_texts_without_a_token_are_all_kept() -> None:
    texts = ["", "", "?!", "写一首诗", "写一首诗"]
    assert [match.kept for match in select(texts)] == [True] * 5
    assert all(RougeFilter().check(row(text)).kept for text in texts)


def test_thresholds_next_to_the_ends() -> None:
    texts = ["a b", "a c", "d e", "a b"]
    assert [match.kept for match in select(texts, 5e-324)] == [True, False, True, False]
    assert [match.kept for match in select(texts, 1.0)] == [True, True, True, False]


# --- hostile texts


def test_what_is_shown_is_one_short_line(said: Said) -> None:
    long = "Say {x}\x1b[31m\n" + "word " * 20_000
    rouge = RougeFilter()
    rouge.check(row(long))
    shown = rouge.check(row(long + "more")).detail
    said(shown)
    assert len(shown) == 400
    assert shown.isprintable()


@pytest.mark.slow
def test_very_long_texts() -> None:
    rng = random.Random(2)
    words = [f"w{rng.randrange(3_000)}" for _ in range(8_000)]
    changed = [word if rng.random() < 0.9 else "other" for word in words]
    texts = [" ".join(words), "a " * 50_000, " ".join(changed), "a " * 49_000 + "b", "w1 w2 w3", "x" * 100_000]
    assert [match.kept for match in select(texts)] == [True, True, False, False, True, True]
    assert [match.like for match in select(texts)][2:4] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("start", [0xD7F0, 0x110000 - 0x800 - 60])
def test_more_tokens_than_code_points(start: int) -> None:
    """Numbers pass by the surrogates, and where characters end, texts as lists stand beside texts as characters."""
    alphabet = Alphabet()
    alphabet.numbers.update(zip(map(str, range(start)), range(start), strict=True))
    index = Index(0.7)
    texts = drawn(random.Random(start), 60, 150, 20)
    kept: list[int] = []
    for place, (text, match) in enumerate(zip(texts, naive(texts, 0.7), strict=True)):
        encoded = alphabet.encode(text)
        assert not any(0xD800 <= (ord(code) if isinstance(code, str) else code) < 0xE000 for code in encoded.codes)
        near = index.nearest(encoded)
        assert match == (Match(True) if near is None else Match(False, score=near[1], like=kept[near[0]]))
        if near is None:
            index.add(encoded)
            kept.append(place)
    numbers = alphabet.numbers.values()
    assert max(numbers) > (0xE000 if start < 0xE000 else 0x110000)
    assert len(set(numbers)) == len(numbers)


# --- how alike the texts of a data set are


def test_self_rouge_is_the_mean_of_the_highest() -> None:
    texts = drawn(random.Random(7), 40, 50, 12) + HOSTILE
    highest = [max(plain(a, b) for j, b in enumerate(texts) if i != j) for i, a in enumerate(texts)]
    assert self_rouge(texts) == pytest.approx(sum(highest) / len(texts))
    first = random.Random(3).sample(range(len(texts)), len(texts))[:10]
    assert self_rouge(texts, sample=10, seed=3) == pytest.approx(sum(highest[i] for i in first) / 10)
    assert self_rouge(texts, sample=10, seed=3) != self_rouge(texts, sample=10, seed=4)


def test_self_rouge_of_few_texts() -> None:
    assert self_rouge([]) is None
    assert self_rouge(["a"]) is None
    assert self_rouge(["a b", "c d"]) == 0
    assert self_rouge(["", "?"]) == 0
    assert self_rouge(["a b", "a b", "a b"]) == 1


def test_self_rouge_compares_two_thousand() -> None:
    once = [f"x{i} y{i} z{i}" for i in range(1_000)]
    assert self_rouge(once * 2, sample=200) == 1
    half = self_rouge((once + [text.upper() + "q" for text in once]) * 2, sample=500)
    assert half is not None
    assert 0.6 < half < 0.95  # a twin is among the 2,000 drawn in half of all cases, else its like: 2/3
