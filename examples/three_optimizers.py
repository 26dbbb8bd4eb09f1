"""Three optimizers in one compile: one baseline, one cap, and one proof of the best."""

import sys

import refed_dspy

compiled = refed_dspy.compile(
    refed_dspy.ReferenceLevelFeedback(),
    "builtin",
    optimizer=["bootstrap", "mipro", "gepa"],
    teacher=sys.argv[1] if len(sys.argv) > 1 else "openai/gpt-4o-mini",
    judge=sys.argv[2] if len(sys.argv) > 2 else "openai/gpt-4.1-mini",
    evaluations=100,  # the most that one of them gets
    max_cost=6.00,  # for all of them
    out="refed-compiles/three",
)
print("\n".join(compiled.lines()))  # a line for each optimizer, then the proof
print(compiled.to_pandas())  # every candidate: who tried it, its scores, its gain, dollars
print(compiled.diff())  # what the best one's prompts have that the uncompiled ones have not
