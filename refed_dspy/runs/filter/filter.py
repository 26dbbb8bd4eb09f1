"""Filter a data set: kept and dropped rows go into files of a folder; the data itself does not change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.dataset import DataSet, RowsOnDisk, load_dataset, texts_of
from refed_dspy.data.sources import source_of
from refed_dspy.data.stored import SOURCE, read_json
from refed_dspy.errors import FORCE, ConfigError, NothingKept, RowError, RunDirError, briefly, one_line, setting
from refed_dspy.files import as_path, check_outputs
from refed_dspy.filters.base import Decision, JudgeFilter, Step, labels, validated
from refed_dspy.filters.build import build
from refed_dspy.filters.judge import FAILED
from refed_dspy.jobs.job import Job, job
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.connection import FILE, JUDGING
from refed_dspy.ledger.settings import WorkSettings, noted_settings
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import FUNNEL, differences
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.load import warn_of_another_teacher
from refed_dspy.records import DataRow, digest_of
from refed_dspy.runs.filter.apply import Decisions, apply_filters
from refed_dspy.runs.filter.result import OUTPUTS, Filtering, write_filtering
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import open_judge_model, open_judge_program, warn_of_unasked
from refed_dspy.teachers.progress import Progress, Watch

if TYPE_CHECKING:
    from refed_dspy.keywords import FilterKeywords

NO_PLAIN = "no plain response"


@briefly
@with_keywords(FilterRunConfig)
def filter_data(
    data: Any,
    filters: Sequence[Any],
    *,
    judge: Any = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[FilterKeywords],
) -> Filtering:
    """The rows of `data` (whatever `load_dataset` takes) that all `filters` keep, and why the others are dropped.

    Args:
        filters: in their order: names or settings as in a config file (`"refusals"`, `{"rouge": {"keep": 4000}}`), or
            custom filters; one that compares rows must be created again for each call.
        judge: which model judges, for `judge` and `rubric`; as `synthesize` takes a teacher.
        out: the folder for `kept.jsonl`, `dropped.jsonl`, the funnel, and the ledger of the judge's answers. None:
            `refed-filtered/` and a name made from the rows and the judge (from the rows and the filters, if none asks a
            judge). The same call continues in it, also where the data has grown or changed.
        force: replace a filtering by other filters or of other data in `out`. No recorded verdict is paid for again in
            one folder, whatever filters use it.
        progress, on_progress: as `synthesize`, where a judge is asked.

    Rows that a judge did not answer on, or could not because of a cap, are in `undecided.jsonl`: the same call asks
    again.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: an error ended it early; paid answers are kept.
    """
    config = check_config(FilterRunConfig, {**settings, "filters": filters})
    judge_program = open_judge_program(config)
    steps = build(config.filters, config.seed, judge_program)
    if not steps:
        raise ConfigError("filters: needs at least one")
    data = as_path(data)
    loaded = load_dataset(data, config.columns or None)
    _check_columns(loaded, steps)
    models = _models(judge, steps, judge_program)
    paid = bool(models)
    folder = Path(out) if out is not None else Path("refed-filtered") / _folder_name(loaded, steps, models, config.seed)
    check_outputs(folder, OUTPUTS, FUNNEL, data)
    judges = {role: {"model": model.model} for role, model in models.items()}  # no more: the rows may travel
    source = source_of(data, loaded, WorkSettings.of(config, ["judge"], filters=_named(steps), **judges))
    if out is not None and not force:
        _refuse_another(folder, source, paid)
    if (folder / JUDGING).is_dir():
        raise RunDirError(
            f"{folder}: its judge was being asked on a cluster, by an earlier version; finish it with version 0.2.0, "
            f"or remove {folder / JUDGING}: what is in there is then paid for again"
        )
    watch = Watch(on_progress, progress)
    if not paid:
        _make_folder(folder)
    with job(folder, _work(loaded, models, config), watch) if paid else nullcontext() as at:
        filtered = apply_filters(loaded.rows, steps, config.seed, partial(_ask, at))
        used = None if at is None else spent(at.ledger)
        stopped = "" if at is None else at.stopped
        filtering = Filtering(folder, loaded, filtered, used if used and used.calls else None, stopped, source)
        write_filtering(filtering)
        if at is not None:
            at.short = filtering.problem if filtered.undecided else ""
        return filtering


def _models(judge: Any, steps: Sequence[Step], program: PairwiseJudge | None) -> dict[str, Teacher]:
    """The judge by its role; none where no filter asks one. Raises ConfigError."""
    if not any(isinstance(step.filter, JudgeFilter) for step in steps):
        warn_of_unasked(judge)
        return {}
    if judge is None:
        raise ConfigError("judge: no model; choose one with " + setting("judge"))
    opened = open_judge_model(judge)
    warn_of_another_teacher(program, opened.model)
    return {"judge": opened}


def _ask(at: Job | None, judge_filter: JudgeFilter, rows: RowsOnDisk) -> Decisions:
    """The judge's decisions on the rows that it reached. Raises NothingKept where it decided none."""
    assert at is not None  # a filter that asks a judge is paid work
    decisions = Decisions()

    async def judge(place: int) -> None:
        if (decision := await judged(judge_filter, row := rows[place])) is not None:
            decisions[row.number] = decision

    at.ask(range(len(rows)), judge, size=len(rows))
    if not at.stopped and (reason := judge_filter.hopeless()):
        raise NothingKept(reason)
    return decisions


