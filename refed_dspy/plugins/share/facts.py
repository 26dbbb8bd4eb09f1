"""The facts of a run that a published card states, read from its ledger, without anything private."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refed_dspy.data.export import Pairs
from refed_dspy.data.rows import both_responses
from refed_dspy.data.sources import ENDPOINTS, as_trained, margin_of, run_behind, sources
from refed_dspy.data.stored import ROWS, read_json
from refed_dspy.errors import ExportError, RunDirError, one_line
from refed_dspy.ledger.account import RunAccount
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.digest import ledger_digest
from refed_dspy.ledger.history import SIMULATED, model_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import noted_settings, only_teacher, settings_of
from refed_dspy.ledger.states import CAPPED, last_end
from refed_dspy.measures.intervals import Interval
from refed_dspy.optimizers.by_people import PEOPLE
from refed_dspy.plugins.share.secrets import origin_of, public_endpoint, public_model
from refed_dspy.records import DataRow, digest, money

_SAMPLING = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty",
    "reasoning_effort",
)  # fmt: skip
"""The parameters that are published; others may hold anything."""
_UNKNOWN = "not stated"


@dataclass(frozen=True)
class StageText:
    """The instructions of a stage. `origin`: `package` (those of refed-dspy), `guided` (those and `added`), `other`
    (compiled, or the author's), empty where it is unknown. `examples`: how many demonstrations come with them."""

    stage: str
    instructions: str
    origin: str = ""
    added: str = ""
    examples: int = 0


@dataclass(frozen=True)
class SharedSettings:
    """`rows`: (setting, value), in order. `filters`: (name, settings as JSON). `features`: name → description.
    `stopped`: the cap at which the run ended, without its folder; empty where it did not end at one."""

    rows: Sequence[tuple[str, str]] = ()
    filters: Sequence[tuple[str, str]] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageText] = ()
    stopped: str = ""


def _settings_of(account: RunAccount, ledger: Ledger) -> SharedSettings:
    """The settings of the run in `ledger`, without addresses and folders; of a file only its name."""
    end = last_end(ledger)
    return SharedSettings(
        rows=list(_rows(account)),
        filters=[(name, public_settings(settings)) for name, settings in account.filters],
        features=account.features,
        stages=_stages(ledger.meta("program") or {}, account.program),
        stopped=(end.reached or "not noted which") if end.state == CAPPED else "",
    )


def _rows(account: RunAccount) -> Iterator[tuple[str, str]]:
    settings, asked_at_once = account.settings, account.instructions_per_feature
    bound = settings.values.get("per_reference")
    yield "rows requested", f"{account.status['size']:,}"
    yield "instructions per call, for each feature", _UNKNOWN if asked_at_once is None else str(asked_at_once)
    yield "rows of a reference before the next one", "an even share" if bound is None else f"at most {bound:,}"
    yield "seed", str(account.status["seed"])
    yield from _teachers(account)
    if settings.judge:
        prompts = ", compiled prompts" if settings.values.get("judge_program") else ""
        yield "judge", _model(settings.judge, account.judge_identity) + prompts


def _teachers(account: RunAccount) -> Iterator[tuple[str, str]]:
    """A row for each stage that has teachers of its own, and one for those that only earlier starts asked."""
    asked = [teacher for teacher in account.asked if isinstance(teacher, dict)]
    identities = {teacher.get("model"): teacher for teacher in reversed(asked)}
    others = "teacher of other stages" if account.settings.several else "teacher"
    current = set()
    for stage, pool in account.settings.pools.items():
        members = [_model(member, identities.get(member.get("model"), {})) for member in pool]
        yield f"teacher of {stage}" if stage else others, "; ".join(dict.fromkeys(members))
        current |= {digest([member.get("model"), member.get("config")]) for member in pool}
    if len(asked) > len(current):
        yield "teachers of earlier starts", f"{len(asked) - len(current)}; their sampling is not listed here"


