"""The data set's card (README.md): YAML for the Hub, then what a user of the data wants to know first; what each column
holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from refed_dspy.data.read import OWN
from refed_dspy.data.sources import REMARKS
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.plugins.share.facts import DataStep, RunFacts, StageFacts
from refed_dspy.plugins.share.secrets import PRIVATE
from refed_dspy.plugins.share.survey import Survey
from refed_dspy.text import counted, format_number, nearest
from refed_dspy.weights import WEIGHTS

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "n>1M"
_METHOD_TAG = "reference-level-feedback"
_TAGS = ("synthetic", "instruction-tuning", _METHOD_TAG, "refed-dspy")
METHODS = {
    "ReferenceLevelFeedback": "Reference-Level Feedback: each reference is studied once; what makes its "
    "instruction and its response good guides new instructions, and the responses to them are improved by it.",
    "SampleLevelFeedback": "Sample-level feedback: new instructions come from references; each response is criticised "
    "by itself, and improved by that.",
    "InstructionFeedbackOnly": "Instructions from references, and the first response to each: nothing is improved, so "
    "`improved_response` is `response`.",
}
_ORIGINS = {
    "package": "refed-dspy's own prompts",
    "guided": "refed-dspy's own prompts, with the author's guidance added",
    "other": "not this version's own prompts: compiled, edited, or from another version",
    "": "the program's own",
}
CUSTOM_METHOD = "A custom program, run by refed-dspy."
PAPER = """
@inproceedings{mehri-etal-2026-beyond,
  title = {Beyond Sample-Level Feedback: Using Reference-Level Feedback to Guide Data Synthesis},
  author = {Mehri, Shuhaib and Chen, Xiusi and Ji, Heng and Hakkani-T{\\"u}r, Dilek},
  booktitle = {Proceedings of the 19th Conference of the European Chapter of the Association for Computational
    Linguistics (Volume 1: Long Papers)},
  year = {2026},
  pages = {141--164},
  note = {arXiv:2502.04511}
}
"""
_OF_STEPS = {REMARKS: "what the filters noted, as JSON: the row's number in the data, and its scores"}
_RECYCLED = {
    "row": "the row's number in the data that was recycled",
    "instruction": "the instruction after recycling",
    "response": "the response after recycling, to train on",
    "original_instruction": "the instruction before",
    "original_response": "the response before",
    "instruction_from": "whether the instruction is the original or a new one",
    "response_from": "whether the response is the original or a new one",
    "instruction_reason": "why no new instruction was taken, if none was",
    "response_reason": "why no new response was taken, if none was",
    "system": "the system prompt; empty if there is none",
    "ifd": "how hard the instruction is to follow (IFD)",
    "r_ifd": "how hard it is to guess the instruction from the response (r-IFD)",
    "original_ifd": "the IFD before",
    "original_r_ifd": "the r-IFD before",
    "template": "the prompt around an instruction in these figures",
    "selection_reason": "empty: the row was kept",
}
COLUMNS: Mapping[str, str] = {
    "instruction": "the new instruction",
    "response": "the first response to it",
    "analysis": "what the improvement saw in the first response: strengths, opportunities, feedback that applies",
    "implementation_strategy": "what it planned to change, and why",
    "improved_response": "the response to train on",
    "sample": "the row's number in the run, from 1",
    "reference": "id of the reference that the row came from, a digest of its texts",
    "reference_source": "where that reference stood: source and row",
    "feature": "the feature of the reference that the instruction was written by",
    "round": "how often the reference had been used up before, from 0",
    "teacher": "the model that wrote the improved response",
    "endpoint": "where that model was asked",
    "response_teacher": "the model that wrote the first response",
    "response_endpoint": "where that model was asked",
    "instruction_teacher": "the model that wrote the instruction",
    "instruction_endpoint": "where that model was asked",
    "program": "digest of the prompt that improved the response",
    "prompt_tokens": "tokens read by the row's own calls, without its reference's",
    "completion_tokens": "tokens written by these calls",
    "cost": "dollars paid for these calls; empty if a price is unknown",
    "system": "the system prompt of the reference and so of the row; empty if it has none",
}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|&~!$@:])")
_ADDRESS = re.compile(r"\bwww\.", re.IGNORECASE)
UNKNOWN = "not known here: see those of the model and of the service that ran it"
TERMS_PAGES = (
    (re.compile(r"(^|/)(gpt-(?!oss)|chatgpt|o[1-9](-|$))"), "https://openai.com/policies"),
    (re.compile(r"(^|[/.])claude"), "https://www.anthropic.com/legal/commercial-terms"),
    (re.compile(r"(^|/)gemini-"), "https://ai.google.dev/gemini-api/terms"),
)
"""What a provider's models are called → the page with its terms."""
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


@dataclass(frozen=True)
class Config:
    """A config of the data set; `pattern` names its files."""

    name: str
    pattern: str
    rows: int
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class CardSettings:
    """What the person who shares the data states about it. None: not stated."""

    name: str
    license: str | None = None
    """An identifier that the Hub knows; `other` with `license_file`."""
    license_file: bool = False
    """Whether a file LICENSE is in the folder."""
    reference_license: str | None = None
    citation: str | None = None
    report: bool = False
    """Whether report.html is in the folder."""


@dataclass(frozen=True)
class Card:
    """Everything that a card shows."""

    settings: CardSettings
    facts: RunFacts
    survey: Survey
    configs: Sequence[Config]
    """`default` first."""
    version: str
    languages: Sequence[str] = field(default_factory=tuple)
    steps: Sequence[DataStep] = ()
    """What was done to the rows since they were made, the first step first."""
    origin: str = ""
    """What the first step began with; empty where it has no name."""
    people: Sequence[Mapping[str, Any]] = ()
    """What people said of the rows (`people_in`)."""

    def text(self) -> str:
        """README.md. No text of a model, file or person is markup in it, and its front matter is always valid YAML."""
        return f"---\n{self._front_matter()}\n---\n\n{self._body()}"

    def _front_matter(self) -> str:
        from huggingface_hub import DatasetCardData

        settings = self.settings
        file = {"license_name": "see-license-file", "license_link": "LICENSE"} if settings.license_file else {}
        data = DatasetCardData(
            language=list(self.languages) or None,
            license=settings.license,
            pretty_name=settings.name,
            language_creators=["machine-generated"],
            size_categories=[next((name for most, name in _SIZES if self.configs[0].rows < most), _LARGEST)],
            task_categories=["text-generation"],
            tags=self.tags(),
            configs=[
                {
                    "config_name": config.name,
                    "data_files": [{"split": "train", "path": config.pattern}],
                    **({"default": True} if config.name == "default" else {}),
                }
                for config in self.configs
            ],
            **file,
        )
        return str(data.to_yaml())

    def _body(self) -> str:
        import jinja2

        # The template is ours. What people and models wrote goes in as values, and `finalize` makes them plain text.
        environment = jinja2.Environment(  # noqa: S701 — Markdown, where HTML's escapes do not apply
            finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"code": code, "plain": plain, "block": block, "markdown": Markdown}
        environment.filters |= {"counted": counted, "number": format_number}
        source = files("refed_dspy.plugins.share").joinpath("card.md.j2").read_text(encoding="utf-8")
        return environment.from_string(source).render(self._values()).strip() + "\n"

    def _values(self) -> dict[str, Any]:
        facts, survey, columns = self.facts, self.survey, self.columns()
        features = [*dict.fromkeys([*(facts.account.features if facts.account else ()), *survey.features])]
        filters = [*facts.status["filters"], *(each for step in self.steps for each in step.filters)]
        return {
            "card": self,
            "settings": self.settings,
            "facts": facts,
            "run": facts.status,
            "cost": facts.cost,
            "survey": survey,
            "rows": survey.rows,
            "dropped": sum(config.rows for config in self.configs[1:]),
            "method": METHODS.get(facts.account.program, CUSTOM_METHOD) if facts.account else "",
            "features": {name: survey.features[name] for name in features},
            "own_sources": OWN,
            "terms": self._terms(),
            "columns": columns,
            "trained": next((name for name in ("improved_response", "response") if name in columns), ""),
            "example": _example(survey),
            "judged": any(stage.stage.endswith("judge") for stage in self.stages()),
            "overlap_removed": any(counts["filter"] == "overlap" for counts in filters),
            "origins": _ORIGINS,
            "paper": PAPER,
        }

    def tags(self) -> list[str]:
        """What the data set can be found by."""
        return [tag for tag in _TAGS if self.facts.account or tag != _METHOD_TAG]

    def stages(self) -> list[StageFacts]:
        """Who was asked, in the run and in the steps since."""
        return [*self.facts.stages, *(stage for step in self.steps for stage in step.stages)]

    def columns(self) -> Mapping[str, str]:
        """Column → what it holds; of other data's columns, refed knows nothing."""
        if not self.steps:
            return COLUMNS
        names = self.configs[0].columns
        known = COLUMNS if "improved_response" in names else _RECYCLED if "original_instruction" in names else {}
        return {name: {**known, **_OF_STEPS}.get(name, "as in the source") for name in names}

    def _terms(self) -> list[dict[str, Any]]:
        """One entry per model. A name that only private endpoints answered to may belong to another model."""
        endpoints: dict[str, set[str]] = {}
        for stage in self.stages():
            endpoints.setdefault(stage.model, set()).add(stage.endpoint)
        return [
            {"model": model, "terms": Markdown(terms_of(model, PRIVATE if asked == {PRIVATE} else ""))}
            for model, asked in endpoints.items()
        ]


def _example(survey: Survey) -> Mapping[str, str]:
    """Column → its text in the first row; of rows with one response, that."""
    if (row := survey.first) is None:
        return {}
    if not row.response:
        return {"instruction": row.instruction, "response": row.improved_response}
    return {name: getattr(row, name) for name in ("instruction", "response", "improved_response")}


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def plain(text: object, limit: int = 300) -> Markdown:
    """`text` in one line that renders as itself, in a paragraph or a table cell."""
    flat = _MARKUP.sub(r"\\\1", one_line(text, limit))
    return Markdown(_ADDRESS.sub(lambda match: f"{match[0][:-1]}\\.", flat))


def code(text: object, limit: int = 200) -> Markdown:
    """`text` as inline code, in a table cell too."""
    flat = one_line(text, limit).replace("|", "\\|")
    longest = max(map(len, re.findall(r"`+", flat)), default=0)
    if not longest:
        return Markdown(f"`{flat}`" if flat else "")
    fence = "`" * (longest + 1)
    return Markdown(f"{fence} {flat} {fence}")


def block(text: str, language: str = "") -> Markdown:
    """`text` as a fenced code block, line by line, without control characters."""
    lines = [
        "".join(ch if ch.isprintable() or ch == "\t" else "?" for ch in line) for line in text.strip().splitlines()
    ]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown("\n".join([f"{fence}{language}", *lines, fence]))


def escaped(value: object) -> object:
    """The value of a template expression, made safe: for Jinja's `finalize`. Numbers get thousands separators."""
    if isinstance(value, int | float):
        return f"{value:,}"
    return value if isinstance(value, Markdown) else plain(value)


def terms_of(model: str, endpoint: str = "") -> str:
    """Where the terms of `model` (its public name) are, as Markdown; UNKNOWN where no page is on record, and at a
    private `endpoint`, where a name may stand for any model."""
    name = model.lower()
    for weights in WEIGHTS.values():
        if name in {weights.name, weights.model.lower(), weights.filename.lower()}:
            return f"{weights.licence} license of the weights"
    pages = (page for pattern, page in TERMS_PAGES if endpoint != PRIVATE and pattern.search(name))
    return next((f"<{page}>" for page in pages), UNKNOWN)


def checked_license(identifier: str) -> str:
    """`identifier` as the Hub writes it. Raises ConfigError for a license that the Hub does not know."""
    name = identifier.strip().lower()
    if name in LICENSES:
        return name
    near = nearest(name, sorted(LICENSES))
    hint = f"did you mean {near}?" if near else "use one such as cc-by-4.0, or a file with the license's text"
    raise ConfigError(f"license {one_line(identifier, 60)}: not a license the Hub knows; {hint}")
