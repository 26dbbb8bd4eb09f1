"""The pairs that a comparison leaves to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

from refed_dspy import compare
from tests.plugins.compare.helpers import SMALL, CapitalsProgram, Judge, prompt
from tests.support.scripted_engine import Writer, fake_lm

SYSTEM = "Answer in one sentence."
REFERENCES = [
    {"instruction": f"Explain topic {n}.", "response": f"Topic {n} is simple.", "system": SYSTEM} for n in range(6)
]


class Capitals(Judge):
    """Likes capitals; of every other pair it says that the first answer is better, whichever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def decide(self, request: Request) -> Any:
        if "grade" in self.fields(request):
            return super().decide(request)
        shown = prompt(request)
        assert SYSTEM in shown
        first, second = (shown.partition(f"<{n}>\n")[2].partition("\n</>")[0] for n in ("answer_a", "answer_b"))
        loud = first if first.isupper() else second
        if loud not in self.seen:
            self.seen.append(loud)
        fair = self.seen.index(loud) % 2 > 0
        verdict = "A>>B" if loud == first or not fair else "B>>A"
        return json.dumps({"reason": "loud", "verdict": verdict})


def test_pairs_are_those_that_the_judge_preferred_in_both_orders(tmp_path: Path) -> None:
    for against in ("plain", "loud"):
        out = tmp_path / against
        programs = {"plain": "instruction-only", "loud": CapitalsProgram()}
        models = {"teacher": fake_lm(Writer(per_call=3)), "judge": fake_lm(Capitals())}
        compare(programs, REFERENCES, out=out, **{**SMALL, **models, "against": against, "size": 4})
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
        judged = [row["consistent"] for row in rows if row["consistent"] is not None]
        assert 0 < len(pairs) == sum(judged) < len(judged)
        assert {row["system"] for row in rows} == {SYSTEM}
        for pair in pairs:
            assert pair["prompt"][0] == {"role": "system", "content": SYSTEM}
            assert (pair["chosen_program"], pair["rejected_program"], pair["margin"]) == ("loud", "plain", 2)
            assert pair["chosen"][0]["content"] == pair["rejected"][0]["content"].upper()
