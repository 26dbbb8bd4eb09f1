"""Reading references: from a file, the Hub, a `datasets.Dataset` or a list, in the shapes that such data has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, overload

from refed_dspy.config.base import PAIR, Turns
from refed_dspy.config.keywords import checked
from refed_dspy.data.read import BUILTIN, names_references, rows_of
from refed_dspy.data.shapes import LeftOut, check_roles, exchange_of
from refed_dspy.errors import ConfigError, ReferencesError, briefly, one_line
from refed_dspy.ledger.statements import text_digest
from refed_dspy.records import Reference
from refed_dspy.text import Shown

# A cautious guess, for any tokenizer: English runs at 4 to 5 characters a token, code and other scripts below it.
CHARACTERS_PER_TOKEN = 3
NAME_COLUMNS = "name the right ones in a --config file, or in Python: `columns: {instruction: …, response: …}`"
PROMPT_TOKENS = 600
"""Room left for a stage's prompt text."""


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


def refuse_references(value: Any, name: str) -> None:
    """Raises ConfigError where references stand in the place of `name`, which is the first argument: it says what to
    write instead."""
    if isinstance(value, str | Path):
        if names_references(value):
            raise ConfigError(f"{name}: {one_line(value, 100)} is read as references; write references={str(value)!r}")
    elif isinstance(value, References) or hasattr(value, "column_names") or hasattr(value, "columns"):
        raise ConfigError(f"{name}: a {type(value).__name__} holds references; write references=…")
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping | tuple | Reference):
        raise ConfigError(f"{name}: a {type(value).__name__} of rows is read as references; write references=[…]")


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
    """The message about a source without a usable row; `columns` are those of a row that was not recognised."""
    if not left_out:
        return f"{name}: no rows; write one instruction and its response per row"
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    hint = "; set turns to first or last to learn from one exchange of each" if "multi-turn" in left_out else ""
    if any(reason == "unrecognised" or reason.startswith("no column") for reason in left_out):
        names = one_line(", ".join(map(str, columns)), 200)
        hint = f"; its columns are {names}; {NAME_COLUMNS}"
    return f"{name}: no usable row ({reasons}){hint}"
