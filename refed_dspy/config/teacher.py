"""The settings of a model: teacher, judge or any other. An API key is never a setting: `api_key_env` names the
environment variable that holds it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from refed_dspy.config.base import Settings
from refed_dspy.config.keys import holds_key, know, know_environment, secret_name
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.errors import one_line

EMBEDDED = ("embedded", "embedded-smoke")
"""Names of the models that a run starts itself."""
SIMULATED = "simulated"
"""The name of the teacher that is no model."""
NO_ENDPOINT = (*EMBEDDED, SIMULATED)
FEW_RETRIES = 2
"""After so many at one of several addresses, another is asked: waiting longer for one that is down delays its rows."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # upper case: a key put here by mistake has other letters
_RESERVED_PARAMS = {"model", "messages", "n", "stream", "temperature", "max_tokens", "timeout", "response_format"}
# Other names for the length or the number of answers: a cap relies on max_tokens.
_RESERVED_PARAMS |= {"max_completion_tokens", "max_output_tokens", "max_new_tokens"}
_RESERVED_PARAMS |= {"best_of", "candidate_count", "candidateCount"}
"""Names that `params` may not set."""
DEFAULT_TEMPERATURE = 1.0
"""Every provider's own default, and ours: to send it or to leave it out is the same."""
# Claude Opus 4.7 and all later families (opus-5, sonnet-5, other names).
_CLAUDE_WITHOUT = (
    r"claude-(?:opus-4[-.](?:[7-9]|\d\d)|(?:opus|sonnet|haiku)-(?:[5-9]|\d\d)"
    r"|(?!opus|sonnet|haiku|instant)[a-z]+-\d)(?!\d)"
)
_OPENAI_WITHOUT = r"(?:o\d|gpt-5)(?![a-z0-9])(?!(?:\.\d+)*-chat)"
_THINKS = re.compile(
    r"deepseek-(?:r\d|reasoner)|\br1\b|qwq|qwen-?3|magistral|gpt-oss|gemini-(?:2\.5|[3-9])|grok-[4-9]"
    r"|glm-(?:4\.[5-9]|[5-9])|minimax-m\d|think|reason"
)
LEAST_TO_REASON = 16_000
"""Tokens of an answer that leave room for reasoning, which counts as a part of it."""
_WITHOUT = re.compile(rf"(?:.*[./])?{_CLAUDE_WITHOUT}|{_OPENAI_WITHOUT}")
# From Claude Opus 4.1, Sonnet 4.5 and Haiku 4.5 on.
_EITHER = re.compile(rf"claude-(?:opus|sonnet|haiku)-4[-.](?:[1-9]|\d\d)(?!\d)|{_CLAUDE_WITHOUT}")


class PriceConfig(Settings):
    """What a model costs, in dollars per million tokens."""

    model_config = ConfigDict(strict=True)

    prompt: float = Field(ge=0, le=1e6)
    """Per million prompt tokens."""
    completion: float = Field(ge=0, le=1e6)
    """Per million completion tokens."""
    cached: float | None = Field(default=None, ge=0, le=1e6)
    """Per million prompt tokens read from the provider's cache. Unset: the price of other prompt tokens."""
    batch: float = Field(default=0.5, ge=0, le=1)
    """The share of the price that a batch costs. In a batch, cached tokens are not cheaper."""


class BatchConfig(Settings):
    """How requests are grouped into batches if `mode` is `batch`, `mixed` or `folder`."""

    requests: int = Field(default=50_000, ge=1, le=1_000_000)
    """Maximum number of requests in a batch: OpenAI's limit. Anthropic's, 100,000, is kept in any case."""
    megabytes: float = Field(default=200, gt=0, le=10_000)
    """Maximum size of a batch's requests: OpenAI's limit. Those of Anthropic (256) and Gemini (2,000) are kept in any
    case."""
    quiet: float = Field(default=1.0, gt=0, le=3600)
    """Seconds without a new request after which the collected ones are sent."""
    poll: float = Field(default=30, gt=0, le=3600)
    """Seconds between checks of a batch's state; the first checks come sooner."""
    stragglers: int = Field(default=50, ge=1)
    """In mode `mixed`, send this many requests or fewer one by one: a batch would not be worth the wait."""
    folder: Path | None = None
    """In mode `folder`: where the request files are written, and their answers looked for."""


