"""The simulated model: it answers requests in this process, as an endpoint would, by their schema and field names.

What it writes is put together from phrases, and says that it is simulated. There are enough phrases that near-duplicate
filters keep most of the rows.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from dspy.lm15 import Message, Request, Response, RouterConfig, TokenLogprob, TopLogprob, Usage

from refed_dspy.ledger.history import SIMULATED
from refed_dspy.teachers.requests import words_in
from refed_dspy.teachers.route import Route

_INPUT = re.compile(
    r"^<(\w+)>\n(.*?)\n</>|^\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with |\Z)", re.DOTALL | re.MULTILINE
)
"""An input as this package's adapter shows it, or as DSPy's own do."""
_ASKED_FOR = "\n\nRespond with the corresponding output fields"
_FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]")
_NOTE = re.compile(r"^\{(\w+)\} +# note: [^{\n]*?(?:one of: (.+)|JSON schema: (\{.*\}))$", re.MULTILINE)
"""What DSPy's ChatAdapter says of a field that is no text: its choices, or its schema."""
_DEEP = 5
"""Nesting from which lists are empty and optional fields left out, so that recursive schemas end."""
_VERDICTS = ((1.5, "A>>B"), (0.5, "A>B"), (-0.5, "A=B"), (-1.5, "B>A"), (-math.inf, "B>>A"))
_LABEL = re.compile(r"\[\[[A-Z<>=]{1,6}\]\]")
"""A verdict as judges of free text are asked for it."""
Inputs = Mapping[str, str]


class SimulatedRoute(Route):
    """The route to the simulated model, which is in this process."""

    def async_lm(self, transport: Any) -> SimulatedModel:  # noqa: ARG002 — nothing is sent
        return SimulatedModel()


ROUTE = SimulatedRoute(SIMULATED, SIMULATED, SIMULATED, RouterConfig(), (), "bounded", None)


class SimulatedModel:
    """Answers a request with texts from the phrases below. Equal requests with equal seeds get equal answers."""

    async def complete(self, request: Request) -> Response:
        """A fitting answer: JSON where the request has a schema, else prose."""
        await asyncio.sleep(0)  # as at an endpoint, others' turns come in between
        system, asked = words_in(request.system), "\n".join(map(words_in, request.messages))
        seed = (request.config.extensions or {}).get("seed", 0)
        rng = random.Random(sha256(f"{seed}\0{system}\0{asked}".encode("utf-8", "surrogatepass")).digest())
        schema = (request.config.response_format or {}).get("schema")
        inputs = inputs_of(words_in(request.messages[-1]))
        if request.config.logprobs is not None:
            return _verdict(rng, _tokens(system + asked))
        if schema:
            text = json.dumps(_Answer(rng, schema, inputs).value(schema))
        else:
            text = _in_fields(rng, system, asked) or _prose(rng, asked) + _label(rng, system)
        usage = Usage(input_tokens=_tokens(system + asked), output_tokens=_tokens(text))
        return Response(
            id=SIMULATED, model=SIMULATED, message=Message.assistant(text), finish_reason="stop", usage=usage
        )


def inputs_of(message: str) -> Inputs:
    """The inputs that a message shows: name → text."""
    return {name or other: text or more for name, text, other, more in _INPUT.findall(message)}


