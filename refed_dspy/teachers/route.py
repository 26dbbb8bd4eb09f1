"""Where a teacher's calls go: address, key, wire shape, and what its schema decoder takes.

The prefix of a model's name picks the wire format: `azure/DEPLOYMENT` and `anthropic/NAME` use their own, also at
another address (`api_base`), as does `gemini/NAME` at one that ends with a version of the Gemini API. With an
`api_base` any other prefix means an OpenAI-compatible endpoint; without one it is a provider that DSPy's router knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from dspy.lm15 import (
    AccessPolicy,
    AsyncLMRouter,
    LM15Error,
    LMRouter,
    OpenAIChatCompat,
    ProviderDefinition,
    RouterConfig,
)

from refed_dspy.config.keys import read_key
from refed_dspy.config.teacher import TeacherConfig, is_reasoning_deployment
from refed_dspy.connections import Connections, proxy_for
from refed_dspy.errors import ModelError, one_line
from refed_dspy.teachers.vendored import HostSpec
from refed_dspy.text import nearest

Schema: TypeAlias = Literal["bounded", "strict", "none"]
"""The JSON schema of an answer: with bounds on the lengths of texts and lists, without, or not sent at all."""
Field: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
OLD_FIELD: Field = "max_tokens"
NEW_FIELD: Field = "max_completion_tokens"
_REFUSED = re.compile(
    r"unsupported|not support|unrecognized|not permitted|not allowed|extra inputs|unknown|invalid|only the default"
    r"|only 1|only be set to 1|deprecated|unexpected|must be 1"
)
_TOO_MUCH = re.compile(r"too (?:large|long|many|big)|exceed|context (?:length|window)|at most \d")
"""A refusal of how much was sent, or asked for, whatever parameters it names."""
_BOUND = re.compile(r"(?:max|min)(?:length|items)")
_SCHEMA = re.compile(r"response_format|json_schema|output_config|output_format|\bschema\b")
CUSTOM_PROVIDER = "refed-teacher"
"""The name under which lm15 knows an endpoint that is given by its address."""
GEMINI_VERSIONS = ("/v1beta", "/v1alpha")
"""How addresses of the Gemini API end; its OpenAI-compatible endpoint ends with `/openai`."""
# Their decoders need length bounds in the schema. Hosted strict modes refuse or ignore them.
LOCAL_PROVIDERS = {"ollama", "vllm", "sglang"}


@dataclass(frozen=True)
class Dialect:
    """`tokens_field`: the parameter that bounds an answer's length; None: the one that the wire format has."""

    tokens_field: Field | None = None
    temperature: bool = True
    """Whether a temperature is sent."""
    reasoning: bool = True
    """Whether it is sent how much to reason, where that is set."""
    schema: Schema = "bounded"

    def after(self, error: LM15Error) -> Dialect | None:
        """What to try after this refusal; None where it is about something else.

        Only the endpoint's words are looked at, since gateways lose the code and the name of the parameter.
        """
        said = str(error.message).lower()
        if error.status not in {400, 422} or not _REFUSED.search(said) or _TOO_MUCH.search(said):
            return None
        if NEW_FIELD in said and OLD_FIELD in said.replace(NEW_FIELD, ""):  # "… Use 'max_completion_tokens' instead."
            return replace(self, tokens_field=NEW_FIELD)
        if NEW_FIELD in said:
            return replace(self, tokens_field=OLD_FIELD)
        if "temperature" in said and self.temperature:
            return replace(self, temperature=False)
        if "reasoning_effort" in said and self.reasoning:
            return replace(self, reasoning=False)
        if _BOUND.search(said) and self.schema == "bounded":
            return replace(self, schema="strict")
        if _SCHEMA.search(said) and self.schema != "none":
            return replace(self, schema="none")
        return None

    def told(self, before: Dialect) -> str:
        """What changed, for people."""
        if self.tokens_field != before.tokens_field:
            return f"{self.tokens_field} is sent instead"
        if self.temperature != before.temperature:
            return "temperature is no longer sent"
        if self.reasoning != before.reasoning:
            return "the reasoning effort is no longer sent"
        if self.schema == "strict":
            return "schemas are sent without bounds from now on"
        return "no schema is sent from now on: answers may fit their fields less often"

    def bounds(self, params: Mapping[str, Any], most: int) -> dict[str, Any]:
        """The fields of a request's settings that say how long an answer may be, `most` tokens, and the user's
        `params`."""
        if self.tokens_field is None:
            return {"max_tokens": most, "extensions": dict(params) or None}
        return {"max_tokens": None, "extensions": {**params, self.tokens_field: most}}


