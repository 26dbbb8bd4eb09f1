"""The figures of a data set: lengths, lexical diversity, self-ROUGE-L, coherence, semantic diversity, perplexity. Those
of two data sets make the table of old against new."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refed_dspy.config.scorer import ScorerConfig, Template
from refed_dspy.errors import ConfigError, RunStopped, TeacherError
from refed_dspy.filters.rouge import self_rouge
from refed_dspy.measures.embedder import Embedder, Embeds, Vectors
from refed_dspy.plugins.metrics.endpoint_scorer import EndpointScorer
from refed_dspy.plugins.metrics.perplexity import ScoredText, Scorer, TransformersScorer, ifd
from refed_dspy.plugins.metrics.wording import SAMPLE_TOKENS, distinct_n, spread, words
from refed_dspy.text import format_number, table_lines

Pairs = Sequence[tuple[str, str]]
Figures = Mapping[str, float | None]
"""Name → figure, in the order of a table; None where there is no figure."""
NEIGHBOURS = 2_000
"""Rows that `nearest_distance` compares with each other: 16 MB of cosines."""


@dataclass(frozen=True)
class Tools:
    """The models that some figures need. `lacking`: a line for each group of figures left out."""

    embedder: Embeds | None = None
    scorer: Scorer | None = None
    lacking: Sequence[str] = ()
    template: Template = "vicuna"
    """Of IFD and r-IFD."""

    def scored(self) -> str:
        """The scorer's calls, tokens and failures, for a hosted endpoint bills them. Empty where it does not count."""
        calls = getattr(self.scorer, "calls", None)
        if calls is None:
            return ""
        usage = f"{calls:,} calls, {getattr(self.scorer, 'tokens', 0):,} tokens read"
        unanswered = getattr(self.scorer, "unanswered", 0)
        return f"{usage}, {unanswered:,} texts without an answer" if unanswered else usage


class CachedScorer:
    """Asks a scorer each (context, text) once: old and new data sets share texts, and so do selection and figures."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._scored: dict[bytes, ScoredText] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._scorer, name)  # calls, tokens, unanswered

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        """See `Scorer`. A text that got no answer is asked again the next time."""
        keys = [_key(context, text) for context, text in zip(contexts, texts, strict=True)]
        new = {key: at for at, key in enumerate(keys) if key not in self._scored}
        answers = self._scorer.nll([contexts[at] for at in new.values()], [texts[at] for at in new.values()])
        self._scored |= {key: answer for key, answer in zip(new, answers, strict=True) if answer is not None}
        return [self._scored.get(key) for key in keys]


def _key(context: str, text: str) -> bytes:
    encoded = (piece.encode("utf-8", "surrogatepass") for piece in (context, text))
    return b"".join(blake2b(piece, digest_size=16).digest() for piece in encoded)


@contextmanager
def scoring(again: str) -> Iterator[None]:
    """For work with a scorer after something was paid for: raises RunStopped where the scorer fails. `again` says how
    to continue."""
    try:
        yield
    except (ConfigError, TeacherError) as error:
        raise RunStopped(f"scorer: {error}; {again}") from error


def open_scorer(config: ScorerConfig) -> Scorer:
    """The model that scores how likely a text is, tried on one short text. Raises ConfigError."""
    try:
        scorer: Scorer = (
            TransformersScorer(config.model)
            if config.api_base is None
            else EndpointScorer(config.model, config.api_base, config.api_key_env, config.concurrency)
        )
        (score,) = scorer.nll([""], ["Is anybody there?"])
    except (ConfigError, TeacherError) as error:
        raise ConfigError(f"scorer: {error}") from error
    if score is None:
        raise ConfigError(f"scorer: {config.model} gave no answer to a first text; check the server, then run again")
    return CachedScorer(scorer)


def open_tools(
    embeddings: bool | None,
    scorer: ScorerConfig | None,
    opened: Callable[[], Embeds] = Embedder.open,
    open_scorer: Callable[[ScorerConfig], Scorer] = open_scorer,
) -> Tools:
    """The embedding model (True: required, None: if its weights are there) and the scorer.

    Raises:
        ConfigError: a model that was asked for is not available.
    """
    embedder, lacking = open_embedder(embeddings, "coherence and semantic diversity", opened)
    if scorer is None:
        lacking.append("perplexity, IFD and r-IFD: set scorer: {model: …}, a transformers model or a vLLM endpoint")
        return Tools(embedder, lacking=lacking)
    return Tools(embedder, open_scorer(scorer), lacking, scorer.template)


def open_embedder(
    wanted: bool | None, measures: str, opened: Callable[[], Embeds] = Embedder.open
) -> tuple[Embeds | None, list[str]]:
    """The embedding model, and a line about what it `measures` where its weights are not there and nothing asks for
    them (None). Raises ConfigError where it is `wanted` and missing."""
    if wanted is False:
        return None, []
    try:
        return opened(), []
    except ConfigError as error:
        if wanted:
            raise
        return None, [f"{measures}: {error}"]


def figures(pairs: Pairs, tools: Tools, sample: int = 500, seed: int = 0) -> dict[str, float | None]:
    """The figures of (instruction, response) pairs.

    Slow figures use pairs drawn by `seed`: `sample` of them for perplexities and self-ROUGE-L, the larger of
    NEIGHBOURS and `sample` for embeddings. Without a pair, every figure but the number of rows is None.
    """
    instructions, responses = _Texts(pairs, 0), _Texts(pairs, 1)
    return {
        "rows": float(len(pairs)),
        **_lengths("instruction", instructions),
        **_lengths("response", responses),
        **_diversity(instructions, responses, sample, seed),
        **_embedded(_drawn(pairs, max(sample, NEIGHBOURS), seed), tools.embedder, seed),
        **_scored(_drawn(pairs, sample, seed), tools),
    }


def _drawn(pairs: Pairs, count: int, seed: int) -> Pairs:
    drawn = range(len(pairs)) if len(pairs) <= count else random.Random(seed).sample(range(len(pairs)), count)
    return [pairs[at] for at in drawn]


class _Texts(Sequence[str]):
    """The instructions (`place` 0) or the responses (1) of pairs, read one by one."""

    def __init__(self, pairs: Pairs, place: int) -> None:
        self._pairs, self._place = pairs, place

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        return self._pairs[index][self._place]


def table(columns: Mapping[str, Figures]) -> list[str]:
    """The lines of a table: one column a data set, one row a figure."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [["", *columns]]
    for name in names:
        digits = 0 if name == "rows" else 1 if " words, " in name else 2
        rows.append([name, *(format_number(column.get(name), digits) for column in columns.values())])
    return table_lines(rows)


