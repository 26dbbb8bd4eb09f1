"""Compare programs on the same references: one run of all of them, then figures, tables and pictures of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.jobs import CompareConfig
from refed_dspy.config.loading import check_job
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError, NoAnswer, NoConnection, RefedError, RunDirError, RunStopped, one_line
from refed_dspy.ledger.identity import differences, has_begun, refuse_other_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback, SeedOnly
from refed_dspy.programs.baselines import METHODS
from refed_dspy.programs.load import open_judge, open_program, refuse_bound, warn_of_another_teacher
from refed_dspy.programs.saved import program_digests
from refed_dspy.programs.side_by_side import SideBySide
from refed_dspy.records import digest
from refed_dspy.runs.compare.figures import Diversity, tally
from refed_dspy.runs.compare.replay import read_compared
from refed_dspy.runs.compare.result import Comparison
from refed_dspy.runs.compare.write import write_comparison
from refed_dspy.runs.spec import RunSpec
from refed_dspy.runs.synthesize import produce
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.caps import caps_of
from refed_dspy.teachers.judge import judge_beside
from refed_dspy.teachers.recorded import Progress

SEED = "seed-only"
_PASSING = (NoAnswer.kind, NoConnection.kind)


def compare(
    programs: Mapping[str, Any] | None = None,
    references: Any = "builtin",
    *,
    teacher: Any = None,
    judge: Any = None,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Comparison:
    """Have programs answer the same instructions, a judge compare them, and count what each costs.

    Args:
        programs: name → "seed-only", "instruction-only", "sample-level", "reference-level", a saved program's file or
            MLflow address, or a program; None: those four, the paper's.
        references: whatever `load_references` takes.
        teacher, judge: as `synthesize` takes a teacher. A judge that is the teacher's model is warned of.
        out: the folder that holds it all, one ledger; the same call goes on from it. None: `refed-comparisons/` and a
            name made from everything that shapes the comparison.
        settings: those of `CompareConfig`: against, size, seed, grades, subsets, embeddings, caps, …

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        RunStopped: it ended early; what was made is kept, and the table of it is in the folder if there is a row.
    """
    given = {**settings, **({"programs": _named(programs)} if programs else {})}
    config = check_job(CompareConfig, given)
    parts = prepare(config, programs or config.programs, references, teacher, judge)
    diversity = Diversity.open(config.embeddings)
    folder = Path(out) if out is not None else Path("refed-comparisons") / digest(parts.identity())
    _refuse_another(parts, folder)
    try:
        made = run_blocking(produce(parts, folder, config.size, on_progress))
    except RunStopped as error:
        with suppress(RefedError):  # nothing to compare yet, say; what ended it is told
            run_blocking(_read(parts, folder, config, diversity, str(error)))
        raise
    stopped = made.stopped or ""
    if not made.complete and not stopped:
        again = any(failure.kind in _PASSING for failure in made.failures)
        stopped = (
            f"the references gave {len(made.samples)} of {config.size} instructions that {config.against} answered; "
            + ("the same again asks for what had no answer" if again else "add references, or ask for fewer")
        )
    return run_blocking(_read(parts, folder, config, diversity, stopped))


def prepare(config: CompareConfig, programs: Mapping[str, Any], references: Any, teacher: Any, judge: Any) -> RunSpec:
    """The comparison as a run, checked; nothing is written. Raises InputError."""
    if bad := next((name for name in programs if not name.isprintable()), None):
        raise ConfigError(f"programs: {one_line(bad, 40)} is no name: it has characters that cannot be shown")
    opened = open_teacher(teacher)
    built = {name: _program(name, one, config) for name, one in programs.items() if not _is_seed(one)}
    for program in built.values():
        warn_of_another_teacher(program, opened.model)
    judging = PairwiseJudge() if config.judge_program is None else open_judge(config.judge_program)
    seed_graded = config.grades and len(built) < len(programs)
    side_by_side = SideBySide(built, config.against, judging, graded=config.grades, seed_graded=seed_graded)
    usable = load_references(references, config.columns or None).fitting(opened.window, opened.max_tokens)
    limits = caps_of(config)
    return _ComparisonSpec(
        *(side_by_side, usable, opened, config.seed, config.per_reference, config.max_failure_share, limits),
        reuse=config.reuse,
        track=config.track,
        judge=judge_beside(opened, judge),
        work="comparison",
    )


@dataclass(frozen=True)
class _ComparisonSpec(RunSpec):
    """Parts of a comparison, which is another one with other programs, another one to compare with, or grades."""

    def identity(self) -> dict[str, Any]:
        program = cast(SideBySide, self.program)
        # Each by itself: DSPy passes over the predictors of a compiled program inside another.
        parts = {**program.programs, "the judge": program.judge, "the grader": program.grader}
        digests = {f"{name}.{k}": v for name, part in parts.items() for k, v in program_digests(part).items()}
        graded = {"grades": program.graded, "seed set graded": program.seed_graded}
        return {**super().identity(), "program": digests, "against": program.against, **graded}


def _refuse_another(parts: RunSpec, folder: Path) -> None:
    """Raises RunDirError where the folder holds other work, or another comparison."""
    try:
        ledger = Ledger.read(folder)
    except RunDirError:
        return  # new, or for `Ledger.create` to tell what is wrong
    with ledger:
        refuse_other_work(ledger, parts.work)
        identity = dict(json.loads(json.dumps(parts.identity())))
        if has_begun(ledger) and (found := differences(ledger.meta("identity") or {}, identity)):
            more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
            raise RunDirError(
                f"{folder}: holds another comparison: {'; '.join(found[:4])}{more}; set these back, or name another "
                "folder with out"
            )


def _is_seed(given: Any) -> bool:
    return isinstance(given, SeedOnly) or (isinstance(given, str) and given == SEED)


def _named(programs: Mapping[str, Any]) -> dict[str, str]:
    """The programs as a config names them; an object by its class."""
    return {
        name: SEED if _is_seed(one) else str(one) if isinstance(one, str | Path) else f"({type(one).__name__})"
        for name, one in programs.items()
    }


def _program(name: str, given: Any, config: CompareConfig) -> ReferenceLevelFeedback:
    many = config.instructions_per_feature
    if isinstance(given, ReferenceLevelFeedback):
        refuse_bound(given, name)
        return given
    if isinstance(given, str) and given in METHODS:
        return METHODS[given](config.features or DEFAULT_FEATURES, many)
    if isinstance(given, str | Path):
        asked = many if "instructions_per_feature" in config.model_fields_set else None
        return open_program(given, config.features, asked)
    raise ConfigError(f"programs: {name} is a {type(given).__name__}; give a program of refed_dspy.programs, or a name")


async def _read(parts: RunSpec, folder: Path, config: CompareConfig, diversity: Diversity, stopped: str) -> Comparison:
    """The figures of what the folder holds, written down beside it."""
    with Ledger.read(folder) as ledger:
        compared = await read_compared(ledger, cast(SideBySide, parts.program), parts.models)
        if not compared.rows:
            raise RunStopped(f"{folder}: nothing to compare yet; {stopped or 'no instruction was answered'}")
        comparison = tally(ledger, compared, parts.models, config, diversity, stopped)
    write_comparison(comparison, compared)
    return comparison
