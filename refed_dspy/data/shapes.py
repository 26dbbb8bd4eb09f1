"""The shapes of a reference: which texts of a row are the instruction and the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "chatgpt", "bot", "model"}


class LeftOut(Exception):
    """This row is not a reference. The message is the reason under which it is counted."""


def pair_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """(instruction, response) of one row, stripped.

    Raises:
        LeftOut: "multi-turn", "empty", "broken text" or "unrecognised".
    """
    instruction, response = _texts(row, columns)
    if not isinstance(instruction, str) or not isinstance(response, str):
        raise LeftOut("empty" if instruction is None or response is None else "unrecognised")
    if not instruction.strip() or not response.strip():
        raise LeftOut("empty")
    try:
        f"{instruction}{response}".encode()
    except UnicodeEncodeError:  # a lone surrogate: no provider can receive it
        raise LeftOut("broken text") from None
    return instruction.strip(), response.strip()


def _texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Any, Any]:
    if columns:
        names = [columns.get("instruction", "instruction"), columns.get("response", "response")]
        if any(name not in row for name in names):
            raise LeftOut("unrecognised")
        return _with_input(row, names[0], columns.get("input", "input")), row[names[1]]
    for name in ("conversations", "messages"):
        if row.get(name) is not None:
            return _conversation(row[name])
    if "instruction" in row and (instances := row.get("instances")) is not None:
        if not isinstance(instances, Sequence) or not instances or not isinstance(instances[0], Mapping):
            raise LeftOut("empty")
        return _with_input({**instances[0], "instruction": row["instruction"]}), instances[0].get("output")
    for name in ("response", "output"):
        if "instruction" in row and name in row:
            return _with_input(row), row[name]
    raise LeftOut("unrecognised")


def _with_input(row: Mapping[str, Any], instruction: str = "instruction", input_: str = "input") -> Any:
    text, extra = row.get(instruction), row.get(input_)
    if isinstance(text, str) and isinstance(extra, str) and extra.strip():
        return f"{text.strip()}\n\n{extra.strip()}"
    return text


def _conversation(messages: Any) -> tuple[Any, Any]:
    """The only two messages of a conversation: plain strings (LIMA), from/value (ShareGPT) or role/content (OpenAI).
    System messages do not count."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise LeftOut("unrecognised")
    if messages and all(isinstance(message, str) for message in messages):
        return _pair(list(messages))
    roles_and_texts = [(role, text) for role, text in map(_role_and_text, messages) if role != "system"]
    roles = [role for role, _ in roles_and_texts]
    if len(roles) == 2 and (roles[0] not in _USER or roles[1] not in _ASSISTANT):
        raise LeftOut("unrecognised")
    return _pair([text for _, text in roles_and_texts])


def _role_and_text(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise LeftOut("unrecognised")
    role = message.get("role", message.get("from", ""))
    return str(role).lower(), message.get("content", message.get("value"))


def _pair(texts: Sequence[Any]) -> tuple[Any, Any]:
    if len(texts) > 2:
        raise LeftOut("multi-turn")
    if len(texts) < 2:
        raise LeftOut("empty")
    return texts[0], texts[1]
