"""Prompts, starts of answering in this process or by the command, and readers of what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

import refed_dspy
from refed_dspy.plugins.evaluate.answers.result import Answers
from tests.support.scripted_engine import Answer, Writer


def prompts(count: int = 6) -> list[dict[str, Any]]:
    """Prompts as Arena-Hard has them."""
    return [{"uid": f"u{n}", "category": "hard_prompt", "prompt": f"  Name fish {n}.\n"} for n in range(1, count + 1)]


def answered(folder: Path, teacher: Any, rows: Any = None, **settings: Any) -> Answers:
    return refed_dspy.answer_prompts(prompts() if rows is None else rows, teacher=teacher, out=folder, **settings)


class Answering(Writer):
    """Answers with plain text: what `say` makes of the prompt."""

    def __init__(self, say: Callable[[str], Answer] = lambda text: f"Re: {text.strip()}") -> None:
        super().__init__()
        self.on_request = lambda request: say(asked(request))


def asked(request: Request) -> str:
    """The text of a request's only message."""
    (message,) = request.messages
    (part,) = message.parts
    return str(getattr(part, "text", ""))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
