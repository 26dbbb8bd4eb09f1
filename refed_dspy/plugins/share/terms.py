"""Where the terms are that a teacher's answers come under, and the licenses that the Hub knows by name."""

from __future__ import annotations

import re

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.plugins.share.redact import PRIVATE
from refed_dspy.text import nearest
from refed_dspy.weights import WEIGHTS

UNKNOWN = "not known here: see those of the model and of the service that ran it"
TERMS_PAGES = (
    (re.compile(r"(^|/)(gpt-(?!oss)|chatgpt|o[1-9](-|$))"), "https://openai.com/policies"),
    (re.compile(r"(^|[/.])claude"), "https://www.anthropic.com/legal/commercial-terms"),
    (re.compile(r"(^|/)gemini-"), "https://ai.google.dev/gemini-api/terms"),
)
"""What a provider's models are called → the page with its terms."""


def terms_of(model: str, endpoint: str = "") -> str:
    """Where the terms of `model` (its public name) are, as Markdown; UNKNOWN where no page is on record, and at a
    private `endpoint`, where a name may stand for any model."""
    name = model.lower()
    for weights in WEIGHTS.values():
        if name in {weights.name, weights.model.lower(), weights.filename.lower()}:
            return f"{weights.licence} license of the weights"
    pages = (page for pattern, page in TERMS_PAGES if endpoint != PRIVATE and pattern.search(name))
    return next((f"<{page}>" for page in pages), UNKNOWN)


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
    near = nearest(name, sorted(LICENSES))
    hint = f"did you mean {near}?" if near else "use one such as cc-by-4.0, or a file with the license's text"
    raise ConfigError(f"license {one_line(identifier, 60)}: not a license the Hub knows; {hint}")
