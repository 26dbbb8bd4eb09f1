"""The shapes of a reference: which texts of a row are its instruction and response, and what they stand under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refed_dspy.config.base import Turns

_SYSTEM = {"system", "developer"}
_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "chatgpt", "bot", "model"}
_NAMES = (
    ("instruction", ("response", "output")),
    ("prompt", ("completion", "response")),
    ("question", ("answer", "response")),
)
"""Columns of an instruction → those of its response, as data sets name them."""
_INPUTS = ("input", "context")
"""Columns of a text that an instruction is about, as Alpaca and Dolly name them."""
_SYSTEM_COLUMNS = ("system", "system_prompt")
_EARLIER = ("earlier",)
"""The turns before an exchange, where a `Reference` is read as a row."""


class LeftOut(Exception):
    """This row is not a reference. The message is the reason under which it is counted."""


@dataclass(frozen=True)
class Exchange:
    """An instruction and its response, the system prompt that they stand under, and the turns before them; "" where
    there are none."""

    instruction: Any
    response: Any
    system: Any = ""
    earlier: Any = ""

    def checked(self) -> Exchange:
        """The same, stripped. Raises LeftOut: "empty", "broken text" or "unrecognised"."""
        texts = [self.instruction, self.response, self.system or "", self.earlier or ""]
        if not all(isinstance(text, str) for text in texts):
            raise LeftOut("empty" if self.instruction is None or self.response is None else "unrecognised")
        instruction, response, system, earlier = (text.strip() for text in texts)
        if not instruction or not response:
            raise LeftOut("empty")
        try:
            f"{instruction}{response}{system}{earlier}".encode()
        except UnicodeEncodeError:  # a lone surrogate: no provider can receive it
            raise LeftOut("broken text") from None
        return Exchange(instruction, response, system, earlier)


def exchange_of(row: Mapping[str, Any], columns: Mapping[str, str], turns: Turns = "leave_out") -> Exchange:
    """The exchange of one row.

    Raises:
        LeftOut: "multi-turn", "empty", "broken text" or "unrecognised".
    """
    exchange = _found(row, columns, turns)
    system, earlier = exchange.system or _text_in(row, _SYSTEM_COLUMNS), exchange.earlier or _text_in(row, _EARLIER)
    return replace(exchange, system=system, earlier=earlier).checked()


def _found(row: Mapping[str, Any], columns: Mapping[str, str], turns: Turns) -> Exchange:
    if columns:
        names = [columns.get("instruction", "instruction"), columns.get("response", "response")]
        if any(name not in row for name in names):
            raise LeftOut("unrecognised")
        return Exchange(_with_input(row, names[0], [columns.get("input", "input")]), row[names[1]])
    for name in ("conversations", "messages"):
        if row.get(name) is not None:
            return _conversation(row[name], turns)
    if "instruction" in row and (instances := row.get("instances")) is not None:
        if not isinstance(instances, Sequence) or not instances or not isinstance(instances[0], Mapping):
            raise LeftOut("empty")
        instruction = _with_input({**instances[0], "instruction": row["instruction"]})
        return Exchange(instruction, instances[0].get("output"))
    for asked, answers in _NAMES:
        if asked in row and (answer := next((name for name in answers if name in row), None)) is not None:
            return _named(row, asked, answer, turns)
    raise LeftOut("unrecognised")


def _named(row: Mapping[str, Any], asked: str, answer: str, turns: Turns) -> Exchange:
    """The columns `asked` and `answer`: texts, or lists of messages, as TRL has them."""
    if _is_list(row[asked]) and _is_list(row[answer]):
        return _conversation([*row[asked], *row[answer]], turns)
    return Exchange(_with_input(row, asked), row[answer])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _with_input(row: Mapping[str, Any], instruction: str = "instruction", inputs: Sequence[str] = _INPUTS) -> Any:
    text, extra = row.get(instruction), _text_in(row, inputs)
    return f"{text.strip()}\n\n{extra.strip()}" if isinstance(text, str) and extra else text


def _text_in(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The first of these columns that has a text; empty where none has."""
    return next((row[name] for name in columns if isinstance(row.get(name), str) and row[name].strip()), "")


def _conversation(messages: Any, turns: Turns) -> Exchange:
    """One exchange of a conversation: plain strings (LIMA), from/value (ShareGPT) or role/content (OpenAI)."""
    if not _is_list(messages):
        raise LeftOut("unrecognised")
    if messages and all(isinstance(message, str) for message in messages):
        return _chosen(list(messages), "", turns)
    said = [_role_and_text(message) for message in messages]
    system = [text for role, text in said if role in _SYSTEM]
    if not all(isinstance(text, str) for text in system):
        raise LeftOut("unrecognised")
    talk = [(role, text) for role, text in said if role not in _SYSTEM]
    for place, (role, _) in enumerate(talk):
        if role not in (_ASSISTANT if place % 2 else _USER):
            raise LeftOut("unrecognised")
    return _chosen([text for _, text in talk], "\n\n".join(text.strip() for text in system), turns)


def _role_and_text(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise LeftOut("unrecognised")
    role, content = message.get("role", message.get("from", "")), message.get("content", message.get("value"))
    if _is_list(content) and content and all(isinstance(part, Mapping) and _text_of(part) for part in content):
        content = "\n\n".join(map(_text_of, content))
    return str(role).lower(), content


def _text_of(part: Mapping[str, Any]) -> str:
    """The text of a part of a message in OpenAI's form; empty for another part."""
    text = part.get("text")
    return text if part.get("type") == "text" and isinstance(text, str) else ""


def _chosen(texts: Sequence[Any], system: str, turns: Turns) -> Exchange:
    """One exchange of texts that a user and an assistant wrote in turn."""
    if len(texts) < 2:
        raise LeftOut("empty")
    if len(texts) == 2 or turns == "first":
        return Exchange(texts[0], texts[1], system)
    if turns == "leave_out":
        raise LeftOut("multi-turn")
    whole = texts[: len(texts) - len(texts) % 2]  # without a last question that nobody answered
    *before, instruction, response = whole
    if not all(isinstance(text, str) for text in before):
        raise LeftOut("unrecognised")
    speakers = ("User", "Assistant")
    earlier = "\n\n".join(f"{speakers[place % 2]}: {text.strip()}" for place, text in enumerate(before))
    return Exchange(instruction, response, system, earlier)
