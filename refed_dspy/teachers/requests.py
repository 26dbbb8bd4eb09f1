"""Prepares requests for one teacher: parameters, a schema that its endpoint takes, a cache key, a bound on tokens."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from dspy.lm15 import AnthropicLM, Config, LM15Error, Message, Reasoning, Request
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from refed_dspy.config.keys import without_keys
from refed_dspy.config.teacher import TeacherConfig, is_unsent, on_anthropic_wire
from refed_dspy.errors import one_line
from refed_dspy.files import as_export_error, write_json
from refed_dspy.teachers.route import Dialect, Route, is_at
from refed_dspy.weights import cache_dir

log = logging.getLogger("refed_dspy.teachers")
_BOUNDS = {"maxLength", "minLength", "maxItems", "minItems"}
LONGEST_BOUND = 1_999
"""Characters: llama.cpp's grammar ignores a longer bound, and some of its versions refuse it."""
CACHE_KEY = "prompt_cache_key"
"""The parameter by which OpenAI routes requests: those with one key go to one machine and find its prompt cache."""
_OPENING = re.compile(r"<(\w+)>\n.*?\n</>", re.DOTALL)
_BUDGETS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "xhigh": 24_576, "max": 32_768}
"""Tokens of reasoning for each word, where a model wants a number."""
OVERHEAD = 1_024
"""Tokens that a provider may add to a prompt: roles, its own text about the schema."""
_DIALECTS = TypeAdapter(dict[str, Dialect])
"""Model, address and API version, as one text → what they take."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most tokens that a request can take: of its prompt, and of its answer with all reasoning. `text`: of its
    prompt, which bounds them from below."""

    prompt: int
    answer: int
    text: str


