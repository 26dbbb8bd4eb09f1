"""The data set's card: YAML for the Hub, and what people want to know before they use the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from refed_dspy.data.read import BUILTIN
from refed_dspy.sharing.facts import RunFacts
from refed_dspy.sharing.markdown import Markdown, block, code, escaped, plain
from refed_dspy.sharing.redact import PRIVATE
from refed_dspy.sharing.run_settings import StageText
from refed_dspy.sharing.survey import Survey
from refed_dspy.sharing.terms import terms_of
from refed_dspy.text import number

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "n>1M"
_TAGS = ("synthetic", "instruction-tuning", "reference-level-feedback", "refed-dspy")
_OWN_LICENSE = "Apache-2.0, that of refed-dspy, which they come with"
_METHODS = {
    "ReferenceLevelFeedback": "Reference-Level Feedback: each reference is studied once; what makes its "
    "instruction and its response good guides new instructions, and the responses to them are improved by it.",
    "SampleLevelFeedback": "Sample-level feedback: new instructions come from references; each response is criticised "
    "by itself, and improved by that.",
    "InstructionFeedbackOnly": "Instructions from references, and the first response to each: nothing is improved, so "
    "`improved_response` is `response`.",
}
_RUN = "eight"
"""`copied.RUN`, in a word."""
_EXAMPLE = 600
"""Characters of each text of the row that is shown."""
_LINE = 600
"""Characters of a setting."""
_ORIGINS = {
    "package": "the words of refed-dspy",
    "guided": "the words of refed-dspy, and guidance of the author's behind them",
    "other": "not the words that this version of refed-dspy has: compiled, changed, or of another version",
    "": "the program's own",
}
_OWN_METHOD = "A program of its own, run by refed-dspy."
_PAPER = """
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


@dataclass(frozen=True)
class Config:
    """One of the data set's configs: which files it reads (`pattern`)."""

    name: str
    pattern: str
    rows: int


@dataclass(frozen=True)
class CardSettings:
    """What the person who shares the data says of it. None: not said."""

    name: str
    license: str | None = None
    """An identifier that the Hub knows; `other` with `license_file`."""
    license_file: bool = False
    """Whether LICENSE lies beside the card."""
    reference_license: str | None = None
    citation: str | None = None
    report: bool = False
    """Whether report.html lies beside the card."""


@dataclass(frozen=True)
class Card:
    """What a card is made of."""

    given: CardSettings
    facts: RunFacts
    survey: Survey
    configs: Sequence[Config]
    """`default` first."""
    version: str
    languages: Sequence[str] = field(default_factory=tuple)

    def text(self) -> str:
        """README.md. Nothing in it that came from elsewhere is markup, and its front matter is always YAML."""
        return f"---\n{self._front_matter()}\n---\n\n{self._body()}"

    def _front_matter(self) -> str:
        from huggingface_hub import DatasetCardData

        given = self.given
        own = {"license_name": "see-license-file", "license_link": "LICENSE"} if given.license_file else {}
        data = DatasetCardData(
            language=list(self.languages) or None,
            license=given.license,
            pretty_name=given.name,
            language_creators=["machine-generated"],
            size_categories=[_size(self.configs[0].rows)],
            task_categories=["text-generation"],
            tags=list(_TAGS),
            configs=[_config(one) for one in self.configs],
            **own,
        )
        return str(data.to_yaml())

    def _body(self) -> str:
        import jinja2

        # The templates are ours; what people and models wrote goes in as values, and `finalize` makes it plain text.
        environment = jinja2.Environment(  # noqa: S701 — Markdown: HTML's escapes are not its own
            finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"code": code, "counted": _counted}
        source = files("refed_dspy.sharing").joinpath("card.md.j2").read_text(encoding="utf-8")
        return environment.from_string(source).render(self._values()).strip() + "\n"

    def _values(self) -> dict[str, Any]:
        given, facts, survey = self.given, self.facts, self.survey
        dropped = [one.rows for one in self.configs[1:]]
        features = {name: survey.features[name] for name in {**dict.fromkeys(facts.features), **survey.features}}
        return {
            "title": given.name,
            "facts": facts,
            "cost": facts.cost,
            "rows": survey.rows,
            "complete": facts.kept >= facts.size,
            "method": Markdown(_METHODS.get(facts.method, _OWN_METHOD)),
            "version": self.version,
            "features": features,
            "sources": [self._source(name, count) for name, count in facts.sources.items()],
            "terms": self._terms(),
            "surveyed": len(survey.pairs),
            "copied": _copied(survey, self.configs),
            "changes": survey.changes,
            "changed": number(100 * survey.changes.median, 0) if survey.changes else "",
            **self._setup(),
            "columns": COLUMNS,
            "example": _example(survey),
            "figures": _figures(survey.figures()),
            "used": len(survey.references),
            "rows_a_reference": _spread(survey),
            "judged": any(one.stage.endswith("judge") for one in facts.stages),
            "filter_names": [str(one["filter"]) for one in facts.filters],
            "dropped": dropped[0] if dropped else 0,
            "report": given.report,
            "license": self._license(),
            "method_citation": block(_PAPER, "bibtex"),
            "own_citation": block(given.citation, "bibtex") if given.citation else "",
        }

    def _terms(self) -> list[dict[str, Any]]:
        """A model each. Where all that answered to its name are at private endpoints, it may be another."""
        where: dict[str, set[str]] = {}
        for one in self.facts.stages:
            where.setdefault(one.model, set()).add(one.endpoint)
        return [
            {"model": model, "told": Markdown(terms_of(model, PRIVATE if ends == {PRIVATE} else ""))}
            for model, ends in where.items()
        ]

    def _setup(self) -> dict[str, Any]:
        told = self.facts.settings
        return {
            "settings": [(name, plain(value, _LINE)) for name, value in told.rows],
            "filter_settings": [(name, code(settings, _LINE)) for name, settings in told.filters],
            "described": [(name, plain(text, _LINE)) for name, text in told.features.items()],
            "stage_texts": [_stage(one) for one in told.stages],
            "stopped": told.stopped,
        }

    def _source(self, name: str, count: int) -> dict[str, Any]:
        own = _OWN_LICENSE if name == BUILTIN else None
        return {
            "name": name,
            "count": count,
            "own": own is not None,
            "license": own or self.given.reference_license or "not told",
        }

    def _license(self) -> Any:
        if self.given.license_file:
            return Markdown("The license's text is in LICENSE.")
        if self.given.license:
            return code(self.given.license)
        return "None was named. Ask the author before you use it."


