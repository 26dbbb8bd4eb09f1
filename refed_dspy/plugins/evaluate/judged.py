"""A benchmark's code at work in a folder: our judge behind the proxy, under the folder's caps and ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refed_dspy.config.teacher import on_anthropic_wire
from refed_dspy.errors import ModelError
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.plugins.evaluate.program import Program, run_program
from refed_dspy.plugins.evaluate.proxy import JudgeProxy, open_proxy
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.job import Job

_MOST_AT_ONCE = 64
"""Threads of a benchmark's code that ask: each makes a client of its own for every request."""


def at_once(judge: Teacher) -> int:
    """How many of the benchmark's questions go to the judge at the same time."""
    return min(judge.concurrency, _MOST_AT_ONCE)


async def judge_with(name: str, at: Job, program: Callable[[JudgeProxy], Program]) -> None:
    """Run the program that `program` makes of the proxy's address and token; its requests are answered by the model
    `judge` of the work `at` hand, from its ledger where they were asked before, which calls them `name`, the
    benchmark's.

    Raises:
        TeacherRefused: the judge cannot do what the program asks; nothing was paid for.
        RunStopped: the judge failed, or the program did (its last lines are in the message).
    """
    async with at.asking() as session, open_proxy(session, name) as proxy:
        await proxy.during(run_program(program(proxy)))


@dataclass(frozen=True)
class JudgeAnswers:
    """The judge's answers in a folder: how many, what its endpoint called itself, when the last one came (UTC), and
    what they cost."""

    count: int
    said: Sequence[str]
    date: str
    used: Spent
    simulated: str
    """What is to be known where the simulated teacher judged; else empty."""


def judge_answers(ledger: Ledger) -> JudgeAnswers:
    """What the ledger has of the judge."""
    models = "SELECT json_extract(output, '$.model') model FROM answers GROUP BY model ORDER BY min(created)"
    count, last = ledger.db.execute("SELECT count(*), max(created) FROM answers").fetchone()
    said = [str(name) for (name,) in ledger.db.execute(models)]
    date = time.strftime("%Y-%m-%d", time.gmtime(last)) if last is not None else ""
    return JudgeAnswers(int(count), said, date, spent(ledger), simulated_note(ledger))


def check_judge(judge: Teacher) -> None:
    """Raises ModelError for a judge that cannot stand behind the proxy, where its settings tell."""
    if judge.batched:
        raise ModelError("a benchmark's code waits for each answer; set mode: interactive", "judge")


def check_logprobs(judge: Teacher) -> None:
    """Raises ModelError for a judge that is known to give no log-probabilities."""
    if judge.config is not None and on_anthropic_wire(str(judge.config.model)):
        raise ModelError("Anthropic's API gives no log-probabilities; choose another model", "judge")
