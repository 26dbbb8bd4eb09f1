"""A scorer of texts that runs a model on this machine, with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.metrics.embedder import batches
from refed_dspy.plugins.metrics.perplexity import SEPARATOR, ScoredText, ScoringPrompt, check_pairs, check_window, join
from refed_dspy.text import install_command

BATCH_TOKENS = 2_048
"""Of a batch at most, padding included: its logits take BATCH_TOKENS × vocabulary × 4 bytes."""
WINDOW = 4_096
"""Tokens of a context and a text together at most, if the model's own window is not smaller."""


class TransformersScorer:
    """A causal language model run by transformers on this machine: on the GPU where torch has CUDA, else on the CPU.

    A text starts with `start`, by default with what the tokenizer puts in front of a text (Llama's BOS), else with
    SEPARATOR where the vocabulary has it (Qwen, GPT-2, SmolLM2), else with the BOS or EOS token.

    Computes in float32 on a CPU, else in the type that transformers loads (from its version 5 that of the checkpoint);
    log-probabilities are always computed in float32.
    """

    def __init__(self, model: str, *, start: str | None = None) -> None:
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
        self.window = check_window(min(WINDOW, positions or WINDOW))
        self._start = self._start_tokens(start)

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. Batched by length; no score is None. Raises ConfigError where there is not a context for
        each text, or the device has too little memory."""
        check_pairs(contexts, texts)
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

    def _start_tokens(self, start: str | None) -> list[int]:
        if start is not None:
            return list(self._tokenizer(start, add_special_tokens=False)["input_ids"])
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
