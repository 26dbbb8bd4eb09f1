"""What the metric judged in a proof, for people to be asked about, and what they make of it."""

from __future__ import annotations

from refed_dspy.data.pairs import Pair
from refed_dspy.optimizers.by_people import JudgedPair, RateByPeople, powered_rates, proof_pairs
from refed_dspy.optimizers.metrics import MetricScore
from refed_dspy.optimizers.prove import in_turns
from tests.support.metric_bench import BASE, EXAMPLE, REFERENCE, Bench, made, sample


def test_the_metric_tells_what_it_compared_and_a_topic_stands_for_its_references() -> None:
    bench = Bench()
    samples = [sample(1, "5"), sample(2, "1"), sample(3, "?")]
    programs = {"compiled": lambda **_: made(samples)}
    score = lambda example, prediction: MetricScore.of(bench.metric.score(example, prediction), "", 1.0)  # noqa: E731
    results = in_turns(programs, [EXAMPLE], score, 1)["compiled"]
    better, worse, undecided = proof_pairs(results)
    assert (better.answer_a, better.answer_b, better.preference) == (samples[0].improved_response, BASE, 2)
    assert (better.system_a, better.system_b, better.cluster) == ("compiled", "uncompiled", REFERENCE.id)
    assert better.instruction == REFERENCE.posed(samples[0].instruction)
    assert (worse.win, undecided.win) == (0, None)
    assert {pair.cluster for pair in proof_pairs(results, {REFERENCE.id: "sums"})} == {"sums"}
    assert [*proof_pairs([(EXAMPLE, None, 0.5)])] == [], "a metric of one's own compares nothing"


def judged(count: int, preference: float = 1.0) -> list[JudgedPair]:
    """Two pairs of each reference."""
    return [
        JudgedPair.of(f"Task {n}.", ("new", f" one {n}"), ("old", f"two {n}"), preference * (-1) ** n, f"r{n // 2}")
        for n in range(count)
    ]


def said_of(pair: JudgedPair, verdict: float, turned: bool = False, criterion: str = "") -> Pair:
    """As `load_pairs` reads it: texts without spaces at their ends."""
    a, b = (text.strip() for text in (pair.answer_a, pair.answer_b))
    if turned:
        a, b, verdict = b, a, -verdict
    return Pair(instruction=pair.instruction, answer_a=a, answer_b=b, verdict=verdict, criterion=criterion)


def rate_of(pairs: list[JudgedPair], people: list[Pair]) -> RateByPeople:
    (rate,) = powered_rates(pairs, people)
    return rate


def test_people_s_verdicts_are_found_whichever_answer_stands_first() -> None:
    pairs = judged(80)
    people = [said_of(pair, 1.0 if n % 4 else -1.0, turned=n % 3 == 0) for n, pair in enumerate(pairs[:40])]
    rate = rate_of(pairs, [*people, said_of(pairs[70], -1, criterion="tone")])
    assert (rate.system, rate.over, rate.pairs, rate.by_people) == ("new", "old", 80, 40)
    assert rate.judge is not None and (rate.judge.mean, rate.people.mean) == (0.5, 0.75)
    assert rate.powered is not None and rate.powered.low < 0.75 < rate.powered.high and rate.powered.clusters == 20
    gain = rate.gain
    assert gain is not None and (gain.mean, gain.low) == (rate.powered.mean - 0.5, rate.powered.low - 0.5)


def test_few_of_people_give_their_own_rate_alone_and_equal_answers_are_left_out() -> None:
    pairs = judged(20)
    same = JudgedPair.of("Task.", ("new", "one"), ("old", " one"), 0, "r")
    others = JudgedPair.of("Task.", ("new", "one"), ("third", "x"), 2, "r")
    rate = rate_of([*pairs, same, others], [said_of(pair, 1) for pair in pairs[:4]])
    assert (rate.pairs, rate.by_people, rate.powered, rate.weight, rate.gain) == (20, 4, None, None, None)
    assert rate.people.mean == 1 and powered_rates(pairs, [said_of(others, 1)]) == []
    undecided = [pair.model_copy(update={"preference": None}) for pair in pairs]
    rate = rate_of(undecided, [said_of(pair, 1) for pair in pairs])
    assert rate.judge is None and rate.powered is None and rate.people.mean == 1
