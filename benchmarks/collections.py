"""Feedback collections for 1,000 samples, sample-level against Reference-Level, counted in one comparison's ledger.

`python -m benchmarks.collections`: the paper's four programs over fifty references with twenty samples each, on the
simulated server. Also measures how long reading the ledger back takes, and checks that nothing was asked twice.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import refed_dspy
from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger

SIZE, REFERENCES = 1_000, 50
_MANY = [
    {"instruction": f"Explain topic {i} to a student.", "response": f"Topic {i} is about many things. " * 20}
    for i in range(REFERENCES)
]
_ANSWERS = "SELECT count(*) FROM answers WHERE stage=?"


def main() -> None:
    with SimulatedTeacher(latency=0.02, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        teacher = teacher_config(server, 128)
        judge = teacher.model_copy(update={"model": "sim/other-model", "temperature": 0.0})
        begun = time.perf_counter()
        made = refed_dspy.compare(
            None, _MANY, teacher=teacher, judge=judge, out=Path(folder), size=SIZE, per_reference=20, embeddings=False
        )
        took = time.perf_counter() - begun
        with Ledger.read(Path(folder)) as ledger:
            count = {
                stage: ledger.db.execute(_ANSWERS, (stage,)).fetchone()[0]
                for stage in ("sample_feedback", "response_feedback", "response_generation")
            }
        stats = server.stats()
        begun = time.perf_counter()
        refed_dspy.compare(
            None, _MANY, teacher=teacher, judge=judge, out=Path(folder), size=SIZE, per_reference=20, embeddings=False
        )
        again = time.perf_counter() - begun
        assert server.stats()["requests"] == stats["requests"], "a second start asked something"
    print("\n".join(made.lines()))
    print(f"{SIZE} samples: {count['sample_feedback']} feedback collections sample-level (1,000 is known)")
    print(f"{SIZE} samples: {count['response_feedback']} Reference-Level (50 is known)")
    print(f"{SIZE} first responses for three programs: {count['response_generation']} paid")
    print(f"{stats['requests']} calls in {took:.0f} s, {stats['repeated']} asked twice; read back alone: {again:.1f} s")


if __name__ == "__main__":
    main()
