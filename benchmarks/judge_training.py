"""A simulated judge with known biases on pairs that people judged: before and after `judge train`, and without bias.

`python -m benchmarks.judge_training [--seeds 10]`

The pairs are PandaLM's test set (999, three annotators) and LLMBar's MT-Bench (200). PandaLM names the two systems of a
pair, but not which wrote which answer, which nothing here depends on. It has no criteria: the application that a task
was made for (`motivation_app`) stands for one, as HEAP has criteria of named tasks; MT-Bench is one more. A judge
(`benchmarks.biased_judge`) knows what people said, with noise; its biases are those of BIASED. Each seed draws another
noise and holds out other instructions, criteria and systems.

Printed is the mean accuracy over seeds on each held-out set, and how much of the gap between the biased and the
unbiased judge the training closes. Then what must not be: a gain by training on verdicts that were dealt out anew, or a
loss of the judge that has no bias; or a proof where made-up people prefer the longer answer and the judge is asked in
vain: it answers at random. Exits with 1 where less than two thirds is closed, or that fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.biased_judge import Bias, BiasedJudge, write_people
from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.measures.intervals import mean_interval
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.training.report import TrainingReport
from refed_dspy.plugins.judge.training.spec import hold_out
from refed_dspy.plugins.judge.training.train import train_judge

DATA = Path(__file__).parents[2] / "shared/data"
PANDALM, MT_BENCH = DATA / "pandalm_testset_v1.json", DATA / "llmbar_mtbench_200.json"
BIASED = Bias(skill=1.2, position=1.0, length=2.0, style=1.5)
UNBIASED = Bias(skill=1.2)
AT_RANDOM = Bias(skill=0.0)
LONGER = "people who prefer longer answers, a judge at random"
SHARE = 2 / 3
"""Of the gap that must be closed."""


def people() -> list[Pair]:
    """The pairs of both sets, with criteria and systems."""
    rows = json.loads(PANDALM.read_text(encoding="utf-8"))
    named = []
    for row, pair in zip(rows, load_pairs(PANDALM), strict=True):
        one, other = row["cmp_key"].split("_")
        criterion = f"helpfulness in a task of {row['motivation_app']}"
        named.append(pair.model_copy(update={"system_a": one, "system_b": other, "criterion": criterion}))
    # The same answers by other systems are one question to a judge; the first of them stays.
    return list({pair.id: pair for pair in reversed([*named, *load_pairs(MT_BENCH)])}.values())[::-1]


def accuracies(report: TrainingReport) -> dict[str, tuple[float, float]]:
    """Held-out set → accuracy before and after."""
    return {
        change.name: (change.before.accuracy.mean, change.after.accuracy.mean)
        for change in report.sets
        if change.before.accuracy is not None and change.after.accuracy is not None
    }


def dealt_anew(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs with each other's verdicts."""
    said = [{"verdict": pair.verdict, "annotations": pair.annotations} for pair in pairs]
    random.Random(seed).shuffle(said)
    return [pair.model_copy(update=other) for pair, other in zip(pairs, said, strict=True)]


def training_dealt_anew(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The same of the training pairs alone."""
    train = hold_out(pairs, JudgeTrainingConfig(seed=seed)).train(pairs)
    anew = {pair.id: pair for pair in dealt_anew(train, seed)}
    return [anew.get(pair.id, pair) for pair in pairs]


def who_prefer_longer(pairs: Sequence[Pair], _: int) -> list[Pair]:
    """The pairs as judged by one who prefers the longer answer in all of them."""
    longer = [
        float((len(pair.answer_a) > len(pair.answer_b)) - (len(pair.answer_a) < len(pair.answer_b))) for pair in pairs
    ]
    return [
        pair.model_copy(update={"verdict": verdict, "annotations": {}})
        for pair, verdict in zip(pairs, longer, strict=True)
    ]


Rows = dict[str, list[dict[str, tuple[float, float]]]]
"""Experiment → for each seed, accuracy before and after by held-out set."""


def run(judge: BiasedJudge, pairs: Sequence[Pair], seeds: int, folder: Path) -> tuple[Rows, dict[str, int]]:
    """The trainings of every seed, and in how many a gain was called proved."""
    rows: Rows = defaultdict(list)
    proved: dict[str, int] = defaultdict(int)
    experiments: dict[str, tuple[Bias, Callable[[Sequence[Pair], int], Sequence[Pair]]]] = {
        "biased": (BIASED, lambda pairs, _: pairs),
        "unbiased": (UNBIASED, lambda pairs, _: pairs),
        "all verdicts dealt anew": (BIASED, dealt_anew),
        "training verdicts dealt anew": (BIASED, training_dealt_anew),
        LONGER: (AT_RANDOM, who_prefer_longer),
    }
    for seed in range(seeds):
        for name, (bias, change) in experiments.items():
            out = folder / f"{seed}-{bias.skill}-{bias.length}"  # the same answers: paid once
            teacher = judge.teacher(replace(bias, seed=seed))
            made = train_judge(change(pairs, seed), teacher, out=out, seed=seed, progress=False)
            assert made.report is not None
            rows[name].append(accuracies(made.report))
            proved[name] += made.report.proved
        print(f"seed {seed}: {rows['biased'][-1]}", file=sys.stderr, flush=True)
    return rows, proved


def report(rows: Rows, proved: dict[str, int]) -> bool:
    """Print the figures. True if all that must be is."""
    print(f"{'held out':16}{'biased':>8}{'trained':>9}{'unbiased':>10}{'closed':>8}{'interval':>14}{'trained too':>13}")
    good = True
    for name in rows["biased"][0]:
        biased, unbiased = ([row[name] for row in rows[kind]] for kind in ("biased", "unbiased"))
        before, after = (statistics.fmean(row[place] for row in biased) for place in (0, 1))
        level, trained = (statistics.fmean(row[place] for row in unbiased) for place in (0, 1))
        closed = (after - before) / (level - before)
        # Linear in the seeds' figures, as the share is not: above 0 where more than SHARE of the gap is closed.
        surplus = mean_interval([a - b - SHARE * (u - b) for (b, a), (u, _) in zip(biased, unbiased, strict=True)])
        low, high = (SHARE + end / (level - before) for end in (surplus.low, surplus.high))
        same = (after - before) / (trained - before)
        print(
            f"{name:16}{before:8.3f}{after:9.3f}{level:10.3f}{closed:8.0%}{f'{low:.0%} to {high:.0%}':>14}{same:13.0%}"
        )
        good &= surplus.low > 0
    print()
    for name, must in (("unbiased", "no loss"), ("all verdicts dealt anew", "no gain"),
                       ("training verdicts dealt anew", "no gain")):  # fmt: skip
        gains = [row["all held out"][1] - row["all held out"][0] for row in rows[name]]
        mean = mean_interval(gains)
        print(f"{name}: gain on all held out {mean}, called proved in {proved[name]} of {len(gains)} ({must})")
        good &= mean.high >= 0 if must == "no loss" else mean.low <= 0
    print(f"{LONGER}: called proved in {proved[LONGER]} of {len(rows[LONGER])} (0)")
    good &= not proved[LONGER]
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    pairs = people()
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "people.json"
        write_people(said, [(criterion_of(pair).name, pair) for pair in pairs])
        with BiasedJudge(said) as judge:
            rows, proved = run(judge, pairs, options.seeds, Path(folder))
            paid = judge.requests
        print(f"{len(pairs)} pairs, {options.seeds} seeds, {paid} requests\n")
        good = report(rows, proved)
    if not good:
        raise SystemExit("less than two thirds is closed, or a check failed")


if __name__ == "__main__":
    main()