async def judged(judge_filter: JudgeFilter, row: DataRow) -> Decision | None:
    """Its decision on a row; None if the judge did not answer this time."""
    if judge_filter.needs_plain and row.plain is None:
        return Decision(False, NO_PLAIN)
    try:
        return validated(await judge_filter.judged(row, str(row.number)), judge_filter.name)
    except RowError as error:
        return Decision(False, FAILED, None, f"{error.kind}: {error.reason}") if error.final else None


def _work(data: DataSet, models: Mapping[str, Teacher], config: FilterRunConfig) -> Work:
    """What a judge is asked for. Filters and rows may change between starts, since verdicts are remembered by their
    questions: a corrected or added row is one more question."""
    return Work(
        kind="filtering",
        identity={"data": Path(data.name).name, **{role: model.identity for role, model in models.items()}},
        models=models,
        size=len(data.rows),
        caps=caps_of(config),
        policy=CallPolicy(config.seed),
    )


def _folder_name(data: DataSet, steps: Sequence[Step], models: Mapping[str, Teacher], seed: int) -> str:
    """A name made from the rows; if verdicts are paid for, the same for all filters of these rows."""
    rows = texts_of(data.rows)
    filters = _named(steps)
    paid = {role: model.identity for role, model in models.items()}
    return digest_of(rows, paid) if paid else digest_of(rows, filters, seed)


def _named(steps: Sequence[Step]) -> list[Any]:
    """Each filter's label, settings, and how many rows it keeps at most, in JSON types."""
    named = [[label, dict(step.settings), step.keep] for label, step in zip(labels(steps), steps, strict=True)]
    return list(json.loads(json.dumps(named, default=str)))


def _refuse_another(folder: Path, source: Mapping[str, Any], paid: bool) -> None:
    """Raises RunDirError where `folder` has a filtering by other filters or of other data; data at the same place may
    have changed. Where a judge was asked, its ledger tells the data apart."""
    there = read_json(folder / SOURCE)
    which = "place" if source["place"] else "identity"
    same_data = there.get(which) == source[which] or (paid and (folder / FILE).exists())
    before, now = _compared(there), _compared(source)
    if not there or (same_data and before == now):
        return
    passes = read_json(folder / FUNNEL)
    filters = noted_settings(there).values["filters"]
    names = ", ".join(f"{name} {json.dumps(settings)}" if settings else name for name, settings, _ in filters)
    differing = "; ".join(differences(before, now)) if same_data else ""
    changes = f" ({one_line(differing, 200)})" if differing else ""
    raise RunDirError(
        f"{folder}: contains another filtering: {one_line(there['data'], 200)} by {one_line(names, 200)}, "
        f"{passes[-1]['kept']} of {passes[0]['in']} rows kept{changes}; choose another folder or "
        "replace it with " + FORCE
    )


def _compared(source: Mapping[str, Any]) -> dict[str, Any]:
    """What tells filterings of the same data apart."""
    values = noted_settings(source).values
    filters = [[label, {**settings, "keep": keep}] for label, settings, keep in values.get("filters", ())]
    return {"filters": filters, "seed": values.get("seed"), "columns": values.get("columns")}


def _check_columns(data: DataSet, steps: Sequence[Step]) -> None:
    """Raises ConfigError if a filter needs a column that the data lacks."""
    for step in steps:
        if isinstance(step.filter, JudgeFilter) and step.filter.needs_plain:
            if any(row.plain is not None for row in data.rows):
                return
            raise ConfigError(
                f"{step.filter.name}: compares improved with plain responses, but none of the {len(data.rows)} "
                f"rows of {one_line(data.name, 200)} has a plain one; give the column with columns: "
                "{plain: …} or remove the filter"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{folder}: cannot be written: {one_line(error.strerror or error)}") from None
