"""How hard a language model finds a pair: perplexities, IFD and r-IFD (Li et al., arXiv 2308.12032 and 2402.10110).

    PPL(t | c) = exp(mean over t's tokens of -log p(token | c and the tokens before))
    IFD   = PPL(response | instruction) / PPL(response)
    r-IFD = PPL(instruction | response, GUESS) / PPL(instruction)

Above 1, the context does not help at all. Context and text are plain text with a line break between them, whatever
chat template the model has: a template's own tokens would be scored with neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from refed_dspy.errors import ConfigError

GUESS = "What was asked, so that the text above is the answer to it?"
"""Stands between a response and the instruction that is to be guessed from it."""

_TEXT_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One text's surprise, given its context."""

    nll: float
    """-log p in nats, summed over the `tokens` that were scored."""
    tokens: int
    cut: int = 0
    """Tokens of the text left out, because it is longer than the window allows."""
    context_cut: int = 0
    """Tokens of the context left out."""

    @property
    def mean(self) -> float | None:
        """Nats a token, None where no token was scored."""
        return self.nll / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp(mean), at least 1; None where no token was scored, or where no float is as large."""
        return _exp(self.mean)


class Scorer(Protocol):
    """A language model that tells how likely given texts are."""

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """Each text's surprise given the context in the same place, which may be empty; None where no answer came.

        A text makes the same tokens under every context: the two are tokenised apart and the tokens are joined. An
        empty text has no token.
        """
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Tokens to send: the last `scored` of them are the text's."""

    ids: list[int]
    scored: int
    cut: int
    context_cut: int

    def of(self, nll: float) -> ScoredText:
        return ScoredText(nll, self.scored, self.cut, self.context_cut)


def join(start: Sequence[int], context: Sequence[int], text: Sequence[int], window: int) -> Joined:
    """`start`, `context` and `text` as at most `window` tokens.

    Of a text longer than three quarters of the window the beginning is kept, under every context alike; of a context
    that does not fit beside it, the end. `start` (BOS, say) is what the first token is predicted from: without one
    the text's first token is not scored, under any context.
    """
    room = window - len(start)
    kept = list(text[: int(room * _TEXT_SHARE)])
    space = room - len(kept)
    beside = list(context[-space:])
    scored = len(kept) if start else max(0, len(kept) - 1)
    return Joined([*start, *beside, *kept], scored, len(text) - len(kept), len(context) - len(beside))


@dataclass(frozen=True, slots=True)
class Difficulty:
    """One pair's figures. Each is None where it has no meaning: a text is blank, makes no token that can be scored, or
    the model gave no answer."""

    ifd: float | None
    r_ifd: float | None
    ppl_instruction: float | None
    ppl_answer: float | None
    ppl_answer_given_instruction: float | None
    ppl_instruction_given_answer: float | None
    tokens_instruction: int
    tokens_answer: int
    """Scored."""
    cut: bool
    """Whether anything was left out for want of room."""


def ifd(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> list[Difficulty]:
    """The difficulty of each (instruction, answer), in order. A quantity that pairs share is asked for once."""
    asked = [_questions(instruction, answer) for instruction, answer in pairs]
    once = list(dict.fromkeys(question for four in asked for question in four if question))
    answers = scorer.nll([context for context, _ in once], [text for _, text in once]) if once else []
    known = dict(zip(once, answers, strict=True))
    return [_difficulty(*(known[question] if question else None for question in four)) for four in asked]


_Question = tuple[str, str] | None


def _questions(instruction: str, answer: str) -> tuple[_Question, _Question, _Question, _Question]:
    """(context, text) of: instruction, answer, answer given instruction, instruction given answer."""
    asked, answered = bool(instruction.strip()), bool(answer.strip())
    both = asked and answered
    return (
        ("", instruction) if asked else None,
        ("", answer) if answered else None,
        (f"{instruction}\n", answer) if both else None,
        (f"{answer}\n{GUESS}\n", instruction) if both else None,
    )


def _difficulty(
    instruction: ScoredText | None, answer: ScoredText | None, forward: ScoredText | None, backward: ScoredText | None
) -> Difficulty:
    every = [one for one in (instruction, answer, forward, backward) if one]
    return Difficulty(
        ifd=_ratio(forward, answer),
        r_ifd=_ratio(backward, instruction),
        ppl_instruction=instruction.perplexity if instruction else None,
        ppl_answer=answer.perplexity if answer else None,
        ppl_answer_given_instruction=forward.perplexity if forward else None,
        ppl_instruction_given_answer=backward.perplexity if backward else None,
        tokens_instruction=instruction.tokens if instruction else 0,
        tokens_answer=answer.tokens if answer else 0,
        cut=any(one.cut or one.context_cut for one in every),
    )


def _ratio(given: ScoredText | None, alone: ScoredText | None) -> float | None:
    """PPL over PPL, by the difference of the means: sound where a perplexity itself is too large for a float."""
    if given is None or alone is None or given.mean is None or alone.mean is None:
        return None
    return _exp(given.mean - alone.mean)


def _exp(mean: float | None) -> float | None:
    try:
        value = None if mean is None else math.exp(mean)
    except OverflowError:
        return None
    return value if value is not None and math.isfinite(value) else None


def check_window(tokens: int) -> int:
    """`tokens`, or ConfigError where no text fits."""
    if tokens < 16:
        raise ConfigError(f"a window of {tokens} tokens is too small to score texts in: give 16 or more")
    return tokens


def check_pairs(contexts: Sequence[str], texts: Sequence[str]) -> None:
    """ConfigError unless there is a context for each text."""
    if len(contexts) != len(texts):
        raise ConfigError(f"{len(contexts)} contexts and {len(texts)} texts make no pairs")
