"""Programs that please a judge's taste and are no better: how many are promoted by one judge, and by two.

`python -m benchmarks.second_judge [--runs 40] [--processes 2]`: until so many please the first judge.

The first judge has a taste: for long answers, for Markdown, or for flattery. The second sees a quality that is in the
words alone and that no prompt changes. Each compile's optimizer adds a line to the prompts that asks for what the first
judge likes; what rests on length is accepted, so that nothing but the second judge stands in its way. Exits with 1
where it lets more than two pass.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from typing import Any

import dspy

from benchmarks.optimization import quiet, silence
from benchmarks.preference import LENGTHS, WORDS, Preference, World, _tag, model
from refed_dspy.optimizers.compile import compile  # noqa: A004

SETS = {"train": 4, "validation": 5, "test": 16}
MOST = 2
ASKED = {
    "length": "Write at great length.",
    "Markdown": "Use headings and lists.",
    "flattery": "Praise the reader.",
}
MARKS = {"length": "", "Markdown": "## Answer\n- ", "flattery": "What a wonderful question, as always! "}
PLEASES = 0.9
"""How often the first judge follows its taste; else it judges by chance."""


class Pleasing:
    """Asks for what a judge likes in every stage that writes an answer; it tries nothing else."""

    def __init__(self, taste: str) -> None:
        self.taste = taste

    def compile(self, student: dspy.Module, *, trainset: Any, valset: Any) -> dspy.Module:  # noqa: ARG002
        """The student with the line added."""
        made = student.deepcopy()
        for name, predictor in made.named_predictors():
            if name.startswith("response_") and "feedback" not in name:
                text = f"{predictor.signature.instructions}\n{ASKED[self.taste]}"
                predictor.signature = predictor.signature.with_instructions(text)
        return made


class Tasteful(World):
    """Its teacher writes as it is asked to, and its judge has the `taste`, or none."""

    def __init__(self, taste: str, judges_by: str) -> None:
        super().__init__(Preference(0))
        self.taste, self.judges_by = taste, judges_by

    def _written(self, name: str, system: str, asked: str, rng: random.Random) -> Any:
        if name not in {"response", "improved_response"}:
            return super()._written(name, system, asked, rng)
        pleasing = ASKED[self.taste] in system
        times = 3 if pleasing and self.taste == "length" else 1
        words = " ".join(rng.choice(WORDS) for _ in range(times * rng.randint(*LENGTHS)))
        return (MARKS[self.taste] if pleasing else "") + words

    def _compared(self, asked: str) -> dict[str, str]:
        a, b = _tag(asked, "answer_a"), _tag(asked, "answer_b")
        rng = random.Random(f"{self.judges_by} {min(a, b)} {max(a, b)}")  # the same in both orders
        by_taste = self._pleasing(a) - self._pleasing(b) if self.judges_by == self.taste else 0.0
        if by_taste and rng.random() < PLEASES:
            return {"reason": "It reads better.", "verdict": "A>B" if by_taste > 0 else "B>A"}
        return {"reason": "It is better.", "verdict": "A>B" if self._quality(a) > self._quality(b) else "B>A"}

    def _pleasing(self, answer: str) -> float:
        if self.taste == "length":
            return float(len(answer))
        return float(answer.startswith(MARKS[self.taste]))

    def _quality(self, answer: str) -> str:
        words = " ".join(word for word in answer.split() if word in WORDS)
        return sha256(f"{self.judges_by} {words}".encode()).hexdigest()


def measured(seed: int) -> tuple[str, bool, bool]:
    """The taste of a run; whether the first judge alone would promote what pleases it, and whether both do."""
    quiet()
    taste = [*ASKED][seed % len(ASKED)]
    world, other = Tasteful(taste, taste), Tasteful(taste, f"quality {seed}")
    second = dspy.LM("sim/second", engine=other, async_engine=other.asynchronous, num_retries=0, cache=False)
    models: dict[str, Any] = {"teacher": model(world), "judge": model(world, 0.0)}
    with tempfile.TemporaryDirectory() as folder, silence():
        made = compile(
            None,
            world.preference.references(sum(SETS.values())),
            optimizer=Pleasing(taste),
            out=folder,
            proof_judge=second.copy(temperature=0.0),
            **{**SETS, **models, "seed": seed, "accept_longer": True, "track": False},
        )
    if made.proof is None or (made.proof.second is None and not made.proof.same):
        raise RuntimeError(f"seed {seed}: no proof by both")
    return taste, made.proof.gain.found, made.proof.proved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    alone = both = 0
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for seed, (taste, by_first, promoted) in enumerate(pool.map(measured, range(2 * options.runs))):
            alone, both = alone + by_first, both + promoted
            print(f"{seed:4}  {taste:10}{'pleases the first' * by_first}{', promoted' * promoted}", flush=True)
            if alone == options.runs:
                pool.shutdown(cancel_futures=True)
                break
    print(f"{alone} programs that the first judge alone would promote, {both} that both do")
    if both > MOST:
        sys.exit(1)


if __name__ == "__main__":
    main()
