"""The same program with one teacher after another: the first ten samples of each, and what they cost."""

import sys

import refed_dspy

teachers = sys.argv[1:] or ["examples/teachers/openai.yaml", "examples/teachers/anthropic.yaml"]

for teacher in teachers:
    name = teacher.replace("/", "-").removesuffix(".yaml")
    made = refed_dspy.synthesize(None, "builtin", size=10, teacher=teacher, max_cost=0.50, run_dir=f"refed-runs/{name}")
    cost = made.status["cost_per_sample"]
    print(f"{teacher}: {len(made.samples)} samples, {'price unknown' if cost is None else f'${cost:.5f} a sample'}")
