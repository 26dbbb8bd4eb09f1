"""Self-Instruct: a pool of tasks that grows in rounds. Each round is a run of its own, whose references are the pool.

    python examples/self_instruct.py 3 40 openai/gpt-4o-mini

Killed at any moment, the same command goes on: a round that is complete is read from its folder, and the pool is what
the folders have. So the pool depends on the seed tasks and on the answers alone.
"""

import random
import sys

import dspy

import refed_dspy
from refed_dspy.filters.rouge import rouge_l, tokens
from refed_dspy.programs import Proposal, Sample, SynthesisProgram


class WriteTasks(dspy.Signature):
    """Come up with new tasks, as diverse as the given ones and unlike each of them."""

    tasks: list[str] = dspy.InputField()
    how_many: int = dspy.InputField()
    new_instructions: list[str] = dspy.OutputField()


class SelfInstruct(SynthesisProgram):
    features = {"task": "a new task"}
    instructions_per_feature = 4

    def __init__(self, seeds, grown):
        super().__init__()
        self.seeds, self.grown = ([each["instruction"] for each in tasks] for tasks in (seeds, grown))
        self.write_tasks = dspy.Predict(WriteTasks)
        self.response_generation = dspy.Predict("instruction -> response")

    async def propose(self, reference, feature, description, taken=(), repetition=0):
        """Tasks unlike all of the pool, from six seed tasks and two grown ones, as the paper has it."""
        draw = random.Random(f"{reference.id}/{repetition}")
        shown = [*draw.sample(self.seeds, min(6, len(self.seeds))), *draw.sample(self.grown, min(2, len(self.grown)))]
        asked = self.instructions_per_feature
        made = (await self.write_tasks.acall(tasks=shown, how_many=asked)).new_instructions
        pool = [tokens(task) for task in (*self.seeds, *self.grown)]
        new = [text for text in made if all(rouge_l(tokens(text), task) < 0.7 for task in pool)]
        return Proposal(tuple(new[:asked]), surplus=len(new[asked:]))

    async def respond(self, reference, response_feedback, instruction, item=""):
        answer = await self.response_generation.acall(instruction=instruction)
        return Sample.of(instruction, answer.response)


def grow(seeds, rounds, size, teacher, folder="refed-runs/self-instruct", max_calls=1_000):
    """The tasks that `rounds` rounds of `size` samples each add to `seeds`; `max_calls` is the cap of all together."""
    grown = []
    for number in range(rounds):
        made = refed_dspy.synthesize(
            SelfInstruct(seeds, grown), [*seeds, *grown], size=size, teacher=teacher, max_calls=max_calls,
            filters=[{"rouge": {"threshold": 0.7}}], run_dir=f"{folder}/round-{number}",
        )  # fmt: skip
        calls = made.status["used"]["calls"]
        max_calls -= calls
        # By their texts: in what order they were made differs from run to run.
        kept = sorted((sample.instruction, sample.response) for sample in made.samples)
        grown += [{"instruction": instruction, "response": response} for instruction, response in kept]
        print(f"round {number}: {len(kept)} tasks, {calls} calls; {made.reason or 'done'}")
        if not made.complete or max_calls < 1:
            break
    return grown


def estimated(seeds, size, teacher, folder="refed-runs/self-instruct"):
    """What the first round will take; later ones show two more tasks in each prompt."""
    return refed_dspy.estimate(
        SelfInstruct(seeds, []), seeds, size=size, teacher=teacher, filters=[{"rouge": {"threshold": 0.7}}],
        run_dir=f"{folder}/round-0",
    )  # fmt: skip


def main(rounds="3", size="40", teacher="openai/gpt-4o-mini"):
    seeds = [dict(instruction=each.instruction, response=each.response) for each in refed_dspy.load_references("builtin")]
    print("\n".join(["a round:", *estimated(seeds, int(size), teacher).lines()]))
    print(f"{len(grow(seeds, int(rounds), int(size), teacher))} tasks were added to {len(seeds)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
