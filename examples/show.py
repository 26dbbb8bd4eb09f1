"""Print the samples of a run's folder before and after: `python examples/show.py DIR [HOW_MANY]`.

What the improvement took away is [-so-] (red in a terminal), what it added {+so+} (green).
"""

import re
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import islice
from textwrap import indent

import refed_dspy

COLOURS = {"[-": ("\033[31m", "\033[0m"), "{+": ("\033[32m", "\033[0m")}
PLAIN = {"[-": ("[-", "-]"), "{+": ("{+", "+}")}


def words(text: str) -> list[str]:
    """Words, signs and white space; without control characters, for the text is a model's and this is a terminal."""
    return re.findall(r"\s+|\w+|[^\w\s]", "".join(c for c in text if c.isprintable() or c in "\n\t"))


def marked(before: str, after: str) -> str:
    """`after`, with what is new in it and what is gone from `before` marked."""

    def pieces(old: list[str], new: list[str]) -> Iterator[str]:
        for tag, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if tag == "equal":
                yield "".join(new[k:m])
            else:
                yield from (mark("[-", old[i:j]), mark("{+", new[k:m]))

    return "".join(pieces(words(before), words(after)))


def mark(kind: str, part: list[str]) -> str:
    begin, end = (COLOURS if sys.stdout.isatty() else PLAIN)[kind]
    return f"{begin}{''.join(part)}{end}" if part else ""


def main(folder: str, how_many: int) -> None:
    made = refed_dspy.read_run(folder)
    for number, sample in enumerate(islice(made.samples, how_many), start=1):
        print(f"── sample {number} ──\n  instruction\n{indent(''.join(words(sample.instruction)), '    ')}")
        print(f"  before\n{indent(''.join(words(sample.response)), '    ')}")
        print(f"  planned: {'; '.join(map(''.join, map(words, sample.implementation_strategy.planned_changes)))}")
        print(f"  after\n{indent(marked(sample.response, sample.improved_response), '    ')}\n")
    print(f"{len(made.samples)} samples in {made.run_dir}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
