"""Settings: what each means, and what is wrong with it in one line. Keys are never settings: `api_key_env` names the
variable that holds one."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from refed_dspy.config.base import Settings
from refed_dspy.errors import one_line

EMBEDDED = ("embedded", "embedded-smoke")
SECRET = re.compile(r"api.?key|authorization|headers?$|password|secret|bearer", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # upper case: a key put here by mistake has other letters
_OWNED_PARAMS = {
    *("model", "messages", "n", "stream", "temperature", "max_tokens", "timeout", "response_format"),
    # Other names for how much is written, or how often: a cap counts on max_tokens.
    *("max_completion_tokens", "max_output_tokens", "max_new_tokens", "best_of", "candidate_count", "candidateCount"),
}


class PriceConfig(Settings):
    """What a model costs, in dollars a million tokens."""

    model_config = ConfigDict(strict=True)

    prompt: float = Field(ge=0, le=1e6)
    """A million tokens read."""
    completion: float = Field(ge=0, le=1e6)
    """A million tokens written."""
    cached: float | None = Field(default=None, ge=0, le=1e6)
    """Prompt tokens that the provider had in its cache; unset, they cost what others do."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """The share of the price that is paid in a batch. There the cache makes nothing cheaper."""


class BatchConfig(Settings):
    """How requests go into a provider's batches, where `mode` is `batch` or `mixed`."""

    requests: int = Field(default=50_000, ge=1, le=1_000_000)
    """At most so many in one batch: the service's limit."""
    megabytes: float = Field(default=200, gt=0, le=10_000)
    """A batch's file is at most so large: the service's limit."""
    quiet: float = Field(default=1.0, gt=0, le=3600)
    """Seconds without a further request after which what was collected is sent."""
    poll: float = Field(default=30, gt=0, le=3600)
    """Seconds between two looks at a batch that is under way; the first come sooner."""
    stragglers: int = Field(default=50, ge=1)
    """`mixed`: so many requests or fewer are not worth the wait for a batch of their own."""


class TeacherConfig(Settings):
    """Which model writes, where it is, and how hard it may be asked."""

    model: str | None = None
    """`PROVIDER/NAME`, or `embedded` for a model that the run starts beside itself."""
    gguf: Path | None = None
    """A GGUF file to run that way: any instruct model."""
    api_base: str | None = None
    """Address of the endpoint: OpenAI-compatible up to and including `/v1`; for `azure/…` the resource's root."""
    api_version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.\-]{1,40}$")
    """Azure OpenAI's dated API, 2024-10-21 say; unset, its v1 API."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """How freely it writes; 0 is the likeliest text."""
    max_tokens: int = Field(default=4096, ge=16)
    """At most so many tokens an answer. One that is cut there is a failure, and caps set this much aside."""
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """Calls in flight at once: 32, 2 for an embedded model, 10,000 where they wait for a batch."""
    mode: Literal["interactive", "batch", "mixed"] = "interactive"
    """`batch`: through the provider's Batch API, at half the price, within a day. `mixed`: so, but for the last few."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """How `batch` and `mixed` go about it."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """In a pool of teachers, its share of the work."""
    timeout: float = Field(default=600, gt=0)
    """Seconds one attempt may take."""
    retries: int = Field(default=4, ge=0, le=20)
    """Further attempts after a 5xx, a time-out or a dropped connection. A 429 is waited out and does not count."""
    malformed_retries: int = Field(default=2, ge=0, le=20)
    """Further tries, each of them paid for, after an answer that does not fit its fields."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The endpoint's limit. Unset, it is learned from the answers."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same in tokens, read and written."""
    price: PriceConfig | str | None = None
    """{prompt: …, completion: …} in dollars a million tokens, or the PROVIDER/NAME in the price table that it costs as
    much as. Unset, the table is asked for `model`."""
    context_window: int | None = Field(default=None, ge=512)
    """Tokens the model reads at once. Longer references are left out; unset, none is. 8192 for an embedded model."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Anything else the API takes: top_p, seed, reasoning_effort, …"""

    @property
    def embedded(self) -> bool:
        """Whether the run starts the model itself."""
        return self.gguf is not None or self.model in EMBEDDED

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("takes the NAME of an environment variable (A-Z, 0-9 and _), never a key")
        return value

    @field_validator("api_version", mode="before")
    @classmethod
    def _may_be_a_date(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # YAML makes 2024-10-21 one

    @field_validator("api_base")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http:// or https:// address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password, query or fragment: api_key_env names the key's variable")
        return value.rstrip("/")

    @field_validator("params")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := _secret_name(value):
            raise ValueError(f"{one_line(name, 40)} may hold a key: name its variable in api_key_env")
        if owned := _OWNED_PARAMS.intersection(value):
            raise ValueError(f"{min(owned)} is a setting of its own or is set by the program")
        try:
            return dict(json.loads(json.dumps(value)))  # as it is sent: YAML's numbers as keys become text
        except (TypeError, ValueError):
            raise ValueError("must hold what JSON can: text, numbers, lists and objects") from None

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if (self.model is None) == (self.gguf is None):
            raise ValueError("needs a model (PROVIDER/NAME, or embedded) or a gguf file, one of the two")
        if not self.embedded and "/" not in str(self.model).strip("/"):
            raise ValueError("model must be PROVIDER/NAME, or embedded")
        if self.embedded and (self.api_base or self.api_key_env):
            raise ValueError("an embedded model takes no api_base and no api_key_env")
        if self.api_version is not None and not str(self.model).startswith("azure/"):
            raise ValueError("api_version is Azure's: model must be azure/DEPLOYMENT")
        if self.api_version is not None and self.api_base is None:
            raise ValueError("api_version needs api_base: the resource's root, https://NAME.openai.azure.com")
        return self


ONE, POOL = "one teacher", "a pool"
"""How errors tell the two forms apart; neither is a key."""


def _form(value: Any) -> str:
    return POOL if isinstance(value, list | tuple) else ONE


TeachersConfig: TypeAlias = Annotated[
    Annotated[TeacherConfig, Tag(ONE)] | Annotated[list[TeacherConfig], Tag(POOL), Field(min_length=1)],
    Discriminator(_form),
]
"""One teacher, or a list of them that share the work by `weight`."""


def _secret_name(value: Any) -> str | None:
    """The first name in `value`, however deep, that looks like a key's."""
    if isinstance(value, dict):
        named = next((str(name) for name in value if SECRET.search(str(name))), None)
        return named or next(filter(None, map(_secret_name, value.values())), None)
    return next(filter(None, map(_secret_name, value)), None) if isinstance(value, list) else None
