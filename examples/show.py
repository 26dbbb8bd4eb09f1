"""Print the samples of a run's folder, one after another: `python examples/show.py DIR [HOW_MANY]`."""

import sys
from textwrap import fill, indent

import refed_dspy


def paragraphs(text: str) -> str:
    return indent("\n".join(fill(line, 100) for line in text.splitlines()), "    ")


made = refed_dspy.read_run(sys.argv[1])
for number, sample in enumerate(made.samples[: int(sys.argv[2]) if len(sys.argv) > 2 else 3], start=1):
    print(f"── sample {number} ──\n  instruction\n{paragraphs(sample.instruction)}")
    print(f"  response\n{paragraphs(sample.response)}")
    print(f"  what to improve: {'; '.join(sample.analysis.improvement_opportunities)}")
    print(f"  improved response\n{paragraphs(sample.improved_response)}\n")
print(f"{len(made.samples)} samples in {made.run_dir}; all of them on a page: refed report {made.run_dir}")
