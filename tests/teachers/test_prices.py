"""Prices: whose they are, what a call's tokens come to, and the most that a call can cost."""

from __future__ import annotations

import math
import random
import re
from decimal import Decimal
from typing import Any

import pytest
from dspy.clients.model_metadata import model_info

from refed_dspy import TeacherConfig
from refed_dspy.config.teacher import PriceConfig
from refed_dspy.errors import ConfigError
from refed_dspy.records import PICO, Rates, dollars
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.prices import FREE, Price, in_batches, price_of, table_name, table_price

HERE = "http://127.0.0.1:9/v1"
OPENAI = "https://api.openai.com/v1"
MODELS_IN_TABLE = [
    "openai/gpt-4o-mini",
    "anthropic/claude-sonnet-4-5",
    "gemini/gemini-2.5-pro",
    "deepseek/deepseek-chat",
]


def priced(model: str = "sim/model", api_base: str | None = HERE, **settings: Any) -> Price | None:
    config = TeacherConfig.model_validate({"model": model, "api_base": api_base, **settings})
    return price_of(config, api_base or "")


# --- from the settings


@pytest.mark.parametrize(
    ("dollars_a_million", "pico_a_token"),
    [(0.15, 150_000), (0.6, 600_000), (2.5, 2_500_000), (0.075, 75_000), (1.1, 1_100_000), (75, 75_000_000), (0, 0)],
)
def test_dollars_a_million_tokens_are_whole_picodollars_a_token(dollars_a_million: float, pico_a_token: int) -> None:
    price = priced(price={"prompt": dollars_a_million, "completion": dollars_a_million})
    assert price is not None
    assert price.rates == Rates(pico_a_token, pico_a_token, pico_a_token, pico_a_token)
    assert price.cost(10**6, 0, 0, 10**6) == 2 * round(dollars_a_million * PICO)


def test_cached_tokens_have_a_price_of_their_own_or_that_of_others() -> None:
    with_cache = priced(price={"prompt": 1, "completion": 4, "cached": 0.25})
    without = priced(price={"prompt": 1, "completion": 4})
    assert with_cache is not None and without is not None
    assert with_cache.cost(100, 40, 0, 10) == (60 * 1 + 40 * 0.25 + 10 * 4) * 10**6
    assert without.cost(100, 40, 0, 10) == (100 * 1 + 10 * 4) * 10**6


def test_a_price_given_wins_over_the_table_and_can_be_that_of_a_model_in_it() -> None:
    price_set = priced("openai/gpt-4o", None, price={"prompt": 1, "completion": 2})
    assert price_set is not None and price_set.rates.prompt == 10**6 and "settings" in price_set.source
    assert priced(price="openai/gpt-4o-mini") == table_price("openai/gpt-4o-mini") is not None
    for name in ("openai/no-such-model", "nothing"):
        with pytest.raises(ConfigError, match=name):
            priced(price=name)


def test_an_endless_price_is_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="finite"):
        priced(price={"prompt": math.inf, "completion": 1})


# --- from the table


@pytest.mark.parametrize("model", MODELS_IN_TABLE)
def test_known_models_cost_what_the_table_says(model: str) -> None:
    info, price = model_info(*model.split("/")), table_price(model)

    def pico(name: str) -> int:
        return int(Decimal(str(info[name])) * PICO)

    assert price is not None
    assert price.rates.prompt == pico("input_cost_per_token")
    assert price.rates.completion == pico("output_cost_per_token")
    assert price.rates.cached == pico("cache_read_input_token_cost")


def test_longer_prompts_have_the_price_of_their_tier() -> None:
    info, price = model_info("gemini", "gemini-2.5-pro"), table_price("gemini/gemini-2.5-pro")
    assert price is not None
    at, above = price.cost(200_000, 0, 0, 0), price.cost(200_001, 0, 0, 0)
    assert at == 200_000 * price.rates.prompt
    assert above == 200_001 * int(Decimal(str(info["input_cost_per_token_above_200k_tokens"])) * PICO)


def test_tokens_written_to_a_cache_may_cost_more_than_others() -> None:
    price = table_price("anthropic/claude-sonnet-4-5")
    assert price is not None and price.rates.written > price.rates.prompt > price.rates.cached
    assert price.cost(100, 0, 100, 0) > price.cost(100, 0, 0, 0) > price.cost(100, 100, 0, 0)


@pytest.mark.parametrize("model", ["openai/no-such-model", "nobody/nothing", "", "openrouter/openrouter/auto"])
def test_an_unknown_model_and_a_router_to_paid_ones_have_no_price(model: str) -> None:
    assert table_price(model) is None


