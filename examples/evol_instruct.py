"""Evol-Instruct: each round makes the newest instruction of a reference harder, or another one like it, and answers it.

    python examples/evol_instruct.py 20 openai/gpt-4o-mini

Killed at any moment, the same command goes on, and pays for no recorded answer twice.
"""

import sys
from collections.abc import Sequence
from typing import Any

import dspy

import refed_dspy
from refed_dspy.programs import Proposal, Sample, SynthesisProgram

EVOLVE = dspy.Signature(
    "current_instruction, method -> new_instruction",
    "Rewrite the instruction by the method. It must stay clear, answerable, and not much longer.",
)


class EvolInstruct(SynthesisProgram):
    features = {
        "constraint": "add one constraint or requirement",
        "deepening": "ask for more depth and breadth",
        "concretizing": "put something specific in the place of something general",
        "reasoning": "make it need several steps of reasoning",
        "breadth": "write another, rarer instruction of the same domain",
    }

    def __init__(self) -> None:
        super().__init__()
        self.evolve = dspy.Predict(EVOLVE)
        self.response_generation = dspy.Predict("instruction -> response")

    async def propose(
        self, reference: Any, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        """The newest instruction of this reference, evolved; none where the model gave it back as it was."""
        newest = taken[-1] if taken else reference.instruction
        evolved = (await self.evolve.acall(current_instruction=newest, method=description)).new_instruction.strip()
        return Proposal((evolved,) if evolved.lower() != newest.lower() else ())

    async def respond(self, reference: Any, response_feedback: Any, instruction: str, item: str = "") -> Sample:
        answer = await self.response_generation.acall(instruction=instruction)
        return Sample.of(instruction, answer.response)


def main(size: str = "20", teacher: str = "openai/gpt-4o-mini", run_dir: str = "refed-runs/evol-instruct") -> None:
    run: Any = {"references": "builtin", "size": int(size), "teacher": teacher, "run_dir": run_dir, "max_cost": 1.00}
    run["guards"] = {"copies": False}  # an evolved instruction has much of its reference's text
    print("\n".join(refed_dspy.estimate(EvolInstruct(), **run).lines()))
    made = refed_dspy.synthesize(EvolInstruct(), **run)
    print(f"{len(made.samples)} samples, {made.status['used']['calls']} calls; {made.reason or 'done'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
