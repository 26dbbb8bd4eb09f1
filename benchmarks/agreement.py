"""Agreement of a pairwise judge with people: seeded pairs of MT-Bench (by LLMBar) and of PandaLM's test set.

`python -m benchmarks.agreement [--teacher embedded] [--count 100] [--seed 0] [--out FILE] [--report]`

Each pair is two calls. Verdicts are kept in --out as they come, and those that are there are not asked for again, so
it may be stopped at any time. --report asks nothing and prints the figures of what is there. With the embedded model on
two cores 100 pairs of each take about an hour and a half.
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

from refed_dspy.config.loading import TeacherConfig, teacher_setting
from refed_dspy.data.pairs import Pair, load_pairs, sample_pairs
from refed_dspy.errors import NoAnswer, RefedError
from refed_dspy.optimizers.agreement import agreement, agreement_lines, judged
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.judges import PairwiseJudge, Verdict
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, open_teacher

DATA = Path(__file__).parents[2] / "shared/data"
FILES = {"MT-Bench": "llmbar_mtbench_200.json", "PandaLM": "pandalm_testset_v1.json"}
JUDGE = {"temperature": 0, "max_tokens": 300}
EMBEDDED = {"concurrency": 2, "context_window": 6144}
Known = dict[str, Verdict]


class Kept:
    """Verdicts in a JSONL file, a line each, under the pair's id and `asked`: the teacher and the judge's prompt."""

    def __init__(self, path: Path, asked: str) -> None:
        self.path, self.asked = path, asked
        self.verdicts: Known = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        # After a kill the last line may be cut: it is not read, and the next one must not be written behind it.
        self.cut = bool(text) and not text.endswith("\n")
        for line in text.split("\n")[:-1]:
            self._read(line)

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # the stump of a line that a kill has cut
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
    """Judge those of `pairs` whose verdict is not kept yet."""
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
                await judged(judge, left, teacher.concurrency, note)


def report(drawn: dict[str, list[Pair]], known: Known, seed: int) -> None:
    """Print the table of each set, and why the judge abstained."""
    for name, pairs in drawn.items():
        there = [pair for pair in pairs if pair.id in known]
        verdicts = [known[pair.id] for pair in there]
        print(f"\n{name}: {len(there)} of {len(pairs)} pairs")
        print("\n".join(agreement_lines(agreement(there, verdicts, seed))) if there else "no verdict yet")
        for pair, verdict in zip(there, verdicts, strict=True):
            if verdict.abstained:
                print(f"  {pair.id} abstained: {verdict.abstained}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="embedded", help="a model's name or a teacher file")
    parser.add_argument("--count", type=int, default=100, help="pairs of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "refed-agreement.jsonl")
    parser.add_argument("--report", action="store_true", help="ask nothing; print the figures of what is kept")
    given = parser.parse_args()
    drawn = {name: sample_pairs(load_pairs(DATA / file), given.count, given.seed) for name, file in FILES.items()}
    settings = teacher_setting(given.teacher)
    embedded = TeacherConfig(**settings).embedded
    teacher = open_teacher(TeacherConfig(**{**JUDGE, **(EMBEDDED if embedded else {}), **settings}))
    judge = PairwiseJudge()
    kept = Kept(given.out, digest([teacher.identity, program_digests(judge)]))
    if not given.report:
        # In turn, so that a run that was stopped has some of each.
        turns = chain.from_iterable(zip_longest(*drawn.values()))
        try:
            asyncio.run(judge_rest(judge, teacher, [pair for pair in turns if pair is not None], kept))
        except KeyboardInterrupt:
            print(f"stopped; the verdicts so far are in {given.out}, and the same command goes on from there")
        except RefedError as error:
            print(f"stopped: {error}")
    report(drawn, kept.verdicts, given.seed)


if __name__ == "__main__":
    main()
