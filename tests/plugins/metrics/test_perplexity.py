"""Perplexities, IFD and r-IFD by hand, and how context and text share a window."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256

import pytest

from refed_dspy.config.scorer import Template
from refed_dspy.plugins.metrics.perplexity import GUESS, ScoredText, ifd, join
from tests.support.said import Said


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    assert ScoredText(3 * math.log(7), 3).perplexity == pytest.approx(7)
    assert ScoredText(0.0, 0).perplexity is None and ScoredText(0.0, 0).mean is None
    assert ScoredText(1e6, 1).perplexity is None
    assert ScoredText(math.inf, 3).perplexity is None


def test_the_text_makes_the_same_tokens_under_every_context() -> None:
    for length in (0, 1, 5, 12, 13, 100):
        text = list(range(length))
        for start in ([], [99]):
            prompts = [join(start, [7] * context, text, 17) for context in (0, 1, 4, 50)]
            assert all(len(prompt.ids) <= 17 for prompt in prompts)
            assert len({prompt.scored for prompt in prompts}) == 1
            kept = min(length, 3 * (17 - len(start)) // 4)
            assert all(prompt.ids[len(prompt.ids) - kept :] == text[:kept] for prompt in prompts)
            assert all(prompt.ids[: len(start)] == start for prompt in prompts)
            assert prompts[0].scored == (kept if start else max(0, kept - 1))


def test_a_long_context_keeps_its_end_and_a_long_text_its_beginning() -> None:
    made = join([0], list(range(100, 200)), list(range(1, 51)), 41)
    assert made.ids == [0, *range(190, 200), *range(1, 31)] and made.scored == 30
    assert join([0], list(range(100, 103)), [1, 2], 41).ids == [0, 100, 101, 102, 1, 2]


def guess(answer: str) -> str:
    """What stands before an instruction to be guessed, with the template `none`."""
    return GUESS.replace("{response}", answer) + "\n"


class Listed:
    """A scorer that answers from a list, and remembers what it was asked."""

    def __init__(self, scores: dict[tuple[str, str], ScoredText | None]) -> None:
        self.scores = scores
        self.asked: list[tuple[str, str]] = []

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        self.asked += zip(contexts, texts, strict=True)
        return [self.scores[question] for question in zip(contexts, texts, strict=True)]


def test_ifd_is_the_ratio_of_perplexities() -> None:
    scores: dict[tuple[str, str], ScoredText | None] = {
        ("", "ask"): ScoredText(2 * math.log(30), 2),
        ("", "tell"): ScoredText(3 * math.log(50), 3),
        ("ask\n", "tell"): ScoredText(3 * math.log(20), 3),
        (guess("tell"), "ask"): ScoredText(2 * math.log(12), 2),
    }
    model = Listed(scores)
    (difficulty,) = ifd(model, [("ask", "tell")], "none")
    assert difficulty.ifd == pytest.approx(20 / 50)
    assert difficulty.r_ifd == pytest.approx(12 / 30)
    assert (difficulty.ppl_instruction, difficulty.ppl_answer_given_instruction) == pytest.approx((30, 20))
    assert ifd(model, [("ask", "tell")] * 5, "none") == [difficulty] * 5
    assert len(model.asked) == 8  # four a call of `ifd`, however often a pair is there


@pytest.mark.parametrize(
    ("template", "asking", "guessing"),
    [
        ("vicuna", "404d26d790d4fc3f", "7fa95e4bbc7a3caf"),
        ("alpaca", "0c264c5ae8d7c78c", "ceff9bdb49bf7dc0"),
        ("wizardlm", "4e631664219d4625", "f37f926dcbd4c9a7"),
    ],
)
def test_contexts_are_those_of_the_authors_code(template: Template, asking: str, guessing: str) -> None:
    """Digests of what their selection_code/data_analysis.py puts before the response and before the instruction."""
    asked, answered = "Name three colours, {response}.", "Red, {instruction} and 100% 漢字.\n"
    contexts: dict[str, str] = {}

    class Noting:
        def nll(self, befores: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
            contexts.update({text: before for before, text in zip(befores, texts, strict=True) if before})
            return [None] * len(texts)

    ifd(Noting(), [(asked, answered)], template)
    digests = {text: sha256(context.encode()).hexdigest()[:16] for text, context in contexts.items()}
    assert digests == {answered: asking, asked: guessing}


def test_what_has_no_meaning_is_none() -> None:
    scores: dict[tuple[str, str], ScoredText | None] = {
        ("", "ask"): ScoredText(2.0, 2), ("", "tell"): ScoredText(0.0, 0), ("ask\n", "tell"): ScoredText(0.0, 0),
        (guess("tell"), "ask"): None,
    }  # fmt: skip
    model = Listed(scores)
    blank, silent, nothing = ifd(model, [("ask", " \n"), ("ask", "tell"), ("", "")], "none")
    assert (blank.ifd, blank.r_ifd, blank.ppl_answer_given_instruction) == (None, None, None)
    assert blank.ppl_instruction == pytest.approx(math.e)
    assert (silent.ifd, silent.r_ifd, silent.ppl_answer_given_instruction) == (None, None, None)
    assert nothing.ppl_instruction is nothing.ifd is None
    assert all(text.strip() for _, text in model.asked)
    assert ifd(model, []) == []


def test_a_ratio_of_perplexities_too_large_for_a_float_is_still_told() -> None:
    scores: dict[tuple[str, str], ScoredText | None] = {
        ("", "a"): ScoredText(900.0, 1), ("", "b"): ScoredText(900.0, 1), ("a\n", "b"): ScoredText(901.0, 1),
        (guess("b"), "a"): ScoredText(math.inf, 1),
    }  # fmt: skip
    (difficulty,) = ifd(Listed(scores), [("a", "b")], "none")
    assert difficulty.ppl_instruction is difficulty.ppl_answer_given_instruction is None
    assert difficulty.ifd == pytest.approx(math.e)
    assert difficulty.r_ifd is None


@pytest.mark.slow
def test_without_torch_the_extra_is_named(said: Said) -> None:
    # In a process of its own, where torch cannot be found.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from refed_dspy.plugins.metrics.perplexity import TransformersScorer\n"
        "from refed_dspy.errors import ConfigError\n"
        "try: TransformersScorer('x')\n"
        "except ConfigError as error: print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    said(printed)
