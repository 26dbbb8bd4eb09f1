"""A teacher set up from its settings: its engine, what identifies its answers, its price and concurrency."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import dspy

from refed_dspy.config.keys import checked, know_environment, know_settings, without_keys
from refed_dspy.config.loading import check_config, model_settings
from refed_dspy.config.teacher import LEAST_TO_REASON, TeacherConfig, takes_temperature
from refed_dspy.errors import ConfigError, ModelError, setting
from refed_dspy.programs.fast_path import Engine, max_tokens_of
from refed_dspy.teachers.engine import BalancedEngine, TeacherEngine
from refed_dspy.teachers.foreign import AskedInItsWay, foreign_engine, read_lm
from refed_dspy.teachers.prices import FREE, Price, in_batches, price_of, table_price
from refed_dspy.teachers.requests import OVERHEAD
from refed_dspy.teachers.route import Route, key_variable, resolve
from refed_dspy.teachers.simulated.model import ROUTE as SIMULATED_ROUTE

TeacherLike: TypeAlias = Any
"""A TeacherConfig or a mapping of its settings, a `dspy.LM`, or a string: a model's name or a teacher file."""
DEFAULT_CONCURRENCY = 32
EMBEDDED_CONCURRENCY = 2
NO_BATCHES = {"vertex", "vertex-express", "xai"}
"""Providers whose Batch API, if they have one, is like none of those that are used here."""
BATCH_CONCURRENCY = 10_000
"""So many calls wait for their batches at once: all calls that a run can make at a time are one batch."""
CACHE_MINIMA = {"openai": 1024, "azure": 1024, "anthropic": math.inf}
"""Tokens of a prompt below which these providers cache nothing. Anthropic caches only what a request marks, and no
request does."""
CHARACTERS_A_TOKEN = 4
EMBEDDED_WINDOW = 8192
# The only settings of a caller's own LM that identify its answers: others may be keys, or new objects each time.
_SAMPLING = {
    "temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "min_p", "n", "stop", "seed",
    "presence_penalty", "frequency_penalty", "reasoning_effort", "logit_bias",
}  # fmt: skip


