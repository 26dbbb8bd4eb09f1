"""The terms that a teacher's answers come under, as facts with their source, no legal advice; and the licenses that the
Hub knows by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.sharing.redact import PRIVATE
from refed_dspy.weights import WEIGHTS

UNKNOWN = "not known here: read the terms of the model, and of the service that ran it."


@dataclass(frozen=True)
class Terms:
    """Terms of the models whose name matches `pattern`: `text` for people, `source` says where to read them."""

    pattern: re.Pattern[str]
    text: str
    source: str
    owner: str
    """Whose model it is, provided that its name is true."""


# Looked up in the terms themselves, or in a dated copy of them: OpenAI's terms of use of January 2024; Google's Gemini
# API additional terms of October 2024 and May 2025; the model cards of DeepSeek-R1 and of Qwen2.5-Coder. Of Anthropic's
# commercial terms of June 2025 and of the Llama 3 community license only excerpts, quoted by others, were seen.
MODEL_TERMS = (
    Terms(
        re.compile(r"(^|/)(gpt-(?!oss)|chatgpt|o[1-9](-|$))"),
        "OpenAI's terms forbid using output to develop models that compete with OpenAI.",
        "openai.com/policies",
        "OpenAI's model",
    ),
    Terms(
        re.compile(r"(^|[/.])claude"),
        "Anthropic's commercial terms give the output to the customer, and forbid using the service to train competing "
        "models unless Anthropic approves.",
        "anthropic.com/legal/commercial-terms",
        "Anthropic's model",
    ),
    Terms(
        re.compile(r"(^|/)gemini-"),
        "Google's terms of the Gemini API forbid using it to develop models that compete with the service.",
        "ai.google.dev/gemini-api/terms",
        "Google's model",
    ),
    Terms(
        re.compile(r"(^|/)deepseek-r1(?!-distill-llama)"),
        "MIT license; its model card allows distillation to train other models.",
        "the model's card",
        "DeepSeek's model",
    ),
    Terms(
        re.compile(r"(^|/)(meta-)?llama-?3"),
        "Meta's community license sets conditions on models that are made better with it, their names among them.",
        "the license that comes with the model",
        "Meta's model",
    ),
    Terms(
        re.compile(r"(^|/)qwen2\.5-coder-1\.5b"),
        "Apache License 2.0.",
        "the model's card",
        "the model of that name",
    ),
)


def terms_of(model: str, endpoint: str = "") -> str:
    """The terms of `model` (its public name), in a sentence or two; UNKNOWN where none are on record. At a private
    `endpoint` a name may stand for any model, so there the sentence is conditional."""
    name = model.lower()
    terms = next((entry for entry in MODEL_TERMS if entry.pattern.search(name)), None)
    if terms is not None:
        condition = f"If it is {terms.owner}: " if endpoint == PRIVATE else ""
        return f"{condition}{terms.text} See {terms.source}."
    for weights in WEIGHTS.values():
        if name in {weights.name, weights.model.lower(), weights.filename.lower()}:
            return f"{weights.licence} license of the weights."
    return UNKNOWN


LICENSES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl",
    "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma",
})  # fmt: skip
"""Identifiers of licenses, as the Hub writes them."""


def checked_license(identifier: str) -> str:
    """`identifier` as the Hub writes it. Raises ConfigError for a license that the Hub does not know."""
    name = identifier.strip().lower()
    if name in LICENSES:
        return name
    near = get_close_matches(name, sorted(LICENSES), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "give one such as cc-by-4.0, or the file with the license's text"
    raise ConfigError(f"license {one_line(identifier, 60)}: the Hub knows none of that name; {hint}")
