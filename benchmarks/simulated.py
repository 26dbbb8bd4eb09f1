"""The simulated teacher seen from outside, and the text that it writes.

`SimulatedTeacher` starts `benchmarks.server` as its own process and talks to its control endpoints, which
take `Settings`. `Chat`, `Draw`, `SchemaWriter` and `write` serve the server: they read a request and write
values that fit its JSON schema, in plain words.
"""

from __future__ import annotations

import http.client
import math
import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

WORDS = """
about above account across action after again agree allow alone amount animal answer apple arrive autumn
balance basket before begin below between border bottle branch bread bridge bright brother build butter
camera candle carry castle center change choose circle clear climb cloud coast color common copper corner
count cover create cross dance decide deep design detail dinner doctor double dream early earth eight engine
enough evening every explain family farmer field figure finger finish flower follow forest forty friend
garden gather gentle glass grain green ground handle happen harbor heavy helper history honest house hundred
island jacket journey kitchen ladder larger leader lesson letter level light listen little longer machine
market matter measure member metal middle minute mirror modern moment month morning mountain music narrow
nature needle never north number object ocean office orange order outside paper parent pencil people picture
place planet plenty pocket point potato power present problem proper question quick quiet rather reason
record remain repair river round sample school season second shadow shape sharp silver simple single sister
small smooth soften south spring square station steady stone story street strong sugar summer supper table
teacher thing third thought through ticket timber today toward travel twenty under useful valley village
visit voice wagon water weather welcome whole window winter wonder wooden yellow young
""".split()  # noqa: SIM905
# Text is put together from ready phrases of eight words: far cheaper than a draw for every word. They are
# few enough to stay in the processor's cache.
_phrase_rng = random.Random(1)
PHRASES = [" ".join(_phrase_rng.sample(WORDS, 8)) for _ in range(1024)]
DEEP = 5  # nesting from which optional parts of a schema are left out, so that recursive schemas end

FAULTS = ("429", "500", "malformed", "cut", "drop", "hang", "refusal", "empty")
OPTIONAL = ("retry_after", "limit_per_minute", "limit_burst", "auth_fails_after", "down_after", "fail_stage")
WHOLE = ("items", "seed", "response_words", "auth_fails_after", "down_after")

Make = Callable[["Draw", int], Any]


@dataclass
class Settings:
    """What POST /control can set; null turns an optional one off.

    latency (s) is the median of a lognormal whose logarithm has deviation sigma, so its mean is
    latency * exp(sigma**2 / 2). duplicates and the faults are shares in 0..1 (see `FAULTS`). limit_burst is
    the size of the bucket in requests (null: a minute's worth). The `_after` counts are of answered requests
    since the last reset. A new seed starts the generators of latency, faults and text afresh.
    """

    latency: float = 0.2
    sigma: float = 0.5
    items: int = 10
    seed: int = 0
    response_words: int = 40
    duplicates: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    retry_after: float | None = None
    limit_per_minute: float | None = None
    limit_burst: float | None = None
    auth_fails_after: int | None = None
    down_after: int | None = None
    fail_stage: str | None = None

    def update(self, changes: Any) -> None:
        """Take over every change, or none: ValueError says which one is wrong."""
        if not isinstance(changes, dict):
            raise ValueError("the body must be a JSON object of settings")
        for name, value in changes.items():
            if name not in vars(self):
                raise ValueError(f"{name} is not a setting; use one of {', '.join(vars(self))}")
            if value is None and name in OPTIONAL:
                continue
            if name == "faults":
                good = isinstance(value, dict) and all(k in FAULTS and _share(v) for k, v in value.items())
                good = good and sum(value.values()) <= 1 + 1e-9
            elif name == "fail_stage":
                good = isinstance(value, str) and value != ""
            else:
                good = _share(value, 1 if name == "duplicates" else math.inf)
                good = good and (isinstance(value, int) or name not in WHOLE)
            if not good:
                raise ValueError(f"{name} cannot be {value!r}; see benchmarks.simulated.Settings")
        vars(self).update(changes)


def _share(value: Any, top: float = 1.0) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= top