def test_the_table_is_named_with_its_date() -> None:
    assert re.search(r" \d+\.\d+\.\d+ .*\d{4}-\d\d-\d\d", table_name())
    price = table_price("openai/gpt-4o-mini")
    assert price is not None and price.source == table_name()


# --- whose price it is


def test_an_embedded_model_is_free() -> None:
    config = TeacherConfig(model="embedded")
    assert price_of(config, "embedded:model") is FREE and FREE.worst(10**6, 10**6) == 0


@pytest.mark.parametrize(
    ("model", "api_base", "has_price"),
    [
        ("openai/gpt-4o", None, True),
        ("openai/gpt-4o", OPENAI, True),
        ("openai/gpt-4o", "https://eu.api.openai.com/v1", True),
        ("openai/gpt-4o", HERE, False),
        ("openai/gpt-4o", "https://gateway.example.com/api.openai.com/v1", False),
        ("openai/gpt-4o", "https://api.openai.com.example.com/v1", False),
        ("openai/gpt-4o", "https://notopenai.com/v1", False),
        ("openai/gpt-4o", "https://name.openai.azure.com", False),
        ("anthropic/claude-sonnet-4-5", "https://api.anthropic.com/v1", True),
        ("anthropic/claude-sonnet-4-5", OPENAI, False),
        ("azure/gpt-4o", "https://name.openai.azure.com", True),
        ("azure/gpt-4o", "https://name.services.ai.azure.com", True),
        ("azure/gpt-4o", "https://NAME.OpenAI.Azure.com/openai/v1", True),
        ("azure/gpt-4o", "https://gateway.example.com", False),
        ("azure/gpt-4o", "https://azure.com.example.com", False),
        ("azure/gpt-4o", "https://notazure.com", False),
        ("azure/our-deployment", "https://name.openai.azure.com", False),
        ("openrouter/openai/gpt-4o", "https://openrouter.ai/api/v1", True),
        ("gpt/gpt-4o", OPENAI, False),
        ("openrouter/openai/gpt-4o", "https://not-openrouter.ai/api/v1", False),
    ],
)
def test_a_models_name_is_believed_at_its_own_provider_only(model: str, api_base: str | None, has_price: bool) -> None:
    assert (priced(model, api_base) is not None) == has_price


def test_a_teacher_knows_its_price_and_the_least_a_call_sets_aside() -> None:
    unknown = open_teacher(TeacherConfig(model="openai/gpt-4o", api_base=HERE))
    assert unknown.price is None and unknown.least is None
    teacher = open_teacher(TeacherConfig(model="openai/gpt-4o-mini", api_base=OPENAI, max_tokens=1000))
    assert teacher.price is not None and teacher.price == table_price("openai/gpt-4o-mini")
    assert teacher.least is not None and teacher.least >= teacher.price.cost(1, 0, 0, 1000)


# --- the most a call can cost


def random_price(rng: random.Random) -> Price:
    def rates() -> Rates:
        return Rates(*(rng.randint(0, 10**7) for _ in range(4)))

    longer = ((at, rates()) for at in sorted(rng.sample(range(1, 3000), rng.randint(0, 3))))
    return Price(rates(), "chance", tuple(longer))


def table_prices() -> list[Price]:
    return [price for model in MODELS_IN_TABLE if (price := table_price(model)) is not None]


@pytest.mark.parametrize("seed", range(10))
def test_no_call_within_its_bounds_costs_more_than_its_worst_case(seed: int) -> None:
    rng = random.Random(seed)
    for price in [random_price(rng) for _ in range(200)] + table_prices() * 20:
        bound, most = rng.randint(0, rng.choice((4000, 400_000))), rng.randint(0, 4000)
        prompt = rng.choice((bound, rng.randint(0, bound)))
        cached = rng.choice((0, prompt, rng.randint(0, prompt)))
        written = rng.choice((0, prompt - cached, rng.randint(0, prompt - cached)))
        completion = rng.choice((most, rng.randint(0, most)))
        assert 0 <= price.cost(prompt, cached, written, completion) <= price.worst(bound, most)


def test_no_parameter_lets_an_answer_be_longer_than_its_worst_case() -> None:
    with pytest.raises(ConfigError, match="max_completion_tokens"):
        TeacherConfig(model="azure/gpt-4o", api_base=HERE, max_tokens=100, params={"max_completion_tokens": 99_999})