@dataclass(frozen=True)
class Route:
    """Where and how one teacher is called. Holds the name of the key's variable, never the key."""

    provider: str
    """Whose wire format it is: the router's name of the provider."""
    model: str
    """The model's name in requests."""
    endpoint: str
    """What the ledger records as the endpoint."""
    config: RouterConfig
    key_env: tuple[str, ...]
    schema: Schema
    """How much of a schema its decoder is known to take."""
    proxy: str | None
    """Through which all requests go."""

    def connections(self) -> Connections:
        """Connections for one event loop; the caller closes them."""
        return Connections(self.proxy)

    def async_lm(self, transport: Any) -> Any:
        """lm15's client for this wire format over `transport`. It holds the key, in memory only."""
        # With a key as text lm15 needs no thread per call, as it does for a function that returns it.
        key = self.key()
        keys = {self.provider: key} if key else self.config.api_keys
        return AsyncLMRouter(replace(self.config, api_keys=keys, transport=transport)).lm(
            f"{self.provider}:{self.model}"
        )

    def key(self) -> str | None:
        """The key itself, read now."""
        return next((key for name in self.key_env if (key := read_key(name))), None)


def resolve(config: TeacherConfig, api_base: str | None = None) -> Route:
    """The route of `config`. `api_base`: the address of an embedded model that was started.

    Raises:
        ConfigError: an unknown provider without an address, or a key variable that is not set.
    """
    base = api_base or config.api_base
    if config.batch.folder is not None:
        base = config.batch.folder.absolute().as_uri()
    if base is None:
        return _known_provider(config)
    assert isinstance(base, str), "several addresses are several routes"
    wire, _, name = str(config.model or config.gguf).partition("/")
    if api_base is not None:
        name = str(config.model or config.gguf)
    elif wire == "azure":
        return _azure(config, base, name)
    elif wire == "anthropic":
        return _at(config, base, "anthropic", name, RouterConfig(base_urls={"anthropic": base}))
    elif wire == "gemini" and base.endswith(GEMINI_VERSIONS):
        return _at(config, base, "gemini", name, RouterConfig(base_urls={"gemini": base}))
    return _custom(config, base, name)


def _custom(config: TeacherConfig, base: str, name: str) -> Route:
    """Any OpenAI-compatible endpoint by its address. Without `api_key_env` it is sent no key, whatever is set."""
    access = AccessPolicy(provider=CUSTOM_PROVIDER, base_url=base, env_keys=_required_variable(config))
    hosted = is_at(base, ".api.openai.com", ".openai.azure.com")  # regional hosts, too
    field: Any = "max_completion_tokens" if hosted or is_reasoning_deployment(name) else "max_tokens"
    compat = OpenAIChatCompat(max_tokens_field=field)
    return _declared(config, base, name, access, compat, schema="strict" if hosted else "bounded")


def is_at(address: str, *hosts: str) -> bool:
    """Whether `address` is at one of the `hosts`, each with a dot before it, or below."""
    return f".{urlsplit(address).hostname or ''}".endswith(hosts)


def _azure(config: TeacherConfig, base: str, deployment: str) -> Route:
    """Azure OpenAI: with an `api_version` its dated API by deployment, without one its v1 API."""
    env = _required_variable(config)
    root = base.removesuffix("/openai/v1").removesuffix("/openai")
    scheme: Any = ("api-key",)
    if config.api_version is None:
        access = AccessPolicy(provider=CUSTOM_PROVIDER, base_url=f"{root}/openai/v1", env_keys=env, auth_scheme=scheme)
    else:
        path = "/openai/deployments/{model}/chat/completions?api-version=" + quote(config.api_version, safe="")
        host = HostSpec(base_url=root, paths={"chat/completions": path}, model_in="path")
        access = AccessPolicy(provider=CUSTOM_PROVIDER, env_keys=env, auth_scheme=scheme, host=host)
    # Dated versions before late 2024 know only the old name; reasoning models take only the new one.
    old = config.api_version is not None and not is_reasoning_deployment(deployment)
    compat = OpenAIChatCompat(max_tokens_field="max_tokens") if old else OpenAIChatCompat()
    return _declared(config, base, deployment, access, compat, schema="strict")


