"""Near-duplicates are found by what they share, in every process alike; other rows are kept."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import numpy as np
import pytest

from benchmarks.texts import WORDS
from refed_dspy.filters.near_duplicates import SHORT, BandIndex, NearDuplicates, band_shape, hashed, tokens
from refed_dspy.records import DataRow
from tests.support.said import Said


def row(instruction: str, response: str = "", number: int = 1) -> DataRow:
    return DataRow(number, instruction, response)


def kept(texts: list[str], **settings: Any) -> list[bool]:
    filter_ = NearDuplicates(**settings)
    return [filter_.check(row(text)).kept for text in texts]


def shingles(text: str, longest: int = 2) -> set[tuple[str, ...]]:
    """What is compared, by plain Python."""
    words = tokens(text)
    return {tuple(words[at : at + n]) for n in range(1, longest + 1) for at in range(len(words) - n + 1)}


FIRST = "Write a short poem about the first day of autumn."
SAME = [
    "WRITE A SHORT POEM ABOUT THE FIRST DAY OF AUTUMN",
    "  Write a short\tpoem about\n\nthe first day of autumn!!",
    '"Write a short poem", about the (first) day of autumn…',
    "Could you please write a short poem about the first day of autumn?",
    "I’d like you to write a short poem about the first day of autumn.",
    "Ｗｒｉｔｅ a short poem about the first day of autumn.",
]
NEAR = [
    "Write a short poem about the last day of autumn.",
    "Write a poem about the first day of autumn.",
    "Write a very short poem about the first day of autumn.",
    "Compose a short poem about the first day of autumn.",
    "Write a short poem about the first day of summer.",
]


@pytest.mark.parametrize("again", SAME)
def test_case_punctuation_white_space_and_politeness_make_no_difference(again: str) -> None:
    filter_ = NearDuplicates(threshold=1.0)
    assert filter_.check(row(FIRST)).kept
    decision = filter_.check(row(again))
    assert (decision.kept, decision.reason, decision.score, decision.detail) == (False, "near-duplicate", 1.0, FIRST)


@pytest.mark.parametrize("again", NEAR)
def test_one_word_makes_no_difference_below_the_full_threshold(again: str) -> None:
    assert kept([FIRST, again]) == [True, False]
    assert kept([FIRST, again], threshold=1.0) == [True, True]


def test_the_score_is_the_jaccard_similarity_of_words_and_pairs_of_words() -> None:
    filter_ = NearDuplicates()
    filter_.check(row(FIRST))
    for again in NEAR:
        ours, theirs = shingles(FIRST), shingles(again)
        assert filter_.check(row(again)).score == pytest.approx(len(ours & theirs) / len(ours | theirs))


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("12 miles", "10 miles"),
        ("v2 of the file", "v3 of the file"),
        ("a map of Spain", "a map of France"),
        ("it, as Kepler did", "it, as Newton did"),
    ],
)
def test_another_number_or_name_is_another_task(text: str, changed: str) -> None:
    first, other = (f"Convert {words} so that a child can read it." for words in (text, changed))
    assert kept([first, other]) == kept([other, first]) == [True, True]
    assert kept([first, first.upper()]) == [True, False]
    assert kept([first, first.replace("child", "pupil")]) == [True, False]
    filter_ = NearDuplicates()
    filter_.remember(row(first))
    assert filter_.check(row(other)).kept


def test_another_number_is_another_task_however_long_the_text() -> None:
    text = " ".join(random.Random(4).sample(WORDS, 30))
    assert kept([f"{text} 12", f"{text} 10", f"{text} 12."]) == [True, True, False]


def test_capitals_that_name_nothing() -> None:
    for first, other in (
        ("Write it. Keep the text very short", "Write it. Make the text very short"),
        ("Write A Short Poem About The First Day", "Write A Short Poem About The Last Day"),
        ("the poem that I wrote last year", "the poem that we wrote last year"),
        ("list it:\n- Name all of the rivers", "list it:\n- State all of the rivers"),
    ):
        assert kept([first, other]) == [True, False]


def test_six_words_allow_for_one_and_five_for_none() -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    for count, duplicate in ((SHORT, True), (SHORT - 1, False)):
        text = " ".join(words[:count])
        assert kept([text, text.replace("beta", "other")]) == [True, not duplicate]
        assert kept([text, text.upper() + "?"]) == [True, False]
    text = " ".join(words)
    assert kept([text, text.replace("beta", "other").replace("delta", "another")]) == [True, True]


def test_the_allowance_for_a_word_shrinks_above_the_default_threshold() -> None:
    six, inserted, changed = (
        "one two three four five six",
        "and one two three four five six",
        "one two three other five six",
    )
    assert kept([six, changed], threshold=0.8) == kept([six, inserted], threshold=0.8) == [True, False]
    assert kept([six, inserted], threshold=0.9) == [True, False]
    assert kept([six, changed], threshold=0.9) == [True, True]
    assert kept([six, inserted], threshold=0.97) == [True, True]


def test_long_texts_are_held_to_the_threshold() -> None:
    rng = random.Random(1)
    text = rng.sample(WORDS, 40)
    two, eight = list(text), list(text)
    two[10] = two[30] = "other"
    for at in range(0, 40, 5):
        eight[at] = "other"
    for other, duplicate in ((two, True), (eight, False)):
        ours, theirs = shingles(" ".join(text)), shingles(" ".join(other))
        assert (len(ours & theirs) / len(ours | theirs) >= 0.8) is duplicate
        assert kept([" ".join(text), " ".join(other)]) == [True, not duplicate]


def test_later_rows_are_not_compared_with_dropped_rows_but_with_remembered_ones() -> None:
    chain = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = [" ".join(["other"] * at + chain[at:]) for at in range(3)]
    assert kept(texts) == [True, False, True]  # the third is two words from the first, one from the second
    filter_ = NearDuplicates()
    filter_.remember(row(texts[1]))
    assert not filter_.check(row(texts[2])).kept


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [
        (
            "请写一首关于秋天第一天的短诗，不要押韵。",
            "请写一首关于秋天第一天的短诗 不要押韵",
            "请把下面这段话翻译成英文，并解释其中的成语。",
        ),
        (
            "เขียนบทกวีสั้นเกี่ยวกับวันแรกของฤดูใบไม้ร่วง",
            "เขียนบทกวีสั้น เกี่ยวกับวันแรกของฤดูใบไม้ร่วง!",
            "แปลประโยคต่อไปนี้เป็นภาษาอังกฤษ",
        ),
        (
            "秋の最初の日について短い詩を書いてください。",
            "秋の最初の日について短い詩を書いて下さい",
            "次の文章を英語に翻訳してください。",
        ),
        (
            "शरद ऋतु के पहले दिन पर एक छोटी कविता लिखें",
            "शरद ऋतु के पहले दिन पर एक छोटी कविता लिखें।",
            "नीचे दिए गए वाक्य का अंग्रेज़ी में अनुवाद करें",
        ),
        (
            "Напиши короткое стихотворение о первом дне осени",
            "напиши короткое стихотворение о последнем дне осени",
            "Переведи это предложение на английский язык",
        ),
    ],
)
def test_other_scripts(text: str, same: str, other: str) -> None:
    assert kept([text, same, other]) == [True, False, True]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don’t re-use C++, it's 3.5€!", ["dont", "re", "use", "c", "+", "+", "its", "3", "5", "€"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("秋天 is 🍂", ["秋", "天", "is", "🍂"]),
        ("ที่", list("ที่")),
        ("葛\U000e0100城 𑄌𑄋𑄴𑄟𑄳𑄦", ["葛", "城", "𑄌𑄋𑄴𑄟𑄳𑄦"]),
        ("?! …", list("?!...")),
        (" \n\x00", ["\x00"]),
        ("", []),
    ],
)
def test_tokens_are_whole_words_single_characters_and_signs(text: str, found: list[str]) -> None:
    assert tokens(text) == found


def test_letters_of_the_basic_plane_are_in_some_token() -> None:
    missing = []
    for code in range(0x20, 0xFFF0, 3):
        letter = unicodedata.normalize("NFKC", chr(code)).casefold()
        if len(letter) == 1 and letter.isalpha() and tokens(f"a. {letter} b") != ["a", letter, "b"]:
            missing.append(letter)
    assert not missing


@pytest.mark.parametrize(
    "texts", [["What is 3 + 2?", "What is 3 = 2?"], ["man bites dog", "dog bites man"]], ids=["signs", "order"]
)
def test_signs_and_order_tell_tasks_apart(texts: list[str]) -> None:
    assert kept(texts) == [True, True]


def test_hostile_texts() -> None:
    long = " ".join(random.Random(2).choices(WORDS, k=15_000))
    texts = ["", " \n", "?!", "?!", "\x00", "x" * 100_000, "la " * 30_000, "la la", long, long.upper(), "la di da"]
    assert kept(texts) == [True, True, True, False, True, True, True, False, True, False, True]
    assert NearDuplicates().check(row("")).score is None


def test_the_detail_is_one_short_line(said: Said) -> None:
    filter_ = NearDuplicates()
    filter_.check(row("line one of it\nline two\x1b[31m " + "and more " * 60))
    detail = filter_.check(row("line one of it\nline two\x1b[31m " + "and more " * 60)).detail
    assert len(detail) == 400
    said(detail)


def test_what_is_compared() -> None:
    rows = [
        row(FIRST, "Leaves fall down upon the quiet garden path"),
        row(FIRST, "An entirely different text of some words"),
    ]
    rows.append(row("What colour are the trees of a park in May?", rows[0].response))
    for of, expected in (("instruction", [1, 0, 1]), ("response", [1, 1, 0]), ("both", [1, 1, 1])):
        filter_ = NearDuplicates(of=of)  # type: ignore[arg-type]
        assert filter_.of_instruction is (of == "instruction")
        assert [filter_.check(compared).kept for compared in rows] == [bool(kept_) for kept_ in expected]
    both = NearDuplicates(of="both")
    assert both.check(rows[0]).kept and not both.check(rows[0]).kept


def test_planted_near_duplicates_are_found_among_rows_of_the_same_words() -> None:
    from benchmarks.duplicates import changes, plain_texts, recombined

    rng = random.Random(11)
    base = recombined(400, rng, plain_texts(rng))
    filter_ = NearDuplicates()
    dropped = sum(not filter_.check(row(text)).kept for text in base)
    made = changes(rng, WORDS)
    planted = [change(base[at + 40 * place]) for place, change in enumerate(made.values()) for at in range(40)]
    assert dropped <= 4
    assert sum(not filter_.check(row(text)).kept for text in planted) >= 0.95 * len(planted)


# --- the index


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
        mine = filter_._read(row(text))
        best, score, like = False, 0.0, ""
        for other, theirs in kept_rows:
            if not (mine.keys == theirs.keys).any():
                continue
            common = len(np.intersect1d(mine.shingles, theirs.shingles))
            jaccard = common / (len(mine.shingles) + len(theirs.shingles) - common)
            near = jaccard >= max(mine.needed, theirs.needed)
            if (near, jaccard) > (best, score):
                best, score, like = near, jaccard, other
        decision = filter_.check(row(text))
        assert (decision.kept, decision.score, decision.detail) == (not best, score, like if best else "")
        dropped += best
        if not best:
            kept_rows.append((text, mine))
    assert 150 < dropped < 500


def test_decisions_are_the_same_in_every_process_since_hashes_are() -> None:
    assert hashed(["autumn", "秋"]).tolist() == [10077573059336071161, 4784125667925095212]


@pytest.mark.parametrize("similarity", [0.3, 0.57, 0.8, 0.95, 1.0])
def test_bands_propose_what_is_as_near_as_that(similarity: float) -> None:
    bands, width = band_shape(similarity)
    assert bands * width <= 128
    assert 1 - (1 - similarity**width) ** bands >= 0.97
