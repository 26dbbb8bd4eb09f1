"""Self-Instruct: a pool of tasks that grows in rounds. Each round is a run of its own, whose references are the pool.

    python examples/self_instruct.py 3 40 openai/gpt-4o-mini

Killed at any moment, the same command goes on: a round that is complete is read from its folder, and the pool is what
the folders have.
"""

import random
import sys
from collections.abc import Sequence
from typing import Any

import dspy

import refed_dspy
from refed_dspy.filters.rouge import rouge_l, tokens
from refed_dspy.programs import Proposal, Sample, SynthesisProgram

Task = dict[str, str]


WRITE_TASKS = dspy.Signature(
    "tasks: list[str], how_many: int -> new_instructions: list[str]",
    "Come up with new tasks, as diverse as the given ones and unlike each of them.",
)


class SelfInstruct(SynthesisProgram):
    features = {"task": "a new task"}
    instructions_per_feature = 4

    def __init__(self, seeds: Sequence[Task], grown: Sequence[Task]) -> None:
        super().__init__()
        self.seeds, self.grown = ([each["instruction"] for each in tasks] for tasks in (seeds, grown))
        self.write_tasks = dspy.Predict(WRITE_TASKS)
        self.response_generation = dspy.Predict("instruction -> response")

    async def propose(
        self, reference: Any, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        """Tasks unlike all of the pool, after six seed tasks and two grown ones, as in the paper. The reference only
        says which ones are drawn."""
        draw = random.Random(f"{reference.id}/{repetition}")
        shown = [*draw.sample(self.seeds, min(6, len(self.seeds))), *draw.sample(self.grown, min(2, len(self.grown)))]
        made = await self.write_tasks.acall(tasks=shown, how_many=self.instructions_per_feature)
        pool = [tokens(task) for task in (*self.seeds, *self.grown)]
        new = [text for text in made.new_instructions if all(rouge_l(tokens(text), task) < 0.7 for task in pool)]
        return Proposal(tuple(new[: self.instructions_per_feature]))

    async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
        answer = await self.response_generation.acall(instruction=instruction)
        return Sample.of(instruction, answer.response)


def grow(seeds: list[Task], rounds: int, max_calls: int, folder: str, **run: Any) -> list[Task]:
    """The tasks that so many rounds, each a run with the settings `run`, add to `seeds`. `max_calls`: of all rounds."""
    grown: list[Task] = []
    for number in range(rounds):
        made = refed_dspy.synthesize(
            SelfInstruct(seeds, grown), [*seeds, *grown], run_dir=f"{folder}/{number}", max_calls=max_calls, **run
        )
        kept = sorted((sample.instruction, sample.response) for sample in made.samples)  # in whatever order they came
        grown += [{"instruction": instruction, "response": response} for instruction, response in kept]
        calls = made.status["used"]["calls"]
        print(f"round {number}: {len(kept)} tasks, {calls} calls; {made.reason or 'done'}")
        max_calls -= calls
        if not made.complete or max_calls < 1:
            break
    return grown


def main(rounds: str = "3", size: str = "40", teacher: Any = "openai/gpt-4o-mini", max_calls: str = "1000") -> None:
    seeds = [
        {"instruction": each.instruction, "response": each.response} for each in refed_dspy.load_references("builtin")
    ]
    folder = "refed-runs/self-instruct"
    run: Any = {"size": int(size), "teacher": teacher, "filters": [{"rouge": {"threshold": 0.7}}]}
    first = refed_dspy.estimate(SelfInstruct(seeds, []), seeds, run_dir=f"{folder}/0", max_calls=int(max_calls), **run)
    print("\n".join(["each round, with two more tasks in a prompt from the second on:", *first.lines()]))
    print(f"{len(grow(seeds, int(rounds), int(max_calls), folder, **run))} tasks were added to {len(seeds)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
