"""The settings of a model: teacher, judge or any other. An API key is never a setting: `api_key_env` names the
environment variable that holds it."""

from __future__ import annotations

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from refed_dspy.config import sampling
from refed_dspy.config.base import Settings
from refed_dspy.config.keys import holds_key, know, know_environment, secret_name
from refed_dspy.errors import one_line

EMBEDDED = ("embedded", "embedded-smoke")
"""Names of the models that a run starts itself."""
SIMULATED = "simulated"
"""The name of the teacher that is no model."""
NO_ENDPOINT = (*EMBEDDED, SIMULATED)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # upper case: a key put here by mistake has other letters
_RESERVED_PARAMS = {"model", "messages", "n", "stream", "temperature", "max_tokens", "timeout", "response_format"}
# Other names for the length or the number of answers: a cap relies on max_tokens.
_RESERVED_PARAMS |= {"max_completion_tokens", "max_output_tokens", "max_new_tokens"}
_RESERVED_PARAMS |= {"best_of", "candidate_count", "candidateCount"}
"""Names that `params` may not set."""


class PriceConfig(Settings):
    """What a model costs, in dollars per million tokens."""

    model_config = ConfigDict(strict=True)

    prompt: float = Field(ge=0, le=1e6)
    """A million prompt tokens."""
    completion: float = Field(ge=0, le=1e6)
    """A million completion tokens."""
    cached: float | None = Field(default=None, ge=0, le=1e6)
    """A million prompt tokens that the provider had in its cache. Unset: the price of other prompt tokens."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """The fraction of the price that a batch costs. In a batch, cached tokens are not cheaper."""


class BatchConfig(Settings):
    """How requests are grouped into a provider's batches, where `mode` is `batch` or `mixed`."""

    requests: int = Field(default=50_000, ge=1, le=1_000_000)
    """At most this many requests in one batch: the service's limit."""
    megabytes: float = Field(default=200, gt=0, le=10_000)
    """The largest file of a batch: the service's limit."""
    quiet: float = Field(default=1.0, gt=0, le=3600)
    """Seconds without a further request after which the collected ones are sent."""
    poll: float = Field(default=30, gt=0, le=3600)
    """Seconds between two queries for a batch's state; the first ones come sooner."""
    stragglers: int = Field(default=50, ge=1)
    """`mixed`: this many requests or fewer are sent one by one, since a batch would not be worth the wait."""


