"""The proxy of a judge at the simulated server, and other people's code that asks it: OpenAI's own client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from openai import AsyncOpenAI

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.evaluate.proxy import JudgeProxy, open_proxy
from refed_dspy.teachers.judge import open_judge_model
from tests.support.asking import row_job

T = TypeVar("T")
RATES = {"prompt": 1.0, "completion": 10.0}
"""Dollars a million tokens."""
VERDICT = {"logprobs": True, "top_logprobs": 5, "max_tokens": 1, "temperature": 1, "top_p": 1.0}
"""What AlpacaEval's code asks for."""


def judge(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "openai/judge", "api_base": server.base_url, "price": RATES, "max_tokens": 256, "timeout": 5}
    return TeacherConfig.model_validate({**values, "retries": 1, "concurrency": 8, **settings})


def work(config: Any, **caps: Any) -> Work:
    none = {"max_cost": None, "max_calls": None, "max_minutes": None}
    return Work(
        kind="evaluation",
        identity={"outputs": "some"},
        models={"judge": open_judge_model(config)},
        size=20,
        caps=CapSettings(**{**none, **caps}),  # type: ignore[typeddict-item]
    )


async def with_proxy(
    folder: Path, config: Any, code: Callable[[JudgeProxy], Coroutine[Any, Any, T]], **caps: Any
) -> tuple[T | None, str]:
    """What `code` returns while the proxy listens, and the cap that ended it."""
    done = None
    async with row_job(folder, work(config, **caps)) as session, open_proxy(session, "testing") as proxy:
        done = await proxy.during(code(proxy))
    return done, session.cap_reached.cap if session.cap_reached else ""


def client(proxy: JudgeProxy, **settings: Any) -> AsyncOpenAI:
    return AsyncOpenAI(**{"base_url": proxy.address, "api_key": proxy.token, "max_retries": 0, **settings})


async def ask(openai: AsyncOpenAI, text: str, **parameters: Any) -> Any:
    return await openai.chat.completions.create(
        model="judge", messages=[{"role": "user", "content": text}], **{**VERDICT, **parameters}
    )


async def ask_all(openai: AsyncOpenAI, texts: list[str], **parameters: Any) -> list[Any]:
    """The answer to each text, or the error."""
    return await asyncio.gather(*(ask(openai, text, **parameters) for text in texts), return_exceptions=True)


def asking(texts: list[str], **parameters: Any) -> Callable[[JudgeProxy], Coroutine[Any, Any, list[Any]]]:
    """Code that asks these texts at once."""

    async def code(proxy: JudgeProxy) -> list[Any]:
        async with client(proxy) as openai:
            return await ask_all(openai, texts, **parameters)

    return code


def bill(server: SimulatedTeacher) -> int:
    """What the server would charge, in picodollars."""
    stats = server.stats()
    prompt, completion = stats["billed_prompt_tokens"], stats["billed_completion_tokens"]
    return int(prompt * RATES["prompt"] * 1e6 + completion * RATES["completion"] * 1e6)


def calls(folder: Path) -> list[tuple[str, int]]:
    """Outcome and cost of each call in the ledger."""
    with Ledger.read(folder) as ledger:
        return [(str(outcome), int(cost)) for outcome, cost in ledger.db.execute("SELECT outcome, cost FROM calls")]
