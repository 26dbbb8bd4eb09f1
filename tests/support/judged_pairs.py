"""Pairs that made-up people judged, by several criteria, of several systems' answers, some with grades."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.biased_judge import write_people
from refed_dspy.data.pairs import Annotation, Pair
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.judge.training.people import graded_answers

WORDS = ("river", "stone", "bridge", "market", "garden", "harbour", "letter", "signal", "window", "carpet", "engine")
CRITERIA = ("depth", "clarity", "tone", "accuracy")
SYSTEMS = ("ant", "bee", "cat", "dog", "elk")


def answer(rng: random.Random) -> str:
    """Of 5 to 80 words, perhaps as a list. Its quality shows nowhere."""
    words = rng.choices(WORDS, k=rng.choice((5, 10, 20, 40, 80)))
    if rng.random() < 0.4:
        return "\n".join(f"- {word}" for word in words)
    return " ".join(words)


def judged_pairs(instructions: int = 40, each: int = 4, annotators: int = 3, seed: int = 0) -> list[Pair]:
    """`each` pairs of each instruction. Annotators see which answer is better, and err in one of seven verdicts."""
    rng = random.Random(f"people {seed}")
    made = []
    for number in range(instructions):
        instruction = f"Write about {rng.choice(WORDS)}, number {number}."
        for _ in range(each):
            a, b = rng.sample(SYSTEMS, 2)
            texts = {"answer_a": answer(rng), "answer_b": answer(rng)}
            truth, worse = rng.choice((1.0, -1.0)), rng.choice((1, 2, 3))
            said = {f"person {n}": _said(rng, truth, worse) for n in range(annotators)}
            votes = sum(each.verdict or 0 for each in said.values())
            made.append(
                Pair(
                    instruction=instruction,
                    **texts,
                    verdict=float((votes > 0) - (votes < 0)),
                    criterion=rng.choice(CRITERIA),
                    description="as people see it",
                    annotations=said,
                    system_a=a,
                    system_b=b,
                )
            )
    return made


def _said(rng: random.Random, truth: float, worse: int) -> Annotation:
    verdict = truth if rng.random() > 1 / 7 else rng.choice((0.0, -truth))
    better, other = 5 - rng.choice((0, 0, 1)), max(1, 5 - worse - rng.choice((0, 1)))
    a, b = (better, other) if truth > 0 else (other, better)
    return Annotation(verdict=verdict, grade_a=a, grade_b=b)


def without_grades(pairs: Sequence[Pair]) -> list[Pair]:
    return [
        pair.model_copy(
            update={"annotations": {name: Annotation(verdict=said.verdict) for name, said in pair.annotations.items()}}
        )
        for pair in pairs
    ]


def lines_of(pairs: Sequence[Pair]) -> str:
    """`pairs` as a file that names its annotators."""
    names = {1: "A", 0: "tie", -1: "B"}
    rows = []
    for pair in pairs:
        row = pair.model_dump(mode="json", exclude={"verdict"})
        for said in row["annotations"].values():
            said["verdict"] = names[said["verdict"]]
        rows.append(row)
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def written(path: Path, pairs: Sequence[Pair]) -> Path:
    """What the people of `pairs` said, as a simulated judge reads it."""
    grades = {(each.criterion.name, each.text): each.mean for each in graded_answers(pairs)}
    write_people(path, [(criterion_of(pair).name, pair) for pair in pairs], grades)
    return path
