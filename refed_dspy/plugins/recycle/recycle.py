"""Recycle a data set: reflect on every pair twice, keep what is better, and report what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.dataset import data_identity, drawn, load_dataset
from refed_dspy.data.sources import source_of
from refed_dspy.errors import ConfigError, RunStopped, briefly
from refed_dspy.files import as_path
from refed_dspy.jobs.job import folder_of, job
from refed_dspy.jobs.work import Work, caps_of, resume_hint
from refed_dspy.ledger.settings import WorkSettings
from refed_dspy.plugins.metrics.figures import open_tools, scoring
from refed_dspy.plugins.recycle.passes import PassResults, Selection, row_by_row, selectively
from refed_dspy.plugins.recycle.program import INSTRUCTION_CRITERIA, RESPONSE_CRITERIA, Recycled, ReflectionTuning
from refed_dspy.plugins.recycle.result import OUTPUTS, Recycling, old_and_new, recycling_of, write_rows, write_table
from refed_dspy.plugins.recycle.settings import RecycleConfig
from refed_dspy.programs.load import load_into, refuse_bound_models, warn_of_another_teacher
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.progress import Progress, Watch

if TYPE_CHECKING:
    from refed_dspy.keywords import RecycleKeywords


@briefly
@with_keywords(RecycleConfig)
def recycle(
    data: Any,
    *,
    teacher: Any = None,
    program: ReflectionTuning | str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RecycleKeywords],
) -> Recycling:
    """Recycle the pairs of `data` (whatever `load_dataset` takes) by Reflection-Tuning; the data does not change.

    Args:
        teacher: as `synthesize` takes one.
        program: a `ReflectionTuning`, for example a compiled one, or the file or MLflow address of one; None: a new
            one. A program from a file gets the criteria of the settings, as a new one does.
        out: the folder for the ledger, `recycled.jsonl` and the table; None: `refed-recycled/` and a name made from
            data, program and teacher. The same call continues in it, and so does one with another size.
        progress, on_progress: as `synthesize`, anew for each pass over the rows.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; everything made so far is kept.
    """
    config = check_config(RecycleConfig, settings)
    opened = open_teacher(teacher)
    module = _program(program, config)
    data = as_path(data)
    loaded = load_dataset(data, config.columns or None)
    warn_of_another_teacher(module, opened.model)
    rows = drawn(loaded.rows, config.size, config.seed)
    identity = {
        "data": data_identity(data, loaded),
        "program": program_digests(module),
        "criteria": digest([module.of_instructions, module.of_responses]),
        "teacher": opened.identity,
    }
    folder = folder_of(out, "refed-recycled", identity)
    tools = open_tools(config.embeddings, config.scorer)  # first: if a figure cannot be computed, nothing is paid for
    work = _work(config, identity, opened, len(rows), module.stage_names)
    # of the teacher only its name, since the rows may travel
    source = source_of(data, loaded, WorkSettings.of(config, ["scorer"], teacher=[{"model": opened.model}]))
    so_far = partial(recycling_of, folder, loaded, source, rows, tools.lacking)
    made: dict[int, Recycled] = {}
    with job(folder, work, Watch(on_progress, progress), OUTPUTS, [data]) as at:
        try:
            if config.selective and tools.scorer is not None:
                selection = Selection(tools.scorer, tools.template, config.unimproved)
                recycling = so_far(selectively(rows, module, at, selection))
            else:
                recycling = so_far(row_by_row(rows, module, at, made))
        except (RunStopped, KeyboardInterrupt):
            if made:
                write_rows(so_far(PassResults(made)))
            raise
        write_rows(recycling)
        with scoring(resume_hint(folder)):
            figures = old_and_new(list(recycling.kept()), tools, config.sample, config.seed)
        recycling = replace(recycling, figures=figures, scored=tools.scored())
        write_table(recycling)
    return recycling


def _work(
    config: RecycleConfig, identity: Mapping[str, Any], teacher: Teacher, size: int, stages: Sequence[str]
) -> Work:
    depth = {stage: depth for depth, stage in enumerate(stages)}
    return Work(
        kind="recycling",
        identity=identity,
        models={"teacher": teacher},
        size=size,
        caps=caps_of(config),
        policy=CallPolicy(config.seed, config.max_failure_share, depth=depth),
    )


def _program(source: Any, config: RecycleConfig) -> ReflectionTuning:
    criteria = config.instruction_criteria, config.response_criteria
    if source is None or isinstance(source, str | Path):
        of_instructions, of_responses = criteria
        program = ReflectionTuning(
            INSTRUCTION_CRITERIA if of_instructions is None else of_instructions,
            RESPONSE_CRITERIA if of_responses is None else of_responses,
        )
        if source is not None:
            load_into(program, source, config.accept_changed)
        return program
    if not isinstance(source, ReflectionTuning):
        raise ConfigError(f"program: {type(source).__name__} cannot recycle; pass a ReflectionTuning or its file")
    if criteria != (None, None):
        raise ConfigError("criteria: the program you pass has its own; build it with these or remove them")
    refuse_bound_models(source)
    return source