def test_the_worst_case_is_no_higher_than_it_must_be() -> None:
    price = Price(Rates(2, 1, 2, 8), "a test", longer=((100, Rates(4, 2, 4, 16)),))
    assert price.worst(100, 10) == price.cost(100, 0, 0, 10)
    assert price.worst(101, 10) == price.cost(101, 0, 0, 10)


def test_a_longer_prompt_may_be_the_cheaper_one() -> None:
    price = Price(Rates(4, 4, 4, 8), "a test", longer=((100, Rates(1, 1, 1, 1)),))
    assert price.worst(101, 10) >= price.cost(100, 0, 0, 10) > price.cost(101, 0, 0, 10)


# --- for people


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0"),
        ("0.00000001", "$0.00000001"),
        ("0.00015", "$0.00015"),
        ("0.0123", "$0.012"),
        ("0.5", "$0.50"),
        ("0.994", "$0.99"),
        ("0.996", "$1.00"),
        (1, "$1.00"),
        ("1234.5", "$1,234.50"),
        (2_000_000, "$2,000,000.00"),
    ],
)
def test_amounts_are_shown_with_the_digits_that_count(amount: int | str, shown: str) -> None:
    assert dollars(int(Decimal(amount) * PICO)) == shown


@pytest.mark.parametrize("params", [{"service_tier": "priority"}, {"tools": []}, {"web_search_options": {}}])
def test_what_changes_the_rates_leaves_the_price_unknown(params: dict[str, Any]) -> None:
    assert priced("openai/gpt-4o-mini", None) is not None
    assert priced("openai/gpt-4o-mini", None, params=params) is None
    price_set = {"prompt": 1.0, "completion": 2.0}
    assert priced("openai/gpt-4o-mini", None, params=params, price=price_set) is not None, "the settings say so"


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [
        ({"model": "openai/gpt-3.5-turbo-1106"}, 1.0),  # the table lists no less for a batch
        ({"model": "openai/nobody", "price": "openai/gpt-3.5-turbo-1106"}, 1.0),
        ({"model": "openai/gpt-3.5-turbo-1106", "price": {"prompt": 1.0, "completion": 2.0}}, 0.5),  # whatever it lists
        ({"model": "azure/gpt-4o"}, 0.5),  # it lists nothing
    ],
)
def test_the_table_s_own_rates_for_batches_come_before_a_half(settings: dict[str, Any], fraction: float) -> None:
    config = TeacherConfig.model_validate({**settings, "api_base": "https://name.openai.azure.com", "mode": "batch"})
    price = price_of(config, HERE) or table_price(str(config.model))
    batch = in_batches(config, price)
    assert price is not None and batch is not None and price.rates.prompt and price.rates.completion
    assert (
        batch.rates.prompt == fraction * price.rates.prompt
        and batch.rates.completion == fraction * price.rates.completion
    )


@pytest.mark.parametrize(
    ("model", "fraction"),
    [("gemini/gemini-2.5-pro", 0.5), ("xai/grok-4.3", 0.8), ("openai/gpt-5.4", 0.5)],  # the table has it of the second
)
def test_longer_prompts_have_their_own_rates_in_batches_or_a_half(model: str, fraction: float) -> None:
    plain = table_price(model)
    batch = in_batches(TeacherConfig(model=model), plain)
    assert plain is not None and batch is not None and plain.longer
    assert [(at, above.prompt, above.completion) for at, above in batch.longer] == [
        (at, fraction * above.prompt, fraction * above.completion) for at, above in plain.longer
    ]


def test_a_batch_costs_what_the_table_says_or_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-0123456789")
    listed = open_teacher(TeacherConfig(model="openai/gpt-4o-mini", mode="batch")).price
    assert listed is not None
    million = 1_000_000
    assert listed.cost(million, 0, 0, 0) == 0.075 * PICO and listed.cost(0, 0, 0, million) == 0.3 * PICO
    assert listed.cost(million, million, 0, 0) == 0.075 * PICO, "what is cached costs the same there"
    price_set = {"prompt": 2.0, "completion": 4.0}
    for fraction, cost in ((None, 0.5), (0.25, 0.25), (1.0, 1.0), (0.0, 0.0)):
        price = PriceConfig(**price_set, cached=0.5, **({} if fraction is None else {"batch": fraction}))
        config = TeacherConfig(model="x/y", api_base=HERE, price=price)
        batch = in_batches(config, price_of(config, HERE))
        assert batch is not None
        assert batch.cost(million, million, 0, 0) == cost * price_set["prompt"] * PICO
        assert batch.cost(0, 0, 0, million) == cost * price_set["completion"] * PICO
    assert in_batches(config, None) is None
