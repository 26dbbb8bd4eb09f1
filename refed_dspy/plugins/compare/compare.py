"""Compare programs on the same references: one run of all of them, then its figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.data.read import refuse_references
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError, RefedError, RunStopped, briefly, one_line
from refed_dspy.files import as_path
from refed_dspy.jobs.job import Job, folder_of
from refed_dspy.jobs.work import Work
from refed_dspy.ledger.states import last_end
from refed_dspy.plugins.compare.figures import SEED, Diversity, tally
from refed_dspy.plugins.compare.replay import read_compared
from refed_dspy.plugins.compare.result import OUTPUTS, Comparison, write_comparison
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.programs import SeedOnly, SynthesisProgram
from refed_dspy.programs.load import load_program, own_program, refuse_bound_models, warn_of_another_teacher
from refed_dspy.programs.reference_level import METHODS
from refed_dspy.programs.saved import program_digests
from refed_dspy.programs.synthesis import refuse_incomplete
from refed_dspy.runs.spec import RunSpec
from refed_dspy.runs.synthesize import run_job
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.by_stage import TeachersByStage
from refed_dspy.teachers.judge import judge_for, open_judge_program
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import nearest

if TYPE_CHECKING:
    from refed_dspy.keywords import CompareKeywords


@briefly
@with_keywords(CompareConfig)
def compare(
    programs: Any = None,
    references: Any = "builtin",
    *,
    teacher: Any = None,
    judge: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[CompareKeywords],
) -> Comparison:
    """Have programs answer the same instructions, let a judge compare the answers, and count what each program costs.

    Args:
        programs: name → "seed-only", "instruction-only", "sample-level", "reference-level", a saved program's file or
            MLflow address, or a program; None: those four, the paper's. In a list a text is its own name, another
            program's is A, B, … by its place, and all are compared with the first unless `against` names another.
        references: whatever `load_references` takes.
        teacher, judge: as `synthesize` takes a teacher. A judge that is the teacher's model gives a warning.
        out: the folder for everything, with one ledger; the same call continues in it. None: `refed-comparisons/` and a
            name made from everything that shapes the comparison.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; everything made so far is kept, with a table if there are any rows.
    """
    named = None if programs is None else _by_name(programs)
    first = {"against": next(iter(named), None)} if named and not isinstance(programs, Mapping) else {}
    values = {"programs": named and _config_names(named), "out": out, **first, **settings}
    config = check_config(CompareConfig, values)
    spec = prepare(config, named or config.programs, references, teacher, judge)
    diversity = Diversity(config.embeddings)
    inputs = as_path(references), *(named or config.programs).values()
    with run_job(spec, Watch(on_progress, progress), outputs=OUTPUTS, inputs=inputs) as run:
        try:
            run_blocking(run.carry_out())
        except RunStopped as error:
            with suppress(RefedError):  # for example, nothing to compare yet; the error that ended it is raised
                run_blocking(_evaluate(spec, run.at, config, diversity, str(error)))
            raise
        return run_blocking(_evaluate(spec, run.at, config, diversity, last_end(run.at.ledger).reason))


def prepare(config: CompareConfig, programs: Mapping[str, Any], references: Any, teacher: Any, judge: Any) -> RunSpec:
    """The comparison as a run, checked; nothing is written. Raises InputError."""
    if bad := next((name for name in programs if not name.isprintable()), None):
        raise ConfigError(f"programs: {one_line(bad, 40)} is not a valid name: it has unprintable characters")
    opened = open_teacher(teacher)
    built = {name: _program(name, source, config) for name, source in programs.items() if not _is_seed(source)}
    for program in built.values():
        warn_of_another_teacher(program, opened.model)
    judge_program = open_judge_program(config)
    seed_graded = config.grades and len(built) < len(programs)
    side_by_side = SideBySide(built, config.against, judge_program, graded=config.grades, seed_graded=seed_graded)
    usable = load_references(references, config.columns or None, config.turns).fitting(opened.window, opened.max_tokens)
    by_stage, opened_judge = TeachersByStage.of(opened), judge_for(opened, judge)
    warn_of_another_teacher(judge_program, opened_judge.model)
    return _ComparisonSpec(_run_config(config), side_by_side, usable, by_stage, opened_judge, kind="comparison")


def _run_config(config: CompareConfig) -> RunConfig:
    """The same settings as those of a run, without what is opened."""
    shared = {*RunConfig.model_fields} & {*CompareConfig.model_fields} - {"teacher", "judge"}
    values = {name: getattr(config, name) for name in shared}
    return RunConfig(**values, run_dir=config.out, guards=False)


@dataclass(frozen=True)
class _ComparisonSpec(RunSpec):
    """A comparison's run. Other programs, another program to compare with, or other grades make it another one."""

    def identity(self) -> dict[str, Any]:
        side_by_side = cast(SideBySide, self.program)
        # Each by itself: DSPy skips the predictors of a compiled program inside another.
        modules = {**side_by_side.programs, "the judge": side_by_side.judge, "the grader": side_by_side.grader}
        digests = {
            f"{name}.{predictor}": value
            for name, module in modules.items()
            for predictor, value in program_digests(module).items()
        }
        graded = {"grades": side_by_side.graded, "seed set graded": side_by_side.seed_graded}
        return {**super().identity(), "program": digests, "against": side_by_side.against, **graded}

    @property
    def folder(self) -> Path:
        return folder_of(self.config.run_dir, "refed-comparisons", self.identity())

    def work(self) -> Work:
        return replace(super().work(), unit="instructions", way_out="choose another folder with out", most_changes=4)


