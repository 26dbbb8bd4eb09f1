"""The settings that work was last started with, as its folder keeps them: one record, which a resume, the report, the
card and MLflow read. That of a run, a comparison and a compile is in its ledger; that of a filtering or a recycling,
which may have none, in what it notes of its data.

It has the settings of `RunConfig` (`CompileConfig`, …) in JSON types, as they were checked, except those of which the
ledger has what they made (size, caps, program, references) and those that each start names anew. In the place of its
models stand those that were opened: `teacher` is the list of those who answer every stage that `teachers` does not
list, `judge` the judge, `reflection` who rewrites a compile's prompts. `program` is set where it is the caller's own
and has a name. The filters of a filtering are [label, settings, rows to keep at most].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from pydantic import BaseModel

from refed_dspy.errors import CAPS
from refed_dspy.ledger.ledger import Ledger

ANY = ""
"""The stage that stands for all that are not named."""
Model: TypeAlias = Mapping[str, Any]
"""A model of a run: its `model`, `endpoint`, `weight` in its pool, `rates` in picodollars a token (prompt, cached
prompt, prompt written to a cache, completion; None: unknown), and its `config`; None for a Python object."""


@dataclass(frozen=True)
class WorkSettings:
    """The settings of work, perhaps of a folder that holds none."""

    values: Mapping[str, Any]
    """Setting → value in JSON types. A filter that was a Python object is `{"class": name}`."""

    @classmethod
    def of(cls, config: BaseModel, beside: Iterable[str] = (), **made: Any) -> Self:
        """Those of `config` but what each start names anew and what is recorded `beside` them; `made`: what stands in
        the place of some."""
        values = config.model_dump(mode="json", exclude={*CAPS, "data", "out", "run_dir", *beside, *made})
        return cls({**values, **made})

    @property
    def pools(self) -> dict[str, Sequence[Model]]:
        """Stage → who answers it; `ANY` is always a key."""
        return {ANY: self.values.get("teacher") or [], **(self.values.get("teachers") or {})}

    @property
    def several(self) -> bool:
        """Whether more than one teacher answers."""
        return len(self.pools) > 1 or len(self.pools[ANY]) > 1

    @property
    def teacher(self) -> Model:
        """The first teacher; empty where there is none."""
        return next(iter(self.pools[ANY]), {})

    @property
    def judge(self) -> Model:
        """Empty where there is none."""
        return self.values.get("judge") or {}

    @property
    def reflection(self) -> Model:
        """Who rewrites a compile's prompts; empty where there is none."""
        return self.values.get("reflection") or {}

    @property
    def models(self) -> list[Model]:
        """All models, as often as they are named."""
        beside = filter(None, [self.judge, self.reflection, self.values.get("proof_judge")])
        return [*(member for pool in self.pools.values() for member in pool), *beside]


def settings_of(ledger: Ledger) -> WorkSettings:
    """The settings of the run, the comparison or the compile in `ledger`."""
    recorded = ledger.meta("settings")
    return WorkSettings(_of_older(ledger) if recorded is None else recorded)


def noted_settings(note: Mapping[str, Any]) -> WorkSettings:
    """The settings of the filtering or recycling that noted this of its data (`data.sources.source_of`). Up to version
    0.2.0 and shortly after they stood among the rest."""
    older = {name: note[name] for name in ("columns", "filters", "seed") if name in note}
    return WorkSettings(note.get("settings") or {**older, "teacher": [{"model": note.get("teacher")}]})


def only_teacher(ledger: Ledger) -> str | None:
    """The model of the run's only teacher, in all starts; None where several were asked, or it is unknown."""
    settings = settings_of(ledger)
    several = settings.several or len(ledger.meta("asked_teachers") or ()) > 1
    return None if several else settings.teacher.get("model")


def _of_older(ledger: Ledger) -> dict[str, Any]:
    """The record of work up to version 0.2.0 and shortly after: a run kept each setting under a name of its own, and a
    compile had a record of its own."""
    if (about := ledger.meta("about")) is not None:
        models = about["models"]
        return {**about, **models, "teacher": [*filter(None, [models.get("teacher")])], "references": about["source"]}
    teacher, judge, rates = ledger.meta("teacher"), ledger.meta("judge"), ledger.meta("rates")
    if teacher is None:
        return {}  # no run
    kept = ("seed", "max_failure_share", "reuse", "track", "judge_program", "judge_scorer", "accept_changed")
    pools = ledger.meta("pools") or {ANY: [{**teacher, "endpoint": None, "weight": 1.0, "rates": rates}]}
    return {
        **{name: ledger.meta(name) for name in kept},
        "program": ledger.meta("program_named"),
        "per_reference": _per_reference(ledger),
        "guards": False,  # they are among the filters
        "filters": [_filter(label, settings) for label, settings in ledger.meta("filters") or ()],
        "teacher": pools.pop(ANY),
        "teachers": pools,
        "judge": judge and {"rates": rates, **judge},
    }


def _per_reference(ledger: Ledger) -> int | None:
    """Up to version 0.2.0 there were no even shares: where nothing was set, a reference gave all that it was asked
    for."""
    asked: int | None = ledger.meta("per_reference")
    identity = ledger.meta("identity") or {}
    if asked is not None or ledger.meta("spread") or not {"features", "instructions_per_feature"} <= identity.keys():
        return asked
    return len(identity["features"]) * int(identity["instructions_per_feature"])


def _filter(label: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A filter's settings from its identity, to which it added some itself."""
    if "class" in identity:
        return {"class": identity["class"]}
    if "named" in identity:
        return {identity["named"]: identity["settings"]}
    added = {"seed", "prompts", "content"}
    return {label.partition(" ")[0]: {name: value for name, value in identity.items() if name not in added}}