class TeacherConfig(Settings):
    """Which model to ask, where it is, and how fast it may be asked."""

    model: str | None = None
    """`PROVIDER/NAME`; `embedded` for a model that the run starts itself, on this machine; `simulated` for texts from
    word lists, to try the tool without any model."""
    gguf: Path | None = None
    """A GGUF file to run that way: any instruct model."""
    api_base: str | None = None
    """Address of the endpoint: OpenAI-compatible, up to and including `/v1`; for `azure/…` the resource's root."""
    api_version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.\-]{1,40}$")
    """Azure OpenAI's dated API, for instance 2024-10-21. Unset: its v1 API."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """The sampling temperature; at 0 the likeliest text is written. Some models take none but 1."""
    max_tokens: int = Field(default=4096, ge=16, le=10_000_000)
    """At most this many tokens per answer, reasoning included. An answer that is cut there is a failure. A reservation
    under a cap assumes that all of them are used. Unset, for a model that reasons: 16,000."""
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """Calls in flight at once. Unset: 32, 2 for an embedded model, 10,000 where they wait for a batch."""
    mode: Literal["interactive", "batch", "mixed"] = "interactive"
    """`batch`: through the provider's Batch API, at half the price, within a day. `mixed`: the same except for the last
    few requests."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """How `batch` and `mixed` form batches."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """The teacher's weight in a pool: it gets a proportional part of the work."""
    timeout: float = Field(default=600, gt=0)
    """Seconds one attempt may take."""
    retries: int = Field(default=4, ge=0, le=20)
    """Further attempts after a 5xx, a time-out or a dropped connection. A 429 is waited out and does not count."""
    malformed_retries: int = Field(default=2, ge=0, le=20)
    """Further tries, each of them paid for, after an answer that does not fit its fields."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The endpoint's rate limit. Unset: it is learned from the endpoint's answers."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same in tokens, prompt and completion together."""
    price: PriceConfig | str | None = None
    """{prompt: …, completion: …} in dollars per million tokens, or the PROVIDER/NAME of a model in the price table that
    costs the same. Unset: the table's price of `model`."""
    context_window: int | None = Field(default=None, ge=512)
    """Tokens the model can read. Longer references are left out. Unset: 8192 for an embedded model; for others, no
    reference is too long."""
    reasoning: Literal["low", "medium", "high"] | None = None
    """How much a model that reasons does so before it answers. Unset: its own default."""
    answer_schema: Literal["bounded", "strict", "none"] | None = None
    """The JSON schema that is sent for an answer: with bounds on lengths, without, or none at all. Unset: as the
    endpoint is known to take it, or says."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Anything else the API takes: top_p, seed, reasoning_effort, …"""

    @model_validator(mode="before")
    @classmethod
    def _with_room_to_reason(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("takes one; a list (a pool) is for the teachers of a run")
        if isinstance(value, dict) and value.get("max_tokens") is None:
            model = value.get("model")
            if value.get("reasoning") or (isinstance(model, str) and sampling.reasons(model)):
                rest = {name: setting for name, setting in value.items() if name != "max_tokens"}
                return {**rest, "max_tokens": sampling.LEAST_TO_REASON}
        return value

    @property
    def embedded(self) -> bool:
        """Whether the run starts the model itself."""
        return self.gguf is not None or self.model in EMBEDDED

    @property
    def simulated(self) -> bool:
        """Whether no model answers."""
        return self.model == SIMULATED

    @property
    def without_endpoint(self) -> bool:
        """Whether it is embedded or simulated: there is no address, no key and no price."""
        return self.embedded or self.simulated

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("takes the NAME of an environment variable (A-Z, 0-9 and _), never a key")
        return value

    @field_validator("api_version", mode="before")
    @classmethod
    def _may_be_a_date(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # YAML reads 2024-10-21 as a date

    @field_validator("api_base")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ValueError("must be an http:// or https:// address")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("must hold no user, password, query or fragment: api_key_env names the key's variable")
        return value.rstrip("/")

    @field_validator("price", mode="before")
    @classmethod
    def _is_a_price(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return PriceConfig.model_validate(value)  # here, since a union's errors would name its members
        if value is None or isinstance(value, str | PriceConfig):
            return value
        raise ValueError(
            "takes {prompt: …, completion: …} in dollars a million tokens, or the PROVIDER/NAME of a priced model"
        )

    @field_validator("params")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := secret_name(value):
            raise ValueError(f"{one_line(name, 40)} may hold a key: name its variable in api_key_env")
        if reserved := _RESERVED_PARAMS.intersection(value):
            raise ValueError(f"{min(reserved)} is a setting of its own or is set by the program")
        try:
            return dict(json.loads(json.dumps(value)))  # as it will be sent: a number as a key becomes text
        except (TypeError, ValueError):
            raise ValueError("must hold what JSON can: text, numbers, lists and objects") from None

    @model_validator(mode="after")
    def _holds_no_key(self) -> Self:
        know_environment()
        know(os.environ.get(self.api_key_env or "", "").strip())
        for name in ("model", "api_base", "params"):
            if holds_key(json.dumps(getattr(self, name))):
                raise ValueError(f"{name} holds an API key: name the key's variable in api_key_env")
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if (self.model is None) == (self.gguf is None):
            raise ValueError("needs a model (PROVIDER/NAME, embedded or simulated) or a gguf file, one of the two")
        if not self.without_endpoint and "/" not in str(self.model).strip("/"):
            raise ValueError("model must be PROVIDER/NAME, embedded or simulated")
        if self.without_endpoint and (self.api_base or self.api_key_env):
            kind = "the simulated teacher" if self.simulated else "an embedded model"
            raise ValueError(f"{kind} takes no api_base and no api_key_env")
        if self.api_version is not None and not str(self.model).startswith("azure/"):
            raise ValueError("api_version is Azure's: model must be azure/DEPLOYMENT")
        if self.api_version is not None and self.api_base is None:
            raise ValueError("api_version needs api_base: the resource's root, https://NAME.openai.azure.com")
        if not self.without_endpoint and (fault := sampling.fault(str(self.model), self.temperature, self.params)):
            raise ValueError(fault)
        return self


_POOL: TypeAdapter[list[TeacherConfig]] = TypeAdapter(Annotated[list[TeacherConfig], Field(min_length=1)])


def _check_teachers(value: Any) -> Any:
    """Checked here, since the errors of a union would name its members as if they were keys."""
    return _POOL.validate_python(value) if isinstance(value, list | tuple) else TeacherConfig.model_validate(value)


TeachersConfig: TypeAlias = Annotated[TeacherConfig | list[TeacherConfig], BeforeValidator(_check_teachers)]
"""One teacher, or a list of them that share the work by `weight`."""


class WithJudge(Settings):
    """Which model judges, and by which program."""

    judge: TeacherConfig | None = None
    """The model that judges. Unset: the teacher's model at temperature 0, with a warning."""
    judge_program: str | None = None
    """A compiled judge: its program's file or MLflow address."""
    accept_changed: bool = False
    """Take a saved program, or judge, as it is, even where its prompts were changed after it was saved."""

    @field_validator("judge_program", mode="before")
    @classmethod
    def _may_be_a_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value
