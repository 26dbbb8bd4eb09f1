"""The ledger: whole units, and what was paid for or failed is found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refed_dspy.data.rows import data_rows, dropped_rows
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import (
    Answer,
    DecisionRow,
    Key,
    Statement,
    answered,
    decided,
    failed,
    recovered,
    sampled,
    shared,
    text_digest,
    unusable,
)
from refed_dspy.records import Call, Reference, Sample
from tests.support.scripted_engine import SAMPLE_FIELDS

NOBODY: frozenset[bytes] = frozenset()


def key(name: str, stage: str = "response_generation", item: str = "1") -> Key:
    return Key(stage, item, 0, name)


CALL = Call("model", "endpoint", "ok", 0.1, 100, 0, 20)
ANSWER = Answer('{"response": "r"}')
REFERENCE = Reference(instruction="i", response="r", source="here row 1")


def paid(name: str, calls: Sequence[Call] = (), item: str = "1") -> list[Statement]:
    """The statements of an answer under this name."""
    return answered(key(name, item=item), ANSWER, "endpoint", calls)


def sample(instruction: str) -> Sample:
    return Sample(instruction=instruction, response="r", improved_response="better", **SAMPLE_FIELDS)


def test_an_answer_and_its_calls_are_one_unit(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.commit(paid("a", [CALL, CALL]))
        assert ledger.answer("a") == ANSWER and ledger.endpoint("a") == "endpoint"
        assert ledger.answer("b") is None
        assert ledger.paid_for("a") == 0, "its price is unknown"
    with Ledger.read(tmp_path) as ledger:
        assert ledger.db.execute("SELECT count(*), sum(prompt_tokens) FROM calls").fetchone() == (2, 200)


def test_the_same_answer_twice_is_one(ledger: Ledger) -> None:
    ledger.commit(paid("a"))
    ledger.commit(answered(key("a", "judge", "2"), Answer("another"), "elsewhere", []))
    assert ledger.db.execute("SELECT count(*) FROM answers").fetchone() == (1,)
    assert ledger.answer("a") == ANSWER and ledger.endpoint("a") == "endpoint", "what was given stays"
    first, second = (Answer("{}", reasoning=thought) for thought in ("the first thought", "the second"))
    for answer in (first, second):
        ledger.commit(answered(key("b"), answer, "endpoint", []))
    assert ledger.answer("b") == first, "with what was thought before it"


def test_an_answers_text_is_kept_where_its_json_is_not_what_was_read(ledger: Ledger) -> None:
    tagged = Answer('{"response": "r"}', "[[ ## response ## ]]\nr")
    ledger.commit([*answered(key("a"), tagged, "endpoint", []), *paid("b")])
    assert ledger.answer("a") == tagged
    assert (tagged.text, ANSWER.text) == ("[[ ## response ## ]]\nr", '{"response": "r"}')


def test_an_answer_that_another_stage_shares_is_found_under_both(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.commit(paid("a"))
        for _ in range(2):
            ledger.commit(shared(key("a", "rubric_judge", "x")))
        first = ledger.answer("a")
        assert first is not None and first.asked_for == ("1", "response_generation")
        asked = ledger.db.execute("SELECT stage, item, key, output FROM asked ORDER BY stage DESC").fetchall()
    assert asked == [("rubric_judge", "x", "a", ANSWER.output), ("response_generation", "1", "a", ANSWER.output)]


def test_what_is_read_of_one_request_is_no_other_s(ledger: Ledger) -> None:
    def call(model: str, outcome: str, cost: int | None) -> Call:
        return Call(model, f"{model}'s", outcome, 0.1, cost=cost)

    assert not ledger.has_answers() and ledger.last_call() == 0
    ledger.commit(failed(key("c"), "cut", "long", True, [call("c", "cut", 5)]))
    assert not ledger.has_answers() and ledger.last_call() == 1
    ledger.commit(answered(key("a"), ANSWER, "a's", [call("b", "malformed", 3), call("a", "ok", 7)]))
    ledger.commit(answered(key("b", "judge", "2"), Answer("{}", "raw"), "b's", [call("b", "ok", 11)]))
    ledger.commit(failed(key("d"), "no answer", "HTTP 400", False, []))
    ledger.commit(failed(key("d"), "no answer", "HTTP 500", False, []))  # the last reason counts
    assert [ledger.paid_for(name) for name in "abcd"] == [7, 11, 0, 0]
    assert [ledger.endpoint(name) for name in "ab"] == ["a's", "b's"]
    assert [answer and answer.asked_for for answer in map(ledger.answer, "abc")] == [
        ("1", "response_generation"),
        ("2", "judge"),
        None,
    ]
    assert ledger.answered_models() == {("a", "a's"), ("b", "b's")}
    assert ledger.has_answers() and ledger.last_call() == 4
    assert [failure.reason for failure in ledger.failures()] == ["long", "HTTP 500"]
    assert ledger.passing_failures() == {"d"}
    ledger.commit([recovered("d")])
    assert ledger.failure("c") == ("cut", "long", True) and ledger.failure("d") is None


def test_duplicates_are_found_whatever_their_case_and_spaces_and_so_are_copies_of_references(tmp_path: Path) -> None:
    this, that, other = "Do this.", "Do that.", "Something new."
    referred = frozenset({text_digest("Explain it")})
    with Ledger.create(tmp_path) as ledger:
        first = ledger.commit_proposal(0, "f", 0, [this, "do  THIS.", that], 3, NOBODY)
        again = ledger.commit_proposal(1, "f", 0, [f"{that} ", "EXPLAIN  it", other], 0, referred)
    assert [text for _, text in first.new] == [this, that] and [text for _, text in again.new] == [other]


def test_half_paid_instructions_come_first(ledger: Ledger) -> None:
    ledger.commit_proposal(0, "f", 0, ["one", "two", "three"], 0, NOBODY)
    ledger.commit(answered(key("b", "filter_judge", "3"), ANSWER, "endpoint", []))  # which is no half of it
    ledger.commit(paid("a", item="2"))
    assert [i for _, i, _ in ledger.open_instructions()] == [2, 1, 3]
    ledger.commit(sampled(2, 0, sample("two")))
    ledger.commit(unusable(1, 0))
    assert [i for _, i, _ in ledger.open_instructions()] == [3]
    assert ledger.used() == [(0, 0, 1)] and ledger.kept() == 1


def test_an_instruction_keeps_what_was_made_of_it_kept_or_dropped(ledger: Ledger) -> None:
    decision = DecisionRow("length", 0, False, None, "too short", "")
    ledger.begin([REFERENCE])
    ledger.commit_proposal(0, "f", 0, ["one", "two", "three"], 0, NOBODY)
    ledger.commit(sampled(1, 0, sample("one")))
    ledger.commit([*unusable(2, 0, sample("two")), *decided(2, [decision])])
    ledger.commit([*unusable(3, 0), *decided(3, [decision])])
    assert [row["improved_response"] for row in data_rows(ledger)] == ["better"]
    assert [(row["instruction"], row["improved_response"]) for row in dropped_rows(ledger)] == [
        ("two", "better"),
        ("three", None),
    ]


def test_only_earlier_rounds_are_taken(ledger: Ledger) -> None:
    for round_ in range(3):
        ledger.commit_proposal(0, "f", round_, [f"{round_}a", f"{round_}b"], 0, NOBODY)
    assert ledger.texts_before(0, 0, 60) == []
    assert ledger.texts_before(0, 2, 3) == ["0b", "1a", "1b"]


def test_a_plan_is_restored_from_what_each_reference_gave_in_each_round(ledger: Ledger) -> None:
    longer, first, third, fourth = "A longer one", "of the first round", "third", "fourth"

    def drops_short(text: str) -> list[DecisionRow]:
        return [DecisionRow("any", 0, True, None, "", ""), DecisionRow("length", 1, len(text) > 5, None, "short", "")]

    ledger.commit_proposal(1, "g", 1, [first], 0, NOBODY)
    added = ledger.commit_proposal(0, "f", 0, [longer, "short", longer.upper()], 2, NOBODY, drops_short)
    assert (list(added.new), added.dropped) == ([(2, longer)], 1)
    ledger.commit_proposal(1, "f", 0, [third, fourth], 0, NOBODY)
    assert ledger.proposals() == [(0, "f", 0, 1), (1, "f", 0, 2), (1, "g", 1, 1)]
    assert ledger.db.execute("SELECT kept, duplicates, surplus FROM proposals WHERE reference=0").fetchone() == (
        1,
        1,
        2,
    )
    decisions = ledger.db.execute("SELECT instruction, filter, kept FROM decisions ORDER BY 1, position").fetchall()
    assert decisions == [(2, "any", 1), (2, "length", 1), (3, "any", 1), (3, "length", 0)]
    assert [*ledger.open_instructions()] == [(1, 1, first), (0, 2, longer), (1, 4, third), (1, 5, fourth)]
    for instruction, round_ in ((1, 1), (4, 1), (2, 0)):
        ledger.commit(sampled(instruction, round_, sample("x")))
    assert sorted(ledger.used()) == [(0, 0, 1), (1, 1, 2)] and ledger.kept() == 3
    assert ledger.texts_before(1, 1, 9) == [third, fourth] == ledger.texts_before(1, 2, 2)
    assert ledger.texts_before(0, 1, 1) == ["short"]


def test_what_is_written_down_again_is_what_it_is_now(ledger: Ledger) -> None:
    assert ledger.holds() == ""
    ledger.set_meta(work="run", size=3)
    ledger.set_meta(size=5)
    assert (ledger.holds(), ledger.meta("size")) == ("run", 5)


def test_new_work_keeps_nothing_of_earlier_work_but_its_calls(ledger: Ledger) -> None:
    others = [Reference(instruction=name, response="r", source="here row 1") for name in "cab"]
    ledger.begin([REFERENCE], size=3)
    ledger.commit(failed(key("a"), "cut", "long", True, [CALL]))
    ledger.begin(others, identity={"seed": 2})
    assert ledger.references() == others and ledger.meta("size") is None
    assert ledger.meta("identity") == {"seed": 2}
    assert ledger.failures() == [] and ledger.last_call() == 1


def test_decided_again_the_last_decision_counts(ledger: Ledger) -> None:
    ledger.commit_proposal(0, "f", 0, ["one"], 0, NOBODY)
    for kept, reason in ((True, ""), (False, "too short")):
        ledger.commit(decided(1, [DecisionRow("length", 0, kept, 0.5, reason, "")]))
    assert ledger.db.execute("SELECT kept, reason FROM decisions").fetchall() == [(0, "too short")]