def _declared(
    config: TeacherConfig, base: str, name: str, access: AccessPolicy, compat: OpenAIChatCompat, *, schema: Schema
) -> Route:
    definition = ProviderDefinition.chat(access, compat=compat)
    # An endpoint without a key is sent a placeholder: lm15 insists on one.
    keyless = None if access.env_keys else {CUSTOM_PROVIDER: "none"}
    router = RouterConfig(providers=(definition,), api_keys=keyless)
    return _at(config, base, CUSTOM_PROVIDER, name, router, schema=schema)


def _at(
    config: TeacherConfig, base: str, provider: str, name: str, router: RouterConfig, *, schema: Schema = "strict"
) -> Route:
    if config.api_key_env is None and provider in {"anthropic", "gemini"}:
        router = replace(router, api_keys={provider: "none"})  # never send the provider's own key to another host
    env = _required_variable(config)
    return Route(provider, name, base, router, env, schema, proxy_for(base))


def _known_provider(config: TeacherConfig) -> Route:
    """A provider that DSPy's router knows by name, at its own address."""
    env = _required_variable(config)
    try:
        resolution = LMRouter(RouterConfig()).resolve_openai_chat(str(config.model))
    except LM15Error as error:
        raise ModelError(_unknown_provider(str(config.model), str(error))) from None
    provider = resolution.provider
    if not env and resolution.env_key and not resolution.placeholder_key:
        if not read_key(resolution.env_key):
            raise ModelError(
                f"no key for {config.model}: set the variable {resolution.env_key} or name another in api_key_env"
            )
        env = (resolution.env_key,)
    try:
        key = next((key for name in env if (key := read_key(name))), None)  # of one that is held, too
        lm = AsyncLMRouter(RouterConfig(api_keys=key and {provider: key})).lm(f"{provider}:{resolution.model}")
    except LM15Error as error:
        raise ModelError(f"{one_line(error.message)}; or set api_base to its endpoint's address") from None
    endpoint = str(getattr(lm, "base_url", None) or provider)
    schema: Schema = "bounded" if provider in LOCAL_PROVIDERS else "strict"
    return Route(provider, resolution.model, endpoint, RouterConfig(), env, schema, proxy_for(endpoint))


def _unknown_provider(model: str, error: str) -> str:
    """What to say of a model whose provider DSPy does not know; its `error` lists those it knows."""
    provider, _, name = model.partition("/")
    listed = re.search(r"known: ([\w, ]+)", error)
    near = nearest(provider, listed[1].split(", ") if listed else ())
    hint = f"did you mean {near}/{one_line(name, 60)}? Or " if near else ""
    return f"{one_line(model, 80)}: the model's provider is unknown; {hint}set api_base to its endpoint's address"


def is_known(model: str) -> bool:
    """Whether DSPy knows the provider of `model`; if not, it leaves the model to LiteLLM."""
    try:
        LMRouter(RouterConfig()).resolve_openai_chat(model)
    except LM15Error:
        return False
    return True


def key_variable(model: str) -> str | None:
    """The variable from which DSPy reads the key for `model`; None: none, or the provider is unknown to it."""
    try:
        variable: str | None = LMRouter(RouterConfig()).resolve_openai_chat(model).env_key
    except LM15Error:
        return None
    return variable


def _required_variable(config: TeacherConfig) -> tuple[str, ...]:
    if config.api_key_env is None:
        return ()
    if not read_key(config.api_key_env):
        raise ModelError(f"the variable {config.api_key_env} (api_key_env) is not set; export it and run again")
    return (config.api_key_env,)