class _Answer:
    """One answer: values for a JSON `schema`, by the names of their fields."""

    def __init__(self, rng: random.Random, schema: Mapping[str, Any], inputs: Inputs) -> None:
        self.rng, self.root, self.inputs = rng, schema, inputs

    def value(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """A value of the field `name`, `depth` levels down, that fits its schema."""
        schema = self._resolved(schema)
        if options := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
            return self._chosen(name, options)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        writers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, depth),
            "array": lambda: self._list(schema, name, depth),
            "integer": lambda: math.ceil(self._number(schema)),
            "number": lambda: self._number(schema),
            "boolean": lambda: self.rng.random() < 0.5,
            "null": lambda: None,
        }
        return writers[kind]() if kind in writers else self._text(name)[: schema.get("maxLength")]

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """`schema` without references and choices: the first of several."""
        while "$ref" in schema or "anyOf" in schema or "allOf" in schema:
            if "$ref" not in schema:
                schema = (schema.get("anyOf") or schema["allOf"])[0]
                continue
            steps, schema = schema["$ref"].split("/")[1:], self.root
            for step in steps:
                schema = schema[step]
        resolved: Mapping[str, Any] = schema
        return resolved

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        needed = schema.get("required", ())
        fields = {name: part for name, part in schema.get("properties", {}).items() if depth < _DEEP or name in needed}
        return {name: self.value(part, name, depth + 1) for name, part in fields.items()}

    def _list(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        asked = self.inputs.get("how_many", "")
        count = int(asked) if name == "new_instructions" and asked.isdecimal() else 2 if depth < _DEEP else 0
        if name == "criteria":
            count = 5
        if name == "met":
            count = self.inputs.get("criteria", "").count("Simulated criterion")
        count = max(schema.get("minItems", 0), min(count, schema.get("maxItems", count)))
        return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(count)]

    def _number(self, schema: Mapping[str, Any]) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
        return float(self.rng.uniform(low, high))

    def _chosen(self, name: str, options: list[Any]) -> Any:
        """One of the `options`; as a verdict or a grade, what the texts' quality says."""
        if name == "verdict" and "answer_a" in self.inputs:
            ahead = _quality(self.rng, self.inputs["answer_a"]) - _quality(self.rng, self.inputs["answer_b"])
            verdict = next(verdict for least, verdict in _VERDICTS if ahead >= least)
            return verdict if verdict in options else self.rng.choice(options)
        if name == "grade" and "text" in self.inputs:
            grade = str(max(1, min(5, round(3 + _quality(self.rng, self.inputs["text"])))))
            return grade if grade in options else self.rng.choice(options)
        return self.rng.choice(options)

    def _text(self, name: str) -> str:
        prompt = self.inputs.get("current_instruction") or self.inputs.get("basic_instruction")
        if name in {"new_instruction", "proposed_instruction"} and prompt:
            return f"{prompt}\n{_note(self.rng, 'advice')}"
        if name in {"new_instruction", "new_instructions"}:
            return _instruction(self.rng)
        instruction = self.inputs.get("instruction", "")
        if name in {"improved_response", "better_response"}:
            return _improved(self.rng, self.inputs.get("response", ""), instruction)
        if name in {"response", "new_response", "answer"}:
            return _response(self.rng, instruction)
        return _note(self.rng, name)


def _in_fields(rng: random.Random, system: str, asked: str) -> str:
    """An answer in the fields that DSPy's ChatAdapter asks for; empty where no fields are asked for."""
    before, wanted, names = asked.rpartition(_ASKED_FOR)
    if not wanted:
        return ""
    notes = {
        name: {"enum": either.split("; ")} if either else json.loads(schema)
        for name, either, schema in _NOTE.findall(system)
    }
    inputs, sections = inputs_of(before), []
    for name in _FIELD.findall(names):
        schema = notes.get(name, {"type": "string"})
        value = _Answer(rng, schema, inputs).value(schema, name)
        sections.append(f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}")
    return "\n\n".join(sections[:-1])  # the last is the marker of the end


def _verdict(rng: random.Random, read: int) -> Response:
    """A verdict in one token, as AlpacaEval's code asks for one, with the probabilities of both."""
    chance = rng.uniform(0.05, 0.95)
    ranked = sorted(((chance, "m"), (1 - chance, "M")), reverse=True)
    top = tuple(TopLogprob(token=token, logprob=math.log(share)) for share, token in ranked)
    token = TokenLogprob(token=top[0].token, logprob=top[0].logprob, top=top)
    return Response(
        id=SIMULATED, model=SIMULATED, message=Message.assistant(token.token), finish_reason="stop", logprobs=(token,),
        usage=Usage(input_tokens=read, output_tokens=1),
    )  # fmt: skip


