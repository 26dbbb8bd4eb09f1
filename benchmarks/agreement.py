"""Agreement of a pairwise judge with people, on a seeded draw of MT-Bench (by LLMBar) and PandaLM test pairs.

`python -m benchmarks.agreement [--teacher embedded] [--count 100] [--seed 0] [--out DIR] [--report]`

Each pair takes two calls. Verdicts are kept in the ledger of --out and are never asked for again, so it can be stopped
at any time. --report asks nothing and prints the figures for the verdicts in the folder. With the embedded model
on two cores, 100 pairs of each set take about an hour and a half.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from itertools import chain, zip_longest
from pathlib import Path

from refed_dspy.config.loading import load_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.pairs import Pair, load_pairs, sample_pairs
from refed_dspy.errors import RefedError
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.optimizers.agreement import agreement, agreement_lines
from refed_dspy.plugins.judge.agree import judge_pairs
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.programs.judges import PairwiseJudge, Verdict
from refed_dspy.programs.saved import program_digests
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.failures import CallPolicy

DATA = Path(__file__).parents[2] / "shared/data"
FILES = {"MT-Bench": "llmbar_mtbench_200.json", "PandaLM": "pandalm_testset_v1.json"}
JUDGE = {"temperature": 0, "max_tokens": 300}
EMBEDDED = {"concurrency": 2, "context_window": 6144}
Verdicts = dict[str, Verdict]


def work_of(teacher: Teacher, judge: PairwiseJudge, pairs: int, report: bool) -> Work:
    """The judging as paid work. For a report no time is left, so that only kept verdicts are returned."""
    return Work(
        kind="agreement",
        identity={"judge": teacher.identity, "program": program_digests(judge)},
        models={"judge": teacher},
        size=pairs,
        caps=CapSettings(max_cost=None, max_calls=None, max_minutes=1e-9 if report else math.inf),
        policy=CallPolicy(),
    )


def report(drawn: dict[str, list[Pair]], verdicts: Verdicts, seed: int) -> None:
    """Print the table of each set, and why the judge abstained."""
    for name, pairs in drawn.items():
        decided = [pair for pair in pairs if pair.id in verdicts]
        table = [verdicts[pair.id] for pair in decided]
        print(f"\n{name}: {len(decided)} of {len(pairs)} pairs")
        print("\n".join(agreement_lines(agreement(decided, table, seed))) if decided else "no verdict yet")
        for pair, verdict in zip(decided, table, strict=True):
            if verdict.abstained:
                print(f"  {pair.id} abstained: {verdict.abstained}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="embedded", help="a model's name or a teacher file")
    parser.add_argument("--count", type=int, default=100, help="pairs of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "refed-agreement")
    parser.add_argument("--report", action="store_true", help="ask nothing; print the figures of what is kept")
    options = parser.parse_args()
    drawn = {name: sample_pairs(load_pairs(DATA / file), options.count, options.seed) for name, file in FILES.items()}
    named = load_config(StatsConfig, environ={}, judge=options.teacher).judge
    assert named is not None
    settings = {**JUDGE, **(EMBEDDED if named.embedded else {}), **named.model_dump(exclude_unset=True)}
    teacher = open_teacher(TeacherConfig(**settings))
    judge = PairwiseJudge()
    # Alternate between the sets, so that a run that is stopped has some of each.
    alternating = [pair for pair in chain.from_iterable(zip_longest(*drawn.values())) if pair is not None]
    work = work_of(teacher, judge, len(alternating), options.report)
    try:
        with job(options.out, work) as at:
            verdicts = judge_pairs(judge, alternating, at)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; verdicts are kept in {options.out}; run the same command to continue") from None
    except RefedError as error:
        raise SystemExit(f"stopped: {error}") from None
    report(drawn, verdicts, options.seed)


if __name__ == "__main__":
    main()