class Draw:
    """What one answer is written from: a generator (shared, seeded here), the settings in force, and the
    numbers (each written behind `tag`) that the items of new_instructions get."""

    rng = random.Random()

    def __init__(self, seed: int, settings: Settings, serial: Iterator[int], tag: str = "") -> None:
        self.rng.seed(seed)
        self.settings = settings
        self.serial = serial
        self.tag = tag
        self.label = ""
        phrases, self.words = divmod(settings.response_words, 8)
        self.shifts = range(0, 10 * phrases, 10)

    def text(self, least: int = 0, most: int = sys.maxsize) -> str:
        """response_words plain words (behind the label, in a numbered item), least..most characters."""
        bits = self.rng.getrandbits(self.shifts.stop)
        parts = [PHRASES[bits >> shift & 1023] for shift in self.shifts]
        if self.words:
            parts += self.rng.choices(WORDS, k=self.words)
        text = self.label + " ".join(parts)
        return text if least <= len(text) <= most else text[:most].rstrip().ljust(least, "x")

    def numbered(self, one: Make, depth: int, earlier: deque[Any]) -> list[Any]:
        """Exactly `items` values, whatever minItems and maxItems say: each with a number of its own, save the
        share that repeats an earlier one."""
        made: list[Any] = []
        for _ in range(self.settings.items):
            if earlier and self.settings.duplicates and self.rng.random() < self.settings.duplicates:
                made.append(self.rng.choice(earlier))
                continue
            self.label = f"Task {self.tag}{next(self.serial)}: "
            made.append(one(self, depth + 1))
            self.label = ""
            earlier.append(made[-1])
        return made


