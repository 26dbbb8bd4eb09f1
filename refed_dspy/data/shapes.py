"""The shapes that references come in: which texts of a row are its system prompt, instruction and response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refed_dspy.config.base import Turns
from refed_dspy.errors import ConfigError, one_line

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


def check_roles(columns: Mapping[str, str], roles: Sequence[str]) -> None:
    """Raises ConfigError where `columns` names a column for what is none of `roles`."""
    if unknown := [role for role in columns if role not in roles]:
        raise ConfigError(f"columns: {one_line(unknown[0], 40)!r} is not one of {', '.join(roles)}")


def exchange_of(row: Mapping[str, Any], columns: Mapping[str, str], turns: Turns = "leave_out") -> Exchange:
    """The exchange of one row. `columns`: the names of its columns by their roles, where they differ.

    Raises:
        LeftOut: "multi-turn", "empty", "broken text", "unrecognised", or "no column NAME".
    """
    if (absent := next((name for name in columns.values() if name not in row), None)) is not None:
        raise LeftOut(f"no column {one_line(absent, 40)}")
    exchange = _found(row, columns, turns)
    columns_of_system: Sequence[str] = [columns["system"]] if "system" in columns else _SYSTEM_COLUMNS
    system = exchange.system or _text_in(row, columns_of_system)
    if not system and any(isinstance(row.get(name), list | dict) for name in columns_of_system):
        raise LeftOut("unrecognised")
    return replace(exchange, system=system, earlier=exchange.earlier or _text_in(row, _EARLIER)).checked()


def _found(row: Mapping[str, Any], columns: Mapping[str, str], turns: Turns) -> Exchange:
    if columns.keys() & {"instruction", "response"}:
        names = [columns.get(role, role) for role in ("instruction", "response", "input")]
        if names[0] not in row or names[1] not in row:
            raise LeftOut("unrecognised")
        return Exchange(_with_input(row, names[0], names[2:]), row[names[1]])
    for name in ("conversations", "messages"):
        if row.get(name) is not None:
            return _conversation(row[name], turns)
    if "instruction" in row and (instances := row.get("instances")) is not None:
        if not isinstance(instances, Sequence) or not instances or not isinstance(instances[0], Mapping):
            raise LeftOut("empty")
        instruction = _with_input({**instances[0], "instruction": row["instruction"]}, "instruction", _INPUTS)
        return Exchange(instruction, instances[0].get("output"))
    for asked, answers in _NAMES:
        if asked in row and (answer := next((name for name in answers if name in row), None)) is not None:
            return _named(row, asked, answer, _inputs(columns), turns)
    raise LeftOut("unrecognised")


def _inputs(columns: Mapping[str, str]) -> Sequence[str]:
    """The columns that may hold what an instruction is about."""
    return [columns["input"]] if "input" in columns else _INPUTS


def _named(row: Mapping[str, Any], asked: str, answer: str, inputs: Sequence[str], turns: Turns) -> Exchange:
    """The columns `asked` and `answer`: texts, or lists of messages, as TRL has them."""
    if _is_list(row[asked]) and _is_list(row[answer]):
        return _conversation([*row[asked], *row[answer]], turns)
    return Exchange(_with_input(row, asked, inputs), row[answer])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _with_input(row: Mapping[str, Any], instruction: str, inputs: Sequence[str]) -> Any:
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
        return _chosen(list(messages), [], turns)
    talk: list[Any] = []
    system: list[tuple[int, str]] = []
    for role, text in map(_role_and_text, messages):
        if role in _SYSTEM:
            if not isinstance(text, str):
                raise LeftOut("unrecognised")
            system.append((len(talk), text.strip()))
            continue
        if role not in (_ASSISTANT if len(talk) % 2 else _USER):
            raise LeftOut("unrecognised")
        talk.append(text)
    return _chosen(talk, system, turns)


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


def _chosen(texts: Sequence[Any], system: Sequence[tuple[int, str]], turns: Turns) -> Exchange:
    """One exchange of `texts` that a user and an assistant wrote in turn, and of the `system` prompts those that its
    answer follows, each with the number of texts before it."""
    if len(texts) < 2:
        raise LeftOut("empty")
    if turns == "leave_out" and len(texts) > 2:
        raise LeftOut("multi-turn")
    end = len(texts) - len(texts) % 2 if turns == "last" else 2  # without a last question that nobody answered
    *before, instruction, response = texts[:end]
    if not all(isinstance(text, str) for text in before):
        raise LeftOut("unrecognised")
    speakers = ("User", "Assistant")
    earlier = "\n\n".join(f"{speakers[place % 2]}: {text.strip()}" for place, text in enumerate(before))
    return Exchange(instruction, response, "\n\n".join(text for place, text in system if place < end), earlier)
