"""Who sees which example: whole clusters, seeded, each set its share, and held-out criteria in the test set alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from refed_dspy.data.pairs import Pair
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError, InputError
from refed_dspy.optimizers.examples import (
    Split,
    as_examples,
    cluster_of,
    example_id,
    pair_example,
    reference_example,
    split_examples,
)
from refed_dspy.programs.judges import OVERALL, RESPONSE_CRITERIA
from refed_dspy.records import Reference
from tests.support.said import Said
from tests.support.scripted_engine import references

SIZES = (24, 12, 16)


def pair(number: int, criterion: str = "", verdict: float = 1.0, variant: int = 0) -> Pair:
    return Pair(
        instruction=f"Task {number}.",
        answer_a=f"one {variant}",
        answer_b=f"second {variant}",
        verdict=verdict,
        criterion=criterion,
        description=f"what {criterion} is" if criterion else "",
    )


def pairs(instructions: int, each: int = 1, criterion: str = "") -> list[dspy.Example]:
    return [pair_example(pair(n, criterion, variant=m)) for n in range(instructions) for m in range(each)]


def of_references(count: int) -> list[dspy.Example]:
    return as_examples("references", references(count))


def ids(examples: Any) -> list[str]:
    return [example_id(example) for example in examples]


def sizes_of(made: Split) -> tuple[int, int, int]:
    return len(made.train), len(made.validation), len(made.test)


def test_the_three_sets_share_no_cluster() -> None:
    made = split_examples(pairs(20, each=3), (6, 4, 5), seed=0)
    sets = [{cluster_of(example) for example in part} for part in (made.train, made.validation, made.test)]
    assert [len(each) for each in sets] == [6, 4, 5] and sizes_of(made) == (18, 12, 15)
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert max(Counter(ids((*made.train, *made.validation, *made.test))).values()) == 1


def test_the_seed_decides_and_the_order_of_the_examples_does_not() -> None:
    examples = of_references(30)
    first = split_examples(examples, (5, 5, 5), seed=1)
    again = split_examples(examples[::-1], (5, 5, 5), seed=1)
    other = split_examples(examples, (5, 5, 5), seed=2)
    assert [ids(part) for part in (first.train, first.validation, first.test)] == [
        ids(part) for part in (again.train, again.validation, again.test)
    ]
    assert ids(first.test) != ids(other.test) and set(ids(first.train)) != set(ids(other.train))


def test_what_the_sets_are_called_and_what_was_seen() -> None:
    made = split_examples(of_references(9), (3, 2, 4), seed=0)
    subsets = made.subsets()
    assert Counter(subsets.values()) == {"train": 3, "validation": 2, "test": 4}
    assert all(subsets[example_id(example)] == "validation" for example in made.validation)
    clusters = made.clusters()
    assert clusters == {example_id(e): cluster_of(e) for e in (*made.train, *made.validation, *made.test)}
    assert made.seen() == sorted(cluster_of(e) for e in (*made.train, *made.validation))
    assert not set(made.seen()) & {cluster_of(e) for e in made.test}


# --- held-out criteria


@pytest.mark.parametrize("seed", range(5))
def test_held_out_criteria_are_in_the_test_set_alone(seed: int) -> None:
    examples = [pair_example(pair(n, criterion)) for n in range(12) for criterion in ("depth", "style")]
    made = split_examples(examples, (4, 3, 3), seed, held_out=["style"])
    assert Counter(e.criterion for e in (*made.train, *made.validation)) == {"depth": 7}
    assert Counter(e.criterion for e in made.test) == {"depth": 3, "style": 3}
    assert not {*made.seen()} & {cluster_of(example) for example in made.test}, "nor their instructions by another"


def test_instructions_of_a_held_out_criterion_alone_go_to_the_test_set() -> None:
    examples = pairs(12, criterion="depth") + [pair_example(pair(n, "style")) for n in range(20, 90)]
    for seed in range(5):
        made = split_examples(examples, (2, 2, 5), seed, held_out=["style"])
        assert len(made.train) == len(made.validation) == 2 and "style" in {e.criterion for e in made.test}
        assert len(made.test) <= 5, "no more than was asked for"


TONE = [pair_example(pair(n, "tone")) for n in range(100, 103)]


@pytest.mark.parametrize(
    ("examples", "held_out", "seen"),
    [
        (TONE * 3, "tone", set[str]()),
        (pairs(9, criterion="style"), "stlye", set[str]()),
        ([*pairs(9, criterion="rigor"), *TONE], "tone", {cluster_of(example) for example in TONE}),
    ],
    ids=["all of them", "none of them", "seen whole"],
)
def test_held_out_criteria_that_leave_nothing_to_train_or_to_prove_on_are_told_of(
    said: Said, examples: list[dspy.Example], held_out: str, seen: set[str]
) -> None:
    with said.by(ConfigError):
        split_examples(examples, (3, 3, 3), seed=0, held_out=[held_out], seen=seen)


NO_EXAMPLES: dict[str, tuple[str, Any]] = {
    "no rows": ("examples", []),
    "a name": ("examples", "builtin"),
    "dicts": ("examples", [{"question": "x"}]),
    "no inputs": ("examples", [dspy.Example(question="x")]),
    "none": ("examples", None),
    "a number": ("examples", 7),
    "a number among them": ("examples", [dspy.Example(question="x"), 1]),
    "no pairs": ("instructions", [{"instruction": "i"}]),
    "a number for pairs": ("instructions", 7),
    "no answers": ("instructions", [dspy.Example(instruction="i")]),
    "nobody judged": (
        "instructions",
        [dspy.Example(instruction="i", answer_a="a", answer_b="b").with_inputs("answer_a")],
    ),
}


@pytest.mark.parametrize("case", NO_EXAMPLES)
def test_what_is_no_list_of_examples_or_pairs_is_refused_in_one_line(said: Said, case: str) -> None:
    with said.by(InputError) as raised:
        as_examples(*NO_EXAMPLES[case])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [(3, (1, 1, 1)), (5, (3, 1, 1)), (13, (6, 3, 4)), (51, (24, 11, 16)), (90, (24, 12, 16))],
)
def test_each_set_gets_its_share(clusters: int, expected: tuple[int, int, int]) -> None:
    made = sizes_of(split_examples(of_references(clusters), SIZES, seed=0))
    assert all(abs(first - other) <= 1 for first, other in zip(made, expected, strict=True)), made


def test_nothing_that_was_seen_before_is_in_the_test_set_of_a_held_out_criterion() -> None:
    examples = pairs(20, criterion="rigor") + [pair_example(pair(n, "tone")) for n in range(100, 120)]
    seen = split_examples(examples, SIZES, seed=0).seen()
    again = split_examples(examples, (4, 4, 10), seed=0, held_out=["tone"], seen=seen)
    assert Counter(e.criterion for e in again.test) == {"tone": 5, "rigor": 5}
    assert not {cluster_of(e) for e in again.test} & set(seen)


def test_a_known_criterion_is_held_out_by_the_name_that_the_file_has() -> None:
    criterion = "content_quality"
    assert criterion in RESPONSE_CRITERIA
    examples = [pair_example(Pair(instruction=f"i{n}", answer_a="a", answer_b="b", verdict=1.0, criterion=criterion))
                for n in range(3)]  # fmt: skip
    made = split_examples([*examples, *pairs(6)], (2, 2, 2), seed=0, held_out=[criterion])
    assert not [e for e in (*made.train, *made.validation) if e.criterion == RESPONSE_CRITERIA[criterion].name]


# --- what becomes an example


def test_references_become_examples_with_the_reference_as_their_input() -> None:
    rows = references(4)
    examples = as_examples("references", [*rows, rows[0]])
    assert [e.reference.instruction for e in examples] == [row["instruction"] for row in rows]
    assert all(list(e.inputs().keys()) == ["reference"] for e in examples)
    loaded = load_references(rows)
    assert ids(as_examples("references", loaded)) == ids(examples)
    same = Reference(instruction=rows[0]["instruction"], response="another")
    assert cluster_of(examples[0]) == cluster_of(reference_example(same)), "one instruction is one cluster"


def test_columns_say_where_a_table_has_them() -> None:
    rows = [{"q": f"Explain {n}.", "a": f"It is {n}."} for n in range(3)]
    examples = as_examples("references", rows, {"instruction": "q", "response": "a"})
    assert examples[1].reference.instruction == "Explain 1."


def test_pairs_become_examples_that_do_not_show_people_s_verdict(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"instruction": "i", "answer_a": "a", "answer_b": "b", "preferred": "B"}
    path.write_text(json.dumps(row), encoding="utf-8")
    (example,) = as_examples("instructions", path)
    assert dict(example.inputs()) == {
        "criterion": OVERALL.name, "description": OVERALL.description, "instruction": "i", "answer_a": "a",
        "answer_b": "b",
    }  # fmt: skip
    assert example.people == -1
    assert ids(as_examples("instructions", str(path))) == [example_id(example)]
    listed = Pair(instruction="i", answer_a="a", answer_b="b", verdict=-1.0)
    assert ids(as_examples("instructions", [listed])) == [example_id(example)]


def test_equal_pairs_are_one_example() -> None:
    """Scores are kept by example, so what is there twice can never be scored as often as it is counted."""
    rows = [Pair(instruction="i", answer_a="a", answer_b="b", verdict=verdict) for verdict in (1, 1, -1)]
    (example,) = as_examples("instructions", rows)
    assert example.people == 1
    assert as_examples("instructions", [example, example.copy()]) == [example]


def test_examples_of_another_program_are_kept_as_they_are_once() -> None:
    first, second = (dspy.Example(question=f"q{n}", answer="a").with_inputs("question") for n in range(2))
    assert as_examples("examples", [first, second, first.copy()]) == [first, second]
    assert cluster_of(first) != cluster_of(second)


def test_examples_of_one_instruction_are_one_cluster() -> None:
    first, second = (dspy.Example(instruction="i", n=n).with_inputs("instruction") for n in range(2))
    assert cluster_of(first) == cluster_of(second) and example_id(first) != example_id(second)


def test_an_example_s_id_is_its_content_s() -> None:
    first = dspy.Example(question="é{}", answer=["a", 1, None]).with_inputs("question")
    assert example_id(first) == example_id(dspy.Example(answer=["a", 1, None], question="é{}"))
    assert example_id(first) != example_id(first.copy(answer=["a", 2, None])) and len(example_id(first)) == 16


def test_an_optimizer_that_reads_examples_reads_whole_references() -> None:
    pair = Reference(instruction="Describe a tide. " * 40, response="It rises. " * 90 + "It falls.", system="Be short.")
    for example in (reference_example(pair), reference_example(pair).copy()):
        shown = repr(example)
        assert all(repr(text) in shown for text in (pair.instruction, pair.response, pair.system))
    assert len(repr(pair)) < 200, "a reference by itself is a line"


@pytest.mark.parametrize("examples", [pairs(0), pairs(2), pairs(2, each=5)], ids=len)
def test_fewer_than_three_are_refused(said: Said, examples: list[dspy.Example]) -> None:
    with said.by(ConfigError) as raised:
        split_examples(examples, SIZES, seed=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sizes", [SIZES, (1, 1, 1), (1, 1, 50), (100, 1, 1), (2, 30, 1)])
@pytest.mark.parametrize("clusters", [3, 4, 7, 20])
def test_no_set_is_empty_or_too_large(sizes: tuple[int, int, int], clusters: int) -> None:
    made = sizes_of(split_examples(of_references(clusters), sizes, seed=0))
    assert min(made) >= 1 and sum(made) == min(clusters, sum(sizes))
    assert all(have <= most for have, most in zip(made, sizes, strict=True))
