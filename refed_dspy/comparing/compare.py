"""Compare programs on the same references: one run of all of them, then figures, tables and pictures of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from refed_dspy.allowance import Limits
from refed_dspy.blocking import run_blocking
from refed_dspy.comparing.comparison import Comparison
from refed_dspy.comparing.reading import read_compared
from refed_dspy.comparing.tallying import tally
from refed_dspy.comparing.writing import write_comparison
from refed_dspy.config import check_job
from refed_dspy.data.references import load_references
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import ConfigError, RunStopped
from refed_dspy.job_settings import CompareConfig
from refed_dspy.measures.figures import Tools, open_tools
from refed_dspy.parts import Parts
from refed_dspy.paying import Progress
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.baselines import METHODS
from refed_dspy.programs.opening import open_judge, open_program, warn_of_another_teacher
from refed_dspy.programs.saved import digest
from refed_dspy.programs.side_by_side import SideBySide
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.synthesis import produce
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.judges import judge_beside

SEED = "seed-only"


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
        RunStopped: it ended early; what was made is kept.
    """
    named = {name: str(one) if isinstance(one, str | Path) else name for name, one in (programs or {}).items()}
    given = {**settings, **({"programs": named} if programs else {})}
    config = check_job(CompareConfig, given)
    parts = prepare(config, programs or config.programs, references, teacher, judge)
    tools = open_tools(config.embeddings, None)
    folder = Path(out) if out is not None else Path("refed-comparisons") / digest(parts.identity())
    made = run_blocking(produce(parts, folder, config.size, on_progress))
    return run_blocking(_read(parts, folder, config, tools, made.stopped or ""))


def prepare(config: CompareConfig, programs: Mapping[str, Any], references: Any, teacher: Any, judge: Any) -> Parts:
    """The comparison as a run, checked; nothing is written. Raises InputError."""
    opened = open_teacher(teacher)
    built = {name: _program(name, one, config) for name, one in programs.items() if one != SEED}
    for program in built.values():
        warn_of_another_teacher(program, opened.model)
    judging = PairwiseJudge() if config.judge_program is None else open_judge(config.judge_program)
    side_by_side = SideBySide(
        built, config.against, judging, graded=config.grades, seed_graded=config.grades and SEED in programs.values()
    )
    usable = load_references(references, config.columns or None).fitting(opened.window, opened.max_tokens)
    limits = Limits(max_cost=config.max_cost, max_calls=config.max_calls, max_minutes=config.max_minutes)
    return Parts(
        *(side_by_side, usable, opened, config.seed, config.per_reference, config.max_failure_share, limits, None),
        track=config.track,
        judge=judge_beside(opened, judge),
        work="comparison",
    )


def _program(name: str, given: Any, config: CompareConfig) -> ReferenceLevelFeedback:
    features, many = config.features or DEFAULT_FEATURES, config.instructions_per_feature
    if isinstance(given, ReferenceLevelFeedback):
        return given
    if given in METHODS:
        return METHODS[given](features, many)
    if isinstance(given, str | Path):
        return open_program(given, config.features, many)
    raise ConfigError(f"programs: {name} is a {type(given).__name__}; give a program of refed_dspy.programs, or a name")


async def _read(parts: Parts, folder: Path, config: CompareConfig, tools: Tools, stopped: str) -> Comparison:
    """The figures of what the folder holds, written down beside it."""
    with Ledger.read(folder) as ledger:
        compared = await read_compared(ledger, cast(SideBySide, parts.program), parts.models)
        if not compared.rows:
            raise RunStopped(f"{folder}: nothing to compare yet; {stopped or 'no instruction was answered'}")
        comparison = tally(ledger, compared, parts.models, config, tools, stopped)
    write_comparison(comparison, compared)
    return comparison