@dataclass
class Teacher:
    """A teacher that is set up but not running: `start` returns its engine, `stop` ends it."""

    identity: dict[str, Any]
    """Model and sampling: equal identities may share paid answers."""
    concurrency: int
    window: int | None
    """Size of its context window in tokens, where known."""
    max_tokens: int
    endpoint: str
    """Where it is asked; of several addresses, the first."""
    model: str
    config: TeacherConfig | None
    """Its settings; None for a caller's own LM object."""
    price: Price | None
    """None: unknown."""
    start: Callable[[], Engine]
    """Returns what sends its requests and records each call; starts an embedded model first, which takes seconds."""
    stop: Callable[[], None] = lambda: None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`temperature` and `max_tokens` of its requests unless they say otherwise; None: the model's own."""
    lm: dspy.BaseLM | None = None
    """The caller's own language model, where it must be asked itself. It retries unseen, so no cap can be kept."""
    uncapped: str = ""
    """Why that is so."""
    server: Any = None
    """What another Teacher of the same model may share: an embedded model's server, or the engine with the limits."""

    @property
    def endpoints(self) -> list[str]:
        """Every address where it is asked."""
        return [engine.endpoint for engine in _engines(self.server)] or [self.endpoint]

    @property
    def malformed_retries(self) -> int:
        return self.config.malformed_retries if self.config else 2

    @property
    def least(self) -> int | None:
        """The smallest worst case of any call, in picodollars; None where the price is unknown."""
        return None if self.price is None else self.price.worst(OVERHEAD, self.max_tokens)

    @property
    def batched(self) -> bool:
        """Whether it is asked through a Batch API, at least in part."""
        return self.config is not None and self.config.mode != "interactive"

    def prompt_cache_helps(self, characters: float) -> bool:
        """Whether a prompt is read faster, or costs less, with its first `characters` in the model's prompt cache. Some
        providers do not cache short prompts."""
        if self.config is None or self.batched:
            return False
        if self.config.embedded:
            return True
        cheaper = self.price is not None and self.price.rates.cached < self.price.rates.prompt
        provider = str(self.config.model).partition("/")[0]
        return cheaper and characters >= CHARACTERS_A_TOKEN * CACHE_MINIMA.get(provider, 0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Its engine inside the block; afterwards its connections are closed."""
        engine = await asyncio.to_thread(self.start)
        try:
            yield engine
        finally:
            if isinstance(engine, TeacherEngine | BalancedEngine):
                await engine.aclose()
            await asyncio.to_thread(self.stop)


def read_teacher(source: str | Path | Mapping[str, Any], role: str = "teacher") -> Any:
    """As `config.loading.model_settings`; of a mapping, which no variable refines, the TeacherConfig."""
    try:
        return check_config(TeacherConfig, source) if isinstance(source, Mapping) else model_settings(str(source), role)
    except ConfigError as error:
        if error.where in {role or "teacher", "teacher"}:  # it is no file's mistake, and no variable's
            raise ModelError(error.reason) from None
        if isinstance(source, Mapping):
            raise ModelError(str(error)) from None
        raise


def open_teacher(teacher: TeacherLike | None, beside: Teacher | None = None, role: str = "teacher") -> Teacher:
    """Set up `teacher`: a config, a mapping of its settings, a `dspy.LM`, a model's name or a teacher file; None means
    `dspy.settings.lm`.

    The variables of its `role` refine a name or a file (`REFED_TEACHER__API_BASE`).

    An embedded model uses the server of `beside` if that has the same weights; another one its rate limits, if it is
    the same model at the same endpoint.

    Raises:
        ModelError: its settings do not work; one line says why.
    """
    if teacher is None:
        if dspy.settings.lm is None:
            way = setting("teacher") + ", or set one with dspy.configure(lm=dspy.LM(…))"
            raise ConfigError("no teacher: pass " + way)
        teacher = dspy.settings.lm
    if (recorded := getattr(teacher, "of_teacher", None)) is not None:  # of a block or a run that this one is in
        teacher = recorded.config or recorded.lm
    if isinstance(teacher, dspy.BaseLM):
        try:
            teacher = read_lm(teacher)
        except AskedInItsWay as error:
            return _from_lm(teacher, str(error))
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, str | Path | Mapping):
        teacher = read_teacher(teacher, role)
    if isinstance(teacher, TeacherConfig) and teacher.without_endpoint and teacher.mode != "interactive":
        kind = "the simulated teacher" if teacher.simulated else "an embedded model"
        raise ModelError(f"{kind} takes no batches; remove mode: {teacher.mode}")
    if not isinstance(teacher, TeacherConfig):
        raise ModelError(
            f"got a {type(teacher).__name__}; pass a TeacherConfig or its settings, a dspy.LM, a name or a file"
        )
    return _embedded(teacher, beside) if teacher.embedded else _remote(teacher, beside)


def at_once(teacher: Teacher) -> Teacher:
    """The same one, asked interactively. Raises ModelError where nothing is there to answer at once."""
    if teacher.config is None or not teacher.batched:
        return teacher
    if teacher.config.mode == "folder":
        raise ModelError("mode: folder: nothing answers at once; set mode: interactive and the api_base of a server")
    return open_teacher(teacher.config.model_copy(update={"mode": "interactive", "concurrency": None}))


def _remote(config: TeacherConfig, beside: Teacher | None = None) -> Teacher:
    usual = DEFAULT_CONCURRENCY if config.mode == "interactive" else BATCH_CONCURRENCY
    config = config.model_copy(update={"concurrency": config.concurrency or usual})
    each = config.at_each_address()
    routes = [SIMULATED_ROUTE if one.simulated else resolve(one) for one in each]
    route, price, *others = routes[0], *(price_of(one, place.endpoint) for one, place in zip(each, routes, strict=True))
    if any(other != price for other in others):
        raise ModelError("the price is not known at every address of api_base; set price")
    if config.mode == "interactive":
        engines = [TeacherEngine(one, place, price) for one, place in zip(each, routes, strict=True)]
        engine: TeacherEngine | BalancedEngine = engines[0] if len(engines) == 1 else BalancedEngine(engines)
        near = _engines(beside.server) if beside is not None and beside.model == config.model else []
        for own in engines:
            own.shares_limits_with = next((other for other in near if other.endpoint == own.endpoint), None)
    else:
        plain, price = price, in_batches(config, price)
        engine = _batch_engine(config, route, price, plain)
    return Teacher(
        identity=_identity(config, str(config.model)),
        concurrency=(config.concurrency or usual) * len(each),
        window=config.context_window,
        max_tokens=config.max_tokens,
        endpoint=route.endpoint,
        model=str(config.model),
        config=config,
        price=price,
        start=lambda: engine,
        settings=request_settings(config),
        server=engine,
    )


def _batch_engine(config: TeacherConfig, route: Route, price: Price | None, plain: Price | None) -> TeacherEngine:
    """A model behind its provider's batches. `plain`: the price of a call outside a batch. Raises ModelError."""
    from refed_dspy.teachers.batch.engine import BatchEngine

    if route.provider in NO_BATCHES:
        raise ModelError(
            f"mode: {config.mode} needs batches like those of OpenAI, Anthropic or Gemini, which {config.model} does "
            "not have; set mode: interactive"
        )
    return BatchEngine(config, route, price, plain)


def _engines(server: Any) -> Sequence[TeacherEngine]:
    """The engines behind a `Teacher.server` whose limits others may share: not those of batches, which have none."""
    if isinstance(server, BalancedEngine):
        return server.engines
    return [server] if type(server) is TeacherEngine else []


def _embedded(config: TeacherConfig, beside: Teacher | None = None) -> Teacher:
    """The embedded model, called over loopback."""
    from refed_dspy.teachers.local.llama import LlamaServer

    if config.gguf is not None:
        path, name = config.gguf, config.gguf.name
        if not path.is_file():
            raise ModelError(f"gguf {path}: no such file")
        content = f"{name}:{path.stat().st_size}"
    else:
        from refed_dspy.weights import WEIGHTS, find

        weights = WEIGHTS[str(config.model)]
        path, name, content = find(weights), weights.model, weights.sha256
    slots = config.concurrency or EMBEDDED_CONCURRENCY
    window = config.context_window or EMBEDDED_WINDOW
    same = beside is not None and isinstance(beside.server, LlamaServer) and beside.identity["model"] == content
    server = beside.server if beside is not None and same else LlamaServer(path, slots=slots, window=window)
    label = f"embedded:{name}"
    return Teacher(
        identity=_identity(config, content),
        concurrency=slots,
        window=window,
        max_tokens=config.max_tokens,
        endpoint=label,
        model=name,
        config=config,
        price=FREE,
        start=lambda: TeacherEngine(config, resolve(config, api_base=server.start()), FREE, label),
        stop=server.stop,
        settings=request_settings(config),
        server=server,
    )


def _identity(config: TeacherConfig, model: str) -> dict[str, Any]:
    reasoning = {} if config.reasoning is None else {"reasoning": config.reasoning}
    return {
        "model": model,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "params": dict(sorted(config.params.items())),
        **reasoning,
    }


def _from_lm(lm: dspy.BaseLM, why: str) -> Teacher:
    """A caller's own LM object, without its cache, which would give every sample the same answer. `why`: as
    `Teacher.uncapped`."""
    sampling = {k: v for k, v in lm.kwargs.items() if k in _SAMPLING and v is not None}
    uncached = _with_plain_key(lm.copy(cache=False) if lm.cache else lm)
    price = None if lm.kwargs.get("api_base") else table_price(lm.model)
    endpoint = _address(str(lm.kwargs.get("api_base") or "")) or lm.model.partition("/")[0]
    return Teacher(
        identity={"model": lm.model, **{k: repr(v) for k, v in sorted(sampling.items())}},
        concurrency=DEFAULT_CONCURRENCY,
        window=None,
        max_tokens=int(sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 4096),
        endpoint=endpoint,
        model=lm.model,
        config=None,
        price=price,
        start=lambda: foreign_engine(uncached, endpoint, price),
        settings={"temperature": lm.kwargs.get("temperature"), "max_tokens": max_tokens_of(lm)},
        lm=uncached,
        uncapped=why,
    )


def _with_plain_key(lm: dspy.BaseLM) -> dspy.BaseLM:
    """`lm` with its key stripped. Its keys are known from here on. Raises ModelError where no header can hold it."""
    know_settings(lm.kwargs)
    know_environment()
    if not isinstance(lm, dspy.LM):
        return lm
    given = lm.kwargs.get("api_key")
    where = "api_key" if given else key_variable(lm.model)
    key = str(given or os.environ.get(where or "", ""))
    plain = checked(key, str(where))
    return lm if plain == key else lm.copy(api_key=plain)


def _address(url: str) -> str:
    """`url` without user, password, query or key."""
    split = urlsplit(url)
    port = f":{split.port}" if split.port else ""
    return without_keys(f"{split.scheme}://{split.hostname}{port}{split.path}") if split.hostname else ""


def request_settings(config: TeacherConfig) -> dict[str, Any]:
    """What every request asks for. DSPy wants a model that reasons to be asked for so many tokens; the engine sends the
    config's number where that is lower."""
    least = LEAST_TO_REASON if not config.without_endpoint and not takes_temperature(str(config.model)) else 0
    return {"temperature": config.temperature, "max_tokens": max(config.max_tokens, least)}
