"""Agreement of a pairwise judge with people, on a seeded draw of MT-Bench (by LLMBar) and PandaLM test pairs.

`python -m benchmarks.agreement [--teacher embedded] [--count 100] [--seed 0] [--out FILE] [--report]`

Each pair takes two calls. Verdicts are written to --out as they come in and are never asked for again, so it can be
stopped at any time. --report asks nothing and prints the figures for the verdicts in the file. With the embedded model
on two cores, 100 pairs of each set take about an hour and a half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO

import dspy

from refed_dspy.config.jobs import StatsConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.pairs import Pair, load_pairs, sample_pairs
from refed_dspy.errors import NoAnswer, RefedError
from refed_dspy.optimizers.agreement import agreement, agreement_lines, judge_pairs
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.judges import PairwiseJudge, Verdict
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, open_teacher

DATA = Path(__file__).parents[2] / "shared/data"
FILES = {"MT-Bench": "llmbar_mtbench_200.json", "PandaLM": "pandalm_testset_v1.json"}
JUDGE = {"temperature": 0, "max_tokens": 300}
EMBEDDED = {"concurrency": 2, "context_window": 6144}
Verdicts = dict[str, Verdict]


class Kept:
    """Verdicts in a JSONL file, one a line. `asked` is a digest of the teacher and the judge's prompt."""

    def __init__(self, path: Path, asked: str) -> None:
        self.path, self.asked = path, asked
        self.verdicts: Verdicts = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        # A kill may have cut the last line: it is not read, and the next line must not be appended to it.
        self.cut = bool(text) and not text.endswith("\n")
        for line in text.split("\n")[:-1]:
            self._read(line)

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # a line that a kill cut short
        verdict = Verdict(**{**row["verdict"], "reasons": tuple(row["verdict"]["reasons"])})
        if row["asked"] == self.asked and not verdict.abstained.startswith(NoAnswer.kind):
            self.verdicts[row["pair"]] = verdict

    def open(self) -> IO[str]:
        file = self.path.open("a", encoding="utf-8")
        if self.cut:
            file.write("\n")
        return file

    def add(self, file: IO[str], pair: Pair, verdict: Verdict) -> None:
        self.verdicts[pair.id] = verdict
        row = {"pair": pair.id, "asked": self.asked, "verdict": asdict(verdict)}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


async def judge_rest(judge: PairwiseJudge, teacher: Teacher, pairs: list[Pair], kept: Kept) -> None:
    """Judge those of `pairs` that have no verdict yet."""
    # By id: PandaLM has some pairs more than once.
    left = list({pair.id: pair for pair in pairs if pair.id not in kept.verdicts}.values())
    print(f"{len(left)} pairs are left to judge", flush=True)
    if not left:
        return
    done, started = 0, time.monotonic()
    with kept.open() as file:

        def note(pair: Pair, verdict: Verdict) -> None:
            nonlocal done
            done += 1
            kept.add(file, pair, verdict)
            if done % 10 == 0:
                print(f"{done} of {len(left)}: {(time.monotonic() - started) / done:.1f} s a pair", flush=True)

        async with teacher.running() as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter(), disable_history=True):
                await judge_pairs(judge, left, teacher.concurrency, note)


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
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "refed-agreement.jsonl")
    parser.add_argument("--report", action="store_true", help="ask nothing; print the figures of what is kept")
    options = parser.parse_args()
    drawn = {name: sample_pairs(load_pairs(DATA / file), options.count, options.seed) for name, file in FILES.items()}
    named = load_config(StatsConfig, environ={}, judge=options.teacher).judge
    assert named is not None
    settings = {**JUDGE, **(EMBEDDED if named.embedded else {}), **named.model_dump(exclude_unset=True)}
    teacher = open_teacher(TeacherConfig(**settings))
    judge = PairwiseJudge()
    kept = Kept(options.out, digest([teacher.identity, program_digests(judge)]))
    if not options.report:
        # Alternate between the sets, so that a run that is stopped has some of each.
        alternating = chain.from_iterable(zip_longest(*drawn.values()))
        try:
            asyncio.run(judge_rest(judge, teacher, [pair for pair in alternating if pair is not None], kept))
        except KeyboardInterrupt:
            print(f"stopped; the verdicts so far are in {options.out}, and the same command goes on from there")
        except RefedError as error:
            print(f"stopped: {error}")
    report(drawn, kept.verdicts, options.seed)


if __name__ == "__main__":
    main()
