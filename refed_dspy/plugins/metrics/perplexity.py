"""How difficult a pair is for a language model: perplexities, IFD and r-IFD (Li et al., arXiv 2308.12032, 2402.10110).

    PPL(t | c) = exp(mean over t's tokens of -log p(token | c and the tokens before))
    IFD   = PPL(response | template(instruction)) / PPL(response)
    r-IFD = PPL(instruction | template(GUESS with the response)) / PPL(instruction)

Above 1, the context does not help at all. Templates and GUESS are those of the authors' code
(tianyi-lab/Reflection_Tuning, selection_code/data_analysis.py), character by character: figures depend on them, so only
figures of one template can be compared. Whatever chat template the model itself has is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from refed_dspy.config.scorer import Template
from refed_dspy.errors import ConfigError

TEMPLATES: Mapping[Template, str] = {
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {instruction} ASSISTANT:"
    ),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
    "wizardlm": "{instruction}\n\n### Response:",
    "none": "{instruction}\n",
}
"""What stands before a text that follows on an instruction."""
GUESS = (
    "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
    "{response}\nGenerate the instruction for the above response."
)
"""The instruction that the instruction of a response follows on."""

SEPARATOR = "<|endoftext|>"
"""The token between documents in pre-training that many tokenizers have and put in front of no text. A chat tokenizer's
BOS may be `<|im_start|>`, after which a first word other than a role's costs 14 nats (SmolLM2)."""

_TEXT_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class ScoredText:
    """The negative log-likelihood of a text in its context."""

    nll: float
    """-log p in nats, summed over the `tokens` that were scored."""
    tokens: int

    @property
    def mean(self) -> float | None:
        """Nats a token, None where no token was scored."""
        return self.nll / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp(mean), at least 1; None where no token was scored, or where no float is as large."""
        return _exp(self.mean)


class Scorer(Protocol):
    """A language model that scores how likely texts are."""

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """The score of each text after the context at the same place, which may be empty; None where no answer came.

        Context and text are tokenised as one text, as they are in training and in the authors' code: apart, `:` and `-`
        would be a sequence that no model has seen where `:-` is a token. As many tokens as the context has by itself
        are the context's, a token that both share among them. An empty text has no token.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """The tokens to send. The last `scored` of them are the text's."""

    ids: list[int]
    scored: int


def join(start: Sequence[int], context: Sequence[int], text: Sequence[int], window: int) -> ScoringPrompt:
    """`start`, `context` and `text` as at most `window` tokens.

    Of a text longer than three quarters of the window the beginning is kept, the same for every context; of a context
    that does not fit before it, the end. The first token is predicted from `start` (BOS, say): without a start, the
    text's first token is not scored, whatever the context.
    """
    room = window - len(start)
    kept_text = list(text[: int(room * _TEXT_SHARE)])
    space = room - len(kept_text)
    kept_context = list(context[-space:])
    return ScoringPrompt(
        ids=[*start, *kept_context, *kept_text],
        scored=len(kept_text) if start else max(0, len(kept_text) - 1),
    )


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The figures of one pair. Each is None where it has no meaning: a text is blank, none of its tokens can be scored,
    or the model gave no answer."""

    ifd: float | None
    r_ifd: float | None
    ppl_instruction: float | None
    ppl_answer_given_instruction: float | None


def ifd(scorer: Scorer, pairs: Sequence[tuple[str, str]], template: Template = "vicuna") -> list[Difficulty]:
    """The difficulty of each (instruction, answer), in order. A text that pairs share is scored once a context."""
    queries = [_queries(instruction, answer, TEMPLATES[template]) for instruction, answer in pairs]
    distinct = list(dict.fromkeys(query for of_pair in queries for query in of_pair if query))
    scores = scorer.nll([context for context, _ in distinct], [text for _, text in distinct]) if distinct else []
    score_of: dict[_Query, ScoredText | None] = {None: None, **dict(zip(distinct, scores, strict=True))}
    return [
        Difficulty(
            ifd=_ratio(score_of[forward], score_of[answer]),
            r_ifd=_ratio(score_of[backward], score_of[instruction]),
            ppl_instruction=_perplexity(score_of[instruction]),
            ppl_answer_given_instruction=_perplexity(score_of[forward]),
        )
        for instruction, answer, forward, backward in queries
    ]


def log_perplexities(
    scorer: Scorer, pairs: Sequence[tuple[str, str]], template: Template = "vicuna"
) -> list[float | None]:
    """The mean negative log-likelihood, in nats, of the answer's tokens in each (instruction, answer); None where it
    has none, or the model gave no answer."""
    contexts = [TEMPLATES[template].replace("{instruction}", instruction) for instruction, _ in pairs]
    scores = scorer.nll(contexts, [answer for _, answer in pairs])
    return [None if score is None else score.mean for score in scores]


_Query = tuple[str, str] | None


def _queries(instruction: str, answer: str, template: str) -> tuple[_Query, _Query, _Query, _Query]:
    """(context, text) of: instruction, answer, answer after instruction, instruction after answer. None for those with
    a blank text."""
    asked, answered = bool(instruction.strip()), bool(answer.strip())
    both = asked and answered
    return (
        ("", instruction) if asked else None,
        ("", answer) if answered else None,
        (template.replace("{instruction}", instruction), answer) if both else None,
        (template.replace("{instruction}", GUESS.replace("{response}", answer)), instruction) if both else None,
    )


def _perplexity(score: ScoredText | None) -> float | None:
    return None if score is None else score.perplexity


def _ratio(in_context: ScoredText | None, alone: ScoredText | None) -> float | None:
    """PPL over PPL, by the difference of the means: correct even where a perplexity is too large for a float."""
    if in_context is None or alone is None or in_context.mean is None or alone.mean is None:
        return None
    return _exp(in_context.mean - alone.mean)


def _exp(mean: float | None) -> float | None:
    try:
        value = None if mean is None else math.exp(mean)
    except OverflowError:
        return None
    return value if value is not None and math.isfinite(value) else None


def check_window(tokens: int) -> int:
    """`tokens`, or ConfigError where no text fits."""
    if tokens < 16:
        raise ConfigError(f"a window of {tokens} tokens is too small for scoring; use 16 or more")
    return tokens


def check_pairs(contexts: Sequence[str], texts: Sequence[str]) -> None:
    """ConfigError unless there is a context for each text."""
    if len(contexts) != len(texts):
        raise ConfigError(f"{len(contexts)} contexts and {len(texts)} texts must be equal in number")