def _label(rng: random.Random, system: str) -> str:
    """One of the labels that a judge is told to choose from; empty where there are none."""
    labels = sorted({*_LABEL.findall(system)})
    return f"\n\n{rng.choice(labels)}" if labels else ""


def _prose(rng: random.Random, asked: str) -> str:
    """An answer to a request without a schema; in a fence where it asks for one, as GEPA's does."""
    text = _response(rng, asked)
    return f"```\n{text}\n```" if "```" in asked else text


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)


TOPICS = (
    "tide tables", "bicycle brakes", "sourdough starters", "a shared kitchen", "night trains", "a leaking roof",
    "school timetables", "bee hives", "small claims", "the price of bread", "home insurance", "garden soil",
    "a choir rehearsal", "street markets", "a broken heater", "museum tickets", "bird migration", "a village library",
    "chess openings", "winter tyres", "water bills", "a family recipe", "a museum audio guide", "map reading",
    "a first marathon", "power cuts", "second-hand cameras", "a wedding speech", "allergy labels", "a compost heap",
    "railway bridges", "house plants", "a rental contract", "a shift rota", "old photographs", "the history of salt",
    "a board game night", "river floods", "a science fair", "mountain huts", "spreadsheet errors", "a noisy neighbour",
    "public transport", "a lost parcel", "voice recordings", "a local election", "knitting patterns", "a job interview",
)  # fmt: skip
READERS = (
    "a new volunteer", "a busy parent", "a retired engineer", "a first-year student", "a shop owner", "a night nurse",
    "a school class", "a town council", "a tired manager", "a young cook", "a visiting friend", "a careful buyer",
    "a local reporter", "a team of four", "a sceptical uncle", "a sports club", "a landlord", "a beginner",
)  # fmt: skip
TASKS = (
    "Explain the basics of {topic} to {reader}", "Write a short guide to {topic} that {reader} can follow",
    "List what {reader} should check first about {topic}", "Compare two ways for {reader} to deal with {topic}",
    "Plan one week in which {reader} learns about {topic}", "Draft a letter from {reader} about {topic}",
    "Describe a typical mistake of {reader} in matters of {topic}", "Give {reader} five questions to ask about {topic}",
    "Settle an argument about {topic} on behalf of {reader}", "Teach {reader} the vocabulary of {topic}",
    "Estimate for {reader} the yearly cost of {topic}", "Make {topic} the subject of a lesson for {reader}",
    "Tell {reader} what has changed about {topic} lately", "Advise {reader} on {topic} from the very beginning",
)  # fmt: skip
SETTINGS = (
    "There is no money to spend.", "Half of the time has passed already.", "Nobody else can help.",
    "The last attempt failed for lack of notes.", "It has to be ready by Friday.", "Two people disagree about the aim.",
    "Only a phone is at hand.", "The weather may change the plan.", "An inspector will read it.",
    "Most advice on this is out of date.", "A child will listen in.", "The first meeting is tomorrow morning.",
    "Tools have to be borrowed.", "The room holds twenty.", "It will be read aloud.", "Mistakes would be expensive.",
)  # fmt: skip
LIMITS = (
    "Stay under 150 words.", "Begin with what matters most.", "Use no technical terms.", "Number the steps.",
    "End with one thing to do today.", "Mention at least one risk.", "Keep a friendly tone.",
    "Give a figure wherever you can.", "Leave out the history.", "Say what you are unsure of.", "Use short sentences.",
    "Add a table with three rows.", "Name one exception.", "Do not repeat the question.", "Suggest a cheaper way, too.",
)  # fmt: skip
CLAIMS = (
    "With {topic} the order of the steps decides most of it.", "Start with what can be seen without any tools.",
    "About {n} cases in a hundred need more than that.", "Write down what you find before you change anything.",
    "The usual estimate is {n} minutes, and it is too low.", "A second look after {n} days shows what was missed.",
    "Most trouble with {topic} comes from a step that was left out.", "Ask who is affected, and tell them early.",
    "Keep one thing the same while you change another.", "If two sources differ, take the newer one.",
    "A rough sketch is worth more than a long list here.", "What looks expensive at first often saves {n} hours later.",
    "Set a limit of {n} for the first attempt.", "Old habits are the hardest part of {topic}.",
    "Nothing has to be perfect in the first round.", "Put the result where others will find it.",
    "Leave some room for surprises, say {n} per cent.", "Check the small print; it changes every few years.",
    "One person should have the last word.", "Compare it with last year before you decide.",
    "Good light and a quiet hour help more than equipment.", "Try it on something that does not matter first.",
    "Stop when a further step would change nothing.", "The cheapest part fails first, so keep {n} spare ones.",
)  # fmt: skip
BETTER = (
    "For example, a group of {n} began with {topic} and was done in one afternoon.",
    "Because each step rests on the one before it, do not skip the second.",
    "1. Look at what is there. 2. Choose one change. 3. Check it after {n} days.",
    "In short: look first, change one thing, and check the result.",
    "One exception: where safety is at stake, ask an expert before you touch {topic}.",
    "To see whether it worked, count how often the problem comes back in {n} weeks.",
)  # fmt: skip
"""What an improvement adds, and the simulated judge looks for."""
NOTES = (
    "each step says why it comes where it does", "the reader learns early what the answer will be",
    "a concrete example would make the main point clearer", "the length fits what was asked",
    "the limits of the advice are named", "terms are explained where they first occur",
    "the tone suits the reader", "the last sentence says what to do next",
)  # fmt: skip
_TOPIC = re.compile("|".join(map(re.escape, TOPICS)))
_NUMBERED = {re.compile(re.escape(phrase.split("{")[0].strip())): phrase for phrase in BETTER}
NOISE = 0.8
"""Standard deviation of the simulated judge's error, in points of which each phrase of BETTER is worth one."""


