"""Whether a ledger's file is whole: its pages, its tables and columns, the type of every value, and what it remembers
of the work. A file that was damaged, or changed by hand into what nobody wrote, is found here and not as an error later.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

MOST = 2**62
"""No whole number of a ledger is as large."""
LATEST = 1e11
"""No fraction of a ledger, a time in seconds say, is as large."""


A, B = TypeVar("A"), TypeVar("B")
_Pair = Annotated[tuple[A, B], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""JSON has lists only."""


@with_config(ConfigDict(extra="allow"))
class _Model(TypedDict):
    model: str
    endpoint: NotRequired[str | None]
    config: NotRequired[dict[str, Any] | None]
    weight: NotRequired[float]


class _First(TypedDict):
    cost: float
    calls: float
    spent: float
    all_calls: float


@with_config(ConfigDict(extra="allow"))
class _Identity(TypedDict, total=False):
    kind: str
    references: str
    program: dict[str, str]
    instructions_per_feature: int
    features: list[str]
    teacher: _Model | list[_Model] | dict[str, Any]
    judge: dict[str, Any]
    seed: int
    examples: dict[str, Any]


@with_config(ConfigDict(extra="allow"))
class _About(TypedDict, total=False):
    name: str
    models: dict[str, _Model]
    options: dict[str, Any]
    examples: str
    source: str
    sets: dict[str, _Pair[str, int]]


_Members = dict[str, list[_Model]]
_META: Mapping[str, Any] = {
    "identity": _Identity,
    "work": str,
    "size": int | None,
    "teacher": _Model | None,
    "judge": _Model | None,
    "pools": _Members | None,
    "asked_teachers": list[_Model] | None,
    "rates": list[int] | None,
    "program": dict[str, Any] | None,
    "program_source": dict[str, Any] | None,
    "features": dict[str, str] | None,
    "filters": list[_Pair[str, dict[str, Any]]] | None,
    "left_out": dict[str, int] | None,
    "final_stage": str | None,
    "price_source": str | None,
    "stopped": str | None,
    "judge_program": str | None,
    "reuse": str | None,
    "track": bool | None,
    "seed": int | None,
    "per_reference": int | None,
    "max_failure_share": float | None,
    "max_cost": float | None,
    "max_calls": int | None,
    "max_minutes": float | None,
    "about": _About | None,
    "outcome": dict[str, Any] | None,
    "first": _First | None,
}
"""What each value of the table `meta` is."""


def schema() -> str:
    """The SQL that makes the tables."""
    return files("refed_dspy.ledger").joinpath("schema.sql").read_text(encoding="utf-8")


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError, with what is wrong, for a file that is damaged."""
    db.execute("BEGIN")  # one snapshot: another process may be writing
    try:
        (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
        for table, (columns, fault) in _tables().items():
            if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
                raise sqlite3.DatabaseError(f"table {table} is missing, or has other columns")
            if fault and db.execute(f"SELECT 1 FROM {table} WHERE {fault} LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"table {table} holds a value that cannot be")
        if (row := db.execute("PRAGMA foreign_key_check").fetchone()) is not None:
            raise sqlite3.DatabaseError(f"a row of {row[0]} belongs to no row of {row[2]}")
        _check_meta(db)
    finally:
        db.execute("ROLLBACK")


def _check_meta(db: sqlite3.Connection) -> None:
    for name, value in db.execute("SELECT name, value FROM meta"):
        try:
            TypeAdapter(_META.get(name, Any)).validate_python(json.loads(value), strict=True)
        except (ValueError, RecursionError):
            raise sqlite3.DatabaseError(f"meta {name!r} is damaged") from None


@cache
def _tables() -> dict[str, tuple[list[str], str]]:
    """Table or view → its columns, and the SQL condition that no row of the table meets."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema())
        names = db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        tables = {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name, _ in names}
    views = {name for name, kind in names if kind == "view"}
    return {
        name: ([row[1] for row in rows], "" if name in views else " OR ".join(_fault(name, *row[1:]) for row in rows))
        for name, rows in tables.items()
    }


_KINDS = {"TEXT": "text", "BLOB": "blob", "INTEGER": "integer", "REAL": "real"}


def _fault(table: str, column: str, kind: str, not_null: int, _: Any, key: int) -> str:
    """The SQL condition that a value of `column` cannot be."""
    fault = f"typeof({column}) <> '{_KINDS[kind]}'"
    if kind == "INTEGER":
        fault += f" OR {column} NOT BETWEEN 0 AND {MOST}"
    elif kind == "REAL":
        fault += f" OR abs({column}) > {LATEST}"
    if (table, column) == ("refs", "record"):
        fault += f" OR NOT json_valid({column})"
    if (table, column) == ("instructions", "reference"):
        fault += f" OR {column} NOT IN (SELECT position FROM refs)"
    return f"({fault})" if not_null or key else f"({column} IS NOT NULL AND ({fault}))"
