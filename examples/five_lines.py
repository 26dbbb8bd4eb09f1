"""A whole run in Python. Any teacher works: "openai/gpt-4o-mini", "embedded", a dspy.LM, or a TeacherConfig."""

import refed_dspy

references = refed_dspy.load_references("builtin")
program = refed_dspy.programs.ReferenceLevelFeedback(instructions_per_feature=3)
teacher = refed_dspy.TeacherConfig(model="embedded", max_tokens=1024, temperature=0.7)
made = refed_dspy.synthesize(program, references, size=2, teacher=teacher, run_dir="refed-runs/first")
made.export("messages", "train.jsonl", force=True)
