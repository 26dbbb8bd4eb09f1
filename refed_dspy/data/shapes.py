"""The shapes a reference comes in: which texts of a row are the instruction and the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "chatgpt", "bot", "model"}


class LeftOut(Exception):
    """This row is no reference; the message is the reason that is counted."""


def pair_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """(instruction, response) of one row, stripped.

    Raises:
        LeftOut: "multi-turn", "empty", or "unrecognised".
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
            return _turns(row[name])
    if "instruction" in row and (instances := row.get("instances")) is not None:
        if not isinstance(instances, Sequence) or not instances or not isinstance(instances[0], Mapping):
            raise LeftOut("empty")
        return _with_input({**instances[0], "instruction": row["instruction"]}), instances[0].get("output")
    for name in ("response", "output"):
        if "instruction" in row and name in row:
            return _with_input(row), row[name]
    raise LeftOut("unrecognised")


def _with_input(row: Mapping[str, Any], instruction: str = "instruction", given: str = "input") -> Any:
    text, extra = row.get(instruction), row.get(given)
    if isinstance(text, str) and isinstance(extra, str) and extra.strip():
        return f"{text.strip()}\n\n{extra.strip()}"
    return text


def _turns(turns: Any) -> tuple[Any, Any]:
    """The one exchange of a conversation: plain strings (LIMA), from/value (ShareGPT) or role/content (OpenAI)."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise LeftOut("unrecognised")
    if turns and all(isinstance(turn, str) for turn in turns):
        return _one_exchange(list(turns))
    said = [_said(turn) for turn in turns]
    said = [turn for turn in said if turn[0] != "system"]
    texts = [text for _, text in said]
    if len(said) == 2 and (said[0][0] not in _USER or said[1][0] not in _ASSISTANT):
        raise LeftOut("unrecognised")
    return _one_exchange(texts)


def _said(turn: Any) -> tuple[str, Any]:
    if not isinstance(turn, Mapping):
        raise LeftOut("unrecognised")
    return str(turn.get("role", turn.get("from", ""))).lower(), turn.get("content", turn.get("value"))


def _one_exchange(texts: Sequence[Any]) -> tuple[Any, Any]:
    if len(texts) > 2:
        raise LeftOut("multi-turn")
    if len(texts) < 2:
        raise LeftOut("empty")
    return texts[0], texts[1]
