"""The text that the simulated server writes: values that fit a JSON schema, made of plain words."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.simulated import Settings
from benchmarks.tokenizers import Tokenizer

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
# Every word is one token of o200k_base. So is its capitalised form, except for these.
SPLIT = """
alone arrive autumn candle climb coast decide evening farmer forty gentle grain happen harbor honest hundred jacket
ladder larger longer narrow needle pencil plenty potato remain sister soften steady supper timber toward valley wagon
wooden
""".split()  # noqa: SIM905
STARTS = [word.capitalize() for word in WORDS if word not in SPLIT]
# Text is assembled from ready-made phrases of eight words, which is far cheaper than drawing every word. There are
# few enough of them to stay in the processor's cache.
_phrase_rng = random.Random(1)
PHRASES = [" ".join(_phrase_rng.sample(WORDS, 8)) for _ in range(1024)]
DEEP = 5  # from this nesting on optional properties are left out, so that recursive schemas end

Make = Callable[["Draw", int], Any]


@dataclass
class Blank:
    """A text that is still to be written, after a label; it must have least..most characters."""

    label: str
    least: int
    most: int
    text: str = ""


class Draw:
    """The source of one answer: a generator (shared, seeded here), the settings in force, and the numbers (each
    written after `tag`) that the items of new_instructions get. Every text begins with the signature in force."""

    rng = random.Random()

    def __init__(self, seed: int, settings: Settings, serial: Iterator[int], tokens: Tokenizer, tag: str = "") -> None:
        self.rng.seed(seed)
        self.settings = settings
        self.tokens = tokens
        self.fields = settings.field_tokens
        self.blanks: list[Blank] | None = None  # collected while a field of a fixed size is written
        self.serial = serial
        self.tag = tag
        self.prefix = f"{settings.signature} " if settings.signature else ""
        self.label = self.prefix
        phrases, self.words = divmod(settings.response_words, 8)
        self.shifts = range(0, 10 * phrases, 10)

    def text(self, least: int = 0, most: int = sys.maxsize) -> Any:
        """response_words plain words, after the label in a numbered item, of least..most characters. Within `sized`, a
        Blank for them."""
        if self.blanks is not None:
            self.blanks.append(Blank(self.label, least, most))
            return self.blanks[-1]
        bits = self.rng.getrandbits(self.shifts.stop)
        phrases = [PHRASES[bits >> shift & 1023] for shift in self.shifts]
        if self.words:
            phrases += self.rng.choices(WORDS, k=self.words)
        text = self.label + " ".join(phrases)
        return text if least <= len(text) <= most else bounded(text, least, most)

    def sized(self, make: Make, depth: int, tokens: int) -> Any:
        """A value whose texts have `tokens` tokens together, divided evenly."""
        self.blanks = blanks = list[Blank]()
        value = make(self, depth)
        self.blanks = None
        for place, blank in enumerate(blanks):
            share = tokens // len(blanks) + (place < tokens % len(blanks))
            blank.text = bounded(self.tokens.fitted(blank.label, share, self.prose), blank.least, blank.most)
        return filled(value)

    def prose(self, tokens: int) -> str:
        """Sentences of `tokens` tokens of o200k_base (rather more than four characters each)."""
        made: list[str] = []
        while tokens:
            size = min(tokens, self.rng.randint(9, 18))
            if tokens - size < 5:
                size = tokens
            words = [self.rng.choice(STARTS), *self.rng.choices(WORDS, k=max(size - 2, 1))]
            if size > 8:  # one word less, for the comma
                words[4:6] = [f"{words[4]},"]
            made.append(" ".join(words[:size]) + "." * (size > 2))
            tokens -= size
        return " ".join(made)

    def numbered(self, make: Make, depth: int, earlier: deque[Any]) -> list[Any]:
        """Exactly `items` values, whatever minItems and maxItems say. Each has its own number, except for the fraction
        `duplicates` that repeats an earlier value."""
        made: list[Any] = []
        tokens = self.fields.get("new_instructions")
        for _ in range(self.settings.items):
            if earlier and self.settings.duplicates and self.rng.random() < self.settings.duplicates:
                made.append(self.rng.choice(earlier))
                continue
            self.label = f"{self.prefix}Task {self.tag}{next(self.serial)}: "
            made.append(self.sized(make, depth + 1, tokens) if tokens else make(self, depth + 1))
            self.label = self.prefix
            earlier.append(made[-1])
        return made


def bounded(text: str, least: int, most: int) -> str:
    return text if least <= len(text) <= most else text[:most].rstrip().ljust(least, "x")


def filled(value: Any) -> Any:
    """The value with every Blank replaced by its text."""
    if isinstance(value, Blank):
        return value.text
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    return [filled(item) for item in value] if isinstance(value, list) else value


class SchemaWriter:
    """Turns a JSON schema into a function that writes a value fitting it.

    Understands $ref, const, enum, anyOf, oneOf, allOf (its first schema), type, properties, required,
    additionalProperties, items, minItems, maxItems, minLength, maxLength and the bounds of numbers.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.refs: dict[tuple[str, bool], Make] = {}

    def build(self, schema: Any, numbered: bool = False) -> Make:
        """The writer for one (sub)schema. Raises KeyError, TypeError or ValueError if it makes no sense."""
        if not isinstance(schema, dict):
            schema = {}
        if "$ref" in schema:
            return self.reference(schema["$ref"], numbered)
        if "const" in schema or "enum" in schema:
            allowed = schema.get("enum") or [schema["const"]]
            return lambda draw, _: draw.rng.choice(allowed)
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf", [])[:1]
        if isinstance(kind, list) and not options:
            options = [{**schema, "type": name} for name in kind]
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
            self.refs[key] = lambda *_: None  # a placeholder while a recursive schema is walked
            self.refs[key] = self.build(node, numbered)
        return lambda draw, depth: self.refs[key](draw, depth)

    def either(self, options: list[Any], numbered: bool) -> Make:
        if numbered:
            options = [option for option in options if option.get("type") == "array"] or options
        makes = [self.build(option, numbered) for option in options]
        nested = ("$ref" in option or option.get("type") in ("object", "array") for option in options)
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

        def write_top(draw: Draw) -> dict[str, Any]:
            sizes = {key: size for key, size in draw.fields.items() if key != "new_instructions"}
            return {
                key: draw.sized(make, 1, sizes[key]) if key in sizes else make(draw, 1) for key, make in makes.items()
            }

        def write_object(draw: Draw, depth: int) -> dict[str, Any]:
            if depth == 0 and draw.fields:
                return write_top(draw)
            return {key: make(draw, depth + 1) for key, make in (makes if depth < DEEP else needed).items()}

        return write_object

    def array(self, schema: dict[str, Any], numbered: bool) -> Make:
        item = self.build(schema.get("items"))
        if numbered:
            earlier: deque[Any] = deque(maxlen=256)
            return lambda draw, depth: draw.numbered(item, depth, earlier)
        least = schema.get("minItems", 0)
        many = max(least, min(2, schema.get("maxItems", 2)))
        return lambda draw, depth: [item(draw, depth + 1) for _ in range(many if depth < DEEP else least)]

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


