"""A simulated teacher and judge with a hidden preference, for prompt optimization to discover.

The teacher is literal: what it writes carries the marks that its own instructions ask for, and no others. The judge
prefers answers, and instructions, with certain marks and without any others; like a real one, it says in its reasons
which are missing and which are not wanted. The model that rewrites prompts sees only its input: it takes up most of
what a judge's reason asks for, or else some of the marks that it sees in the data (the references have the preferred
ones), and now and then it makes up a wish. All three are one engine behind `dspy.LM`; only the judge knows the
preference.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

PLACES = {
    "open with": "To open",
    "go on with": "To go on",
    "interrupt for": "In between",
    "repeat": "Twice",
    "underline": "Underlined",
    "end with": "To end",
}
OF_ANSWERS = (
    "a summary", "a warning", "a worked example", "the assumptions", "a source", "a rule of thumb",
    "a question", "the figures", "a definition", "a comparison", "the steps", "a counterexample",
    "a quotation", "an analogy", "the history", "an objection",
)  # fmt: skip
OF_TASKS = (
    "the audience", "a length limit", "the form", "a setting", "the motive", "a tone",
    "a deadline", "a check", "the place", "a title", "the materials", "banned words",
    "a role", "a budget", "the language", "a rival",
)  # fmt: skip


def _wishes(things: Sequence[str]) -> dict[str, str]:
    return {f"{wish} {thing}": f"{mark}, {thing}:" for wish, mark in PLACES.items() for thing in things}


# A wish, as a prompt would state it → the mark of a text that follows it.
ANSWER_WISHES, TASK_WISHES = _wishes(OF_ANSWERS), _wishes(OF_TASKS)
WISHES = {**ANSWER_WISHES, **TASK_WISHES}
ADDED = "\nAlways "
MISSING, NEEDLESS = "does not ", "need not "
"""How the judge's reasons introduce a wish that is not followed, and one that should not be."""
NAMED = 5
"""The most faults that one reason names."""
OBEYS = 0.95
"""How often the teacher follows a wish that its instructions state."""
HEEDS, NOTICES, RETELLS, INVENTS = 0.8, 0.7, 0.95, 0.25
"""How often the model that rewrites prompts acts on a reason, takes up a mark that it sees, keeps one in a summary of
data, and makes up a wish."""
LENGTHS = 30, 90
"""How many words an answer has, its marks aside: as a real teacher's, lengths vary more than any prompt shifts them."""
PROSE = (
    "tide rent bread bee tax chess sleep rust map wine law soil river clock paper glass salt rope engine garden "
    "bridge market school winter harbour letter mirror candle forest metal sugar cotton island valley thunder copper "
    "pepper saddle ladder pillow basket hammer violin compass lantern anchor feather granite orchard meadow"
)
WORDS = PROSE.split()


class Preference:
    """The hidden preference: wishes of answers and of tasks that the judge looks for."""

    def __init__(self, seed: int, answers: int = 3, tasks: int = 3) -> None:
        rng = random.Random(f"preference {seed}")
        self.answers = rng.sample(sorted(ANSWER_WISHES), answers)
        self.tasks = rng.sample(sorted(TASK_WISHES), tasks)

    def references(self, count: int) -> list[dict[str, str]]:
        """Reference pairs that have what the judge prefers."""
        rng = random.Random("references")
        return [
            {
                "instruction": _task(rng, [WISHES[wish] for wish in self.tasks]),
                "response": _prose(rng, 40, [WISHES[wish] for wish in self.answers]),
            }
            for _ in range(count)
        ]

    def lacking(self, text: str, of_task: bool) -> list[str]:
        """The preferred wishes that `text` does not follow."""
        return [wish for wish in (self.tasks if of_task else self.answers) if WISHES[wish] not in text]

    def needless(self, text: str, of_task: bool) -> list[str]:
        """The wishes that `text` follows although the preference does not have them."""
        wishes, wanted = (TASK_WISHES, self.tasks) if of_task else (ANSWER_WISHES, self.answers)
        return [wish for wish, mark in wishes.items() if mark in text and wish not in wanted]

    def faults(self, text: str, of_task: bool) -> list[str]:
        """The judge's complaints about `text`."""
        lacking, needless = self.lacking(text, of_task), self.needless(text, of_task)
        return [f"{MISSING}{wish}" for wish in lacking] + [f"{NEEDLESS}{wish}" for wish in needless]


