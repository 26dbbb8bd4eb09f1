"""What of a run's names may be told to everyone: no address of a private endpoint, no path, no name of a user."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from refed_dspy.data.read import BUILTIN
from refed_dspy.errors import one_line
from refed_dspy.filters.judge import ABSTAINED
from refed_dspy.ledger.provenance import EMBEDDED

PRIVATE = "a private endpoint"
LOCAL = "beside the run, on its machine"
OTHER_SOURCE = "not told"
PUBLIC_HOSTS = frozenset(
    {
        *("api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com", "openrouter.ai"),
        *("api.mistral.ai", "api.groq.com", "api.deepseek.com", "api.together.xyz", "api.fireworks.ai"),
        *("api.x.ai", "api.cohere.com", "api.cerebras.ai", "api.perplexity.ai"),
    }
)
"""Addresses that are everyone's. Azure's are none: their first word is the customer's resource."""

_PROVIDER = re.compile(r"[a-z][a-z0-9_\-]{0,30}")
_FILES = re.compile(r"\.(jsonl|ndjson|json|csv|parquet|txt|gguf|safetensors|bin)$", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(:[\w.\-]+)?", re.ASCII)
_ARN = re.compile(r"\barn:(?:[^:/]*:){0,4}(?P<resource>.*)", re.DOTALL)
"""arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE"""
_TUNED = re.compile(r"(?<![^/])ft:(?P<base>[^:/]+).*", re.DOTALL)
"""ft:MODEL:OWNER:NAME:ID"""
_ROW = re.compile(r"^(?P<source>.*) row (?P<row>\d+)$", re.DOTALL)
_OWN_LIST = "references"
"""What `load_references` calls those that were given in Python."""


@lru_cache(maxsize=4096)
def public_endpoint(endpoint: str | None) -> str:
    """The host of `endpoint` where it is a public one, the provider's word, or that it is a private one."""
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
    """`model` as it is, or only the last part of one that is a path: servers name models by where they lie.

    Of one of AWS's resource names the provider and the last part, without the account; of one that was tuned the model
    that it was tuned from, without its owner.
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
    """A filter's `detail` as it is, but of a judge's abstention only the kind: the rest is what its server said."""
    return detail.partition(":")[0] if detail and reason == ABSTAINED else detail


def public_source(source: str | None) -> str:
    """Where a reference stood, as `data.references` notes it ("PATH row 3"): a file by its name alone, a Hub data set
    by its own, and nothing of what is neither."""
    told = _ROW.match(source or "")
    if told is None:
        return OTHER_SOURCE
    return f"{origin_of(source)} row {told['row']}"


def origin_of(source: str | None) -> str:
    """The same without the row."""
    told = _ROW.match(source or "")
    name = told["source"] if told else ""
    if name in {BUILTIN, _OWN_LIST}:
        return name
    if _FILES.search(name):
        return one_line(re.split(r"[/\\]", name)[-1], 120)
    return name if _HUB_NAME.fullmatch(name) else OTHER_SOURCE
