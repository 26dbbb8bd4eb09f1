"""A benchmark's code at work in a folder: our judge behind the proxy, under the folder's caps and ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refed_dspy.config import sampling
from refed_dspy.errors import ModelError
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.plugins.evaluate.program import Program, run_program
from refed_dspy.plugins.evaluate.proxy import JudgeProxy, open_proxy
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.progress import NOBODY, Progress, Watch
from refed_dspy.teachers.row_jobs import row_job
from refed_dspy.teachers.work import Work

_MOST_AT_ONCE = 64
"""Threads of a benchmark's code that ask: each makes a client of its own for every request."""


def at_once(judge: Teacher) -> int:
    """How many of the benchmark's questions go to the judge at the same time."""
    return min(judge.concurrency, _MOST_AT_ONCE)


async def judge_with(
    name: str, folder: Path, work: Work, program: Callable[[JudgeProxy], Program], watch: Watch[Progress] = NOBODY
) -> str:
    """Run the program that `program` makes of the proxy's address and token; its requests are answered by the model
    `judge` of `work`, from the ledger in `folder` where they were asked before, which calls them `name`, the
    benchmark's. Returns the cap that ended it, or an empty text.

    Raises:
        RunDirError, ConfigError: as `row_job`.
        TeacherRefused: the judge cannot do what the program asks; nothing was paid for.
        RunStopped: the judge failed, or the program did (its last lines are in the message).
    """
    async with row_job(folder, work, watch) as session, open_proxy(session, name) as proxy:
        await proxy.during(run_program(program(proxy)))
    return session.cap_reached.cap if session.cap_reached else ""


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


def judge_answers(folder: Path) -> JudgeAnswers:
    """What the ledger in `folder` has of the judge. Raises RunDirError."""
    models = "SELECT json_extract(output, '$.model') model FROM answers GROUP BY model ORDER BY min(created)"
    with Ledger.read(folder) as ledger:
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
    if judge.config is not None and sampling.on_anthropic_wire(str(judge.config.model)):
        raise ModelError("Anthropic's API gives no log-probabilities; choose another model", "judge")
