"""A compile that can prove nothing, or whose cap cannot hold it, is refused before anything is asked, with what would
do."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import ConfigError, TeacherError
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.spec import prepare, refuse_unprovable
from refed_dspy.programs import PairwiseJudge
from refed_dspy.teachers import open_teacher
from tests.support import capped_compiles, compiling
from tests.support.capped_compiles import BASELINE, OPTIMIZERS, compiled, config
from tests.support.compiling import Answerer, questions, requests
from tests.support.interrupted_compiles import full_marks
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

server, without_words, any_cap = compiling.terse_server, compiling.without_words, capped_compiles.any_cap
CANNOT_BE_PROVED: dict[str, dict[str, Any]] = {
    "test set too small": {"test": 4},
    "references too few": {"train": 6, "validation": 5},
    "cap in calls": {"max_calls": 100},
    "cap in dollars": {"max_cost": 0.1},
}


def refused(server: SimulatedTeacher, folder: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        compiled(server, folder, **settings)
    assert requests(server) == 0 and not folder.exists() and caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", CANNOT_BE_PROVED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_asked_where_nothing_can_be_proved(
    said: Said, server: SimulatedTeacher, tmp_path: Path, optimizer: str, case: str
) -> None:
    settings = {"evaluations": 40, **CANNOT_BE_PROVED[case]}
    told = {refused(server, tmp_path / "c", optimizer=optimizer, estimate=word, **settings) for word in (False, True)}
    said(sorted(told))


def test_topics_count_not_references(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    """Where the embedding model tells them: here it is replaced by what it would say."""
    _, spec = prepare(Answerer(), questions(20), full_marks, teacher=config(server), train=3, validation=3, test=6)
    refuse_unprovable(spec)
    spec.__dict__["topics"] = dict.fromkeys(spec.split.clusters().values(), "one")
    with said.by(ConfigError):
        refuse_unprovable(spec)


def test_a_judges_instructions_count_not_its_pairs(said: Said, server: SimulatedTeacher) -> None:
    pairs = [
        Pair(instruction=f"Task {n % 8}.", answer_a=f"a {n}", answer_b="b", verdict=1 if n % 2 else -1)
        for n in range(40)
    ]
    _, spec = prepare(PairwiseJudge(), pairs, teacher=config(server))
    assert len(spec.split.test) > MIN_CLUSTERS
    with said.by(ConfigError):
        refuse_unprovable(spec)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "cap"), [("gepa", {"max_calls": 150}), ("mipro", {"max_cost": 0.4})])
def test_what_is_named_is_enough(
    server: SimulatedTeacher, tmp_path: Path, optimizer: str, cap: dict[str, float]
) -> None:
    message = refused(server, tmp_path / "c", optimizer=optimizer, evaluations=16, **cap)
    named = re.search(r"; raise it to \$?([\d.,]+),", message)
    assert named is not None, message
    enough = dict.fromkeys(cap, float(named[1].replace(",", "")))
    made = compiled(server, tmp_path / "c", optimizer, evaluations=16, **enough)
    assert made.stopped == "" and made.proof is not None


def test_an_optimizer_of_unknown_size_needs_room_for_one_candidate(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"optimizer": "dspy.BootstrapFewShotWithRandomSearch", "metric": full_marks}
    with said.by(ConfigError):
        compiling.compiled(
            Answerer(), questions(10), tmp_path / "c", max_calls=13, teacher=config(server), judge=config(server),
            **settings,
        )  # fmt: skip
    assert requests(server) == 0


def test_evaluations_that_leave_no_candidate_are_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    for settings in ({"evaluations": 2}, {"options": {"max_metric_calls": 1}}):
        said(refused(server, tmp_path / "c", **settings))


def test_an_optimizer_that_takes_more_than_was_asked_for_says_so(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compiled(server, tmp_path / "c", "simba", estimate=True)
    said(caplog.text)


def test_a_cap_that_the_first_evaluations_show_to_be_too_small_is_told_before_the_optimizer(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(server, tmp_path / "c", estimate=True)
    with caplog.at_level(logging.WARNING):
        made = compiled(server, tmp_path / "c", max_calls=BASELINE + 20)
    said(caplog.text)
    assert made.stopped == "max_calls"
    said(made.why)


OWN_CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "simba's batch": ("simba", {"bsize": 9}),
    "SIMBA's usual batch": ("dspy.SIMBA", {"bsize": 32}),
    "mipro's minibatch": ("mipro", {"minibatch": True, "minibatch_size": 9}),
    "weights": ("dspy.BootstrapFinetune", {}),
    "weights, too": ("dspy.BetterTogether", {"strategy": "p -> w"}),
}


@pytest.mark.parametrize("case", OWN_CONDITIONS)
def test_an_optimizers_own_conditions_are_known_before_anything_is_paid_for(
    said: Said, server: SimulatedTeacher, tmp_path: Path, case: str
) -> None:
    optimizer, options = OWN_CONDITIONS[case]
    said(refused(server, tmp_path / "c", optimizer=optimizer, options=options))


def test_without_a_proof_it_goes_on_and_a_proof_can_be_had_later(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = compiled(server, tmp_path / "c", "bootstrap", prove=False)
    assert (made.stopped, made.state, made.proof, made.proved) == ("", "done", None, False)
    paid = requests(server)
    assert compiled(server, tmp_path / "c", "bootstrap", prove=False).manifest["calls"] == requests(server) == paid
    proved = compiled(server, tmp_path / "c", "bootstrap")
    assert proved.proof is not None and proved.manifest["candidate"] == made.manifest["candidate"]
    assert requests(server) > paid and server.stats()["repeated"] == 0


def test_without_a_proof_too_few_references_are_enough(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    assert compiled(server, tmp_path / "c", "bootstrap", test=2, prove=False).state == "done"
    with said.by(ConfigError):
        compiled(server, tmp_path / "c", "bootstrap", test=2)


# --- caps that are refused before anything is sent


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_cap_in_dollars_needs_every_price_and_more_than_one_calls_worst_case(
    said: Said, server: SimulatedTeacher, tmp_path: Path, role: str
) -> None:
    dear = config(server, model="openai/dear", max_tokens=9_000, temperature=0.0)
    least = open_teacher(dear).least
    assert least is not None
    said(refused(server, tmp_path / "c", max_cost=0.9 * least / 10**12, **{role: dear}))
    said(refused(server, tmp_path / "c", max_cost=5.0, **{role: config(server, model="openai/free", price=None)}))


@pytest.mark.usefixtures("any_cap")
def test_a_cap_below_the_first_calls_own_worst_case_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    least = open_teacher(config(server)).least
    assert least is not None
    made = compiled(server, tmp_path, max_cost=1.01 * least / 10**12, estimate=True)
    assert requests(server) == 0 and made.stopped == "max_cost" and not made.changed


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_callers_own_lm_takes_no_cap(said: Said, server: SimulatedTeacher, tmp_path: Path, role: str) -> None:
    writer = Writer()
    caps: list[dict[str, Any]] = [{"max_cost": 5.0}, {"max_calls": 500}]
    said([refused(server, tmp_path / "c", **{role: fake_lm(writer)}, **cap) for cap in caps])
    assert not writer.requests


@pytest.mark.parametrize(
    ("cap", "values"),
    [("max_cost", (0, -1.0, math.nan)), ("max_calls", (0, 1.5)), ("max_minutes", (0, math.nan))],
)
def test_a_cap_that_makes_no_sense_is_refused(
    server: SimulatedTeacher, tmp_path: Path, cap: str, values: tuple[float, ...]
) -> None:
    assert all(refused(server, tmp_path / "c", **{cap: value}).startswith(cap) for value in values)


def test_a_cap_in_dollars_needs_the_price_of_what_was_done_before(server: SimulatedTeacher, tmp_path: Path) -> None:
    """As for a run: what earlier starts cost is unknown, so what is left of the cap is unknown too."""
    free = config(server, price=None)
    compiled(server, tmp_path, "bootstrap", teacher=free, judge=free, max_calls=500)
    with pytest.raises(ConfigError, match="max_cost"):
        compiled(server, tmp_path, "bootstrap", teacher=config(server), judge=config(server), max_cost=1.0)


@pytest.mark.parametrize("gone", [False, True], ids=["a wrong key", "no endpoint"])
def test_a_judge_that_cannot_be_asked_ends_it_at_once(
    said: Said,
    locked: SimulatedTeacher,
    server: SimulatedTeacher,
    tmp_path: Path,
    gone: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = "sk-wrong-0987654321fedcba"
    monkeypatch.setenv("WRONG_KEY", wrong)
    judge = config(locked, model="openai/locked", api_key_env="WRONG_KEY")
    if gone:
        judge = config(server, api_base="http://127.0.0.1:9/v1")
    with said.by(TeacherError) as ended:
        compiled(server, tmp_path, judge=judge, teacher=judge if gone else config(server))
    assert wrong not in str(ended.value) + caplog.text and "Traceback" not in caplog.text
    assert requests(locked) <= 32, "only what was in flight already"
    assert all(wrong.encode() not in path.read_bytes() for path in tmp_path.iterdir())