class TeacherConfig(Settings):
    """Which model to call, where it is, and how fast it may be called."""

    model: str | None = None
    """`PROVIDER/NAME`; `embedded` for a model that runs on this machine; `simulated` for texts from word lists, to try
    refed out without any model."""
    gguf: Path | None = None
    """A GGUF file of any instruct model, to run on this machine in the same way."""
    api_base: str | list[str] | None = None
    """The endpoint's address: OpenAI-compatible, up to and including `/v1`; for `azure/…` the resource's root. A list:
    servers of the same model, of which the one with the fewest calls in flight is asked."""
    api_version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.\-]{1,40}$")
    """Azure OpenAI's dated API, for instance 2024-10-21. Unset: its v1 API."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """The sampling temperature; 0 writes the likeliest text. Some models only take 1."""
    max_tokens: int = Field(default=4096, ge=16, le=10_000_000)
    """Maximum number of tokens per answer, reasoning included. A longer answer is cut off and counts as a failure.
    Under a cap, each call reserves the cost of this many tokens. Unset, for a reasoning model: 16,000."""
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """Calls in flight at once, for each address. Unset: 32; 2 for an embedded model; 10,000 in batches."""
    mode: Literal["interactive", "batch", "mixed", "folder"] = "interactive"
    """`batch`: use the provider's Batch API, at half the price, within a day. `mixed`: the same, but send the last few
    requests directly. `folder`: write the requests to files in `batch.folder`, which something else answers, for
    instance `vllm run-batch`."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """How batches are formed."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """The teacher's weight in a pool: its share of the work is proportional to it."""
    timeout: float = Field(default=600, gt=0)
    """Seconds one attempt may take."""
    retries: int = Field(default=4, ge=0, le=20)
    """Retries after a 5xx, a time-out or a dropped connection. A 429 is waited out and does not count. Of several
    addresses, another is asked after two."""
    malformed_retries: int = Field(default=2, ge=0, le=20)
    """Further tries, each of them paid for, after an answer that does not fit its fields."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The endpoint's rate limit. Unset: learned from the endpoint's answers."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same in tokens, prompt and completion together."""
    price: PriceConfig | str | None = None
    """{prompt: …, completion: …} in dollars per million tokens, or the PROVIDER/NAME of a model in the price table that
    costs the same. Unset: the table's price of `model`."""
    context_window: int | None = Field(default=None, ge=512)
    """Tokens the model can read. Longer references are left out. Unset: 8192 for an embedded model; for others, no
    limit."""
    reasoning: Literal["low", "medium", "high"] | None = None
    """How much a reasoning model reasons before it answers. Unset: its own default."""
    answer_schema: Literal["bounded", "strict", "none"] | None = None
    """The JSON schema sent with a request: with bounds on lengths (`bounded`), without (`strict`), or `none`. Unset:
    whatever the endpoint is known to accept."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Any other parameter of the API: top_p, seed, reasoning_effort, …"""

    @model_validator(mode="before")
    @classmethod
    def _with_room_to_reason(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("takes one model; a list (a pool) works only for a run's teachers")
        if isinstance(value, dict) and value.get("max_tokens") is None:
            model = value.get("model")
            if value.get("reasoning") or (isinstance(model, str) and reasons(model)):
                rest = {name: setting for name, setting in value.items() if name != "max_tokens"}
                return {**rest, "max_tokens": LEAST_TO_REASON}
        return value

    def at_each_address(self) -> list[Self]:
        """The same settings once for each address: of several, with FEW_RETRIES at most."""
        if not isinstance(self.api_base, list):
            return [self]
        retries = min(self.retries, FEW_RETRIES)
        return [self.model_copy(update={"api_base": address, "retries": retries}) for address in self.api_base]

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

    @field_validator("api_base", mode="before")
    @classmethod
    def _are_addresses(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return None if value is None else _address(value)
        addresses = [_address(one) for one in value]
        if twice := next((one for place, one in enumerate(addresses) if one in addresses[:place]), None):
            raise ValueError(f"lists {one_line(twice, 200)} twice")
        if not addresses:
            raise ValueError("is an empty list; add an address")
        return addresses if len(addresses) > 1 else addresses[0]

    @field_validator("price", mode="before")
    @classmethod
    def _is_a_price(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return PriceConfig.model_validate(value)  # here, since a union's errors would name its members
        if value is None or isinstance(value, str | PriceConfig):
            return value
        raise ValueError(
            "takes {prompt: …, completion: …} in dollars per million tokens, or the PROVIDER/NAME of a priced model"
        )

    @field_validator("params")
    @classmethod
    def _holds_no_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := secret_name(value):
            raise ValueError(f"{one_line(name, 40)} looks like an API key; name its variable in api_key_env")
        for name in sorted(_RESERVED_PARAMS.intersection(value)):
            own = "max_tokens" if name.startswith("max_") else name
            why = f"it has its own setting, {own}" if own in cls.model_fields else "the program sets it"
            raise ValueError(f"{name} cannot be set in params: {why}")
        try:
            return dict(json.loads(json.dumps(value)))  # as it will be sent: a number as a key becomes text
        except (TypeError, ValueError):
            raise ValueError("must be JSON: text, numbers, lists and objects") from None

    @model_validator(mode="after")
    def _holds_no_key(self) -> Self:
        know_environment()
        know(os.environ.get(self.api_key_env or "", "").strip())
        for name in ("model", "api_base", "params"):
            if holds_key(json.dumps(getattr(self, name))):
                raise ValueError(f"{name} contains an API key; name the key's variable in api_key_env")
        return self

    @model_validator(mode="after")
    def _check_folder(self) -> Self:
        if self.mode == "folder" and self.batch.folder is None:
            raise ValueError("mode: folder needs batch: {folder: PATH}")
        if self.mode != "folder" and self.batch.folder is not None:
            raise ValueError("batch.folder is only for mode: folder")
        if self.mode == "folder" and (self.api_base or self.api_key_env):
            raise ValueError("mode: folder takes no api_base or api_key_env: no endpoint is asked")
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if (self.model is None) == (self.gguf is None):
            raise ValueError("needs either a model (PROVIDER/NAME, embedded or simulated) or a gguf file")
        if not self.without_endpoint and "/" not in str(self.model).strip("/"):
            raise ValueError("model must be PROVIDER/NAME, embedded or simulated")
        if self.without_endpoint and (self.api_base or self.api_key_env):
            kind = "the simulated teacher" if self.simulated else "an embedded model"
            raise ValueError(f"{kind} takes no api_base or api_key_env; remove it")
        if isinstance(self.api_base, list) and self.mode != "interactive":
            raise ValueError(f"mode: {self.mode} takes one api_base, not a list")
        if self.api_version is not None and not str(self.model).startswith("azure/"):
            raise ValueError("api_version is only for Azure, with model: azure/DEPLOYMENT")
        if self.api_version is not None and self.api_base is None:
            raise ValueError("api_version needs api_base: the resource's root, https://NAME.openai.azure.com")
        if not self.without_endpoint and (fault := sampling_fault(str(self.model), self.temperature, self.params)):
            raise ValueError(fault)
        return self


def _address(value: Any) -> str:
    """An address, without a slash at its end. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("takes an http:// or https:// address, or a list of addresses")
    if re.search(r"[\s,;]https?://", value):
        raise ValueError("takes several addresses as a list: [http://…, http://…]")
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("must be an http:// or https:// address")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("must have no user, password, query or fragment; name the key's variable in api_key_env")
    return value.rstrip("/")


_POOL: TypeAdapter[list[TeacherConfig]] = TypeAdapter(Annotated[list[TeacherConfig], Field(min_length=1)])


def _check_teachers(value: Any) -> Any:
    """Checked here, since the errors of a union would name its members as if they were keys."""
    return _POOL.validate_python(value) if isinstance(value, list | tuple) else TeacherConfig.model_validate(value)


TeachersConfig: TypeAlias = Annotated[TeacherConfig | list[TeacherConfig], BeforeValidator(_check_teachers)]
"""One teacher, or a list of them that share the work by `weight`."""


class WithJudge(Settings):
    """Which model judges, and by which program."""

    judge: TeacherConfig | None = None
    """The judge. Unset: the teacher's model at temperature 0, with a warning."""
    judge_program: str | None = None
    """A compiled or trained judge: its program's file or MLflow address."""
    judge_scorer: ScorerConfig | None = None
    """The model that computes perplexities, where `judge_program` was trained with them."""
    accept_changed: bool = False
    """Accept a saved program or judge even if its prompts were edited after it was saved."""

    @field_validator("judge_program", mode="before")
    @classmethod
    def _may_be_a_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


# --- which sampling settings a model takes, as far as its name tells; its endpoint has the last word


def is_reasoning_deployment(deployment: str) -> bool:
    """Whether an Azure deployment, whose name is free text, seems to be of one of OpenAI's reasoning models."""
    return re.search(rf"(?:^|[^a-z0-9]){_OPENAI_WITHOUT}", deployment.lower()) is not None


def reasons(model: str) -> bool:
    """Whether PROVIDER/NAME seems to reason before it answers, where nothing says how much."""
    name = model.lower().rpartition("/")[2]
    return is_reasoning_deployment(name) or _THINKS.search(name) is not None


def takes_temperature(model: str) -> bool:
    """Whether PROVIDER/NAME takes a temperature other than its default."""
    return _WITHOUT.match(model.lower().rpartition("/")[2]) is None


def takes_zero(model: str, params: Mapping[str, Any]) -> bool:
    """Whether PROVIDER/NAME takes temperature 0 beside `params`. A doubtful one is taken not to."""
    wire, _, name = model.partition("/")
    return not (wire == "azure" and is_reasoning_deployment(name)) and not sampling_fault(model, 0.0, params)


def on_anthropic_wire(model: str) -> bool:
    """Whether PROVIDER/NAME is asked in the format of Anthropic's Messages API."""
    wire = model.partition("/")[0]
    return "anthropic" in wire or wire == "claude-code"


def is_unsent(temperature: float, model: str, params: Mapping[str, Any]) -> bool:
    """Whether a request goes without its `temperature`: where that is the default of a model that takes no other, or of
    Anthropic's, which take none any more; and where the model takes the `top_p` in `params` in its place."""
    if temperature == DEFAULT_TEMPERATURE and (on_anthropic_wire(model) or not takes_temperature(model)):
        return True
    return params.get("top_p") is not None and _is_either_or(model)


def sampling_fault(model: str, temperature: float, params: Mapping[str, Any]) -> str:
    """Why PROVIDER/NAME does not take these settings, and what to do; "" where it may take them."""
    if temperature == DEFAULT_TEMPERATURE:
        return ""
    if on_anthropic_wire(model) and temperature > 1:
        return f"temperature {temperature:g}: Anthropic's API takes 0 to 1"
    if not takes_temperature(model):
        return f"temperature {temperature:g}: {model} only takes its default, 1; remove it"
    if params.get("top_p") is not None and _is_either_or(model):
        return f"temperature {temperature:g}: {model} takes either it or top_p, not both; remove one"
    return ""


def _is_either_or(model: str) -> bool:
    """Whether PROVIDER/NAME refuses a request with both a temperature and a `top_p`."""
    return on_anthropic_wire(model) and _EITHER.search(model.lower()) is not None
