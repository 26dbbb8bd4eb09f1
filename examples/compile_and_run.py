"""Compile a program under a dollar limit, then run the champion. If it is stopped, the same script continues.

The teacher and the judge are named by one string each; swap either by changing its name.
"""

import sys

import refed_dspy

teacher = sys.argv[1] if len(sys.argv) > 1 else "openai/gpt-4o-mini"
judge = sys.argv[2] if len(sys.argv) > 2 else "openai/gpt-4.1-mini"

references = refed_dspy.load_references("builtin")
compiled = refed_dspy.compile(
    refed_dspy.ReferenceLevelFeedback(),
    references,
    optimizer="gepa",
    teacher=teacher,
    judge=judge,
    max_cost=3.00,
    out="refed-compiles/first",
)
print("\n".join(compiled.lines()))
print(compiled.diff())

# A program that was proved better is the champion; otherwise run the compiled program itself.
champion = "models:/refed@champion" if compiled.proof and compiled.proof.proved else compiled.path
made = refed_dspy.synthesize(
    champion, references, size=20, teacher=teacher, max_cost=1.00, run_dir="refed-runs/champion"
)
made.export("messages", "train.jsonl", force=True)
