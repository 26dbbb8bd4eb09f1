"""Where a teacher's calls go: address, key, wire model name, and what its schema decoder takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# Not in dspy.lm15's public names. Left to itself the transport reads the whole environment for proxies at each
# request (0.5 ms) and sends loopback calls to a proxy; here it is told once.
from dspy._vendor.lm15.transports import StdlibAsyncTransport, StdlibTransport
from dspy.lm15 import (
    AccessPolicy,
    AsyncLMRouter,
    LM15Error,
    LMRouter,
    OpenAIChatCompat,
    ProviderDefinition,
    RouterConfig,
)

from refed_dspy.config import TeacherConfig
from refed_dspy.errors import ConfigError

OWN = "refed-teacher"
CONNECT_SECONDS = 10.0
# Where decoding takes no lengths: hosted strict modes refuse or ignore them. Local servers need them.
LOCAL_PROVIDERS = {"ollama", "vllm", "sglang"}


@dataclass(frozen=True)
class Route:
    """A resolved teacher. Holds the name of the key's variable, never the key."""

    model: str
    """The model string that the router takes."""
    endpoint: str
    """What the ledger records as the endpoint."""
    config: RouterConfig
    key_env: tuple[str, ...]
    bounded_schema: bool
    """Whether the schema's length bounds are sent."""
    transport: dict[str, Any]
    """How connections are made: keywords of lm15's transports."""

    def async_door(self) -> tuple[AsyncLMRouter, StdlibAsyncTransport]:
        """A router and its connections, for one event loop; whoever asks closes the connections."""
        transport = StdlibAsyncTransport(**self.transport)
        return AsyncLMRouter(replace(self.config, transport=transport)), transport

    def door(self) -> tuple[LMRouter, StdlibTransport]:
        """The same without an event loop."""
        transport = StdlibTransport(**self.transport)
        return LMRouter(replace(self.config, transport=transport)), transport

    def key(self) -> str | None:
        """The key itself, read now: only to be blanked out of messages."""
        return next((os.environ[name] for name in self.key_env if os.environ.get(name)), None)


def resolve(config: TeacherConfig, api_base: str | None = None) -> Route:
    """The route of `config`. `api_base` is the address of an embedded model that was started.

    Raises:
        ConfigError: an unknown provider without an address, or a key variable that is not set.
    """
    if (base := api_base or config.api_base) is not None:
        name = str(config.model or config.gguf)
        wire = name if api_base else name.partition("/")[2]
        return _own(config, base, wire)
    return _known(config)


def _own(config: TeacherConfig, base: str, wire: str) -> Route:
    """Any OpenAI-compatible endpoint by its address. Without `api_key_env` it is sent no key, whatever is set."""
    env = _required_variable(config)
    definition = ProviderDefinition.chat(
        AccessPolicy(provider=OWN, base_url=base, env_keys=env),
        compat=OpenAIChatCompat(max_tokens_field="max_tokens"),
        placeholder_key=None if env else "none",
    )
    keys = {OWN: _reader(env[0])} if env else None
    router = RouterConfig(providers=(definition,), api_keys=keys)
    return Route(f"{OWN}:{wire}", base, router, env, bounded_schema=True, transport=_transport(config, base))


def _known(config: TeacherConfig) -> Route:
    """A provider that DSPy's router knows by name, at its own address."""
    env = _required_variable(config)
    try:
        resolution = LMRouter(RouterConfig()).resolve_openai_chat(str(config.model))
    except LM15Error:
        raise ConfigError("teacher: the model's provider is unknown; give its endpoint's address in api_base") from None
    provider = resolution.provider
    if not env and resolution.env_key and not resolution.placeholder_key:
        if not os.environ.get(resolution.env_key):
            raise ConfigError(
                f"teacher: no key for {config.model}: set the variable {resolution.env_key}, "
                "or name another in api_key_env"
            )
        env = (resolution.env_key,)
    keys = {provider: _reader(env[0])} if config.api_key_env else None
    router = RouterConfig(api_keys=keys)
    endpoint = getattr(AsyncLMRouter(router).lm(f"{provider}:{resolution.model}"), "base_url", None) or provider
    return Route(
        f"{provider}:{resolution.model}",
        str(endpoint),
        router,
        env,
        bounded_schema=provider in LOCAL_PROVIDERS,
        transport=_transport(config, str(endpoint)),
    )


def _transport(config: TeacherConfig, endpoint: str) -> dict[str, Any]:
    where = urlsplit(endpoint)
    host = where.hostname or ""
    direct = host in {"127.0.0.1", "localhost", "::1"} or bool(proxy_bypass(host))
    proxies = {} if direct else getproxies()
    return {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": config.timeout,
        "write_timeout": config.timeout,
        "pool_timeout": config.timeout,
        "max_connections": (config.concurrency or 32) + 2,
        "proxy": proxies.get(where.scheme) or proxies.get("all"),
        "trust_env": False,
    }


def _required_variable(config: TeacherConfig) -> tuple[str, ...]:
    if config.api_key_env is None:
        return ()
    if not os.environ.get(config.api_key_env):
        raise ConfigError(
            f"teacher: the variable {config.api_key_env} (api_key_env) is not set; export it and run again"
        )
    return (config.api_key_env,)


def _reader(name: str) -> Callable[[], str]:
    """Reads the variable at each request, so that no object ever holds the key."""
    return lambda: os.environ.get(name, "")
