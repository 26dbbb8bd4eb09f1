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
from typing import Any, Protocol

from refed_dspy.config.scorer import Template
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.measures.embedder import batches
from refed_dspy.text import install_command

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
_Query = tuple[str, str] | None
BATCH_TOKENS = 2_048
"""Of a batch at most, padding included: its logits take BATCH_TOKENS × vocabulary × 4 bytes."""
WINDOW = 4_096
"""Tokens of a context and a text together at most, if the model's own window is not smaller."""


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


class TransformersScorer:
    """A causal language model run by transformers on this machine: on the GPU where torch has CUDA, else on the CPU.

    A text starts with what the tokenizer puts in front of a text (Llama's BOS), else with SEPARATOR where the
    vocabulary has it (Qwen, GPT-2, SmolLM2), else with the BOS or EOS token.

    Computes in float32 on a CPU, else in the type that transformers loads (from its version 5 that of the checkpoint);
    log-probabilities are always computed in float32.
    """

    def __init__(self, model: str) -> None:
        """`model`: a local folder or a name on the Hub. `join` says how texts longer than the window are cut.

        Raises ConfigError, in one line: torch or transformers is not installed; no such model.
        """
        torch, transformers = _libraries()
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
            self._model = loaded.float() if self._device == "cpu" else loaded.to(self._device)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, AssertionError) as error:
            raise ConfigError(
                f"cannot load {one_line(model, 80)} for scoring on {self._device} ({one_line(error, 120)}); pass the "
                "folder or Hub name of a causal language model"
            ) from error
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.window = min(WINDOW, positions or WINDOW)
        self._start = self._start_tokens()

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. Batched by length; no score is None. Raises ConfigError where memory runs out."""
        wholes = [context + text if text else "" for context, text in zip(contexts, texts, strict=True)]
        ids = self._ids([*contexts, *wholes])
        prompts = [
            join(self._start, ids[whole][: len(ids[context])], ids[whole][len(ids[context]) :], self.window)
            for context, whole in zip(contexts, wholes, strict=True)
        ]
        nlls = [0.0] * len(prompts)
        scorable = [index for index, prompt in enumerate(prompts) if prompt.scored]
        with self._torch.inference_mode():
            for batch in batches([len(prompts[index].ids) for index in scorable], BATCH_TOKENS):
                indexes = [scorable[place] for place in batch]
                for index, nll in zip(indexes, self._nlls([prompts[index] for index in indexes]), strict=True):
                    nlls[index] = nll
        return [ScoredText(nll, prompt.scored) for nll, prompt in zip(nlls, prompts, strict=True)]

    def _start_tokens(self) -> list[int]:
        if in_front := list(self._tokenizer("")["input_ids"]):
            return in_front
        tokens = self._tokenizer
        others = (tokens.get_vocab().get(SEPARATOR), tokens.bos_token_id, tokens.eos_token_id)
        return [token for token in others if token is not None][:1]

    def _ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The tokens of each different text, without special tokens."""
        distinct = [text for text in dict.fromkeys(texts) if text]
        ids = self._tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"] if distinct else []
        return {"": [], **dict(zip(distinct, ids, strict=True))}

    def _nlls(self, prompts: Sequence[ScoringPrompt]) -> list[float]:
        """The negative log-likelihood of each prompt's text, computed as one batch."""
        torch = self._torch
        longest = max(len(prompt.ids) for prompt in prompts)
        # Padded on the right: a causal model cannot see what comes later, and positions count from 0.
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        try:
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"{self._device} has too little memory for {BATCH_TOKENS} tokens at once; choose a smaller model or "
                "hide the GPU with CUDA_VISIBLE_DEVICES="
            ) from error
        totals = []
        for row, prompt in enumerate(prompts):
            end = len(prompt.ids)
            predicted = logits[row, end - prompt.scored - 1 : end - 1].float()
            total = torch.nn.functional.cross_entropy(predicted, ids[row, end - prompt.scored : end], reduction="sum")
            totals.append(float(total))
        return totals


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"scoring on this machine needs torch and transformers: run {install_command('scoring')}"
        ) from error
    return torch, transformers
