"""What a call costs: from the teacher's settings, or from the dated table that DSPy ships. Unknown is not zero.

Money is in whole picodollars: a price of $0.15 a million tokens is 150,000 of them a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from dspy.lm15 import LM15Error, LMRouter, RouterConfig

from refed_dspy.config.teacher import PriceConfig, TeacherConfig
from refed_dspy.errors import ModelError
from refed_dspy.records import PICO, Rates
from refed_dspy.teachers.route import LOCAL_PROVIDERS
from refed_dspy.teachers.vendored import model_info, source_info

TABLE_DATES = {"1.105.0": "2026-10-11"}
"""Version of the table that DSPy ships → the date it was published."""
MOST_COST = 9_000_000 * PICO
"""What a call is charged at most: SQLite's integers end a little above."""
_LONGER = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
_DEARER = {"service_tier", "tools", "web_search_options", "plugins", "modalities"}
"""Parameters with which a call costs something else than its tokens at the plain rates."""
BATCH_FRACTION = 0.5
"""What a batch costs as a fraction of the price, where neither the table nor the settings say."""
_HOSTS = (
    ("azure/", ".azure.com"),
    ("anthropic/", ".anthropic.com"),
    ("openai/", ".openai.com"),
    ("openrouter/", ".openrouter.ai"),
    ("gemini/", ".googleapis.com"),
)


@dataclass(frozen=True)
class Price:
    """A model's price. `longer`: other rates for prompts of more than so many tokens, shortest first."""

    rates: Rates
    source: str
    longer: tuple[tuple[int, Rates], ...] = ()

    def cost(self, prompt: int, cached: int, written: int, completion: int) -> int:
        """Picodollars for one call's tokens."""
        rates = self.rates
        for threshold, above in self.longer:
            rates = above if prompt > threshold else rates
        return min(MOST_COST, int(rates.cost(prompt, cached, written, completion)))

    def worst(self, prompt: int, completion: int) -> int:
        """Picodollars: the most that a call of at most so many tokens can cost."""
        reached = [self.rates, *(rates for threshold, rates in self.longer if prompt > threshold)]
        return min(MOST_COST, max(rates.dearest_prompt * prompt + rates.completion * completion for rates in reached))


FREE = Price(Rates(0, 0, 0, 0), "this machine")


def price_of(config: TeacherConfig, endpoint: str) -> Price | None:
    """The teacher's price; None where it is not known.

    An embedded model costs nothing, nor does the simulated teacher. A model's name says what it costs only at its own
    provider's address: behind any other, `price` in the teacher's settings has to say so.

    Raises:
        ConfigError: `price` names a model that the table does not have.
    """
    if config.without_endpoint:
        return FREE
    if isinstance(config.price, PriceConfig):
        return _from_settings(config.price)
    if config.price is not None:
        price = table_price(config.price)
        if price is None:
            raise ModelError(
                f"price: {config.price} is not in the price table ({table_name()}); give "
                "{prompt: …, completion: …} in dollars a million tokens"
            )
        return price
    if _DEARER.intersection(config.params):
        return None
    # Azure's address may come from an environment variable.
    at_provider = config.api_base is None and config.mode != "folder" and not str(config.model).startswith("azure/")
    if at_provider or _is_provider_host(str(config.model), endpoint):
        return table_price(str(config.model))
    return None


def in_batches(config: TeacherConfig, price: Price | None) -> Price | None:
    """What a call costs in a provider's batches: the table's batch rates, else the fraction `price.batch` of the price,
    a half by default. OpenAI has no cheaper prompt tokens in a batch. Who answers a folder's requests gives no rebate
    that is not in `price`."""
    if price is None or config.mode == "folder":
        return price
    fraction = config.price.batch if isinstance(config.price, PriceConfig) else BATCH_FRACTION
    listed = {} if isinstance(config.price, PriceConfig) else _table_entry(str(config.price or config.model))[1]
    rates = _uncached(_rates(listed, "_batches")) or _scaled(price.rates, fraction)
    longer = tuple(
        (
            threshold,
            _uncached(_rates(listed, f"_above_{threshold // 1000}k_tokens_batches")) or _scaled(above, fraction),
        )
        for threshold, above in price.longer
    )
    return Price(rates, price.source, longer)


def _table_entry(model: str) -> tuple[str, Mapping[str, Any]]:
    """(provider, the table's entry) of PROVIDER/NAME; nothing where the provider is unknown."""
    try:
        resolution = LMRouter(RouterConfig()).resolve_openai_chat(model)
    except LM15Error:
        return "", {}
    return resolution.provider, model_info(resolution.provider, resolution.model)


def _uncached(rates: Rates | None) -> Rates | None:
    """`rates`, if known, with every prompt token at the plain price: batches have no cache, whatever the table says."""
    return _scaled(rates, 1.0) if rates is not None and rates.completion else None


def _scaled(rates: Rates, fraction: float) -> Rates:
    """`rates` times `fraction`, with one rate for all prompt tokens."""
    prompt = round(rates.prompt * fraction)
    return Rates(prompt, prompt, prompt, round(rates.completion * fraction))


def table_name() -> str:
    """The price table's name, version and date."""
    version = str(source_info().get("snapshot_version"))
    date = TABLE_DATES.get(version)
    return f"LiteLLM {version}" + (f" of {date}" if date else "")


@lru_cache(maxsize=256)
def table_price(model: str) -> Price | None:
    """The price of PROVIDER/NAME in the table, or None."""
    provider, info = _table_entry(model)
    rates = _rates(info, "")
    if rates is None or not (rates.prompt or rates.completion or provider in LOCAL_PROVIDERS):
        return None  # zero for a hosted model means that nobody entered a price
    thresholds = sorted(int(match[1]) for key in info if (match := _LONGER.fullmatch(key)))
    longer = ((1000 * k, above) for k in thresholds if (above := _rates(info, f"_above_{k}k_tokens")))
    return Price(rates, table_name(), tuple(longer))


def table_window(model: str) -> int | None:
    """Tokens that PROVIDER/NAME can read, in the table; None where it does not say."""
    window = _table_entry(model)[1].get("max_input_tokens")
    return window if isinstance(window, int) and window > 0 else None


def _is_provider_host(model: str, endpoint: str) -> bool:
    """Whether `endpoint` is a host of the provider that the model's name begins with."""
    host = urlsplit(endpoint).hostname or ""
    return any(model.startswith(prefix) and f".{host}".endswith(domain) for prefix, domain in _HOSTS)


def _from_settings(price: PriceConfig) -> Price:
    prompt, completion = _pico(price.prompt / 1e6), _pico(price.completion / 1e6)
    cached = prompt if price.cached is None else _pico(price.cached / 1e6)
    return Price(Rates(prompt, cached, prompt, completion), "the teacher's settings")


def _rates(info: Mapping[str, Any], tier: str) -> Rates | None:
    """The rates of one tier (a suffix of the table's keys). What the table leaves out costs as a plain prompt token."""
    prompt, completion = _rate(info, "input_cost_per_token" + tier), _rate(info, "output_cost_per_token" + tier)
    if prompt is None or completion is None:
        return None
    cached = _rate(info, "cache_read_input_token_cost" + tier)
    written = _rate(info, "cache_creation_input_token_cost" + tier)
    return Rates(prompt, prompt if cached is None else cached, max(prompt, written or 0), completion)


def _rate(info: Mapping[str, Any], name: str) -> int | None:
    value = info.get(name)
    return _pico(value) if isinstance(value, int | float) and value >= 0 else None


def _pico(dollars_a_token: float) -> int:
    return round(dollars_a_token * PICO)
