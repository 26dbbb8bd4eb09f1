"""`refed report` on 10,000 rows of varied text: how long it takes, what it weighs, and how fast the page answers.

    python -m benchmarks.report [--rows 10000] [--keep DIR]

Texts are made of 30,000 invented words with Zipf frequencies, 300 to an answer, so little of them compresses as
repetition; four in ten words of an improved response differ from the response. The rows are written to a real ledger by
its own functions. The map is made from words: with the embedder, embedding 10,000 instructions comes on top. The page
is opened in Chromium, from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.browsing import Browsing
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Answer, DecisionRow, Key, answered, decided, sampled
from refed_dspy.records import Call, Reference, Sample

VOCABULARY = 30_000
ANSWER, INSTRUCTION, NOTE, FEEDBACK = 300, 30, 12, 150
"""Words of a response, an instruction, a note of the analysis, a reference's feedback."""
REFERENCES = 50
FEATURES = ("subject_areas", "relevant_skills")
_SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ai", "ou", "er", "an", "in")]


class Words:
    """Varied text, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.words = [
            "".join(self.rng.choices(_SYLLABLES, k=self.rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(VOCABULARY)
        ]
        self._weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))

    def draw(self, count: int) -> list[str]:
        return self.rng.choices(self.words, cum_weights=self._weights, k=count)

    def text(self, count: int) -> str:
        """Sentences of a dozen words, paragraphs of five sentences."""
        drawn, sentences = self.draw(count), []
        for at in range(0, count, 12):
            sentence = " ".join(drawn[at : at + 12]).capitalize()
            sentences.append(f"{sentence}.{chr(10) * 2 if at % 60 == 48 else ' '}")
        return "".join(sentences).strip()

    def changed(self, text: str) -> str:
        """`text` with four words in ten replaced, in runs of about six."""
        words, at = text.split(" "), 0
        while at < len(words):
            if self.rng.random() < 0.1:
                words[at : at + 6] = self.draw(6)
                at += 6
            at += 1
        return " ".join(words)


def fill(folder: Path, rows: int, seed: int = 0) -> None:
    """Make a finished run of `rows` rows in `folder`."""
    words = Words(seed)
    references = [
        Reference(instruction=words.text(60), response=words.text(ANSWER), source=f"made row {n}")
        for n in range(REFERENCES)
    ]
    with Ledger.create(folder) as ledger:
        prompts = {
            stage: f"{number:016x}" for number, stage in enumerate(("response_generation", "response_improvement"))
        }
        identity = {"kind": "ReferenceLevelFeedback", "program": prompts, "features": list(FEATURES)}
        ledger.begin(references, identity=identity, features=dict.fromkeys(FEATURES, ""), size=rows, seed=seed,
                     teacher={"model": "made/teacher"}, filters=[["rubric", {"at_least": 3}]])  # fmt: skip
        ledger.db.execute("INSERT INTO starts (begun) VALUES (?)", (time.time(),))
        for number, reference in enumerate(references):
            _feedback(ledger, words, reference)
            share = rows // REFERENCES + (number < rows % REFERENCES)
            for place, feature in enumerate(FEATURES):
                texts = [words.text(INSTRUCTION) for _ in range(share // 2 + (place < share % 2))]
                new = ledger.commit_proposal(number, feature, 0, texts, 0, frozenset()).new
                ledger.commit(statement for row, text in new for statement in _row(words, row, text))


def _feedback(ledger: Ledger, words: Words, reference: Reference) -> None:
    outputs: dict[str, dict[str, str]] = {
        "instruction_feedback": {feature: words.text(40) for feature in FEATURES},
        "response_feedback": {"response_feedback": words.text(FEEDBACK)},
    }
    for stage, output in outputs.items():
        ledger.commit(_answer(stage, reference.id, output))


def _row(words: Words, row: int, instruction: str) -> Iterator[Any]:
    plain = words.text(ANSWER)
    notes = [[words.text(NOTE) for _ in range(2)] for _ in range(4)]
    names = ("original_strengths", "improvement_opportunities", "relevant_feedback")
    better: dict[str, Any] = {
        "analysis": dict(zip(names, notes[:3], strict=True)),
        "implementation_strategy": {"planned_changes": notes[3], "rationale": words.text(NOTE)},
        "improved_response": words.changed(plain),
    }
    yield from _answer("response_generation", str(row), {"response": plain})
    yield from _answer("response_improvement", str(row), better)
    yield from _answer("rubric_judge", str(row), {"reason": words.text(40), "grade": words.rng.randrange(3, 6)})
    yield from decided(row, [DecisionRow("rubric", 0, True, float(words.rng.randrange(3, 6)), "", words.text(40))])
    yield from sampled(row, 0, Sample(instruction=instruction, response=plain, **better))


def _answer(stage: str, item: str, output: Any) -> list[Any]:
    key = Key(stage, item, 0, f"{stage} {item}")
    call = Call("made/teacher", "http://made.example/v1", "ok", 0.5, 500, 100, 400, 320_000_000)
    return answered(key, Answer(json.dumps(output)), "http://made.example/v1", [call])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="keep the run and the page in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "run"
        if not (folder / "ledger.sqlite").exists():
            fill(folder, options.rows)
        environment = {**os.environ, "REFED_CACHE": str(Path(temporary) / "cache"), "REFED_TRACK": "false"}
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "refed_dspy.cli", "report", str(folder)], check=True, env=environment)
        print(f"made in {time.perf_counter() - begun:.1f} s (known -, must be at most 20)")
        page = folder / "report.html"
        print(f"weighs {page.stat().st_size / 1e6:.1f} MB (must be at most 40)")
        with Browsing() as browsing:
            for line in browsing.measured(page):
                print(line)


if __name__ == "__main__":
    main()
