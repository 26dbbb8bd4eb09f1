"""Three optimizers on the same references under the same cap, each proved on the same held-out references."""

import sys

import refed_dspy

DOLLARS = 3.00
teacher = sys.argv[1] if len(sys.argv) > 1 else "openai/gpt-4o-mini"
judge = sys.argv[2] if len(sys.argv) > 2 else "openai/gpt-4.1-mini"

for optimizer in ("bootstrap", "mipro", "gepa"):
    compiled = refed_dspy.compile(
        refed_dspy.ReferenceLevelFeedback(),
        "builtin",
        optimizer=optimizer,
        teacher=teacher,
        judge=judge,
        evaluations=100,
        max_cost=DOLLARS,
        seed=0,  # the same seed draws the same three sets
        name=f"refed-{optimizer}",  # a registered model each
        out=f"refed-compiles/{optimizer}",
    )
    print(f"===== {optimizer}")
    print("\n".join(compiled.lines()))