class SchemaWriter:
    """Turns a JSON schema into a function that writes a value which fits it.

    Read: $ref, const, enum, anyOf, oneOf, allOf (its first part), type, properties, required,
    additionalProperties, items, minItems, maxItems, minLength, maxLength and the bounds of numbers.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.refs: dict[tuple[str, bool], Make] = {}

    def build(self, schema: Any, numbered: bool = False) -> Make:
        """The writer of one (sub)schema; KeyError, TypeError or ValueError for one that makes no sense."""
        if not isinstance(schema, dict):
            schema = {}
        if "$ref" in schema:
            return self.reference(schema["$ref"], numbered)
        if "const" in schema or "enum" in schema:
            known = schema.get("enum") or [schema["const"]]
            return lambda draw, _: draw.rng.choice(known)
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf", [])[:1]
        if isinstance(kind, list) and not options:
            options = [{**schema, "type": one} for one in kind]
        if options:
            return self.either(options, numbered)
        if kind == "array":
            return self.array(schema, numbered)
        kinds = {"object": self.object, "string": self.string, "integer": self.number, "number": self.number}
        if kind in kinds:
            return kinds[kind](schema)
        simple: dict[str, list[bool | None]] = {"boolean": [True, False], "null": [None]}
        values = simple[kind]
        return lambda draw, _: draw.rng.choice(values)

    def reference(self, pointer: str, numbered: bool) -> Make:
        key = (pointer, numbered)
        if key not in self.refs:
            node: Any = self.root
            for step in pointer.split("/")[1:]:
                node = node[step.replace("~1", "/").replace("~0", "~")]
            self.refs[key] = lambda *_: None  # holds the place while a recursive schema is walked
            self.refs[key] = self.build(node, numbered)
        return lambda draw, depth: self.refs[key](draw, depth)

    def either(self, options: list[Any], numbered: bool) -> Make:
        if numbered:
            options = [one for one in options if one.get("type") == "array"] or options
        makes = [self.build(one, numbered) for one in options]
        nested = ("$ref" in one or one.get("type") in ("object", "array") for one in options)
        flat = [make for make, deep in zip(makes, nested, strict=True) if not deep] or makes
        return lambda draw, depth: draw.rng.choice(makes if depth < DEEP else flat)(draw, depth)

    def object(self, schema: dict[str, Any]) -> Make:
        properties = schema.get("properties", {})
        makes = {key: self.build(sub, key == "new_instructions") for key, sub in properties.items()}
        needed = {key: make for key, make in makes.items() if key in schema.get("required", ())}
        other = schema.get("additionalProperties")
        if not makes and isinstance(other, dict):
            value = self.build(other)
            return lambda draw, depth: {key: value(draw, depth + 1) for key in draw.rng.sample(WORDS, 2)}
        return lambda draw, depth: {
            key: make(draw, depth + 1) for key, make in (makes if depth < DEEP else needed).items()
        }

    def array(self, schema: dict[str, Any], numbered: bool) -> Make:
        one = self.build(schema.get("items"))
        if numbered:
            earlier: deque[Any] = deque(maxlen=256)
            return lambda draw, depth: draw.numbered(one, depth, earlier)
        least = schema.get("minItems", 0)
        many = max(least, min(2, schema.get("maxItems", 2)))
        return lambda draw, depth: [one(draw, depth + 1) for _ in range(many if depth < DEEP else least)]

    def string(self, schema: dict[str, Any]) -> Make:
        least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", sys.maxsize))
        return lambda draw, _: draw.text(least, most)

    def number(self, schema: dict[str, Any]) -> Make:
        whole = schema["type"] == "integer"
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + whole)
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - whole)
        low = low if low > -math.inf else min(0, high - 100)
        high = high if high < math.inf else low + 100
        if whole:
            return lambda draw, _: draw.rng.randint(math.ceil(low), math.floor(high))
        return lambda draw, _: low + (high - low) * (0.01 + 0.98 * draw.rng.random())  # never on a bound


class Chat:
    """One chat request as read: ValueError when the body is not one that can be answered."""

    def __init__(self, raw: bytes) -> None:
        body = orjson.loads(raw)
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise ValueError("the body must be a JSON object with a list of messages")
        if body.get("stream") or (body.get("n") or 1) != 1:
            raise ValueError("the simulated server knows no stream and no n above 1")
        self.model = str(body.get("model") or "sim-model")
        self.fixed = body.get("temperature") == 0
        self.digest = blake2b(orjson.dumps(messages), digest_size=16).digest()
        texts = [_text(one.get("content")) for one in messages]
        self.text = "".join(texts)
        roles = [one.get("role") for one in messages]
        self.system = "".join(t for t, r in zip(texts, roles, strict=True) if r in ("system", "developer"))
        self.schema: Any = None
        self.form = body.get("response_format") or {}
        if self.form.get("type") == "json_schema":
            self.schema = self.form["json_schema"]["schema"]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def write(make: Make | None, draw: Draw, fate: str) -> tuple[str, str]:
    """The content of an answer and its finish_reason."""
    if fate in ("refusal", "empty"):
        return "", "content_filter" if fate == "refusal" else "stop"
    if fate == "malformed":
        return "Here is what I think: " + draw.text(), "stop"
    text = draw.text() if make is None else orjson.dumps(make(draw, 0)).decode()
    return (text[: len(text) * 2 // 3], "length") if fate == "cut" else (text, "stop")


class SimulatedTeacher:
    """The simulated server as its own process, running from here until `stop` or the end of the `with` block.

    latency (s) is a median and sigma the spread of its logarithm; items is the length of new_instructions;
    key is the NAME of the environment variable with the key that clients must send (None: no key).
    RuntimeError when the server does not start or a control call is refused.
    """

    def __init__(
        self,
        *,
        latency: float = 0.2,
        sigma: float = 0.5,
        seed: int = 0,
        items: int = 10,
        key: str | None = None,
        response_words: int = 40,
        port: int = 0,
    ) -> None:
        command = [sys.executable, "-m", "benchmarks.server", f"--port={port}", f"--parent={os.getpid()}"]
        command += [f"--latency={latency}", f"--sigma={sigma}", f"--seed={seed}", f"--items={items}"]
        command += [f"--response-words={response_words}"] + ([f"--key={key}"] if key else [])
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.stop()
            raise RuntimeError("the simulated server did not start; its stderr says why")
        self.base_url = line.split()[-1]
        self.port = int(self.base_url.split(":")[2].split("/")[0])

    def __enter__(self) -> SimulatedTeacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What GET /stats answers: the counts since the start or the last reset."""
        return self._call("GET", "/stats")

    def reset(self) -> None:
        """Clear the counts, the digests of answered messages and the prefix cache; settings stay."""
        self._call("POST", "/reset")

    def control(self, **settings: Any) -> dict[str, Any]:
        """Set any fields of `benchmarks.simulated.Settings`; returns all settings then in force."""
        return self._call("POST", "/control", orjson.dumps(settings))

    def stop(self) -> None:
        """End the process; calling it again does nothing."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = orjson.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(answer["error"]["message"])
        return answer