def _model(model: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A model's public name with its sampling. `identity`: an LM object's own, where it has no config."""
    return f"{public_model(model.get('model'))}: {_sampling(model.get('config'), identity)}"


def _sampling(config: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> str:
    """A model's sampling parameters as text: from its settings, or from the identity of an LM object, whose values are
    Python's `repr`."""
    settings = config or identity
    params = dict(settings.get("params") or {})
    if not config:
        params |= identity
    max_tokens = settings.get("max_tokens") or settings.get("max_completion_tokens")
    stated = {"temperature": settings.get("temperature"), "max_tokens": max_tokens}
    texts = [f"{name} {_UNKNOWN if value is None else value}" for name, value in stated.items()]
    texts += [f"{name} {params[name]}" for name in _SAMPLING if isinstance(params.get(name), int | float | str)]
    if others := params.keys() - {*_SAMPLING, *stated, "model", "max_completion_tokens", "params"}:
        texts.append(f"other parameters, not listed: {len(others)}")
    return ", ".join(texts)


def public_settings(settings: Any) -> str:
    """A filter's settings as JSON, without folders and what a caller's own filter holds."""
    published = {}
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        if name == "against":  # a file
            published[name] = re.split(r"[/\\]", str(value))[-1]
        elif name in {"class", "named"}:  # a caller's own filter: its module may name anything
            published["own filter"] = re.split("[.:]", str(value))[-1]
        elif name == "settings":  # of a caller's own filter: they may hold anything
            continue
        elif name == "prompts":
            published[name] = "compiled"
        elif value not in (None, "", []):
            published[name] = value
    return json.dumps(published, ensure_ascii=False)


def _stages(state: Mapping[str, Any], kind: str) -> list[StageText]:
    defaults = _package_instructions(kind)
    return [
        _stage(str(name), predictor, defaults.get(str(name)))
        for name, predictor in state.items()
        if isinstance(predictor, dict) and isinstance(predictor.get("signature"), dict)
    ]


def _stage(name: str, state: Mapping[str, Any], default: str | None) -> StageText:
    text, examples = str(state["signature"].get("instructions", "")), len(state.get("demos") or ())
    if default is None:
        return StageText(name, text, examples=examples)
    if text == default:
        return StageText(name, text, "package", examples=examples)
    if text.startswith(f"{default}\n\n"):
        return StageText(name, text, "guided", text[len(default) :].strip(), examples)
    return StageText(name, text, "other", examples=examples)


def _package_instructions(kind: str) -> dict[str, str]:
    """Stage → its instructions in this version of the package; empty for a program that is not the package's."""
    from refed_dspy.programs.reference_level import METHODS

    program = next((method() for method in METHODS.values() if method.__name__ == kind), None)
    predictors = program.named_predictors() if program else ()
    return {name: predictor.signature.instructions for name, predictor in predictors}


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


Cost = Mapping[str, Any]
"""See `cost_of`."""
_NOTHING = {"size": 0, "kept": 0, "simulated": "", "filters": ()}
_NO_COST: Cost = {"per_row": ""}


@dataclass(frozen=True)
class RunFacts:
    """A run, without anything private: no addresses, no paths, no reasons of failures."""

    account: RunAccount | None = None
    """Only its counts, its program, and what filters and failures it had, may be told. None where no run is known to
    have made the rows."""
    stages: Sequence[StageFacts] = ()
    under_system: int = 0
    """References with a system prompt, which the rows repeat."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Where references come from → how many."""
    cost: Cost = field(default_factory=lambda: _NO_COST)
    reused: int = 0
    """Answers reused from another run, which cost nothing here."""
    made: str = ""
    """The first and the last day (UTC) on which a row was made: "A to B", or "A" where they are the same."""
    settings: SharedSettings = field(default_factory=SharedSettings)
    simulated: str = ""
    """That the simulated teacher answered, if it did."""
    pairs: str = ""
    """How many pairs of a chosen and a rejected response its rows make, and what to know of them; empty for none."""
    ledger: str = ""
    """The digest of its ledger (`ledger_digest`)."""

    @property
    def status(self) -> Mapping[str, Any]:
        return _NOTHING if self.account is None else self.account.status

    @property
    def missing(self) -> int:
        """Rows that were asked for, and not made."""
        return max(0, int(self.status["size"]) - int(self.status["kept"]))


def run_facts(ledger: Ledger) -> RunFacts:
    account, references = RunAccount.of(ledger), ledger.references()
    origins = Counter(origin_of(reference.source) for reference in references)
    return RunFacts(
        account=account,
        stages=_stages_of(account, ledger),
        under_system=sum(bool(reference.system) for reference in references),
        sources=dict(origins.most_common()),
        cost=cost_of(account.status),
        reused=int(ledger.db.execute(_REUSED).fetchone()[0]),
        made=_made(ledger),
        settings=_settings_of(account, ledger),
        simulated=account.status["simulated"],
        pairs=_pairs(ledger),
        ledger=ledger_digest(ledger),
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


def _stages_of(account: RunAccount, ledger: Ledger) -> list[StageFacts]:
    """Stages in the order in which they were first asked. Where no call names the model, it is the run's only teacher,
    or the judge; with several teachers it stays unknown."""
    judge, teacher = account.settings.judge.get("model"), only_teacher(ledger)
    merged: Counter[tuple[str, str, str]] = Counter()
    for stage, model, endpoint, count in ledger.db.execute(_ANSWERS):
        asked = model or (judge or teacher if str(stage).endswith("judge") else teacher)
        name = public_model(model_of(str(asked or ""), str(endpoint)))
        merged[str(stage), name, public_endpoint(str(endpoint))] += count
    return [
        StageFacts(stage, str(account.prompts.get(stage, "")), name, endpoint, count)
        for (stage, name, endpoint), count in merged.items()
    ]


def cost_of(status: Mapping[str, Any]) -> Cost:
    """Dollars as text: `total`, without the `unpriced` calls; `per_row`; `worst_case`, the part of it that is set aside
    for calls whose tokens were never reported; then `calls` and tokens, and the `price_source`."""
    used, total, per_row = status["used"], status["cost"], status.get("cost_per_sample")
    worst = used["reserved"] + used["in_flight_cost"]
    return {
        "total": money(total, unknown="unknown"),
        "per_row": money(per_row, unknown=""),
        "unpriced": status["unpriced"],
        "worst_case": money(worst) if worst else "",
        **{name: used[name] for name in ("calls", "prompt_tokens", "completion_tokens")},
        "price_source": str(status.get("price_source") or ""),
    }


def _made(ledger: Ledger) -> str:
    first, last = ledger.db.execute("SELECT min(created), max(created) FROM samples").fetchone()
    days = [time.strftime("%Y-%m-%d", time.gmtime(moment)) for moment in (first, last) if moment]
    return " to ".join(dict.fromkeys(days))


@dataclass(frozen=True)
class DataStep:
    """One filtering or recycling (`work`) of `rows` rows. `filters`: the funnel; `settings`: each filter's, as JSON;
    `model`: the teacher of a recycling; `stages` and `cost`: of its calls, and `ledger`: the digest of its ledger,
    where that is still there."""

    work: str
    rows: int
    filters: Sequence[Mapping[str, Any]] = ()
    settings: Sequence[tuple[str, str]] = ()
    seed: int | None = None
    model: str = ""
    stages: Sequence[StageFacts] = ()
    cost: Cost | None = None
    ledger: str = ""


@contextmanager
def made_facts(folder: Path) -> Iterator[tuple[RunFacts, Sequence[DataStep], str, Sequence[Ledger]]]:
    """Of the rows in the folder of a filtering or a recycling: the facts of the run behind them (empty ones where there
    is none, or it is no longer there), the steps since, the first one first, the public name of what they began with,
    and the ledgers that are read for it."""
    notes, places = [*sources(folder)], [folder]
    if not notes:
        raise RunDirError(f"{one_line(folder, 200)}: does not say where its rows are from; make it again")
    places += [_folder_of(Path(note["place"])) for note in notes[:-1]]
    with run_behind(folder) as ledger:
        facts = RunFacts() if ledger is None else run_facts(ledger)
        steps = [_step(note, place) for note, place in zip(notes, places, strict=True)]
        name = re.split(r"[/\\]", str(notes[-1]["data"]).rstrip("/\\"))[-1]
        if not notes[-1]["place"]:  # a Hub data set by its id; what came from Python has no name
            name = str(notes[-1]["data"]) if "/" in str(notes[-1]["data"]) else ""
        yield replace(facts, cost={**facts.cost, "per_row": ""}), steps[::-1], name, [ledger] if ledger else []


def _folder_of(place: Path) -> Path:
    return place.parent if place.name in ROWS.values() else place


def _step(note: Mapping[str, Any], folder: Path) -> DataStep:
    settings = noted_settings(note)
    values, teacher = settings.values, settings.teacher.get("model")
    work = "recycling" if teacher else "filtering"
    step = DataStep(
        work,
        note["rows"],
        note["funnel"],
        [(name, public_settings(settings)) for name, settings, _ in values.get("filters", ())],
        values.get("seed") if "filters" in values else None,
        public_model(teacher) if teacher else "",
    )
    try:
        ledger = Ledger.read(folder) if (folder / FILE).is_file() else None
    except RunDirError:
        ledger = None
    if ledger is None:
        return step
    with ledger:
        if ledger.holds() != work:
            return step
        account = RunAccount.of(ledger)
        stages, cost = _stages_of(account, ledger), cost_of(account.status)
        return replace(step, stages=stages, cost=cost, ledger=ledger_digest(ledger))


def simulated_in(rows: Sequence[DataRow], steps: Sequence[DataStep]) -> str:
    """That the simulated teacher answered in a step, or wrote a row; empty where it did neither."""
    asked = {stage.endpoint for step in steps for stage in step.stages}
    written = {row.fields.get(name) for row in rows for name in ENDPOINTS}
    simulated = SIMULATED in {*asked, *written}
    return "made in part by the simulated teacher, for trying refed out only" if simulated else ""


def pairs_of(rows: Sequence[DataRow]) -> str:
    """How many pairs the rows make, and what to know of them; empty for none."""
    pairs = Pairs(((as_trained(row), margin_of(row)) for row in rows), "preference").counted()
    return f"{pairs.count} ({pairs.told()})" if pairs.count else ""


def people_in(folder: Path) -> Sequence[Mapping[str, Any]]:
    """How often people preferred the improved responses in `folder` to the plain ones, as `RateByPeople` has it, with
    the intervals as text; none where nobody was asked. Raises RunDirError: the file is damaged."""
    rates = read_json(folder / PEOPLE).get("rates", ())
    return [{**rate, **{name: _as_text(rate[name]) for name in ("judge", "people", "powered")}} for rate in rates]


def _as_text(stored: Mapping[str, Any] | None) -> str:
    return "" if stored is None else str(Interval.of_stored(stored))
