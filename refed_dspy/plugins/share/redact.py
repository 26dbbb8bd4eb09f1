"""Names of a run made public: no address of a private endpoint, no path, no user name."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from refed_dspy.data.read import OWN
from refed_dspy.errors import one_line
from refed_dspy.filters.judge import ABSTAINED
from refed_dspy.ledger.history import EMBEDDED

PRIVATE = "a private endpoint"
LOCAL = "beside the run, on its machine"
OTHER_SOURCE = "not stated"
PUBLIC_HOSTS = frozenset({
    "api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com", "openrouter.ai", "api.mistral.ai",
    "api.groq.com", "api.deepseek.com", "api.together.xyz", "api.fireworks.ai", "api.x.ai", "api.cohere.com",
    "api.cerebras.ai", "api.perplexity.ai",
})  # fmt: skip
"""Hosts that all customers share. Azure's are not among them: their first label is the customer's resource."""

_PROVIDER = re.compile(r"[a-z][a-z0-9_\-]{0,30}")
_FILES = re.compile(r"\.(jsonl|ndjson|json|csv|parquet|txt|gguf|safetensors|bin)$", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(:[\w.\-]+)?", re.ASCII)
_ARN = re.compile(r"\barn:(?:[^:/]*:){0,4}(?P<resource>.*)", re.DOTALL)
"""arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE"""
_TUNED = re.compile(r"(?<![^/])ft:(?P<base>[^:/]+).*", re.DOTALL)
"""ft:MODEL:OWNER:NAME:ID"""
_ROW = re.compile(r"^(?P<source>.*) row (?P<row>\d+)$", re.DOTALL)
_PASSED_IN = "references"
"""What `load_references` calls references that were passed in from Python."""


@lru_cache(maxsize=4096)
def public_endpoint(endpoint: str | None) -> str:
    """The host of `endpoint` if it is a public one, or the provider's name; PRIVATE for any other, LOCAL for a model
    that ran beside its run."""
    if not endpoint:
        return PRIVATE
    if endpoint.startswith(EMBEDDED):
        return LOCAL
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        return PRIVATE
    if host:
        return host if host in PUBLIC_HOSTS else PRIVATE
    return endpoint if _PROVIDER.fullmatch(endpoint) else PRIVATE


@lru_cache(maxsize=4096)
def public_model(model: str | None) -> str:
    """`model` as it is; of a path only the last component, as servers name models by where they are stored.

    Of an AWS resource name the provider and the last component, without the account; of a fine-tuned model the base
    model, without its owner.
    """
    if not model:
        return "not known"
    if resource := _ARN.search(model):
        before = model.partition("/")[0] + "/" if resource.start() else ""
        model = before + resource["resource"].rstrip("/").split("/")[-1]
    provider, _, name = model.partition("/")
    is_path = name.startswith(("/", "~", ".")) or not provider or "\\" in model or provider[0] in "~." or ":/" in model
    if is_path or model.count("/") > (1 if _FILES.search(model) else 2):
        model = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return one_line(_TUNED.sub(r"\g<base>, fine-tuned", model), 120) or "not known"


def public_detail(reason: str | None, detail: str | None) -> str | None:
    """A filter's `detail` as it is; of a judge's abstention only the kind, as the rest quotes its server."""
    return detail.partition(":")[0] if detail and reason == ABSTAINED else detail


def public_source(source: str | None) -> str:
    """Where a reference was read, as `data.references` writes it ("PATH row 3"): a file by its name alone, a Hub
    data set by its id, and OTHER_SOURCE for anything else."""
    match = _ROW.match(source or "")
    if match is None:
        return OTHER_SOURCE
    return f"{origin_of(source)} row {match['row']}"


def origin_of(source: str | None) -> str:
    """`public_source` without the row."""
    match = _ROW.match(source or "")
    name = match["source"] if match else ""
    if name in {*OWN, _PASSED_IN}:
        return name
    if _FILES.search(name):
        return one_line(re.split(r"[/\\]", name)[-1], 120)
    return name if _HUB_NAME.fullmatch(name) else OTHER_SOURCE