class Outgoing:
    """Prepares the requests of one teacher. What depends only on settings and schema is computed once."""

    def __init__(self, config: TeacherConfig, route: Route) -> None:
        self.config, self.route = config, route
        self._configs: dict[int, tuple[Config, Config, int]] = {}
        self._presumed = Dialect(schema=config.answer_schema or route.schema)
        self.dialect = self._presumed
        """What the endpoint takes, as far as is known by now."""
        if not config.without_endpoint and (known := recall(config, route.endpoint)) is not None:
            self.dialect = replace(known, schema=config.answer_schema or known.schema)
        self._tried = {self.dialect}
        self.takes_cache_key = takes_cache_key(config, route)

    def forget(self) -> None:
        """Presume what the endpoint takes, as if it had never refused anything."""
        self.dialect, self._tried = self._presumed, {self._presumed}

    @property
    def refused(self) -> bool:
        """Whether the endpoint is known to refuse something that was presumed of it."""
        return self.dialect != self._presumed

    def __call__(self, request: Request, seed: int | None = None) -> tuple[Request, Bound]:
        """The request to send, and the most tokens that it can take.

        A token stands for at least one byte of text, so the bytes of everything sent bound their number.
        """
        config, size = self._fitted(request.config)
        if self.config.without_endpoint and seed is not None:
            config = replace(config, extensions={"seed": seed, **(config.extensions or {})})
        elif self.takes_cache_key and (key := cache_key(request)) is not None:  # the user's params win
            config = replace(config, extensions={CACHE_KEY: key, **(config.extensions or {})})
        text = "".join(map(words_in, (request.system, *request.messages)))
        size += OVERHEAD + len(text.encode("utf-8", "surrogatepass"))
        outgoing = replace(request, model=self.route.model, config=config)
        return outgoing, Bound(size, self._longest(request.config), text)

    def _fitted(self, settings: Config) -> tuple[Config, int]:
        """A request's settings as the endpoint takes them, and the size of their schema in bytes."""
        entry = self._configs.get(id(settings))
        if entry is None or entry[0] is not settings:
            if len(self._configs) >= 256:  # optimizers make ever new signatures
                self._configs.clear()
            format_ = self._format(settings.response_format)
            most = self._longest(settings)
            reasoning = self._reasoning(settings.reasoning, most)
            if reasoning and reasoning.thinking_budget and on_anthropic_wire(str(self.config.model)):
                most -= reasoning.thinking_budget  # lm15 adds it again
            fitted = replace(
                settings,
                temperature=self._temperature(settings.temperature),
                response_format=format_,
                reasoning=reasoning,
                **self.dialect.bounds({**(settings.extensions or {}), **self.config.params}, most),
            )
            # The entry holds the original: as long as that lives, nothing else has its id.
            entry = self._configs[id(settings)] = (settings, fitted, len(json.dumps(format_)) if format_ else 0)
        return entry[1], entry[2]

    def _longest(self, settings: Config) -> int:
        """Tokens: the longest answer to a request with these settings. `max_cost` relies on max_tokens: a request for
        more (by a user's own module, say) gets no more."""
        return min(settings.max_tokens or self.config.max_tokens, self.config.max_tokens)

    def learned(self, error: LM15Error, sent: Dialect) -> bool:
        """Whether a request that was refused with `error`, `sent` in this dialect, is worth sending again: the error
        says what the endpoint does not take, or did so for another request meanwhile."""
        if self.dialect != sent:
            return True
        other = sent.after(error)
        if other is None or other in self._tried:
            return False
        log.warning("%s at %s: %s (it said: %s)", self.config.model, self.route.endpoint, other.told(sent),
                    one_line(without_keys(str(error.message)), 120))  # fmt: skip
        self._tried.add(other)
        self.dialect = other
        self._configs.clear()
        return True

    def _format(self, asked: Any) -> Any:
        """The response format to send: `asked`'s schema as the endpoint's decoder takes it."""
        if not asked or self.dialect.schema == "none":
            return None
        return fit_bounds(asked, self.dialect.schema == "bounded")

    def _reasoning(self, asked: Reasoning | None, most: int) -> Reasoning | None:
        """How much to reason. A model that takes a budget in place of a word gets at most half of the `most` tokens of
        an answer for it."""
        level = self.config.reasoning if self.dialect.reasoning else None
        reasoning = asked or (Reasoning(effort=level, summary="auto") if level else None)
        if reasoning is None or reasoning.is_off or not takes_budget(str(self.config.model)):
            return reasoning
        budget = reasoning.thinking_budget or _BUDGETS[reasoning.effort]
        return replace(reasoning, thinking_budget=min(budget, most // 2))

    def _temperature(self, asked: float | None) -> float | None:
        """The temperature to send, None for none. A program may have `asked` for one of its own."""
        if not self.dialect.temperature:
            return None
        model, temperature = str(self.config.model), self.config.temperature if asked is None else asked
        if is_unsent(temperature, model, self.config.params):
            return None
        if temperature > 1 and on_anthropic_wire(model):
            log.warning("%s: a program sets temperature %g, but Anthropic's API takes at most 1", model, temperature)
            return 1.0
        return temperature


def takes_budget(model: str) -> bool:
    """Whether PROVIDER/NAME takes a number of tokens to reason with: Claude up to 4.5, and Gemini 2."""
    if on_anthropic_wire(model):
        return not _chooses_its_own(model.partition("/")[2])
    return model.startswith("gemini/gemini-2")


@lru_cache
def _chooses_its_own(name: str) -> bool:
    """Whether lm15 asks Claude of this name to choose how long it reasons."""
    settings = Config(max_tokens=4_096, reasoning=Reasoning(effort="low"))
    asked = Request(model=name, messages=(Message.user("-"),), config=settings)
    body = json.loads(AnthropicLM(api_key="-").build_request(asked, stream=False).body)
    return bool(body["thinking"]["type"] == "adaptive")


def takes_cache_key(config: TeacherConfig, route: Route) -> bool:
    """Whether the endpoint is known to take a cache key: OpenAI's own, and Azure's v1 API. Others may refuse it, and a
    batch has no use for it."""
    if config.mode == "batch":
        return False
    if str(config.model).startswith("azure/"):
        return config.api_version is None
    return is_at(route.endpoint, ".api.openai.com")


def cache_key(request: Request) -> str | None:
    """A digest of what the requests of one stage about one reference share: everything up to the end of the last
    message's first input. None where `SchemaAdapter` did not write that message.

    One key for everything would not work: a provider sends up to about 15 requests a minute of one key to one machine,
    and the rest anywhere.
    """
    *earlier, last = request.messages
    opening = _OPENING.match(words_in(last))
    if opening is None:
        return None
    shared = [words_in(request.system), *map(words_in, earlier), opening.group()]
    return sha256("\0".join(shared).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def words_in(part: Any) -> str:
    """The words of a system message or of a message, without its other parts (for keys: `foreign.text_of`)."""
    if part is None or isinstance(part, str):
        return part or ""
    return "\n".join(str(getattr(text, "text", "")) for text in (part.parts if hasattr(part, "parts") else part))


def fit_bounds(part: Any, bounded: bool) -> Any:
    """A schema with those length bounds that the endpoint's decoder takes: none, or all but too long ones."""
    if isinstance(part, Mapping):
        return {k: fit_bounds(v, bounded) for k, v in part.items() if not _is_unfit_bound(k, v, bounded)}
    return [fit_bounds(item, bounded) for item in part] if isinstance(part, list | tuple) else part


def _is_unfit_bound(name: str, value: Any, bounded: bool) -> bool:
    """Whether it is a length bound that the decoder does not take."""
    # A property of the schema may be called maxLength, too: then its value is a schema.
    if name not in _BOUNDS or not isinstance(value, int):
        return False
    return not bounded or (name == "maxLength" and value > LONGEST_BOUND)


def learned_file() -> Path:
    """The file of the dialects that endpoints were found to have. It may not exist."""
    return cache_dir() / "teachers.json"


def recall(config: TeacherConfig, endpoint: str) -> Dialect | None:
    """What the model at `endpoint` takes; None where no check found anything that it refuses."""
    return _read().get(_key(config, endpoint))


def remember(config: TeacherConfig, endpoint: str, dialect: Dialect | None) -> None:
    """Replace what is remembered of the model at `endpoint`. None: nothing is refused. Raises ExportError."""
    path, key = learned_file(), _key(config, endpoint)
    if dialect is None and not path.exists():
        return
    with as_export_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            others = {name: known for name, known in _read().items() if name != key}
            write_json(path, _DIALECTS.dump_python(others if dialect is None else {**others, key: dialect}))


def _read() -> dict[str, Dialect]:
    path = learned_file()
    try:
        return _DIALECTS.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        log.warning("%s is ignored (%s); refed teacher check rewrites it", one_line(path, 200), one_line(reason or ""))
        return {}


def _key(config: TeacherConfig, endpoint: str) -> str:
    version = f" ({config.api_version})" if config.api_version else ""
    return without_keys(f"{config.model} at {endpoint}{version}")