def write(make: Make | None, draw: Draw, fate: str, most: int | None, tokens: Tokenizer) -> tuple[str, str, int]:
    """The content of an answer (at most `most` tokens), OpenAI's finish_reason for it, and its token count."""
    if fate in ("refusal", "empty"):
        return "", "content_filter" if fate == "refusal" else "stop", 0
    if fate == "malformed":
        text = f"{draw.prefix}Here is what I think: {draw.text().removeprefix(draw.prefix)}"
    else:
        text = draw.text() if make is None else orjson.dumps(make(draw, 0)).decode()
    reason = "stop"
    if fate == "cut":
        text, reason = text[: len(text) * 2 // 3], "length"
    kept, count = tokens.limit(text, most)
    return kept, reason if len(kept) == len(text) else "length", count


_SKETCH = re.compile(r"^JSON:\n(\{.*\})$", re.MULTILINE)
_TYPE = re.compile(r"(?<=[:\[])(string|integer|number|boolean)\b")
_CHOICE = re.compile(r'"[^"]*"(?: \| "[^"]*")+')


def sketched(prompt: str) -> dict[str, Any] | None:
    """The schema that a prompt sketches in words, {"notes":[string]}; None where it sketches none."""
    found = _SKETCH.search(prompt)
    if found is None:
        return None
    choices = _CHOICE.sub(lambda match: f'{{"enum":[{match[0].replace(" | ", ",")}]}}', found[1])
    return _of_sketch(orjson.loads(_TYPE.sub(r'{"type":"\1"}', choices)))


def _of_sketch(part: Any) -> dict[str, Any]:
    if isinstance(part, list):
        return {"type": "array", "items": _of_sketch(part[0])}
    if part.keys() & {"type", "enum"}:
        return dict(part)
    return {"type": "object", "properties": {name: _of_sketch(value) for name, value in part.items()}}
