"""A gateway on a ledger and models of the simulated server, and ways to ask it from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.jobs.gateway import open_gateway
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.optimizers.gateway import CompileGateway
from refed_dspy.teachers import open_teacher

RATES = {"prompt": 1.0, "completion": 10.0}
PATIENCE = 10.0


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "openai/sim", "api_base": server.base_url, "price": RATES, "max_tokens": 64, "timeout": 5}
    return TeacherConfig.model_validate({**values, "retries": 0, "concurrency": 100, **settings})


@contextmanager
def opened(folder: Path, caps: Caps = Caps(), **models: Any) -> Iterator[CompileGateway]:  # noqa: B008
    """A gateway on the ledger in `folder`; `models` are roles."""
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        recorder = RunRecorder(ledger, caps, spent(ledger))
        teachers = {role: open_teacher(model) for role, model in models.items()}
        with open_gateway(CompileGateway, ledger, recorder, teachers, seed=0) as gateway:
            yield gateway


def ask_text(lm: dspy.LM, text: str = "What is the tide?", **settings: Any) -> str:
    return str(lm(text, **settings)[0])


def outcome(ask: Callable[[], str]) -> Any:
    """What it returned, or the error that it raised."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001
        return error


def at_once(asks: Sequence[Callable[[], str]]) -> list[Any]:
    """Outcomes of all, each asked in a thread of its own at the same moment."""
    start = threading.Barrier(len(asks))

    def ask_at_start(ask: Callable[[], str]) -> Any:
        start.wait(PATIENCE)
        return outcome(ask)

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask_at_start, asks))


def calls(folder: Path) -> list[dict[str, Any]]:
    with Ledger.read(folder) as ledger:
        rows = ledger.db.execute("SELECT stage, item, outcome, cost, reserved FROM calls ORDER BY id")
        return [dict(zip(("stage", "item", "outcome", "cost", "reserved"), row, strict=True)) for row in rows]


class Answering(dspy.Signature):  # type: ignore[misc]
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def billed(server: SimulatedTeacher) -> int:
    """Picodollars that the server would charge for what it answered, by RATES."""
    stats = server.stats()
    return int(stats["billed_prompt_tokens"] * 10**6 + stats["billed_completion_tokens"] * 10**7)


def numbered(lm: dspy.LM, numbers: Iterable[int]) -> list[Callable[[], str]]:
    """Ways to ask a question for each number."""
    return [lambda n=n: ask_text(lm, f"What is {n}?") for n in numbers]  # type: ignore[misc]
