"""Scorers of texts: a model on this machine (transformers), or an endpoint that returns prompt log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.metrics.endpoint_scorer import EndpointScorer
from refed_dspy.metrics.perplexity import Joined, ScoredText, check_pairs, check_window, join

__all__ = ["EndpointScorer", "TransformersScorer"]

BATCH_TOKENS = 2_048
WINDOW = 4_096


class TransformersScorer:
    """A causal language model run by transformers on this machine.

    The text's start: `start` where it is given, else the tokenizer's BOS token, else its EOS token, which models
    without BOS are trained to see between documents. Computes in float32 on a CPU, else in the type that transformers
    loads (from its version 5 the checkpoint's own); log-probabilities are always taken in float32.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        *,
        batch_tokens: int = BATCH_TOKENS,
        max_tokens: int = WINDOW,
        start: str | None = None,
    ) -> None:
        """`model`: a local folder or a name on the Hub. `device`: as torch names it; CUDA by default, where it is.

        `batch_tokens` together, padding included: their logits take batch_tokens × vocabulary × 4 bytes. `max_tokens`
        is the window, or the model's own where that is smaller; how longer texts are cut: see `join`.

        Raises ConfigError, in one line: torch or transformers is not installed; no such model; no such device.
        """
        torch, transformers = _libraries()
        if batch_tokens < 1:
            raise ConfigError("batch_tokens must be 1 or more")
        self._torch = torch
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
            self._model = loaded.float() if self._device == "cpu" else loaded.to(self._device)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, AssertionError) as error:
            raise ConfigError(
                f"cannot load {one_line(model, 80)} for scoring on {self._device} ({one_line(error, 120)}): name a "
                "folder or a Hub name of a causal language model, and a device that torch has"
            ) from error
        own = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.window = check_window(min(max_tokens, own or max_tokens))
        self._batch_tokens = batch_tokens
        self._start = self._starting(start)

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. Batched by length; None never happens. Raises ConfigError where there is not a context for
        each text, or the device has too little memory."""
        check_pairs(contexts, texts)
        before, own = self._ids(contexts), self._ids(texts)
        joined = [join(self._start, before[context], own[text], self.window) for context, text in zip(
            contexts, texts, strict=True
        )]  # fmt: skip
        scored: list[ScoredText | None] = [one.of(0.0) for one in joined]
        with self._torch.inference_mode():
            for batch in _batches(joined, self._batch_tokens):
                for index, nll in zip(batch, self._batch([joined[index] for index in batch]), strict=True):
                    scored[index] = joined[index].of(nll)
        return scored

    def _starting(self, start: str | None) -> list[int]:
        if start is not None:
            return list(self._tokenizer(start, add_special_tokens=False)["input_ids"])
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        return [] if first is None else [first]

    def _ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The tokens of each different text, without those that frame a document."""
        once = [text for text in dict.fromkeys(texts) if text]
        ids = self._tokenizer(once, add_special_tokens=False, verbose=False)["input_ids"] if once else []
        return {"": [], **dict(zip(once, ids, strict=True))}

    def _batch(self, joined: Sequence[Joined]) -> list[float]:
        torch = self._torch
        longest = max(len(one.ids) for one in joined)
        # Padded on the right: what comes later cannot be seen by a causal model, and positions count from 0.
        ids = torch.zeros((len(joined), longest), dtype=torch.long)
        there = torch.zeros_like(ids)
        for row, one in enumerate(joined):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            there[row, : len(one.ids)] = 1
        ids, there = ids.to(self._device), there.to(self._device)
        try:
            logits = self._model(input_ids=ids, attention_mask=there, use_cache=False).logits
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"{self._device} has too little memory for {self._batch_tokens} tokens together: lower batch_tokens or "
                "max_tokens"
            ) from error
        totals = []
        for row, one in enumerate(joined):
            end = len(one.ids)
            predicted = logits[row, end - one.scored - 1 : end - 1].float()
            total = torch.nn.functional.cross_entropy(predicted, ids[row, end - one.scored : end], reduction="sum")
            totals.append(float(total))
        return totals


def _batches(joined: Sequence[Joined], most: int) -> Iterator[list[int]]:
    """Indexes of those with a token to score, in batches of like length: at most `most` tokens with the padding."""
    batch: list[int] = []
    order = sorted((index for index, one in enumerate(joined) if one.scored), key=lambda index: len(joined[index].ids))
    for index in order:
        if batch and (len(batch) + 1) * len(joined[index].ids) > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            'scoring on this machine needs torch and transformers: run `pip install "refed-dspy[scoring]"`'
        ) from error
    return torch, transformers
