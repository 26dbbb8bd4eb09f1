"""The settings of a model that scores how likely texts are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from refed_dspy.config.base import Settings

Template = Literal["vicuna", "alpaca", "wizardlm", "none"]


class ScorerConfig(Settings):
    """The model that scores how likely a text is: one on this machine, or an endpoint that returns a prompt's
    log-probabilities (vLLM)."""

    model: str
    """A folder or Hub name for transformers; with api_base, the model's name at the endpoint."""
    api_base: str | None = None
    """Address of the endpoint, up to and including `/v1`. Unset: the model runs on this machine."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]*$")
    """Name of the environment variable that holds the key."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Calls in flight at once."""
    template: Template = "vicuna"
    """The prompt around an instruction in IFD and r-IFD: choose the one that the model will be trained with. `vicuna`
    is the default of the authors' code and what they trained with. `none`: the instruction and a line break."""
