"""Which programs are candidates, and what counts for which of them."""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from typing import Any

import dspy
import pytest

from refed_dspy.optimizers.examples import example_id
from refed_dspy.optimizers.gateway import current_candidate
from refed_dspy.optimizers.metrics import CustomMetric
from refed_dspy.optimizers.recorder import candidate_id
from tests.support.fake_gateway import EXAMPLES, FakeGateway, candidates, evaluate, program, recorder, running
from tests.support.scripted_engine import Writer

# --- candidates


def test_candidates_are_written_down_once_in_order_the_first_first() -> None:
    gateway = FakeGateway()
    seen = candidates(gateway, program())
    first, second, third = texts = ["Answer.", "Answer well.", "Answer briefly."]
    seen.note(program(first))
    with running(seen):
        for text in (first, second, first, third, second):
            program(text)(question="x")
    instructions = [json.loads(row[2])["predict"]["signature"]["instructions"] for row in gateway.candidates]
    assert instructions == texts and [row[1] for row in gateway.candidates] == [0, 1, 2]
    assert [row[0] for row in gateway.candidates] == [candidate_id(program(text)) for text in texts]


def test_demonstrations_make_another_candidate() -> None:
    first, other = program(), program()
    other.predictors()[0].demos = [dspy.Example(question="a", answer="b")]
    assert candidate_id(first) != candidate_id(other) and candidate_id(first) == candidate_id(program())


def test_a_program_that_a_metric_runs_is_no_candidate() -> None:
    gateway = FakeGateway()

    def asks(example: dspy.Example, prediction: Any) -> float:
        return float(bool(program("Judge.")(question=example.question).answer))

    with running(seen := candidates(gateway, program())):
        seen.note(program())
        evaluate(program(), recorder(gateway, CustomMetric(asks)), EXAMPLES[:3])
    assert len(gateway.candidates) == 1 and {row[0] for row in gateway.evaluations} == {candidate_id(program())}


def test_evaluations_go_to_their_candidate_under_eight_threads() -> None:
    """Three candidates at a time, each on eight threads, in a shuffled order."""
    gateway = FakeGateway()
    seen = candidates(gateway, program())
    asked: defaultdict[str, set[str]] = defaultdict(set)

    def looks(example: dspy.Example, prediction: Any) -> float:
        asked[current_candidate.get()].add(prediction.answer)
        return 1.0

    def answer(request: Any) -> str:
        return json.dumps({"reasoning": "r", "answer": str(request.system).splitlines()[0]})

    writer = Writer()
    writer.on_request = answer
    record = recorder(gateway, CustomMetric(looks))
    texts = [f"Way {n}." for n in range(6)]
    random.Random(0).shuffle(texts)

    def work(mine: list[str]) -> None:
        with running(seen, writer=writer):
            for text in mine:
                evaluate(program(text), record, EXAMPLES, threads=8)

    threads = [threading.Thread(target=work, args=(texts[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {candidate_id(program(text)): text for text in texts}
    assert {name: {expected[name]} for name in asked} == dict(asked) and set(asked) == set(expected)
    assert sorted((row[0], row[1]) for row in gateway.evaluations) == sorted(
        (name, example_id(example)) for name in expected for example in EXAMPLES
    )
    assert sorted(row[1] for row in gateway.candidates) == list(range(6))
    assert record.evaluations == 60


@pytest.mark.parametrize("student", [program(), dspy.Predict("question -> answer")], ids=["chain", "predict"])
def test_an_optimizer_s_own_modules_are_no_candidates_whatever_their_type(student: dspy.Module) -> None:
    gateway = FakeGateway()
    with running(candidates(gateway, student)):
        for kind in (dspy.Predict, dspy.ChainOfThought):
            kind("basic_instruction -> proposed_instruction")(basic_instruction="x")
    assert gateway.candidates == []