def _counted(count: int, one: str, many: str = "") -> str:
    """`count` and the word for so many: 1 row, 2 rows."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def _copied(survey: Survey, configs: Sequence[Config]) -> Markdown:
    """How many rows hold their reference's text, also where it is none."""
    found, looked = survey.copied, len(survey.drawn)
    told = (
        f"In {_counted(found.improved_response, 'row')}, half or more of the {_RUN}-word runs of the response stand in "
        f"the reference (that is `improved_response`; of `response` in {found.response:,}, of `instruction` in "
        f"{found.instruction:,}). {_counted(looked, 'row was', 'rows were')} looked at, each beside its own reference. "
        f"Texts of fewer than {_RUN} words count as none, and shorter runs and ideas are not looked for."
    )
    return Markdown(f"{told} The rows of `dropped` were not looked at." if len(configs) > 1 else told)


def _spread(survey: Survey) -> str:
    least, middle, most = survey.rows_a_reference()
    gave = f"{_counted(len(survey.references), 'reference')} gave rows: "
    if least == most:
        return f"{gave}{least:,}{' each' if len(survey.references) > 1 else ''}."
    return f"{gave}{least:,} to {most:,} each, {middle:,} at the median."


def _stage(one: StageText) -> dict[str, Any]:
    shown = f"; {_counted(one.examples, 'example')} shown with them, not told here" if one.examples else ""
    added = block(one.added) if one.added else ""
    return {
        "stage": one.stage,
        "text": block(one.instructions),
        "told": f"{_ORIGINS[one.origin]}{shown}",
        "added": added,
    }


def _example(survey: Survey) -> list[tuple[str, Markdown]]:
    """(column, its text in a block) of the first row, cut."""
    row = survey.first
    if row is None:
        return []
    texts = {name: getattr(row, name) for name in ("instruction", "response", "improved_response")}
    return [(name, block(text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]} …")) for name, text in texts.items()]


def _size(rows: int) -> str:
    return next((name for most, name in _SIZES if rows < most), _LARGEST)


def _config(one: Config) -> dict[str, Any]:
    told: dict[str, Any] = {"config_name": one.name, "data_files": [{"split": "train", "path": one.pattern}]}
    return {**told, "default": True} if one.name == "default" else told


def _figures(figures: Mapping[str, float | None]) -> dict[str, str]:
    return {name: number(value, 1 if " words, " in name else 2) for name, value in figures.items()}


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
    "round": "how often the reference had been gone through before, from 0",
    "teacher": "the model that wrote the improved response",
    "endpoint": "where that model was asked",
    "response_teacher": "the model that wrote the first response",
    "response_endpoint": "where that one was asked",
    "instruction_teacher": "the model that wrote the instruction",
    "instruction_endpoint": "where that one was asked",
    "program": "digest of the prompt that improved the response",
    "prompt_tokens": "tokens read by the row's own calls, without its reference's",
    "completion_tokens": "tokens written by these calls",
}