def _lengths(noun: str, texts: Sequence[str]) -> Figures:
    counts = spread([len(words(text)) for text in texts])
    return {
        f"{noun} words, mean": counts.mean if counts else None,
        f"{noun} words, median": counts.median if counts else None,
        f"{noun} words, 95th percentile": counts.p95 if counts else None,
    }


def _diversity(instructions: Sequence[str], responses: Sequence[str], sample: int, seed: int) -> Figures:
    values: dict[str, float | None] = {}
    for noun, texts in (("instructions", instructions), ("responses", responses)):
        distinct = distinct_n(texts, seed)
        values |= {f"distinct-{grams.n} of {noun}": grams.ratio for grams in distinct}
        # The ratio falls with the amount of text alone: longer responses have a lower one, however they are worded.
        for grams in distinct:
            if grams.sampled is not None:
                values[f"distinct-{grams.n} in {SAMPLE_TOKENS:,} words of {noun}"] = grams.sampled
    return {**values, "self-ROUGE-L of instructions": self_rouge(instructions, sample, seed)}


def _embedded(pairs: Pairs, embedder: Embeds | None, seed: int) -> Figures:
    if embedder is None:
        return {}
    instructions, responses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    vectors = embedder.embed(instructions)
    return {
        "coherence of instruction and response": _over(fmean, coherence(embedder, instructions, responses)),
        "semantic diversity of instructions": semantic_diversity(vectors),
        "distance to the nearest instruction": nearest_distance(vectors, seed=seed),
    }


def _scored(pairs: Pairs, tools: Tools) -> Figures:
    """The template is in the names of what depends on it: those of another one are other figures."""
    if tools.scorer is None:
        return {}
    difficulties, template = ifd(tools.scorer, pairs, tools.template), tools.template
    instruction = [pair.ppl_instruction for pair in difficulties]
    response = [pair.ppl_answer_given_instruction for pair in difficulties]
    return {
        "perplexity of the instruction, mean": _over(fmean, instruction),
        "perplexity of the instruction, median": _over(median, instruction),
        f"perplexity of the response given it ({template}), mean": _over(fmean, response),
        f"perplexity of the response given it ({template}), median": _over(median, response),
        f"IFD ({template}), mean": _over(fmean, [pair.ifd for pair in difficulties]),
        f"r-IFD ({template}), mean": _over(fmean, [pair.r_ifd for pair in difficulties]),
    }


def _over(statistic: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistic(numbers) if numbers else None


def coherence(embedder: Embeds, instructions: Sequence[str], responses: Sequence[str]) -> list[float | None]:
    """The cosine in [-1, 1] of each instruction with its response, by sentence embeddings (Reflection-Tuning, Li et
    al., arXiv 2310.11716). None where either of the two is blank.
    """
    pairs = zip(instructions, responses, strict=True)
    whole = [bool(instruction.strip() and response.strip()) for instruction, response in pairs]
    asked = embedder.embed([text for text, both in zip(instructions, whole, strict=True) if both])
    answered = embedder.embed([text for text, both in zip(responses, whole, strict=True) if both])
    cosines = iter(np.clip(np.einsum("nh,nh->n", asked, answered), -1, 1).tolist())
    return [next(cosines) if both else None for both in whole]


def semantic_diversity(vectors: Vectors) -> float | None:
    """The mean cosine distance over all pairs of different rows, from 0 (all the same) to a little above 1; None for
    fewer than two rows.

    `vectors`: unit length, (n, width). Exact, in one pass: with s the sum of the n vectors, |s|² is the sum of all
    n² cosines, so the mean distance is 1 - (|s|² - Σ|v|²) / (n (n - 1)).
    """
    count = len(vectors)
    if count < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = float(np.einsum("nh,nh->n", vectors, vectors).sum(dtype=np.float64))
    return 1 - (float(total @ total) - squares) / (count * (count - 1))


def nearest_distance(vectors: Vectors, *, seed: int = 0) -> float | None:
    """The mean cosine distance of a row to the row nearest to it; None for fewer than two rows.

    It shows what the mean over all pairs hides: a data set of many tight clusters, far from each other, is diverse by
    that mean and close to 0 here. Among more rows the nearest is nearer, so at most `NEIGHBOURS` rows, drawn by `seed`,
    are compared with each other: data sets of at least that many rows are comparable, smaller ones only with those of
    their size.
    """
    if len(vectors) < 2:
        return None
    drawn = vectors
    if len(vectors) > NEIGHBOURS:
        drawn = vectors[np.random.default_rng(seed).choice(len(vectors), NEIGHBOURS, replace=False)]
    cosines: NDArray[np.float32] = drawn @ drawn.T
    np.fill_diagonal(cosines, -2)
    return max(0.0, float(1 - cosines.max(axis=1).mean(dtype=np.float64)))
