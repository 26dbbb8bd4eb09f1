"""Reading references: from a file, the Hub, a `datasets.Dataset` or a list, in the shapes that such data has:
which texts of a row are its system prompt, instruction and response."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, overload

from refed_dspy.config.base import PAIR, Turns
from refed_dspy.config.keywords import checked
from refed_dspy.data.read import BUILTIN, rows_of
from refed_dspy.errors import ConfigError, ReferencesError, briefly, one_line
from refed_dspy.ledger.statements import text_digest
from refed_dspy.records import Reference
from refed_dspy.text import Shown

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
# A cautious guess, for any tokenizer: English runs at 4 to 5 characters a token, code and other scripts below it.
CHARACTERS_PER_TOKEN = 3
NAME_COLUMNS = "name the right ones in a --config file, or in Python: `columns: {instruction: …, response: …}`"
PROMPT_TOKENS = 600
"""Room left for a stage's prompt text."""


class LeftOut(Exception):
    """This row is not a reference. The message is the reason under which it is counted."""


class Unrecognised(LeftOut):
    """Its columns do not tell what it holds."""

    def __init__(self, reason: str = "unrecognised") -> None:
        super().__init__(reason)


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
            raise LeftOut("empty") if self.instruction is None or self.response is None else Unrecognised
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
        raise Unrecognised(f"no column {one_line(absent, 40)}")
    exchange = _found(row, columns, turns)
    columns_of_system: Sequence[str] = [columns["system"]] if "system" in columns else _SYSTEM_COLUMNS
    system = exchange.system or _text_in(row, columns_of_system)
    if not system and any(isinstance(row.get(name), list | dict) for name in columns_of_system):
        raise Unrecognised
    return replace(exchange, system=system, earlier=exchange.earlier or _text_in(row, _EARLIER)).checked()


def _found(row: Mapping[str, Any], columns: Mapping[str, str], turns: Turns) -> Exchange:
    if columns.keys() & {"instruction", "response"}:
        names = [columns.get(role, role) for role in ("instruction", "response", "input")]
        if names[0] not in row or names[1] not in row:
            raise Unrecognised
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
    raise Unrecognised


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
        raise Unrecognised
    if messages and all(isinstance(message, str) for message in messages):
        return _chosen(list(messages), [], turns)
    talk: list[Any] = []
    system: list[tuple[int, str]] = []
    for role, text in map(_role_and_text, messages):
        if role in _SYSTEM:
            if not isinstance(text, str):
                raise Unrecognised
            system.append((len(talk), text.strip()))
            continue
        if role not in (_ASSISTANT if len(talk) % 2 else _USER):
            raise Unrecognised
        talk.append(text)
    return _chosen(talk, system, turns)


def _role_and_text(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise Unrecognised
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
        raise Unrecognised
    speakers = ("User", "Assistant")
    earlier = "\n\n".join(f"{speakers[place % 2]}: {text.strip()}" for place, text in enumerate(before))
    return Exchange(instruction, response, "\n\n".join(text for place, text in system if place < end), earlier)


@dataclass(frozen=True, repr=False)
class References(Shown, Sequence[Reference]):
    """The usable references in their order, and how many rows were left out, by reason."""

    items: tuple[Reference, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Reference: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Reference]: ...
    def __getitem__(self, index: int | slice) -> Reference | Sequence[Reference]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def _describe(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{len(self)}" + (f", left out: {left_out}" if left_out else "")

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return ("instruction", "response"), ((each.instruction, each.response) for each in self.items)

    def fitting(self, window: int | None, max_tokens: int) -> References:
        """Those that leave room for the prompt and an answer of `max_tokens` in a window of `window` tokens.

        Raises:
            ReferencesError: none does.
        """
        if window is None:
            return self
        room = (window - max_tokens - PROMPT_TOKENS) * CHARACTERS_PER_TOKEN
        kept = tuple(r for r in self.items if len(r.shown) + len(r.response) <= room)
        left_out = Counter(self.left_out)
        left_out["too long"] += len(self.items) - len(kept)
        if not kept:
            raise ReferencesError(
                f"references: none fits the teacher's context window of {window} tokens with max_tokens {max_tokens}; "
                "raise context_window or lower max_tokens"
            )
        return References(kept, {k: v for k, v in left_out.items() if v})


@briefly
@checked
def load_references(
    source: Any = BUILTIN, columns: Mapping[str, str] | None = None, turns: Turns = "leave_out"
) -> References:
    """The references of `source`.

    Args:
        source: a local JSONL, JSON, CSV or Parquet file; a Hub data set's name (`GAIR/lima`); a `datasets.Dataset`, or
            a `DatasetDict` of one split; a data frame; a list of mappings, (instruction, response) pairs,
            `dspy.Example`s or `Reference`s; or `builtin` or `builtin-short`, those of the package.
        columns: column names that differ from the usual ones: {"instruction": "task", "response": "solution"}; `input`
            and `system` are possible, too.
        turns: for conversations of several exchanges: `first`, `last` (with the earlier ones as context) or
            `leave_out`.

    Multi-turn rows, empty ones and duplicates are left out and counted in `.left_out`.

    Raises:
        ConfigError: `turns` has an unknown value or `columns` an unknown key.
        ReferencesError: it cannot be read, or has no usable row; one line names file, row and remedy.
    """
    if isinstance(source, References):
        if columns or turns != "leave_out":
            raise ConfigError(f"{'columns' if columns else 'turns'}: these references are read already; remove it")
        return source
    if turns not in get_args(Turns):
        raise ConfigError(f"turns: {one_line(turns, 40)!r} is not one of {', '.join(get_args(Turns))}")
    check_roles(columns or {}, PAIR)
    name, rows = rows_of(source, "references")
    kept: dict[bytes, Reference] = {}
    left_out: Counter[str] = Counter()
    seen: list[str] = []
    for number, row in rows:
        try:
            reference = _reference(row, columns, turns, f"{name} row {number}")
        except LeftOut as reason:
            left_out[str(reason)] += 1
            if isinstance(reason, Unrecognised):
                seen = seen or list(row)[:12]
            continue
        key = text_digest(f"{reference.shown}\0{reference.response}")
        if key in kept:
            left_out["duplicate"] += 1
        else:
            kept[key] = reference
    if not kept:
        raise ReferencesError(none_usable(name, left_out, seen))
    return References(tuple(kept.values()), dict(left_out))


def _reference(row: Mapping[str, Any], columns: Mapping[str, str] | None, turns: Turns, where: str) -> Reference:
    found, source = exchange_of(row, columns or {}, turns), row.get("source")
    rare = {name: text for name in ("system", "earlier") if (text := getattr(found, name))}
    return Reference(
        instruction=found.instruction,
        response=found.response,
        source=source if isinstance(source, str) and re.search(r" row \d+$", source) else where,
        **rare,
    )


def none_usable(name: str, left_out: Counter[str], columns: list[str]) -> str:
    """The message about a source without a usable row; `columns`: those of a row that was not recognised, if any."""
    if not left_out:
        return f"{name}: no rows; write one instruction and its response per row"
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    hint = "; set turns to first or last to learn from one exchange of each" if "multi-turn" in left_out else ""
    if columns:
        names = one_line(", ".join(map(str, columns)), 200)
        hint = f"; its columns are {names}; {NAME_COLUMNS}"
    return f"{name}: no usable row ({reasons}){hint}"
