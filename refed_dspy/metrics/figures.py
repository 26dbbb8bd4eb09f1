"""A data set in figures: lengths, wording, likeness, coherence, diversity, perplexity. Two data sets' figures make the
table of old against new."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import fmean, median

from refed_dspy.config.jobs import ScorerConfig
from refed_dspy.errors import ConfigError, RunStopped, TeacherError
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.metrics.perplexity import Difficulty, ScoredText, Scorer, ifd
from refed_dspy.text import aligned, number

Pairs = Sequence[tuple[str, str]]
Figures = Mapping[str, float | None]
"""Name → figure, in the order of a table; None: not to be had."""
EMBEDDED = 2_000
"""Pairs that are embedded, as many as `nearest_distance` compares."""


@dataclass(frozen=True)
class Tools:
    """What some figures need. `lacking` says, a line each, which figures are left out and what would bring them."""

    embedder: Embedder | None = None
    scorer: Scorer | None = None
    lacking: Sequence[str] = field(default_factory=tuple)

    def scored(self) -> str:
        """What the scorer was asked: calls are paid for at a hosted endpoint. Empty for one that does not count."""
        calls = getattr(self.scorer, "calls", None)
        if calls is None:
            return ""
        told = f"{calls:,} calls, {getattr(self.scorer, 'tokens', 0):,} tokens read"
        lost = getattr(self.scorer, "unanswered", 0)
        return f"{told}, {lost:,} texts without an answer" if lost else told


class AskedOnce:
    """A scorer that is asked the same once: old and new share texts, and so do selection and figures."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[bytes, ScoredText] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._scorer, name)  # its counts

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. What got no answer is asked again the next time."""
        keys = [_key(context, text) for context, text in zip(contexts, texts, strict=True)]
        new = {key: at for at, key in enumerate(keys) if key not in self._known}
        told = self._scorer.nll([contexts[at] for at in new.values()], [texts[at] for at in new.values()])
        self._known |= {key: one for key, one in zip(new, told, strict=True) if one is not None}
        return [self._known.get(key) for key in keys]


def _key(context: str, text: str) -> bytes:
    parts = (part.encode("utf-8", "surrogatepass") for part in (context, text))
    return b"".join(blake2b(part, digest_size=16).digest() for part in parts)


@contextmanager
def scoring(again: str) -> Iterator[None]:
    """Around work with a scorer after something was paid for. Raises RunStopped where it fails: `again` says how to go
    on."""
    try:
        yield
    except (ConfigError, TeacherError) as error:
        raise RunStopped(f"scorer: {error}; {again}") from error


def open_tools(embeddings: bool | None, scorer: ScorerConfig | None) -> Tools:
    """The embedding model (True: needed, None: if its weights are there) and the model that scores.

    Raises:
        ConfigError: one that was asked for cannot be had.
    """
    lacking = []
    embedder = None
    if embeddings is not False:
        try:
            embedder = Embedder.open()
        except ConfigError as error:
            if embeddings:
                raise
            lacking.append(f"coherence and semantic diversity: {error}")
    if scorer is None:
        lacking.append("perplexity, IFD and r-IFD: name a scorer, {model: …} for transformers or vLLM's endpoint")
    return Tools(embedder, None if scorer is None else open_scorer(scorer), tuple(lacking))


def open_scorer(config: ScorerConfig) -> Scorer:
    """The model that says how likely a text is, tried on one short text. Raises ConfigError."""
    try:
        scorer = _scorer(config)
        (tried,) = scorer.nll([""], ["Is anybody there?"])
    except (ConfigError, TeacherError) as error:
        raise ConfigError(f"scorer: {error}") from error
    if tried is None:
        raise ConfigError(f"scorer: {config.model} gave no answer to a first text: look at the server, then run again")
    return AskedOnce(scorer)


def _scorer(config: ScorerConfig) -> Scorer:
    if config.api_base is not None:
        from refed_dspy.metrics.endpoint_scorer import EndpointScorer

        return EndpointScorer(config.model, config.api_base, config.api_key_env, concurrency=config.concurrency)
    from refed_dspy.metrics.transformers_scorer import TransformersScorer

    return TransformersScorer(config.model)


def figures(pairs: Pairs, tools: Tools, sample: int = 500, seed: int = 0) -> dict[str, float | None]:
    """The figures of (instruction, response) pairs. What costs time is taken over pairs drawn by `seed`: `sample` for
    perplexities and self-ROUGE-L, EMBEDDED or `sample` for embeddings. Without a pair, every figure but the number of
    rows is None."""
    instructions, responses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        "rows": float(len(pairs)),
        **_lengths("instruction", instructions),
        **_lengths("response", responses),
        **_wording(instructions, responses, sample, seed),
        **_embedded(_drawn(pairs, max(sample, EMBEDDED), seed), tools.embedder, seed),
        **(_scored(ifd(tools.scorer, _drawn(pairs, sample, seed))) if tools.scorer is not None else {}),
    }


def _drawn(pairs: Pairs, count: int, seed: int) -> Pairs:
    return pairs if len(pairs) <= count else random.Random(seed).sample(list(pairs), count)


def table(columns: Mapping[str, Figures]) -> list[str]:
    """One column a data set, one row a figure."""
    names = list(dict.fromkeys(name for one in columns.values() for name in one))
    heading = ["", *columns]
    digits = {name: 0 if name == "rows" else 1 if " words, " in name else 2 for name in names}
    return aligned([heading, *([n, *(number(one.get(n), digits[n]) for one in columns.values())] for n in names)])


def _lengths(what: str, texts: Sequence[str]) -> Figures:
    from refed_dspy.metrics.wording import lengths

    told = lengths(texts)
    words = told.words if told else None
    return {
        f"{what} words, mean": words.mean if words else None,
        f"{what} words, median": words.median if words else None,
        f"{what} words, 95th percentile": words.p95 if words else None,
    }


def _wording(instructions: Sequence[str], responses: Sequence[str], sample: int, seed: int) -> Figures:
    from refed_dspy.metrics.rouge import self_rouge
    from refed_dspy.metrics.wording import SAMPLE_TOKENS, wording

    told: dict[str, float | None] = {}
    for what, texts in (("instructions", instructions), ("responses", responses)):
        found = wording(texts, seed=seed).distinct
        told |= {f"distinct-{one.n} of {what}": one.ratio for one in found}
        # The ratio falls with the amount of text alone: longer responses have a lower one, however they are worded.
        some = {f"distinct-{one.n} in {SAMPLE_TOKENS:,} words of {what}": one.sampled for one in found}
        told |= {name: sampled for name, sampled in some.items() if sampled is not None}
    return {**told, "self-ROUGE-L of instructions": self_rouge(instructions, sample, seed)}


def _embedded(pairs: Pairs, embedder: Embedder | None, seed: int) -> Figures:
    if embedder is None:
        return {}
    from refed_dspy.metrics.diversity import coherence, nearest_distance, semantic_diversity

    instructions, responses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    vectors = embedder.embed(instructions)
    return {
        "coherence of instruction and response": _mean(coherence(embedder, instructions, responses)),
        "semantic diversity of instructions": semantic_diversity(vectors),
        "distance to the nearest instruction": nearest_distance(vectors, seed=seed),
    }


def _scored(told: Sequence[Difficulty]) -> Figures:
    instruction, given = [one.ppl_instruction for one in told], [one.ppl_answer_given_instruction for one in told]
    return {
        "perplexity of the instruction, mean": _mean(instruction),
        "perplexity of the instruction, median": _median(instruction),
        "perplexity of the response given it, mean": _mean(given),
        "perplexity of the response given it, median": _median(given),
        "IFD, mean": _mean([one.ifd for one in told]),
        "r-IFD, mean": _mean([one.r_ifd for one in told]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
