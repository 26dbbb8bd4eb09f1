"""A budget that cannot do is refused before anything is asked, with what would do."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError
from tests.support import compiling
from tests.support.capped_compiles import BASELINE, compiled, config
from tests.support.compiling import Answerer, questions, requests
from tests.support.interrupted_compiles import full_marks

server, without_words = compiling.terse_server, compiling.without_words
LEAST = 48
"""Of SMALL: 9 calls for each of 4 references by the uncompiled program, and 3 by a candidate with one new stage."""


def refused(server: SimulatedTeacher, folder: Path, optimizer: str = "gepa", **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        compiled(server, folder, optimizer, **settings)
    assert requests(server) == 0 and not folder.exists()
    return str(caught.value)


@pytest.mark.parametrize("cap", [1, BASELINE, LEAST - 1])
def test_too_few_calls_are_refused_with_what_would_do(server: SimulatedTeacher, tmp_path: Path, cap: int) -> None:
    message = refused(server, tmp_path / "c", max_calls=cap)
    assert message.startswith(f"max_calls: {cap} is too few: one candidate and its proof take at least 48; about ")
    would_do = re.search(r"about (\d+) leaves room for gepa with evaluations: 8", message)
    assert would_do is not None and int(would_do[1]) > LEAST


@pytest.mark.slow
def test_what_would_do_does(server: SimulatedTeacher, tmp_path: Path) -> None:
    calls = re.search(r"about (\d+) leaves room", refused(server, tmp_path / "c", max_calls=1))
    cost = re.search(r"about \$([\d.]+) leaves room", refused(server, tmp_path / "c", max_cost=0.02))
    assert calls is not None and cost is not None
    made = compiled(server, tmp_path / "c", max_calls=int(calls[1]), max_cost=float(cost[1]))
    assert made.stopped == "" and made.proof is not None


def test_too_few_dollars_are_refused(server: SimulatedTeacher, tmp_path: Path) -> None:
    message = refused(server, tmp_path / "c", max_cost=0.02)
    assert message.startswith("max_cost: $0.020 is too little: one candidate and its proof take at least about $0.031;")


def test_a_program_of_one_call_takes_one_call_an_example(server: SimulatedTeacher, tmp_path: Path) -> None:
    own: dict[str, Any] = {"program": Answerer(), "examples": questions(10), "metric": full_marks}
    with pytest.raises(ConfigError, match=r"take at least 8"):
        compiling.compiled(
            own.pop("program"), own.pop("examples"), tmp_path / "c", "bootstrap", max_calls=7, **own,
            teacher=config(server), judge=config(server),
        )  # fmt: skip
    assert requests(server) == 0


def test_evaluations_that_leave_no_candidate_are_refused(server: SimulatedTeacher, tmp_path: Path) -> None:
    for settings in ({"evaluations": 2}, {"options": {"max_metric_calls": 1}}):
        message = refused(server, tmp_path / "c", **settings)
        assert "used up by the 2 validation examples" in message and "set evaluations to 10 or" in message


def test_an_optimizer_that_takes_more_than_was_asked_for_says_so(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compiled(server, tmp_path / "c", "simba", estimate=True)
    assert "evaluations: 8 is too few: with these sets simba takes about 41" in caplog.text


def test_a_cap_that_the_first_evaluations_show_to_be_too_small_is_told_before_the_optimizer(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compiled(server, tmp_path / "c", max_calls=LEAST + 2)
    assert "max_calls: 50 may be reached before a candidate is proved, which takes about 94; about " in caplog.text