def _is_seed(source: Any) -> bool:
    return isinstance(source, SeedOnly) or (isinstance(source, str) and source == SEED)


def _by_name(programs: Mapping[str, Any] | Sequence[Any]) -> Mapping[str, Any]:
    if isinstance(programs, Mapping):
        return programs
    refuse_references(programs, "programs")
    if isinstance(programs, str) or not isinstance(programs, Sequence):
        kind = type(programs).__name__
        raise ConfigError(f'programs: got a {kind}; pass a list, or names: {{"tuned": program, "plain": "seed-only"}}')
    named = {one if isinstance(one, str) else chr(ord("A") + place): one for place, one in enumerate(programs)}
    if len(named) < len(programs):
        raise ConfigError("programs: one is listed twice")
    return named


def _config_names(programs: Mapping[str, Any]) -> dict[str, str]:
    """The programs as a config names them; an object by its class."""
    return {name: _config_name(source) for name, source in programs.items()}


def _config_name(source: Any) -> str:
    if _is_seed(source):
        return SEED
    return str(source) if isinstance(source, str | Path) else f"({type(source).__name__})"


def _program(name: str, source: Any, config: CompareConfig) -> SynthesisProgram:
    per_feature, source = config.instructions_per_feature, own_program(source, config.accept_changed)
    source = getattr(source, "program", source)  # a finished compile has one
    if isinstance(source, SynthesisProgram):
        refuse_incomplete(source, f"programs: {name}")
        refuse_bound_models(source, name)
        return source
    if isinstance(source, str) and source in METHODS:
        return METHODS[source](config.features or DEFAULT_FEATURES, per_feature)
    if isinstance(source, str) and (near := nearest(source, METHODS)) and not Path(source).is_file():
        raise ConfigError(f"programs: {one_line(source, 60)}: no such program; did you mean {near}?")
    if isinstance(source, str | Path):
        explicit = per_feature if "instructions_per_feature" in config.model_fields_set else None
        return load_program(source, config.features, explicit, accept_changed=config.accept_changed)
    raise ConfigError(
        f"programs: {name} is a {type(source).__name__}; pass a refed_dspy.programs.SynthesisProgram, a file or a name"
    )


async def _evaluate(spec: RunSpec, at: Job, config: CompareConfig, diversity: Diversity, stopped: str) -> Comparison:
    """The figures of what the folder holds; writes them into the folder."""
    compared = await read_compared(at.ledger, cast(SideBySide, spec.program), spec.models)
    if not compared.rows:
        raise RunStopped(f"{at.folder}: nothing to compare yet; " + (stopped or "no instruction was answered"))
    comparison = tally(at.ledger, compared, spec.models, config, diversity, stopped)
    write_comparison(comparison, compared)
    return comparison