def _instruction(rng: random.Random) -> str:
    """A new instruction."""
    task = rng.choice(TASKS).format(topic=rng.choice(TOPICS), reader=rng.choice(READERS))
    return f"Simulated task {rng.randrange(10**6)}: {task}. {rng.choice(SETTINGS)} {rng.choice(LIMITS)}"


def _response(rng: random.Random, asked: str) -> str:
    """A response to the instruction `asked`."""
    claims = rng.sample(CLAIMS, rng.randint(3, 6))
    added = rng.sample(BETTER, rng.choice((0, 0, 1)))
    return " ".join(["This answer is simulated.", *_filled(rng, [*claims, *added], _topic(asked))])


def _improved(rng: random.Random, before: str, asked: str) -> str:
    """`before` with more of what the judge looks for, under a heading, and one sentence less if it has several."""
    sentences = re.split(r"(?<=[a-z][.!?]) ", before)
    if len(sentences) > 3:
        del sentences[rng.randrange(1, len(sentences) - 1)]
    lacking = [phrase for start, phrase in _NUMBERED.items() if not start.search(before)]
    added = _filled(rng, rng.sample(lacking, min(len(lacking), rng.randint(1, 3))), _topic(asked))
    return "\n\n".join([" ".join(sentences), *added])


def _quality(rng: random.Random, text: str) -> float:
    """What the simulated judge thinks of `text`: a point for each phrase that an improvement adds, and noise."""
    return sum(start.search(text) is not None for start in _NUMBERED) + rng.gauss(0, NOISE)


def _note(rng: random.Random, field: str) -> str:
    """A remark, for the field of this name."""
    return f"Simulated {field.replace('_', ' ')}: {rng.choice(NOTES)}."


def _topic(asked: str) -> str:
    found = _TOPIC.search(asked)
    return found.group() if found else "the matter"


def _filled(rng: random.Random, phrases: list[str], topic: str) -> list[str]:
    return [phrase.format(topic=topic, n=rng.randint(3, 40)) for phrase in phrases]
