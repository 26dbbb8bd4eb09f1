"""The facts of a run that a published card states, read from its ledger, without anything private."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.data.export import Pairs
from refed_dspy.data.rows import both_responses
from refed_dspy.errors import ExportError
from refed_dspy.ledger.history import model_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import only_teacher, settings_of
from refed_dspy.ledger.summary import run_status
from refed_dspy.plugins.share.redact import origin_of, public_endpoint, public_model
from refed_dspy.plugins.share.run_settings import SharedSettings, shared_settings
from refed_dspy.records import PICO, digest, dollars

_ANSWERS = """
SELECT stage, model, endpoint, count(*) FROM (
  SELECT a.created AS place, a.stage, a.endpoint, coalesce(
    (SELECT model FROM calls c WHERE c.key = a.key AND c.outcome = 'ok' LIMIT 1),
    (SELECT model FROM reused r WHERE r.key = a.key)) AS model
  FROM answers a
) GROUP BY stage, model, endpoint ORDER BY min(place)
"""
_REUSED = """
SELECT count(*) FROM answers a
WHERE NOT EXISTS (SELECT 1 FROM calls c WHERE c.key = a.key AND c.outcome = 'ok')
"""


@dataclass(frozen=True)
class StageFacts:
    """A model that answered at a stage, and how often; `prompt` is the digest of the prompt, empty for a judge's."""

    stage: str
    prompt: str
    model: str
    endpoint: str
    answers: int


@dataclass(frozen=True)
class Cost:
    """Dollars as text. `total` leaves out `unpriced` calls; `worst_case` is the part of it that is reserved for calls
    whose tokens were never reported."""

    total: str
    per_row: str
    unpriced: int
    worst_case: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    price_source: str


@dataclass(frozen=True)
class RunFacts:
    """A run, without anything private: no addresses, no paths, no reasons of failures."""

    method: str
    """The program's class."""
    program: str
    """Digest of all its prompts."""
    compiled: str
    """The candidate of a compile that the program is; empty where none is recorded."""
    stages: Sequence[StageFacts]
    features: Sequence[str]
    instructions_per_feature: int
    seed: int
    size: int
    kept: int
    references: int
    opened: int
    left_out: Mapping[str, int]
    under_system: int
    """References with a system prompt, which the rows repeat."""
    sources: Mapping[str, int]
    """Where references come from → how many."""
    instructions: Mapping[str, int]
    """See `run_status`."""
    filters: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    cost: Cost
    reused: int
    """Answers reused from another run, which cost nothing here."""
    made: str
    """The first and the last day (UTC) on which a row was made: "A to B", or "A" where they are the same."""
    settings: SharedSettings
    simulated: str
    """That the simulated teacher answered, if it did."""
    pairs: str
    """How many pairs of a chosen and a rejected response its rows make, and what to know of them; empty for none."""


_NO_COST = Cost("", "", 0, "", 0, 0, 0, "")
UNKNOWN = RunFacts(
    method="",
    program="",
    compiled="",
    stages=(),
    features=(),
    instructions_per_feature=0,
    seed=0,
    size=0,
    kept=0,
    references=0,
    opened=0,
    left_out={},
    under_system=0,
    sources={},
    instructions={},
    filters=(),
    failures=(),
    cost=_NO_COST,
    reused=0,
    made="",
    settings=SharedSettings(),
    simulated="",
    pairs="",
)
"""Of rows that no run is known to have made: `size` is 0."""


def run_facts(ledger: Ledger) -> RunFacts:
    status, identity = run_status(ledger), ledger.meta("identity") or {}
    references, source = ledger.references(), ledger.meta("program_source") or {}
    origins = Counter(origin_of(reference.source) for reference in references)
    return RunFacts(
        method=str(identity.get("kind", "")),
        program=digest(identity.get("program") or {}),
        compiled=str(source.get("candidate") or ""),
        stages=stages_of(ledger),
        features=list(identity.get("features") or ()),
        instructions_per_feature=int(identity.get("instructions_per_feature") or 0),
        seed=int(status["seed"] or 0),
        size=status["size"],
        kept=status["kept"],
        simulated=status["simulated"],
        references=status["references"],
        opened=status["opened"],
        left_out=status["left_out"],
        under_system=sum(bool(reference.system) for reference in references),
        sources=dict(origins.most_common()),
        instructions=status["instructions"],
        filters=status["filters"],
        failures=status["failures"],
        cost=cost_of(status),
        reused=int(ledger.db.execute(_REUSED).fetchone()[0]),
        made=_made(ledger),
        settings=shared_settings(ledger),
        pairs=_pairs(ledger),
    )


def _pairs(ledger: Ledger) -> str:
    try:
        pairs = Pairs.of_run(ledger, "preference", both_responses).counted()
    except ExportError:  # nothing is improved
        return ""
    return f"{pairs.count} ({pairs.told()})" if pairs.count else ""


def key_variables(ledger: Ledger) -> set[str]:
    """The environment variables that held the API keys of the run's models, by name, as its settings give them."""
    names = ((model.get("config") or {}).get("api_key_env") for model in settings_of(ledger).models)
    return {str(name) for name in names if name}


def stages_of(ledger: Ledger) -> list[StageFacts]:
    """Stages in the order in which they were first asked. Where no call names the model, it is the run's only teacher,
    or the judge; with several teachers it stays unknown."""
    judge, teacher = settings_of(ledger).judge.get("model"), only_teacher(ledger)
    prompts = (ledger.meta("identity") or {}).get("program") or {}
    merged: Counter[tuple[str, str, str]] = Counter()
    for stage, model, endpoint, count in ledger.db.execute(_ANSWERS):
        asked = model or (judge or teacher if str(stage).endswith("judge") else teacher)
        name = public_model(model_of(str(asked or ""), str(endpoint)))
        merged[str(stage), name, public_endpoint(str(endpoint))] += count
    return [
        StageFacts(stage, str(prompts.get(stage, "")), name, endpoint, count)
        for (stage, name, endpoint), count in merged.items()
    ]


def cost_of(status: Mapping[str, Any]) -> Cost:
    usage = status["usage"].values()
    total = status["cost"]
    worst = sum(use["reserved"] + use["in_flight_cost"] for use in usage)
    per_row = status["cost_per_sample"]
    return Cost(
        total="unknown" if total is None else dollars(total * PICO),
        per_row="" if per_row is None else dollars(per_row * PICO),
        unpriced=status["unpriced"],
        worst_case=dollars(worst * PICO) if worst else "",
        calls=sum(use["calls"] for use in usage),
        prompt_tokens=sum(use["prompt_tokens"] for use in usage),
        completion_tokens=sum(use["completion_tokens"] for use in usage),
        price_source=str(status["price_source"] or ""),
    )


def _made(ledger: Ledger) -> str:
    first, last = ledger.db.execute("SELECT min(created), max(created) FROM samples").fetchone()
    days = [time.strftime("%Y-%m-%d", time.gmtime(moment)) for moment in (first, last) if moment]
    return " to ".join(dict.fromkeys(days))
