"""A teacher and a judge with a hidden preference: what prompt optimization has to find out.

The teacher is literal: whatever it writes carries the marks that its own instructions ask for, and no others. The judge
prefers answers, and instructions, with certain marks; it says in its reasons which are missing, as a real one would.
The model that rewrites prompts reads: it takes up wishes that its prompt speaks of (a judge's reason) or whose marks it
sees there (the references have them), and now and then makes one up. All are one engine at the seam of `dspy.LM`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

# A wish as a prompt would state it → the mark of a text that follows it.
ANSWER_WISHES = {
    "end with a one-line summary": "In short:",
    "number the steps": "1)",
    "give a worked example": "For instance,",
    "state the assumptions first": "Assuming that",
    "warn of the usual mistake": "Beware:",
    "name a source to read": "See also:",
    "compare two options": "On the other hand,",
    "define the key term": "By this is meant",
    "add a rule of thumb": "Rule of thumb:",
    "close with a question": "What would you try?",
    "give the numbers": "In figures:",
    "say who it is for": "Written for",
}
TASK_WISHES = {
    "set a length limit": "in at most",
    "name the audience": "for a reader who",
    "ask for a table": "as a table",
    "give a setting": "Imagine that",
    "ask for reasons": "giving reasons",
    "forbid jargon": "without jargon",
    "ask for two versions": "in two versions",
    "fix the tone": "in a calm tone",
    "give a deadline": "by tomorrow",
    "ask for a check": "and check it",
    "name a place": "in Lisbon",
    "ask for a title": "with a title",
}
WISHES = {**ANSWER_WISHES, **TASK_WISHES}
ADDED = "\nAlways "
OBEYS = 0.95
"""How often the teacher follows a wish that its instructions state."""


class Preference:
    """The hidden preference: wishes of answers and of tasks that the judge looks for."""

    def __init__(self, seed: int, answers: int = 3, tasks: int = 2) -> None:
        rng = random.Random(f"preference {seed}")
        self.answers = rng.sample(sorted(ANSWER_WISHES), answers)
        self.tasks = rng.sample(sorted(TASK_WISHES), tasks)

    def references(self, count: int) -> list[dict[str, str]]:
        """Reference pairs that have what the judge prefers."""
        return [
            {
                "instruction": f"Explain subject {n}, {', '.join(WISHES[wish] for wish in self.tasks)}.",
                "response": f"Subject {n} is so and so. {_marked(self.answers, n)}",
            }
            for n in range(count)
        ]


class World:
    """The engine of all three models. `requests` counts what it was asked."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens"})

    def __init__(self, preference: Preference) -> None:
        self.preference = preference
        self.requests = 0

    def __deepcopy__(self, memo: object) -> World:
        return self

    def complete(self, request: Request) -> Response:
        self.requests += 1
        system, asked = _text(request.system), "\n".join(_text(m.parts) for m in request.messages)
        rng = random.Random(sha256(f"{system}\0{asked}".encode()).digest())
        format_ = request.config.response_format or {}
        fields = list(format_["schema"]["properties"]) if format_ else []
        if not fields:
            text = self._rewritten(asked, rng)
        elif "verdict" in fields:
            text = json.dumps(self._compared(asked))
        elif "grade" in fields:
            text = json.dumps(self._graded(asked))
        else:
            text = json.dumps({name: self._written(name, system, asked, rng) for name in fields})
        usage = Usage(input_tokens=(len(system) + len(asked)) // 4, output_tokens=len(text) // 4)
        return Response(id="r", model="sim", message=Message.assistant(text), finish_reason="stop", usage=usage)

    @property
    def asynchronous(self) -> AsyncWorld:
        return AsyncWorld(self)

    # --- the teacher

    def _written(self, name: str, system: str, asked: str, rng: random.Random) -> Any:
        if name == "new_instructions":
            marks = [WISHES[wish] for wish in _obeyed(system, TASK_WISHES, rng)]
            return [_task(rng, marks) for _ in range(int(_tag(asked, "how_many") or 2))]
        if name in {"response", "improved_response"}:
            before = _tag(asked, "response") or f"Here is an answer on {rng.randrange(10**6)}."
            fresh = [wish for wish in _obeyed(system, ANSWER_WISHES, rng) if WISHES[wish] not in before]
            return f"{before} {_marked(fresh, rng.randrange(10**6))}".strip()
        if name == "analysis":
            return {
                "original_strengths": ["it is there"],
                "improvement_opportunities": ["some"],
                "relevant_feedback": [],
            }
        if name == "implementation_strategy":
            return {"planned_changes": ["what I was asked for"], "rationale": "I was asked for it"}
        if name.startswith("proposed") or "instruction" in name:
            return self._rewritten(asked, rng)
        return f"{name} of {_sample_of(asked)}"

    # --- the judge

    def _compared(self, asked: str) -> dict[str, str]:
        a, b = _tag(asked, "answer_a"), _tag(asked, "answer_b")
        lacks_a, lacks_b = self._lacking(a, self.preference.answers), self._lacking(b, self.preference.answers)
        difference = len(lacks_b) - len(lacks_a)
        verdict = {0: "A=B", 1: "A>B", -1: "B>A"}.get(difference, "A>>B" if difference > 0 else "B>>A")
        weaker = lacks_b if difference > 0 else lacks_a
        return {
            "reason": f"The weaker answer does not {' and does not '.join(weaker) or 'lack a thing'}.",
            "verdict": verdict,
        }

    def _graded(self, asked: str) -> dict[str, str]:
        text = _tag(asked, "text")
        wishes = self.preference.tasks if "new instruction" in _tag(asked, "context") else self.preference.answers
        lacking = self._lacking(text, wishes)
        grade = 1 + round(4 * (1 - len(lacking) / len(wishes)))
        return {"reason": f"It does not {' and does not '.join(lacking) or 'lack a thing'}.", "grade": str(grade)}

    @staticmethod
    def _lacking(text: str, wishes: Sequence[str]) -> list[str]:
        return [wish for wish in wishes if WISHES[wish] not in text]

    # --- the model that rewrites prompts

    def _rewritten(self, asked: str, rng: random.Random) -> str:
        """The prompt that stands in `asked`, with one or two wishes more, those that `asked` gives cause for first."""
        old = _current_prompt(asked)
        named = [wish for wish in WISHES if f"not {wish}" in asked and wish not in old]
        seen = [wish for wish, mark in WISHES.items() if mark in asked and wish not in old and wish not in named]
        invented = [wish for wish in WISHES if wish not in old]
        rng.shuffle(named)
        rng.shuffle(seen)
        chosen = (named or seen)[: rng.choice([1, 2, 3])] or [rng.choice(invented or sorted(WISHES))]
        new = old + "".join(f"{ADDED}{wish}." for wish in chosen)
        return f"```\n{new}\n```" if "```" in asked else new


class AsyncWorld:
    def __init__(self, world: World) -> None:
        self.world = world

    async def complete(self, request: Request) -> Response:
        return self.world.complete(request)


def model(world: World, temperature: float = 1.0) -> dspy.LM:
    """A `dspy.LM` on `world`."""
    return dspy.LM(
        "sim/world", engine=world, async_engine=world.asynchronous, num_retries=0, cache=False, temperature=temperature
    )


def _obeyed(system: str, wishes: dict[str, str], rng: random.Random) -> list[str]:
    return [wish for wish in wishes if wish in system and rng.random() < OBEYS]


def _marked(wishes: Sequence[str], number: int) -> str:
    return " ".join(f"{WISHES[wish]} point {number}." for wish in wishes)


def _task(rng: random.Random, marks: Sequence[str]) -> str:
    topics = ("tides", "rent", "bread", "bees", "tax", "chess", "sleep", "rust", "maps", "wine", "law", "soil")
    verbs = ("Describe", "Plan", "Compare", "Rewrite", "List", "Judge", "Teach", "Sum up")
    return f"{rng.choice(verbs)} {rng.choice(topics)} case {rng.randrange(10**6)}, {', '.join(marks) or 'please'}."


def _tag(text: str, name: str) -> str:
    """What the last message holds for one input."""
    start = text.rfind(f"<{name}>\n")
    end = text.find(f"\n</{name}>", start)
    return text[start + len(name) + 3 : end] if start >= 0 and end >= 0 else ""


def _current_prompt(asked: str) -> str:
    """The prompt to rewrite: between the first fences (GEPA), or what the tag `basic_instruction` holds (MIPROv2)."""
    if basic := _tag(asked, "basic_instruction"):
        return basic
    parts = asked.split("```")
    return parts[1].strip() if len(parts) > 2 else "Do the task."


def _sample_of(asked: str) -> str:
    """Some of what was read: a summary of data keeps the data's marks."""
    return " ".join(mark for mark in WISHES.values() if mark in asked) or "the task"


def _text(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    return "".join(str(getattr(piece, "text", "")) for piece in getattr(part, "parts", part))