class World:
    """The engine of all three models. `requests` counts its calls."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens"})

    def __init__(self, preference: Preference) -> None:
        self.preference = preference
        self.requests = 0
        self._asked: defaultdict[str, int] = defaultdict(int)

    def __deepcopy__(self, memo: object) -> World:
        return self

    def complete(self, request: Request) -> Response:
        """Answer a request. The same question gets the same answer, unless it is asked again above temperature 0."""
        self.requests += 1
        system, asked = _text(request.system), "\n".join(_text(m.parts) for m in request.messages)
        key = sha256(f"{system}\0{asked}".encode()).hexdigest()
        self._asked[key] += 1
        rng = random.Random(f"{key} {self._asked[key] if request.config.temperature else 1}")
        fields = ((request.config.response_format or {}).get("schema") or {}).get("properties", {})
        if "verdict" in fields:
            output: dict[str, Any] = self._compared(asked)
        elif "grade" in fields:
            output = self._graded(asked)
        else:
            output = {name: self._written(name, system, asked, rng) for name in fields}
        text = json.dumps(output) if fields else "I answer nothing but schemas."
        usage = Usage(input_tokens=(len(system) + len(asked)) // 4, output_tokens=len(text) // 4)
        return Response(id="r", model="sim", message=Message.assistant(text), finish_reason="stop", usage=usage)

    @property
    def asynchronous(self) -> AsyncWorld:
        return AsyncWorld(self)

    def _written(self, name: str, system: str, asked: str, rng: random.Random) -> Any:
        """One field of an answer of the teacher or of the model that rewrites prompts."""
        if name in {"new_instruction", "proposed_instruction"}:
            return rewritten(asked, rng)
        if name == "new_instructions":
            count = int(_tag(asked, "how_many") or 2)
            return [_task(rng, [WISHES[wish] for wish in _obeyed(system, TASK_WISHES, rng)]) for _ in range(count)]
        if name == "response":
            marks = [WISHES[wish] for wish in _obeyed(system, ANSWER_WISHES, rng)]
            return _prose(rng, rng.randint(*LENGTHS), marks)
        if name == "improved_response":
            before = _tag(asked, "response")
            marks = [WISHES[wish] for wish in _obeyed(system, ANSWER_WISHES, rng)]
            return " ".join([before, *(_marked(rng, mark) for mark in marks if mark not in before)])
        if name == "analysis":
            return {"original_strengths": ["a"], "improvement_opportunities": ["b"], "relevant_feedback": []}
        if name == "implementation_strategy":
            return {"planned_changes": ["what I was asked for"], "rationale": "I was asked for it"}
        retold = [mark for mark in WISHES.values() if mark in asked and rng.random() < RETELLS]
        return f"It speaks of {rng.choice(WORDS)}. {' '.join(retold)}"

    # --- the judge

    def _compared(self, asked: str) -> dict[str, str]:
        faults_a, faults_b = (self.preference.faults(_tag(asked, f"answer_{x}"), of_task=False) for x in "ab")
        ahead = len(faults_b) - len(faults_a)
        verdict = {0: "A=B", 1: "A>B", -1: "B>A"}.get(ahead, "A>>B" if ahead > 0 else "B>>A")
        return {"reason": f"The weaker answer {_listed(faults_b if ahead > 0 else faults_a)}.", "verdict": verdict}

    def _graded(self, asked: str) -> dict[str, str]:
        of_task = "new instruction" in _tag(asked, "context")
        faults = self.preference.faults(_tag(asked, "text"), of_task)
        wanted = len(self.preference.tasks if of_task else self.preference.answers)
        return {"reason": f"It {_listed(faults)}.", "grade": str(max(1, round(5 - 4 * len(faults) / wanted)))}


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


# --- the model that rewrites prompts: it knows its input and the words for wishes


def rewritten(asked: str, rng: random.Random) -> str:
    """The prompt in `asked`, with the wishes added that `asked` gives reason for, and those it objects to removed."""
    prompt = current_prompt(asked)
    for wish in WISHES:
        if f"{NEEDLESS}{wish}" in asked and rng.random() < HEEDS:
            prompt = prompt.replace(f"{ADDED}{wish}.", "")
    new = [wish for wish in WISHES if wish not in prompt]
    named = [wish for wish in new if f"{MISSING}{wish}" in asked]
    seen = [wish for wish in new if WISHES[wish] in asked and f"{NEEDLESS}{wish}" not in asked]
    chosen = [wish for wish in named or seen if rng.random() < (HEEDS if named else NOTICES)]
    if rng.random() < INVENTS:
        chosen.append(rng.choice(new))
    return prompt + "".join(f"{ADDED}{wish}." for wish in dict.fromkeys(chosen))


def current_prompt(asked: str) -> str:
    """The prompt to rewrite, as GEPA and as MIPROv2 (through this package's adapter) show it."""
    head, tail = "[[ ## current_instruction ## ]]\n", "\n\n[[ ## examples_with_feedback ## ]]"
    if head in asked and tail in asked:
        return asked.split(head, 1)[1].split(tail, 1)[0]
    return _tag(asked, "basic_instruction") or "Do the task."


# --- the teacher's prose


def _obeyed(system: str, wishes: dict[str, str], rng: random.Random) -> list[str]:
    return [wish for wish in wishes if f"{wish}." in system and rng.random() < OBEYS]


def _task(rng: random.Random, marks: Sequence[str]) -> str:
    verb = rng.choice(("Describe", "Plan", "Compare", "Rewrite", "List", "Judge", "Teach", "Invent"))
    return f"{verb} {_prose(rng, 20, marks)}"


def _prose(rng: random.Random, words: int, marks: Sequence[str]) -> str:
    text = " ".join(rng.choice(WORDS) for _ in range(words))
    return " ".join([f"{text}.", *(_marked(rng, mark) for mark in marks)])


def _marked(rng: random.Random, mark: str) -> str:
    return f"{mark} {rng.choice(WORDS)} {rng.choice(WORDS)}."


# --- reading messages


def _listed(faults: Sequence[str]) -> str:
    return " and ".join(faults[:NAMED]) or "lacks nothing"


def _tag(text: str, name: str) -> str:
    """The value of one input, from the last message that has it."""
    start = text.rfind(f"<{name}>\n")
    end = text.find("\n</>", start)
    return text[start + len(name) + 3 : end] if start >= 0 and end >= 0 else ""


def _text(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    return "".join(str(getattr(piece, "text", "")) for piece in getattr(part, "parts", part))
