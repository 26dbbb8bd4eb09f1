"""The data set described for machines (croissant.json): Croissant 1.1 with its vocabulary for responsible AI, and PROV.
It says what the card says, and of what nobody has told or measured, that it is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from refed_dspy.plugins.share.card import CUSTOM_METHOD, METHODS, PAPER, Card, Config
from refed_dspy.plugins.share.facts import RunFacts, StageFacts
from refed_dspy.plugins.share.manifest import hash_file
from refed_dspy.text import counted

FILE = "croissant.json"
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_PARQUET = "application/x-parquet"
_OF_CROISSANT = """
arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet format includes
isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate
separator source subField transform
"""
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{name: f"cr:{name}" for name in _OF_CROISSANT.split()},
}
"""As the standard has it, and PROV."""


def croissant(card: Card, folder: Path) -> dict[str, Any]:
    """What croissant.json holds for the data set in `folder`, where its Parquet files are. Who made it, where it is and
    since when, the author may add. Raises OSError."""
    facts, settings = card.facts, card.settings
    days = facts.made.split(" to ") if facts.made else []
    pairs = f"{counted(card.configs[0].rows, 'pair')} of an instruction and a response, for instruction tuning."
    known = {
        "description": f"{pairs} {facts.simulated.capitalize()}".strip(),
        "license": [{"@type": "sc:CreativeWork", "name": "LICENSE" if settings.license_file else settings.license}]
        if settings.license
        else [],
        "citeAs": (settings.citation or (PAPER if facts.account else "")).strip(),
        "inLanguage": list(card.languages),
        "keywords": card.tags(),
        "dateCreated": days[-1] if days else "",
        "rai:dataCollectionTimeframe": days and [days[0], days[-1]],
        **_responsible(card),
        **_provenance(card),
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": settings.name,
        "version": "1.0.0",
        **{name: value for name, value in known.items() if value},
        "distribution": list(_distribution(card.configs, folder)),
        "recordSet": [_record_set(card, config, folder) for config in card.configs],
    }


def _responsible(card: Card) -> dict[str, Any]:
    facts, survey = card.facts, card.survey
    by_models = facts.account is not None or any(step.work == "recycling" for step in card.steps)
    limits = ["Not measured: whether the answers are true; overlap with test sets, except by the filters named here."]
    if by_models:
        limits.append("What models wrote has their mistakes, gaps and habits.")
    if facts.account:
        behind = f"{counted(len(survey.references), 'reference')} behind {counted(survey.rows, 'row')}"
        limits.append(f"The references decide what it is about: {behind}.")
        copied = f"{counted(survey.copied.rows, 'row')} of {len(survey.drawn):,} checked"
        limits.append(f"Half or more of a text is copied from the row's own reference in {copied}.")
    if facts.missing:
        limits.append(f"{facts.status['size']:,} rows were asked for, and not all of them made.")
    theirs = (
        [f"license of the references: {card.settings.reference_license}"] if card.settings.reference_license else []
    )
    people = [f"People compared two responses in {rate['by_people']} of {rate['pairs']} pairs." for rate in card.people]
    tools = [
        f"{each.stage}: {each.model} ({each.endpoint}), {counted(each.answers, 'answer')}" for each in card.stages()
    ]
    return {
        "rai:hasSyntheticData": by_models,
        "rai:dataCollection": _collection(facts),
        "rai:dataCollectionType": ["Others: synthetic"] if by_models else [],
        "rai:dataCollectionRawData": "; ".join([*_references(facts), *theirs]),
        "rai:dataPreprocessingProtocol": list(_filters(card)),
        "rai:machineAnnotationTools": tools,
        "rai:dataAnnotationProtocol": people,
        "rai:dataUseCases": ["Training language models to follow instructions."],
        "rai:dataLimitations": limits,
        "rai:dataBiases": ["Not measured."],
        "rai:dataSocialImpact": "Not assessed.",
        "rai:personalSensitiveInformation": ["Not searched for."],
    }


def _collection(facts: RunFacts) -> str:
    if (account := facts.account) is None:
        return "No run of refed-dspy is known to have made these rows."
    studied = f"{account.status['references']:,} references, {account.status['opened']:,} of them studied"
    return f"{METHODS.get(account.program, CUSTOM_METHOD)} {studied}; prompts {account.prompts_digest}."


def _references(facts: RunFacts) -> list[str]:
    return [f"{counted(count, 'reference')} from {name}" for name, count in facts.sources.items()]


def _filters(card: Card) -> Iterator[str]:
    """What each filter was set to, kept and dropped, in the order in which they saw the rows."""
    of_run = (card.facts.status["filters"], card.facts.settings.filters)
    for funnel, settings in (of_run, *((step.filters, step.settings) for step in card.steps)):
        for counts in funnel:
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts["reasons"].items())
            dropped = f"dropped {counts['dropped']:,}" + (f" ({why})" if why else "")
            undecided = f", undecided {counts['undecided']:,}" if counts.get("undecided") else ""
            said = f"{counts['filter']} {dict(settings).get(counts['filter'], '')}".strip()
            yield f"{said}: kept {counts['kept']:,}, {dropped}{undecided}"


def _provenance(card: Card) -> dict[str, Any]:
    facts = card.facts
    works = [(f"run of {facts.account.program}", facts.stages, facts.ledger)] if facts.account else []
    works += [(f"{step.work} of {counted(step.rows, 'row')}", step.stages, step.ledger) for step in card.steps]
    sources = _references(facts) if facts.account else [card.origin or "data without a name"]
    ledgers = [
        {"@id": ledger_name(ledger), "prov:label": f"the ledger of the {work}"} for work, _, ledger in works if ledger
    ]
    return {
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", **each} for each in (*({"prov:label": name} for name in sources), *ledgers)
        ],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity",
                "prov:label": f"{work}, by refed-dspy",
                "prov:wasAssociatedWith": _agents(stages),
            }
            for work, stages, _ in works
        ],
    }


def _agents(stages: Sequence[StageFacts]) -> list[dict[str, str]]:
    models = dict.fromkeys(stage.model for stage in stages)
    return [{"@type": "prov:SoftwareAgent", "prov:label": model} for model in models]


def ledger_name(digest: str) -> str:
    """What the ledger with this digest is called in the description."""
    return f"urn:refed-dspy:ledger:sha256:{digest}"


def _distribution(configs: Sequence[Config], folder: Path) -> Iterator[dict[str, Any]]:
    for config in configs:
        for path in sorted(folder.glob(config.pattern)):
            file = hash_file(folder, path.relative_to(folder).as_posix())
            named = {"@id": file.path, "name": file.path, "contentUrl": file.path, "contentSize": f"{file.bytes} B"}
            yield {"@type": "cr:FileObject", **named, "encodingFormat": _PARQUET, "sha256": file.sha256}
        named = {"@id": f"files-of-{config.name}", "name": f"files-of-{config.name}", "includes": config.pattern}
        yield {"@type": "cr:FileSet", **named, "encodingFormat": _PARQUET}


def _record_set(card: Card, config: Config, folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    about, fields = card.columns() if config.name == "default" else {}, []
    for column in pq.read_schema(next(folder.glob(config.pattern))):
        source = {"fileSet": {"@id": f"files-of-{config.name}"}, "extract": {"column": column.name}}
        told = {"description": about[column.name]} if column.name in about else {}
        fields.append({**_field(config.name, column.name, column.type, source), **told})
    return {"@type": "cr:RecordSet", "@id": config.name, "name": config.name, "field": fields}


def _field(within: str, name: str, kind: Any, source: Mapping[str, Any], path: Sequence[str] = ()) -> dict[str, Any]:
    """A column, or a part of one: the `path` to that in the column's value."""
    import pyarrow as pa

    found: dict[str, Any] = {"@type": "cr:Field", "@id": f"{within}/{quote(name, safe='')}", "name": name}
    depth = 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth:
        found |= {"isArray": True, "arrayShape": ",".join(["-1"] * depth)}
    if pa.types.is_struct(kind):
        parts = (_field(found["@id"], part.name, part.type, source, [*path, part.name]) for part in kind)
        return {**found, "subField": list(parts)}
    told = {"transform": {"jsonPath": ".".join(map(_step, path))}} if path else {}
    return {**found, "dataType": _type(kind), "source": {**source, **told}}


def _step(name: str) -> str:
    return name if name.isidentifier() else "'" + name.replace("'", "\\'") + "'"


def _type(kind: Any) -> str:
    import pyarrow as pa

    tests = {"Boolean": pa.types.is_boolean, "Integer": pa.types.is_integer, "Float": pa.types.is_floating}
    return "sc:" + next((name for name, test in tests.items() if test(kind)), "Text")
